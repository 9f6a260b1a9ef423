//! What a layer takes as sums in words, and a model with other widths.
//!
//! Flow: a layer, a batch, bytes of an element -> terms -> words; layers, a factor -> layers.
//! Memory: holds none.
//!
//! The width multiplier is that of A. Howard et al., "MobileNets", arXiv:1704.04861.

use super::layers::{Layer, Norm, Scores};
use super::profile::Model;
use crate::error::{Error, Result, positive, product, sized};

/// A part of what backward keeps: the product of its sizes, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// What it is.
    pub what: &'static str,
    /// Its sizes; the first may be bytes.
    pub sizes: Vec<u64>,
}

impl Term {
    fn new(what: &'static str, sizes: impl Into<Vec<u64>>) -> Self {
        Self { what, sizes: sizes.into() }
    }

    /// Its bytes.
    ///
    /// # Errors
    /// [`Error::Config`] for more than 2^42.
    pub fn bytes(&self) -> Result<u64> {
        product(self.what, &self.sizes)
    }
}

/// What the scores of attention keep.
pub(super) fn scores(b: u64, c: u64, (s, d, h): (u64, u64, u64), scores: Scores, dropout: bool) -> Vec<Term> {
    // The softmax; with dropout also its mask, of one byte, and what remains.
    let each = if dropout { 2 * c + 1 } else { c };
    let (kept, keys) = match scores {
        Scores::Blockwise => return vec![Term::new("a number for each row of scores", [4, b, h, s])],
        Scores::Full => (None, s),
        Scores::Sparse(keys) => (None, keys),
        Scores::LowRank(keys) => {
            (Some(Term::new("keys and values of fewer positions", [2, b, keys, d, c])), keys)
        }
    };
    std::iter::once(Term::new("scores of all heads", [each, b, h, s, keys])).chain(kept).collect()
}

impl Layer {
    /// What backward needs besides input and output; none for a block, whose layers have theirs.
    #[must_use]
    pub fn saved(&self, batch: u64, element_bytes: u64) -> Vec<Term> {
        let (b, c) = (batch, element_bytes);
        match *self {
            Self::DepthwiseSeparable { inputs, .. } => {
                let [_, h, w] = self.output_sizes().try_into().unwrap_or([1, 0, 0]);
                vec![Term::new("what is between its two convolutions", [b, inputs, h, w, c])]
            }
            Self::Norm { features, positions, form } => vec![match form {
                Norm::Layer => Term::new("mean and deviation of each position", [2, 4, b, positions]),
                Norm::Rms => Term::new("a root for each position", [4, b, positions]),
                Norm::Batch => Term::new("mean and deviation of each feature", [2, 4, features]),
            }],
            Self::Dropout { elements } => vec![Term::new("where zeros are", [b, elements])],
            Self::CrossEntropy { classes, positions } => {
                vec![Term::new("logarithms of probabilities", [4, b, positions, classes])]
            }
            Self::Attention { sequence: s, width: d, heads: h, scores: form, dropout } => {
                let first =
                    Term::new("queries, keys, values, and what the last projection takes", [4, b, s, d, c]);
                std::iter::once(first).chain(scores(b, c, (s, d, h), form, dropout)).collect()
            }
            Self::Transformer { sequence: s, width: d, heads: h, scores: form, dropout } => {
                // Of the sixteen tensors of s·b·h elements in the paper's sum one is the input; the
                // output is the next block's. Two masks of a byte an element with dropout.
                let mut terms = vec![Term::new("fifteen tensors of its layers", [15, b, s, d, c])];
                terms.extend(dropout.then(|| Term::new("where zeros are", [2, b, s, d])));
                terms.extend(scores(b, c, (s, d, h), form, dropout));
                terms
            }
            Self::Linear { .. }
            | Self::Convolution { .. }
            | Self::Activation { .. }
            | Self::Embedding { .. }
            | Self::Block { .. } => Vec::new(),
        }
    }

