//! `tidegate plan`: says before training what a step will take, and what a budget costs.
//!
//! Flow: a profile or layers as JSON -> `plan::training` -> words, a table, JSON, a page with
//! plots.
//! Memory: the tables of the planner, outside of any budget: for planning, not for training.
#![expect(clippy::print_stdout, reason = "a command line prints")]

use std::path::PathBuf;

use clap::Args;
use tidegate_core::memory::size::{counted, mib};
use tidegate_data::{Error, Result};
use tidegate_plan::training::parallel::{Cluster, Way, compare};
use tidegate_plan::training::profile::{Model, Profile};
use tidegate_plan::training::step::{Limits, Planner, Point, StepPlan};

use super::format::parse_bytes;
use crate::html::{append, escape, ticks};

#[derive(Debug, Args)]
pub(super) struct Plan {
    /// A profile that `tidegate.torch` wrote, or a model by its layers, as JSON.
    model: PathBuf,
    /// Memory of the step, as in 8GiB.
    #[arg(long)]
    memory: String,
    /// Samples of a step; by default those of the profile.
    #[arg(long)]
    batch: Option<u64>,
    /// The most micro-batches; by default 1 under batch normalization, and else any.
    #[arg(long)]
    micro_batches: Option<u64>,
    /// Let the optimizer step within backward, where that is possible.
    #[arg(long)]
    fused: bool,
    /// Compare ways to divide the step among this number of devices.
    #[arg(long, requires = "link", conflicts_with = "html")]
    devices: Option<u64>,
    /// Bytes that a device sends in a second, as in 25GB.
    #[arg(long, requires = "devices")]
    link: Option<String>,
    /// Tflop that a device computes in a second, for a model by its layers.
    #[arg(long, requires = "devices")]
    speed: Option<f64>,
    /// Say what each layer takes as sums, for a model by its layers.
    #[arg(long, conflicts_with_all = ["json", "devices"])]
    sums: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Write an HTML page with plots.
    #[arg(long)]
    html: Option<PathBuf>,
}

/// An error of the planner, as one of the command line.
fn wrong(error: &tidegate_plan::Error) -> Error {
    Error::Config(error.to_string())
}

impl Plan {
    pub(super) fn run(&self) -> Result<()> {
        let memory = parse_bytes(&self.memory)?;
        let profile = self.profile()?;
        let limits = Limits { micro_batches: self.micro_batches, fused: self.fused, ..Limits::default() };
        let batch = self.batch.unwrap_or(profile.batch);
        if let (Some(devices), Some(link)) = (self.devices, &self.link) {
            return self.compare(&profile.scaled(batch).map_err(|e| wrong(&e))?, devices, link, limits);
        }
        let name = if profile.name.is_empty() { "the model".to_owned() } else { profile.name.clone() };
        let planner = Planner::new(profile, batch, limits).map_err(|e| wrong(&e))?;
        let plan = planner.plan(memory).map_err(|e| wrong(&e))?;
        let curve = planner.curve().map_err(|e| wrong(&e))?;
        if let Some(path) = &self.html {
            std::fs::write(path, page(&name, batch, &plan, &curve)).map_err(Error::io(path))?;
        }
        if self.json {
            return print_json(&plan);
        }
        if self.sums {
            println!("{}", self.sums(batch)?);
        }
        println!("{name}, {}", counted(batch, "sample"));
        println!("{}", plan.text());
        println!("\n{:>14}  {:>9}  {:>13}", "memory, MiB", "time", "micro-batches");
        for point in chosen(&curve) {
            let time = over(point.time, plan.plain_time);
            println!("{:>14}  {:>8.3}x  {:>13}", mib(point.memory_bytes), time, point.micro_batches);
        }
        println!("time: against the step that has all the memory it can use");
        Ok(())
    }

