//! Ways to divide a step among devices: what each holds, what it sends, and how long it takes.
//!
//! Flow: a profile, devices and links -> [`compare`] -> [`Way`]s, the fastest that fits first.
//! Memory: that of a `step::Planner`, one at a time.
//!
//! A ring sends 2·(N − 1)/N of the bytes that it sums, and (N − 1)/N of those that it gathers. What
//! is summed and gathered is that of ZeRO (arXiv:1910.02054), for each micro-batch and once more
//! where stages are recomputed; and of Megatron-LM (arXiv:1909.08053): the outputs of stages that
//! are no larger than their inputs, twice in forward and twice in backward, since larger ones stay
//! divided. Transfers are counted as if nothing ran beside them. torch runs the ways; none of their
//! engines is here.

use serde::{Deserialize, Serialize};
use tidegate_core::memory::size::counted;

use super::batch::MOST_PARTS;
use super::chain::Chain;
use super::profile::{Held, Profile};
use super::schedule::Phase;
use super::stages::{Pipelining, split};
use super::step::{Limits, Planner, StepPlan};
use crate::error::{Result, counted_to, not_negative, positive};

/// The devices, all alike, and the link of each.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// How many devices.
    pub devices: u64,
    /// The memory of one, in bytes.
    pub memory_bytes: u64,
    /// Bytes a unit of the profile's time that a device sends.
    pub link_bytes: f64,
    /// Time until a message arrives, in the same unit.
    #[serde(default)]
    pub latency: f64,
    /// Micro-batches of a pipeline; by default four for each device.
    #[serde(default)]
    pub micro_batches: Option<u64>,
}

/// A way to divide a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Way {
    /// `data`, `zero1`, `sharded`, `tensor` or `pipeline`.
    pub name: &'static str,
    /// The part of torch that runs it.
    pub torch: &'static str,
    /// Whether it fits.
    pub fits: bool,
    /// What a device holds: the peak; where nothing fits, the least of any plan, or for a pipeline
    /// the fastest cut's.
    pub bytes: u64,
    /// What a device sends in a step.
    pub sent_bytes: u64,
    /// The time of a step, where it fits.
    pub time: Option<f64>,
    /// What does not fit, or what the way needs.
    pub words: String,
}

/// Compares the ways for the profile's batch as the batch of all devices together.
///
/// # Errors
/// [`crate::Error::Parameter`] for no devices, or a link that is no positive number; those of
/// [`Planner::new`].
pub fn compare(profile: &Profile, cluster: &Cluster, limits: Limits) -> Result<Vec<Way>> {
    profile.check()?;
    counted_to("devices", cluster.devices, MOST_PARTS)?;
    positive("link_bytes", cluster.link_bytes)?;
    not_negative("latency", cluster.latency)?;
    let costs = Costs { profile, cluster, limits };
    let mut ways = vec![costs.data()?, costs.zero1()?, costs.sharded()?, costs.tensor()?, costs.pipeline()];
    ways.sort_by(|a, b| {
        let time = |way: &Way| way.time.unwrap_or(f64::INFINITY);
        time(a).total_cmp(&time(b)).then(a.bytes.cmp(&b.bytes))
    });
    Ok(ways)
}

/// How often stages run in a step: in how many micro-batches, and what part of them again.
#[derive(Clone, Copy)]
struct Passes {
    micro_batches: f64,
    recomputed: f64,
}

impl Passes {
    fn of(plan: &StepPlan) -> Self {
        let stages = plan.replay.moments.iter().filter(|moment| moment.phase == Phase::Forward).count();
        let again = plan.replay.moments.iter().filter(|moment| moment.phase == Phase::Recompute).count();
        Self {
            micro_batches: plan.micro_batches.len() as f64,
            recomputed: again as f64 / stages.max(1) as f64,
        }
    }
}

struct Costs<'a> {
    profile: &'a Profile,
    cluster: &'a Cluster,
    limits: Limits,
}