    /// What of its input and output backward needs, in words.
    fn needs(&self) -> Option<&'static str> {
        match self {
            Self::Activation { .. } => Some("its input or its output"),
            Self::Dropout { .. } | Self::CrossEntropy { .. } | Self::Block { .. } => None,
            _ => Some("its input"),
        }
    }

    /// The sums of its parameters, its output and what backward needs, a line each.
    ///
    /// # Errors
    /// Those of [`Layer::figures`].
    ///
    /// # Example
    /// ```
    /// use tidegate_plan::training::layers::Layer;
    ///
    /// let layer = Layer::Linear { inputs: 784, outputs: 256, bias: true, positions: 1 };
    /// assert_eq!(layer.words(32, 4)?, "\
    /// linear
    ///   parameters: 256 × 784 + 256 = 200960
    ///   output: 32 × 256 × 4 = 32768 bytes
    ///   backward needs its input
    /// ");
    /// # Ok::<(), tidegate_plan::Error>(())
    /// ```
    pub fn words(&self, batch: u64, element_bytes: u64) -> Result<String> {
        let figures = self.figures(batch, element_bytes)?;
        if let Self::Block { name, repeat, layers } = self {
            let inner: Result<String> =
                layers.iter().map(|layer| layer.words(batch, element_bytes)).collect();
            let title = if name.is_empty() { "block" } else { name };
            let inner = inner?.lines().map(|line| format!("  {line}\n")).collect::<String>();
            let saved = sized(figures.saved_bytes);
            return Ok(format!(
                "{title}, {repeat} of it, each:\n{inner}  all in all backward needs {saved}\n"
            ));
        }
        let mut words = format!("{}\n", self.kind());
        if !figures.parameters.is_empty() {
            let shapes: Vec<String> = figures.parameters.iter().map(|shape| times(shape)).collect();
            words += &format!("  parameters: {} = {}\n", shapes.join(" + "), figures.parameter_count()?);
        }
        if figures.output_bytes > 0 {
            // One position of a sample needs no word.
            let own = self.output_sizes().into_iter().filter(|&size| size > 1);
            let sizes: Vec<u64> = [batch].into_iter().chain(own).chain([element_bytes]).collect();
            words += &format!("  output: {} = {}\n", times(&sizes), sized(figures.output_bytes));
        }
        let terms = self.saved(batch, element_bytes);
        if let Some(needs) = self.needs() {
            words += &format!("  backward needs {needs}\n");
        }
        for term in terms {
            words += &format!(
                "  backward needs {}: {} = {}\n",
                term.what,
                times(&term.sizes),
                sized(term.bytes()?)
            );
        }
        Ok(words)
    }
}

impl Model {
    /// The sums of all its layers.
    ///
    /// # Errors
    /// Those of [`Layer::words`].
    pub fn words(&self) -> Result<String> {
        self.layers.iter().map(|layer| layer.words(self.batch, self.precision.element_bytes())).collect()
    }
}

/// What a layer does with features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It takes as many as it has inputs, and gives as many as it has outputs.
    Changes,
    /// It gives as many as it takes, and mixes them.
    Mixes,
    /// It gives as many as it takes, each by itself.
    Keeps,
    /// It gives none.
    Ends,
}

fn role(layer: &Layer) -> Role {
    match layer {
        Layer::Linear { .. }
        | Layer::Convolution { .. }
        | Layer::DepthwiseSeparable { .. }
        | Layer::Embedding { .. } => Role::Changes,
        Layer::Attention { .. } | Layer::Transformer { .. } => Role::Mixes,
        Layer::Norm { .. } | Layer::Activation { .. } | Layer::Dropout { .. } => Role::Keeps,
        Layer::CrossEntropy { .. } | Layer::Block { .. } => Role::Ends,
    }
}