    /// Compares ways to divide the step; all times are in seconds.
    fn compare(&self, profile: &Profile, devices: u64, link: &str, limits: Limits) -> Result<()> {
        let speed = match (profile.time_unit.as_str(), self.speed) {
            ("Tflop", None) => {
                let what = "the times of a model by its layers are Tflop: say with --speed what a device computes \
                            in a second, as in --speed 100";
                return Err(Error::Config(what.into()));
            }
            ("Tflop", Some(speed)) if speed > 0.0 && speed.is_finite() => speed,
            (_, None) => 1.0,
            (_, Some(speed)) => {
                return Err(Error::Config(format!("--speed {speed}: only for layers, above 0")));
            }
        };
        let cluster = Cluster {
            devices,
            memory_bytes: parse_bytes(&self.memory)?,
            link_bytes: parse_bytes(link)? as f64 / speed,
            latency: 0.0,
            micro_batches: self.micro_batches,
        };
        let mut ways = compare(profile, &cluster, limits).map_err(|e| wrong(&e))?;
        for way in &mut ways {
            way.time = way.time.map(|time| time / speed);
        }
        if self.json {
            return print_json(&ways);
        }
        print_ways(profile, devices, &ways);
        Ok(())
    }

    fn profile(&self) -> Result<Profile> {
        Profile::from_json(&self.text()?).map_err(|e| self.unread(&e))
    }

    /// The sums of the layers.
    fn sums(&self, batch: u64) -> Result<String> {
        let model: Model = serde_json::from_str(&self.text()?)
            .map_err(|_| self.unread(&"--sums is for a model by its layers, and this is a profile"))?;
        Model { batch, ..model }.words().map_err(|e| wrong(&e))
    }

    fn text(&self) -> Result<String> {
        std::fs::read_to_string(&self.model).map_err(Error::io(&self.model))
    }

    fn unread(&self, why: &dyn std::fmt::Display) -> Error {
        Error::Config(format!("{}: {why}", self.model.display()))
    }
}

fn print_json(what: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(what).map_err(|e| Error::Config(e.to_string()))?;
    println!("{text}");
    Ok(())
}

fn print_ways(profile: &Profile, devices: u64, ways: &[Way]) {
    let samples = counted(profile.batch, "sample");
    println!("{samples} on {}", counted(devices, "device"));
    println!(
        "{:<9} {:>5} {:>12} {:>12} {:>10}  by torch's",
        "way", "fits", "MiB each", "MiB sent", "time, s"
    );
    for way in ways {
        let time = way.time.map_or("-".into(), |time| format!("{time:.4}"));
        println!(
            "{:<9} {:>5} {:>12} {:>12} {time:>10}  {}\n{:11}{}",
            way.name,
            if way.fits { "yes" } else { "no" },
            mib(way.bytes),
            mib(way.sent_bytes),
            way.torch,
            "",
            way.words
        );
    }
}

/// A time over the plain one; 1 where no times are given.
fn over(time: f64, plain: f64) -> f64 {
    if plain > 0.0 { time / plain } else { 1.0 }
}