impl Costs<'_> {
    fn devices(&self) -> f64 {
        self.cluster.devices as f64
    }

    /// Bytes that a device of a ring sends when `bytes` are summed, or half of it when gathered.
    fn summed(&self, bytes: f64) -> f64 {
        2.0 * bytes * (self.devices() - 1.0) / self.devices()
    }

    /// The time in which a device sends bytes in a number of messages.
    fn sending(&self, bytes: f64, messages: f64) -> f64 {
        bytes / self.cluster.link_bytes + messages * self.cluster.latency
    }

    fn gradients(&self) -> f64 {
        self.profile.chain.gradient_bytes() as f64
    }

    /// The bytes of the parameters as the step uses them.
    fn parameters(&self) -> f64 {
        let named = self.profile.held.iter().find(|held| held.name == "parameters");
        named.map_or(self.gradients(), |held| held.bytes as f64)
    }

    /// What is held, with each part divided as `share` says.
    fn held(&self, share: impl Fn(&str) -> f64) -> Vec<Held> {
        let divided = |held: &Held| Held {
            name: held.name.clone(),
            bytes: (held.bytes as f64 / share(&held.name)).ceil() as u64,
        };
        self.profile.held.iter().map(divided).collect()
    }

    /// Plans a step of this profile on one device.
    fn planned(
        &self,
        name: &'static str,
        torch: &'static str,
        profile: Profile,
        sent: impl Fn(Passes) -> (f64, f64),
        batch: u64,
    ) -> Result<Way> {
        let planner = Planner::new(profile, batch, self.limits)?;
        Ok(match planner.plan(self.cluster.memory_bytes) {
            Ok(plan) => {
                let (bytes, messages) = sent(Passes::of(&plan));
                Way {
                    name,
                    torch,
                    fits: true,
                    bytes: plan.peak_bytes,
                    sent_bytes: bytes.ceil() as u64,
                    time: Some(plan.time + self.sending(bytes, messages)),
                    words: format!(
                        "{} a device in {}, {} recomputed",
                        counted(batch, "sample"),
                        counted(plan.micro_batches.len() as u64, "micro-batch"),
                        counted(plan.recomputed_stages() as u64, "stage")
                    ),
                }
            }
            Err(error) => Way {
                name,
                torch,
                fits: false,
                bytes: planner.floor_bytes()?,
                sent_bytes: sent(Passes { micro_batches: 1.0, recomputed: 0.0 }).0.ceil() as u64,
                time: None,
                words: error.to_string(),
            },
        })
    }

    /// Buffers are on every device; all else is divided.
    fn by_devices(&self) -> impl Fn(&str) -> f64 {
        let devices = self.devices();
        move |name| if name == "buffers" { 1.0 } else { devices }
    }

    fn samples(&self) -> u64 {
        self.profile.batch.div_ceil(self.cluster.devices)
    }

    fn data(&self) -> Result<Way> {
        // Gradients are summed once, at the last micro-batch.
        let sent = |_: Passes| (self.summed(self.gradients()), 2.0 * (self.devices() - 1.0));
        let torch = "torch.nn.parallel.DistributedDataParallel";
        self.planned("data", torch, self.profile.clone(), sent, self.samples())
    }

    fn zero1(&self) -> Result<Way> {
        let divided = |name: &str| match name {
            "optimizer" | "master copy" => self.devices(),
            _ => 1.0,
        };
        let profile = Profile { held: self.held(divided), ..self.profile.clone() };
        // Gradients are summed, and each device's updated parameters are sent to all.
        let bytes = self.summed(self.gradients()) + self.summed(self.parameters()) / 2.0;
        let sent = |_: Passes| (bytes, 3.0 * (self.devices() - 1.0));
        let torch = "torch.distributed.optim.ZeroRedundancyOptimizer";
        self.planned("zero1", torch, profile, sent, self.samples())
    }

    fn sharded(&self) -> Result<Way> {
        let mut profile = Profile { held: self.held(self.by_devices()), ..self.profile.clone() };
        let largest = self.profile.chain.stages.iter().map(|stage| stage.gradient_bytes).max().unwrap_or(0);
        for stage in &mut profile.chain.stages {
            stage.gradient_bytes = stage.gradient_bytes.div_ceil(self.cluster.devices);
        }
        // The stage that runs and the one that is gathered meanwhile, and the former's gradients.
        profile.held.push(Held { name: "gathered stages".into(), bytes: 3 * largest });
        // Parameters are gathered for forward, for backward and for each recomputation;
        // gradients are summed and divided.
        let half = self.summed(self.parameters()) / 2.0;
        let stages = self.profile.chain.stages.len() as f64;
        let sent = |passes: Passes| {
            let times = passes.micro_batches * (3.0 + passes.recomputed);
            (times * half, times * stages * (self.devices() - 1.0))
        };
        let torch = "torch.distributed.fsdp.fully_shard";
        self.planned("sharded", torch, profile, sent, self.samples())
    }

    fn tensor(&self) -> Result<Way> {
        let mut profile = Profile { held: self.held(self.by_devices()), ..self.profile.clone() };
        let n = self.cluster.devices;
        for stage in &mut profile.chain.stages {
            stage.gradient_bytes = stage.gradient_bytes.div_ceil(n);
            stage.saved_bytes = stage.saved_bytes.div_ceil(n);
            stage.forward_time /= n as f64;
            stage.backward_time /= n as f64;
        }
        let sizes: Vec<u64> = profile.chain.stages.iter().map(|stage| stage.output_bytes).collect();
        let inputs = std::iter::once(u64::MAX).chain(sizes.iter().copied());
        let summed: Vec<u64> =
            sizes.iter().copied().zip(inputs).filter(|(o, i)| o <= i).map(|(o, _)| o).collect();
        let bytes = self.summed(summed.iter().sum::<u64>() as f64);
        let sent = |passes: Passes| {
            let times = 4.0 + 2.0 * passes.recomputed;
            (times * bytes, 2.0 * times * summed.len() as f64 * passes.micro_batches * (self.devices() - 1.0))
        };
        let torch = "torch.distributed.tensor.parallel.parallelize_module";
        self.planned("tensor", torch, profile, sent, self.profile.batch)
    }

    fn pipeline(&self) -> Way {
        let (name, torch) = ("pipeline", "torch.distributed.pipelining.Schedule1F1B");
        let micro = self.cluster.micro_batches.unwrap_or(4 * self.cluster.devices);
        let micro = micro.clamp(1, self.profile.batch);
        let refused =
            |words: String| Way { name, torch, fits: false, bytes: 0, sent_bytes: 0, time: None, words };
        let chain: Chain = match self.profile.chain.scaled(1.0 / micro as f64) {
            Ok(chain) => chain,
            Err(error) => return refused(error.to_string()),
        };
        // States are in proportion to the parameters of a stage; where none is trained, they are
        // taken to be spread evenly. The batch is on the first device.
        let states = self.profile.held_bytes() as f64 + self.gradients();
        let count = chain.stages.len() as f64;
        let share = |bytes: u64| match self.gradients() {
            0.0 => (states / count).ceil() as u64,
            gradients => (states * bytes as f64 / gradients).ceil() as u64,
        };
        let mut states: Vec<u64> = chain.stages.iter().map(|stage| share(stage.gradient_bytes)).collect();
        states[0] += self.profile.input_bytes;
        let cut = |limit| {
            split(&chain, &states, self.cluster.devices, micro, Pipelining::OneForwardOneBackward, limit)
        };
        let (found, fits) = match (cut(Some(self.cluster.memory_bytes)), cut(None)) {
            (Ok(found), _) => (found, true),
            (Err(_), Ok(found)) => (found, false),
            (Err(_), Err(error)) => return refused(error.to_string()),
        };
        let sent = micro * found.devices.iter().map(|device| device.sent_bytes).max().unwrap_or(0);
        let steps = (micro + self.cluster.devices - 1) as f64;
        let cuts = &found.devices[..found.devices.len() - 1];
        let lasts: Vec<String> = cuts.iter().map(|device| device.last.to_string()).collect();
        Way {
            name,
            torch,
            fits,
            bytes: found.devices.iter().map(|device| device.bytes).max().unwrap_or(0),
            sent_bytes: sent,
            time: fits.then(|| found.time + self.sending(sent as f64, 2.0 * steps)),
            words: format!(
                "{micro} micro-batches, cut behind stages {}, {:.0} % of the time waiting{}",
                lasts.join(", "),
                100.0 * found.bubble,
                if fits { "" } else { "; no cut fits, this is the fastest" }
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GPT-2 medium in 4 bytes, for a batch of 32 of 512 tokens.
    fn profile() -> Profile {
        let text = r#"{"batch": 32, "layers": [
            {"kind": "embedding", "vocabulary": 50257, "width": 1024, "positions": 512},
            {"kind": "block", "repeat": 24, "layers": [
                {"kind": "transformer", "sequence": 512, "width": 1024, "heads": 16, "scores": "blockwise"}]},
            {"kind": "linear", "inputs": 1024, "outputs": 50257, "positions": 512},
            {"kind": "cross_entropy", "classes": 50257, "positions": 512}]}"#;
        Profile::from_json(text).unwrap()
    }

    fn ways(memory_bytes: u64, link_bytes: f64) -> Vec<Way> {
        let cluster = Cluster { devices: 4, memory_bytes, link_bytes, latency: 1e-6, micro_batches: None };
        compare(&profile(), &cluster, Limits::default()).unwrap()
    }

    fn way<'a>(ways: &'a [Way], name: &str) -> &'a Way {
        ways.iter().find(|way| way.name == name).unwrap()
    }

    #[test]
    fn with_much_memory_data_parallelism_is_fastest_and_with_little_what_divides_states_fits() {
        let large = ways(80 << 30, 1e11);
        assert_eq!(large[0].name, "data", "{large:#?}");
        assert!(large.iter().all(|way| way.fits && way.bytes <= 80 << 30));
        let small = ways(6 << 30, 1e11);
        assert!(!way(&small, "data").fits && way(&small, "sharded").fits, "{small:#?}");
        assert!(way(&small, "data").words.contains("the step takes at least"));
    }

    #[test]
    fn what_is_sent_follows_the_formulas() {
        let found = ways(80 << 30, 1e11);
        let gradients = profile().chain.gradient_bytes() as f64;
        let sent = |name: &str| way(&found, name).sent_bytes as f64 / gradients;
        assert!((sent("data") - 1.5).abs() < 1e-6);
        assert!((sent("zero1") - 2.25).abs() < 1e-6);
        assert!((sent("sharded") - 2.25).abs() < 1e-6);
        // The embedding and 24 blocks of 32 · 512 · 1024 numbers; the head's output stays divided.
        let outputs = 25.0 * (32 * 512 * 1024 * 4) as f64;
        assert!((way(&found, "tensor").sent_bytes as f64 / (outputs * 6.0) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn micro_batches_and_recomputation_gather_parameters_again() {
        let cluster = |memory_bytes| Cluster {
            devices: 4,
            memory_bytes,
            link_bytes: 1e11,
            latency: 0.0,
            micro_batches: None,
        };
        let sent = |memory_bytes, micro_batches| {
            let limits = Limits { micro_batches, ..Limits::default() };
            let ways = compare(&profile(), &cluster(memory_bytes), limits).unwrap();
            way(&ways, "sharded").sent_bytes
        };
        let (much, cut, again) = (sent(80 << 30, None), sent(4 << 30, None), sent(5 << 30, Some(1)));
        assert!(cut >= 2 * much && again > much && again < 2 * much, "{much} {cut} {again}");
    }

    #[test]
    fn a_pipeline_holds_states_that_are_not_trained() {
        let mut frozen = profile();
        frozen.chain.stages.iter_mut().for_each(|stage| stage.gradient_bytes = 0);
        let cluster = Cluster {
            devices: 4,
            memory_bytes: 80 << 30,
            link_bytes: 1e11,
            latency: 0.0,
            micro_batches: None,
        };
        let ways = compare(&frozen, &cluster, Limits::default()).unwrap();
        assert!(way(&ways, "pipeline").bytes > frozen.held_bytes() / 5);
    }

    #[test]
    fn a_slow_link_makes_what_sends_less_faster() {
        let slow = ways(80 << 30, 1e8);
        let time = |name: &str| way(&slow, name).time.unwrap();
        assert!(time("pipeline") < time("tensor") && time("data") < time("sharded"), "{slow:#?}");
        let cluster =
            Cluster { devices: 0, memory_bytes: 1, link_bytes: 1.0, latency: 0.0, micro_batches: None };
        assert!(compare(&profile(), &cluster, Limits::default()).is_err());
    }
}