/// The roles of layers and of those within blocks, and whether a block has several of them.
fn roles(layers: &[Layer], several: bool, into: &mut Vec<(Role, bool)>) {
    for layer in layers {
        if let Layer::Block { layers, repeat, .. } = layer {
            roles(layers, several || *repeat > 1, into);
        } else {
            into.push((role(layer), several));
        }
    }
}

/// Makes layers wider, one after another.
struct Widening {
    factor: f64,
    /// The place of the next layer.
    at: usize,
    /// The first layer whose input stays, and the last whose output does.
    first: Option<usize>,
    last: Option<usize>,
}

impl Widening {
    fn size(&self, layer: &str, size: u64) -> Result<u64> {
        let scaled = size as f64 * self.factor;
        if scaled >= 1.0 && (scaled - scaled.round()).abs() < 1e-6 && scaled < 1e15 {
            return Ok(scaled.round() as u64);
        }
        Err(Error::Config(format!("{layer}: {size} × {} is no whole number of features", self.factor)))
    }

    fn widen(&mut self, layer: &mut Layer) -> Result<()> {
        if let Layer::Block { layers, .. } = layer {
            return layers.iter_mut().try_for_each(|layer| self.widen(layer));
        }
        let kind = layer.kind();
        // Whether what it takes, and what it gives, is wider.
        let takes = self.first.is_none_or(|first| self.at > first);
        let gives = self.last.is_none_or(|last| self.at < last);
        match layer {
            Layer::Convolution { inputs, outputs, groups, .. } if *groups > 1 => {
                let (own_inputs, own_outputs) = (*inputs / *groups, *outputs / *groups);
                if !takes || !gives {
                    let what = "a convolution of several groups whose input or output stays cannot be wider";
                    return Err(Error::Config(what.into()));
                }
                *groups = self.size(kind, *groups)?;
                (*inputs, *outputs) = (own_inputs * *groups, own_outputs * *groups);
            }
            Layer::Linear { inputs, outputs, .. }
            | Layer::Convolution { inputs, outputs, .. }
            | Layer::DepthwiseSeparable { inputs, outputs, .. } => {
                *inputs = if takes { self.size(kind, *inputs)? } else { *inputs };
                *outputs = if gives { self.size(kind, *outputs)? } else { *outputs };
            }
            Layer::Embedding { width, .. } => *width = if gives { self.size(kind, *width)? } else { *width },
            Layer::Attention { width, heads, .. } | Layer::Transformer { width, heads, .. } => {
                let own = *width / (*heads).max(1);
                *heads = self.size(kind, *heads)?;
                *width = own * *heads;
            }
            Layer::Norm { features: size, .. }
            | Layer::Activation { elements: size }
            | Layer::Dropout { elements: size } => {
                *size = if takes && gives { self.size(kind, *size)? } else { *size };
            }
            Layer::CrossEntropy { .. } | Layer::Block { .. } => {}
        }
        self.at += 1;
        Ok(())
    }
}