/// About ten points of a curve, the first and the last among them.
fn chosen(curve: &[Point]) -> Vec<Point> {
    let step = curve.len().div_ceil(10).max(1);
    let mut points: Vec<Point> = curve.iter().step_by(step).copied().collect();
    if let Some(last) = curve.last().filter(|last| points.last() != Some(last)) {
        points.push(*last);
    }
    points
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 340.0;
const MARGIN: f64 = 64.0;
/// Kinds of memory, from the bottom of the plot to its top, with their colours.
const KINDS: [(&str, &str); 6] = [
    ("states and batch", "#889"),
    ("gradients of parameters", "#b58"),
    ("outputs of stages", "#27a"),
    ("saved for backward", "#2a7"),
    ("gradients of outputs", "#c83"),
    ("temporary", "#ca2"),
];

fn page(name: &str, batch: u64, plan: &StepPlan, curve: &[Point]) -> String {
    let name = escape(name);
    let text = escape(&plan.text());
    let (memory, legend) = (memory_plot(plan), legend());
    let time = time_plot(plan, curve);
    format!(
        "<!doctype html><meta charset='utf-8'><title>Plan of {name}</title><style>body{{font:14px sans-serif;\
         max-width:800px}}i{{display:inline-block;width:12px;height:12px;margin:0 4px 0 12px}}</style>\
         <h1>Plan of {name}, {}</h1><pre>{text}</pre><h2>Memory over a step</h2>\
         <p>Forward, then backward, of the largest micro-batch. The line is the budget.</p>{memory}<p>{legend}</p>\
         <h2>Time against memory</h2><p>The fastest plan for each budget; 1 is the step with all the memory that it \
         can use. The dot is this plan.</p>{time}\n",
        counted(batch, "sample")
    )
}

fn legend() -> String {
    KINDS.iter().map(|(kind, colour)| format!("<i style='background:{colour}'></i>{kind}")).collect()
}

/// Lines and numbers on the left, in MiB or times.
fn axis(most: f64, unit: &str, down: &dyn Fn(f64) -> f64) -> String {
    let mut lines = String::new();
    for at in ticks(most) {
        let y = down(at);
        append(
            &mut lines,
            format_args!(
                "<line x1='{MARGIN}' x2='{WIDTH}' y1='{y:.1}' y2='{y:.1}' stroke='#ddd'/><text x='{}' y='{:.1}' \
                 text-anchor='end'>{at}{unit}</text>",
                MARGIN - 6.0,
                y + 4.0
            ),
        );
    }
    lines
}

/// What is in memory at each moment, stacked by kind.
fn memory_plot(plan: &StepPlan) -> String {
    let mebi = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    let moments = &plan.replay.moments;
    let held = plan.peak_bytes - plan.replay.peak.total();
    let shown = plan.peak_bytes.max(plan.memory_bytes.min(2 * plan.peak_bytes)).max(1);
    let most = mebi(shown) * 1.05;
    let end = moments.last().map_or(1.0, |moment| moment.time).max(f64::MIN_POSITIVE);
    let across = |time: f64| MARGIN + time / end * (WIDTH - MARGIN);
    let down = |mebi: f64| HEIGHT - 24.0 - mebi / most * (HEIGHT - 40.0);
    let mut plot = axis(most, "", &down);
    for (kind, (_, colour)) in KINDS.iter().enumerate() {
        // A band from the sum below this kind to the sum with it.
        let sums = |moment: &tidegate_plan::training::schedule::Moment| {
            let bytes = moment.bytes;
            let parts = [
                held,
                bytes.gradients,
                bytes.boundaries,
                bytes.saved,
                bytes.output_gradients,
                bytes.temporary,
            ];
            (mebi(parts[..kind].iter().sum()), mebi(parts[..=kind].iter().sum()))
        };
        let (mut upper, mut lower, mut from) = (String::new(), Vec::new(), 0.0);
        for moment in moments {
            let (below, above) = sums(moment);
            for time in [from, moment.time] {
                append(&mut upper, format_args!("{:.1},{:.1} ", across(time), down(above)));
                lower.push(format!("{:.1},{:.1}", across(time), down(below)));
            }
            from = moment.time;
        }
        lower.reverse();
        append(&mut plot, format_args!("<polygon points='{upper}{}' fill='{colour}'/>", lower.join(" ")));
    }
    let budget = down(mebi(plan.memory_bytes)).max(10.0);
    append(
        &mut plot,
        format_args!(
            "<line x1='{MARGIN}' x2='{WIDTH}' y1='{budget:.1}' y2='{budget:.1}' stroke='#c30'/><text x='{MARGIN}' \
             y='{}'>time of the step</text><text x='4' y='12'>MiB</text>",
            HEIGHT - 4.0
        ),
    );
    format!("<svg width='{WIDTH}' height='{HEIGHT}' font-size='11'>{plot}</svg>")
}

/// The time of the fastest plan for every budget.
fn time_plot(plan: &StepPlan, curve: &[Point]) -> String {
    let mebi = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    let widest = curve.iter().map(|point| point.memory_bytes).max().unwrap_or(1).max(plan.memory_bytes);
    let widest = mebi(widest.min(2 * plan.plain_bytes).max(1)) * 1.05;
    let slowest = curve.iter().map(|point| over(point.time, plan.plain_time)).fold(1.0, f64::max) * 1.05;
    let across = |memory: f64| MARGIN + (memory / widest).min(1.0) * (WIDTH - MARGIN);
    let down = |time: f64| HEIGHT - 40.0 - time / slowest * (HEIGHT - 56.0);
    let mut plot = axis(slowest, "x", &down);
    for at in ticks(widest) {
        let (x, y) = (across(at), HEIGHT - 24.0);
        append(&mut plot, format_args!("<text x='{x:.1}' y='{y}' text-anchor='middle'>{at}</text>"));
    }
    let mut line = String::new();
    let mut before = None;
    for point in curve {
        let (x, y) = (across(mebi(point.memory_bytes)), down(over(point.time, plan.plain_time)));
        if let Some(before) = before {
            append(&mut line, format_args!("{x:.1},{before:.1} "));
        }
        append(&mut line, format_args!("{x:.1},{y:.1} "));
        before = Some(y);
    }
    let (x, y) = (across(mebi(plan.memory_bytes)), down(over(plan.time, plan.plain_time)));
    append(
        &mut plot,
        format_args!(
            "<polyline points='{line}' fill='none' stroke='#27a' stroke-width='2'/><circle cx='{x:.1}' cy='{y:.1}' \
             r='5' fill='#c30'/><text x='{}' y='{}' text-anchor='middle'>memory, MiB</text><text x='4' y='12'>time\
             </text>",
            WIDTH / 2.0,
            HEIGHT - 6.0
        ),
    );
    format!("<svg width='{WIDTH}' height='{HEIGHT}' font-size='11'>{plot}</svg>")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(memory: u64) -> (StepPlan, Vec<Point>) {
        let text = r#"{"name": "a<b", "batch": 8, "layers": [
            {"kind": "block", "repeat": 6, "layers": [{"kind": "transformer", "sequence": 64, "width": 64, "heads": 2}]},
            {"kind": "linear", "inputs": 64, "outputs": 100, "positions": 64},
            {"kind": "cross_entropy", "classes": 100, "positions": 64}]}"#;
        let profile = Profile::from_json(text).unwrap();
        let planner =
            Planner::new(profile, 8, Limits { micro_batches: Some(1), ..Limits::default() }).unwrap();
        (planner.plan(memory.max(planner.floor_bytes().unwrap())).unwrap(), planner.curve().unwrap())
    }

    #[test]
    fn a_page_has_both_plots_and_escapes_the_name() {
        let (plan, curve) = planned(0);
        let page = page("a<b", 8, &plan, &curve);
        assert_eq!(page.matches("<svg").count(), 2);
        assert_eq!(page.matches("<polygon").count(), KINDS.len());
        assert!(page.contains("Plan of a&lt;b, 8 samples") && !page.contains("NaN"), "{page}");
    }

    #[test]
    fn a_page_without_times_has_no_nonsense() {
        let text = r#"{"batch": 2, "chain": {"stages": [{"saved_bytes": 5}, {"saved_bytes": 5}]}}"#;
        let planner = Planner::new(Profile::from_json(text).unwrap(), 2, Limits::default()).unwrap();
        let plan = planner.plan(100).unwrap();
        assert!(!page("x", 2, &plan, &planner.curve().unwrap()).contains("NaN"));
    }

    #[test]
    fn ten_points_have_both_ends() {
        let (_, curve) = planned(0);
        let points = chosen(&curve);
        assert!((2..=12).contains(&points.len()));
        assert_eq!((points[0], points[points.len() - 1]), (curve[0], curve[curve.len() - 1]));
    }
}
