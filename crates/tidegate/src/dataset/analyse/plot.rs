//! Draws the bits of lossy codecs over their errors.
//!
//! Flow: an [`Analysis`] -> SVG.
//! Memory: the text of the image.

use tidegate_array::entropy::gaussian_rate_bits;

use super::Analysis;
use crate::html::{append, escape};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 440.0;
const MARGIN: f64 = 56.0;

/// Maps errors (logarithmic, the smallest to the right) and bits to places in the image.
struct Scale {
    /// The smallest and the largest error, as powers of ten.
    least: f64,
    most: f64,
    bits: f64,
}

impl Scale {
    fn place(&self, error: f64, bits: f64) -> (f64, f64) {
        let right = (self.most - error.log10()) / (self.most - self.least);
        let x = MARGIN + right * (WIDTH - 2.0 * MARGIN);
        (x, HEIGHT - MARGIN - bits / self.bits * (HEIGHT - 2.0 * MARGIN))
    }

    fn line(&self, points: impl Iterator<Item = (f64, f64)>, colour: &str) -> String {
        let points = points.map(|(error, bits)| {
            let (x, y) = self.place(error, bits);
            format!("{x:.1},{y:.1}")
        });
        let points = points.collect::<Vec<_>>().join(" ");
        format!("<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n")
    }
}

/// See [`Analysis::plot`].
pub(super) fn draw(analysis: &Analysis) -> Option<String> {
    let variance = analysis.variance.filter(|variance| *variance > 0.0)?;
    let errors = analysis.lossy.iter().map(|lossy| lossy.error).filter(|error| *error > 0.0);
    let least = errors.fold(variance * 1e-3, f64::min).log10().floor();
    let scale = Scale {
        least,
        most: variance.log10().ceil().max(least + 1.0),
        bits: analysis.lossy.iter().map(|lossy| lossy.bits).fold(2.0, f64::max).ceil(),
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"15\">{}: bits a value over the mean square error</text>\n",
        escape(&analysis.field)
    );
    for power in scale.least as i32..=scale.most as i32 {
        let (x, _) = scale.place(10f64.powi(power), 0.0);
        let bottom = HEIGHT - MARGIN;
        append(
            &mut svg,
            format_args!(
                "<line x1=\"{x:.1}\" y1=\"{MARGIN}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">1e{power}</text>\n",
                bottom + 18.0
            ),
        );
    }
    for bits in (0..=scale.bits as u32).step_by((scale.bits / 8.0).ceil() as usize) {
        let (_, y) = scale.place(1.0, f64::from(bits));
        append(
            &mut svg,
            format_args!(
                "<line x1=\"{MARGIN}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{bits}</text>\n",
                WIDTH - MARGIN,
                MARGIN - 8.0,
                y + 4.0
            ),
        );
    }
    let steps =
        (0..=100).map(|i| 10f64.powf(scale.least + f64::from(i) / 100.0 * (scale.most - scale.least)));
    svg += &scale.line(steps.map(|error| (error, gaussian_rate_bits(variance, error))), "#888");
    svg += &scale.line(analysis.curve.iter().map(|point| (point.error, point.bits)), "#0a7");
    for lossy in analysis.lossy.iter().filter(|lossy| lossy.error > 0.0) {
        let ((x, y), colour) =
            (scale.place(lossy.error, lossy.bits), if lossy.name.contains(':') { "#c30" } else { "#24c" });
        append(
            &mut svg,
            format_args!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"><title>{}: {:.2} bits</title></circle>\n",
                escape(&lossy.name),
                lossy.bits
            ),
        );
    }
    let legend = [
        ("#888", "Gaussian of the same variance"),
        ("#0a7", "histogram"),
        ("#24c", "quantizers"),
        ("#c30", "bounds"),
    ];
    for (i, (colour, what)) in legend.into_iter().enumerate() {
        let y = MARGIN + 16.0 * (i as f64 + 1.0);
        append(
            &mut svg,
            format_args!(
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"12\" height=\"8\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{y:.1}\">{what}</text>\n",
                MARGIN + 12.0,
                y - 8.0,
                MARGIN + 30.0
            ),
        );
    }
    svg += "</svg>\n";
    Some(svg)
}