/// Layers with `factor` times as many features: about factor² of the parameters, and factor of the
/// activations. What goes into the first layer that changes the number of features stays, and so
/// does what the last one gives. Heads and groups become more or fewer, and stay as wide.
///
/// # Errors
/// [`Error::Parameter`] for a factor that is not from 1e-6 to 1e6; [`Error::Config`] for features
/// that are no whole number then, and for a first or last layer of which a block has several.
///
/// # Example
/// ```
/// use tidegate_plan::training::layers::Layer;
/// use tidegate_plan::training::sums::widened;
///
/// let linear = |inputs, outputs| Layer::Linear { inputs, outputs, bias: true, positions: 1 };
/// let half = widened(&[linear(784, 256), linear(256, 256), linear(256, 10)], 0.5)?;
/// assert_eq!(half, [linear(784, 128), linear(128, 128), linear(128, 10)]);
/// # Ok::<(), tidegate_plan::Error>(())
/// ```
pub fn widened(layers: &[Layer], factor: f64) -> Result<Vec<Layer>> {
    positive("factor", factor)?;
    if !(1e-6..=1e6).contains(&factor) {
        return Err(Error::parameter("factor", factor, "it must be from 1e-6 to 1e6"));
    }
    let mut all = Vec::new();
    roles(layers, false, &mut all);
    let works = |&(role, _): &(Role, bool)| matches!(role, Role::Changes | Role::Mixes);
    // A layer that only mixes gets a wider input, and gives a wider output.
    let stays = |at: Option<usize>| at.filter(|&at| all[at].0 == Role::Changes);
    let (first, last) = (stays(all.iter().position(works)), stays(all.iter().rposition(works)));
    if [first, last].into_iter().flatten().any(|at| all[at].1) {
        let what =
            "the first or the last layer is in a block of which there are several: take it out of the block";
        return Err(Error::Config(what.into()));
    }
    let mut wider = layers.to_vec();
    let mut widening = Widening { factor, at: 0, first, last };
    wider.iter_mut().try_for_each(|layer| widening.widen(layer))?;
    Ok(wider)
}

fn times(sizes: &[u64]) -> String {
    sizes.iter().map(u64::to_string).collect::<Vec<_>>().join(" × ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Layer {
        serde_json::from_str(text).unwrap()
    }

    fn convolutional(width: u64) -> Vec<Layer> {
        let conv = |inputs, outputs| Layer::DepthwiseSeparable {
            inputs,
            outputs,
            kernel: 3,
            stride: 1,
            padding: 1,
            height: 28,
            width: 28,
        };
        let last = Layer::Linear { inputs: width, outputs: 10, bias: true, positions: 1 };
        vec![conv(3, width), conv(width, width), conv(width, width), conv(width, width), last]
    }

    #[test]
    fn half_the_width_has_a_quarter_of_the_parameters_and_half_of_the_activations() {
        let figures = |layers: &[Layer]| {
            let all = layers.iter().map(|layer| layer.figures(8, 4).unwrap());
            all.fold((0, 0), |(p, a), f| {
                (p + f.parameter_count().unwrap(), a + f.output_bytes + f.saved_bytes)
            })
        };
        let whole = convolutional(512);
        let half = widened(&whole, 0.5).unwrap();
        assert_eq!(half, convolutional(256));
        let ((p, a), (p2, a2)) = (figures(&whole), figures(&half));
        assert!((p2 as f64 / p as f64 - 0.25).abs() < 0.01, "{p2} of {p}");
        assert!((a2 as f64 / a as f64 - 0.5).abs() < 0.01, "{a2} of {a}");
        let block = json(r#"{"kind":"transformer","sequence":64,"width":768,"heads":12}"#);
        let wide = json(r#"{"kind":"transformer","sequence":64,"width":1536,"heads":24}"#);
        assert_eq!(widened(&[block], 2.0).unwrap(), [wide]);
        let grouped = |channels, groups| Layer::Convolution {
            inputs: channels,
            outputs: channels,
            kernel: 3,
            stride: 1,
            padding: 1,
            groups,
            bias: false,
            height: 8,
            width: 8,
        };
        let ends = |channels: u64| convolutional(channels)[..1].to_vec();
        let all = |channels: u64, groups| {
            [ends(channels), vec![grouped(channels, groups)], convolutional(channels)[1..].to_vec()].concat()
        };
        assert_eq!(widened(&all(64, 8), 0.5).unwrap(), all(32, 4));
        for factor in [0.0, -1.0, f64::NAN, 1e7] {
            assert!(widened(&[], factor).is_err(), "{factor}");
        }
    }

    #[test]
    fn wider_layers_fit_together() {
        let half = |text: &str| -> Result<String> {
            let layers: Vec<Layer> = serde_json::from_str(text).unwrap();
            Ok(serde_json::to_string(&widened(&layers, 0.5)?).unwrap())
        };
        let linear = |inputs: u64, outputs: u64| {
            format!(r#"{{"kind":"linear","inputs":{inputs},"outputs":{outputs},"bias":true,"positions":1}}"#)
        };
        let each = |elements: u64| format!(r#"{{"kind":"activation","elements":{elements}}}"#);
        let all = |layers: &[String]| format!("[{}]", layers.join(","));
        // What is before the first layer that changes the number, and after the last, stays.
        let layers = all(&[each(8), linear(8, 16), each(16), linear(16, 10), each(10)]);
        assert_eq!(half(&layers).unwrap(), all(&[each(8), linear(8, 8), each(8), linear(8, 10), each(10)]));
        let block = |inner: &str, repeat: u64| {
            format!(r#"{{"kind":"block","name":"","repeat":{repeat},"layers":{inner}}}"#)
        };
        let inner = |size| all(&[linear(size, size), each(size)]);
        let layers = all(&[linear(8, 16), block(&inner(16), 3), linear(16, 4)]);
        assert_eq!(half(&layers).unwrap(), all(&[linear(8, 8), block(&inner(8), 3), linear(8, 4)]));
        let wrong = |layers: &str| half(layers).unwrap_err().to_string();
        assert!(wrong(&all(&[block(&inner(8), 4), linear(8, 4)])).contains("of which there are several"));
        assert!(wrong(&all(&[linear(8, 5), linear(5, 4)])).contains("linear: 5 × 0.5 is no whole number"));
        let attention = r#"{"kind":"attention","sequence":16,"width":96,"heads":3}"#.to_owned();
        assert!(wrong(&all(&[linear(4, 96), attention, linear(96, 4)])).contains("attention: 3 × 0.5"));
    }

    #[test]
    fn the_terms_are_what_the_figures_say() {
        for text in [
            r#"{"kind":"linear","inputs":8,"outputs":4}"#,
            r#"{"kind":"depthwise_separable","inputs":8,"outputs":4,"kernel":3,"height":9,"width":7}"#,
            r#"{"kind":"norm","features":8,"positions":3}"#,
            r#"{"kind":"norm","features":8,"form":"batch"}"#,
            r#"{"kind":"dropout","elements":12}"#,
            r#"{"kind":"cross_entropy","classes":12}"#,
            r#"{"kind":"attention","sequence":16,"width":8,"heads":2,"dropout":true}"#,
            r#"{"kind":"attention","sequence":16,"width":8,"heads":2,"scores":{"low_rank":4}}"#,
            r#"{"kind":"transformer","sequence":16,"width":8,"heads":2,"scores":"blockwise","dropout":true}"#,
        ] {
            let layer = json(text);
            let words = layer.words(3, 2).unwrap();
            let figures = layer.figures(3, 2).unwrap();
            let sizes = layer.output_sizes().iter().product::<u64>() * 6;
            assert!(layer.kind() == "cross_entropy" || sizes == figures.output_bytes, "{text}");
            for term in layer.saved(3, 2) {
                assert!(
                    words.contains(&format!("{} = {} byte", times(&term.sizes), term.bytes().unwrap())),
                    "{words}"
                );
            }
        }
    }

    #[test]
    fn a_block_has_the_sums_of_its_layers() {
        let block = json(
            r#"{"kind":"block","name":"layer","repeat":2,"layers":[
                {"kind":"linear","inputs":8,"outputs":4},{"kind":"dropout","elements":4}]}"#,
        );
        let words = block.words(2, 4).unwrap();
        assert_eq!(
            words,
            "layer, 2 of it, each:\n  linear\n    parameters: 4 × 8 + 4 = 36\n    output: 2 × 4 × 4 = 32 bytes\n    \
             backward needs its input\n  dropout\n    output: 2 × 4 × 4 = 32 bytes\n    \
             backward needs where zeros are: 2 × 4 = 8 bytes\n  all in all backward needs 40 bytes\n"
        );
    }
}
