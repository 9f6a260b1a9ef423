//! Layers by formula: parameters, output, what backward needs, and arithmetic.
//!
//! Flow: a layer's sizes, a batch, bytes of an element -> [`Figures`] -> `model`.
//! Memory: holds none.
//!
//! The bytes of a transformer block are those of V. Korthikanti et al., "Reducing activation
//! recomputation in large transformer models", arXiv:2205.05198: s·b·h·(34 + 5·a·s/h) at 2 bytes an
//! element. Workspaces of kernels follow from no formula: measure them with a profile.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, counted_to, product};

/// How the scores of attention are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Scores {
    /// A number for each pair of positions and each head.
    #[default]
    Full,
    /// Blocks that are made again in backward; one number for each position and head is kept.
    Blockwise,
    /// Each position looks at this many others.
    Sparse(u64),
    /// Keys and values are projected to this many positions.
    LowRank(u64),
}

/// What a normalization computes its statistics over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// The features of each position: mean and deviation.
    #[default]
    Layer,
    /// The features of each position: the root of the mean square.
    Rms,
    /// The batch, for each feature.
    Batch,
}

/// A layer of a model, by its sizes. Sizes are for one sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Layer {
    /// y = Wx + b at each of `positions`.
    Linear {
        /// Features in.
        inputs: u64,
        /// Features out.
        outputs: u64,
        /// Whether there is a b.
        #[serde(default = "yes")]
        bias: bool,
        /// Positions of a sample, such as tokens.
        #[serde(default = "one")]
        positions: u64,
    },
    /// A convolution over an image.
    Convolution {
        /// Channels in.
        inputs: u64,
        /// Channels out.
        outputs: u64,
        /// The side of the kernel.
        kernel: u64,
        /// Steps of the kernel.
        #[serde(default = "one")]
        stride: u64,
        /// Zeros on each side.
        #[serde(default)]
        padding: u64,
        /// Groups of channels that do not mix.
        #[serde(default = "one")]
        groups: u64,
        /// Whether a number is added to each channel.
        #[serde(default = "yes")]
        bias: bool,
        /// Rows in.
        height: u64,
        /// Columns in.
        width: u64,
    },
    /// A convolution of each channel by itself, then one of 1 × 1.
    DepthwiseSeparable {
        /// Channels in.
        inputs: u64,
        /// Channels out.
        outputs: u64,
        /// The side of the kernel.
        kernel: u64,
        /// Steps of the kernel.
        #[serde(default = "one")]
        stride: u64,
        /// Zeros on each side.
        #[serde(default)]
        padding: u64,
        /// Rows in.
        height: u64,
        /// Columns in.
        width: u64,
    },
    /// A normalization with a factor for each feature, and an offset where it has a mean.
    Norm {
        /// Features.
        features: u64,
        /// Positions of a sample: tokens, or pixels.
        #[serde(default = "one")]
        positions: u64,
        /// What the statistics are over.
        #[serde(default)]
        form: Norm,
    },
    /// A function of each element, whose backward needs its input or its output.
    Activation {
        /// Elements of a sample.
        elements: u64,
    },
    /// Zeros at random; a byte for each element says where.
    Dropout {
        /// Elements of a sample.
        elements: u64,
    },
    /// Attention of several heads with its four projections.
    Attention {
        /// Positions of a sample.
        sequence: u64,
        /// Features of a position.
        width: u64,
        /// Heads.
        heads: u64,
        /// How the scores are kept.
        #[serde(default)]
        scores: Scores,
        /// Whether scores are dropped at random.
        #[serde(default)]
        dropout: bool,
    },
    /// A row of a table for each position.
    Embedding {
        /// Rows of the table.
        vocabulary: u64,
        /// Features of a row.
        width: u64,
        /// Positions of a sample.
        #[serde(default = "one")]
        positions: u64,
    },
    /// Cross-entropy: keeps logarithms of probabilities in 4 bytes each.
    CrossEntropy {
        /// Classes.
        classes: u64,
        /// Positions of a sample.
        #[serde(default = "one")]
        positions: u64,
    },
    /// A transformer block: attention, two linear layers of four times the width, two norms.
    Transformer {
        /// Positions of a sample.
        sequence: u64,
        /// Features of a position.
        width: u64,
        /// Heads.
        heads: u64,
        /// How the scores are kept.
        #[serde(default)]
        scores: Scores,
        /// Whether scores and outputs are dropped at random.
        #[serde(default)]
        dropout: bool,
    },
    /// Layers that are one stage of a plan, and how many such stages follow one another.
    Block {
        /// Its name, for messages.
        #[serde(default)]
        name: String,
        /// How many of these blocks there are.
        #[serde(default = "one")]
        repeat: u64,
        /// Its layers.
        layers: Vec<Layer>,
    },
}

fn yes() -> bool {
    true
}

fn one() -> u64 {
    1
}

/// What a layer takes, for a batch.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Figures {
    /// The shape of each parameter.
    pub parameters: Vec<Vec<u64>>,
    /// Bytes of the output.
    pub output_bytes: u64,
    /// Bytes that backward needs besides input and output.
    pub saved_bytes: u64,
    /// Multiplications and additions of the forward, two for each product.
    pub flops: f64,
}

impl Figures {
    /// How many parameters there are.
    ///
    /// # Errors
    /// [`Error::Config`] for more than 2^42.
    pub fn parameter_count(&self) -> Result<u64> {
        self.parameters
            .iter()
            .try_fold(0, |sum, shape| product("parameters", &[sum + product("parameters", shape)?]))
    }
}

/// The largest size of a layer.
const MOST: u64 = 1 << 32;

/// Sizes of a convolution's output.
fn convolved(side: u64, kernel: u64, stride: u64, padding: u64) -> Result<u64> {
    if padding > MOST {
        return Err(Error::parameter("padding", padding, format!("it must be at most {MOST}")));
    }
    let padded = side + 2 * padding;
    if kernel > padded {
        let what = format!("a kernel of {kernel} over {side} and twice {padding} zeros: it must be smaller");
        return Err(Error::Config(what));
    }
    Ok((padded - kernel) / stride + 1)
}

impl Layer {
    /// Its kind, as JSON names it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Linear { .. } => "linear",
            Self::Convolution { .. } => "convolution",
            Self::DepthwiseSeparable { .. } => "depthwise_separable",
            Self::Norm { .. } => "norm",
            Self::Activation { .. } => "activation",
            Self::Dropout { .. } => "dropout",
            Self::Attention { .. } => "attention",
            Self::Embedding { .. } => "embedding",
            Self::CrossEntropy { .. } => "cross_entropy",
            Self::Transformer { .. } => "transformer",
            Self::Block { .. } => "block",
        }
    }

    /// The sizes of its output for one sample; none for a loss, and for sizes that do not fit.
    #[must_use]
    pub fn output_sizes(&self) -> Vec<u64> {
        match *self {
            Self::Linear { outputs, positions, .. } => vec![positions, outputs],
            Self::Convolution { outputs, kernel, stride, padding, height, width, .. }
            | Self::DepthwiseSeparable { outputs, kernel, stride, padding, height, width, .. } => {
                let side = |side| convolved(side, kernel, stride, padding).unwrap_or(0);
                vec![outputs, side(height), side(width)]
            }
            Self::Norm { features, positions, .. } => vec![positions, features],
            Self::Activation { elements } | Self::Dropout { elements } => vec![elements],
            Self::Attention { sequence, width, .. } | Self::Transformer { sequence, width, .. } => {
                vec![sequence, width]
            }
            Self::Embedding { width, positions, .. } => vec![positions, width],
            Self::CrossEntropy { .. } => Vec::new(),
            Self::Block { ref layers, .. } => layers.last().map_or_else(Vec::new, Self::output_sizes),
        }
    }

    /// What the layer takes for `batch` samples whose activations have `element_bytes` each.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a size of 0 or above 2^32; [`Error::Config`] for sizes that do not
    /// belong together, and for more than 2^42 bytes or parameters.
    ///
    /// # Example
    /// ```
    /// use tidegate_plan::training::layers::{Layer, Scores};
    ///
    /// // A layer of GPT-3 in 16 bits: 2.87 GB, of which scores are 70 %.
    /// let block = |scores| Layer::Transformer {
    ///     sequence: 2048, width: 12288, heads: 96, scores, dropout: true,
    /// };
    /// let bytes = |layer: Layer| layer.figures(1, 2).map(|f| f.saved_bytes + f.output_bytes);
    /// let gb = |layer| bytes(layer).map(|bytes| bytes as f64 / 1e9);
    /// assert_eq!((gb(block(Scores::Full))? * 100.0).round(), 287.0);
    /// assert_eq!((gb(block(Scores::Blockwise))? * 100.0).round(), 86.0);
    /// # Ok::<(), tidegate_plan::Error>(())
    /// ```
    pub fn figures(&self, batch: u64, element_bytes: u64) -> Result<Figures> {
        self.check()?;
        let (b, c) = (batch, element_bytes);
        let output = self.output_sizes();
        let elements = count(&[&[b], &output[..]].concat());
        let output_bytes =
            if output.is_empty() { 0 } else { product(self.kind(), &[&[b, c], &output[..]].concat())? };
        let (parameters, flops) = match *self {
            Self::Linear { inputs, outputs, bias, positions } => {
                let parameters = weights(vec![outputs, inputs], bias.then_some(outputs));
                (parameters, 2.0 * count(&[b, positions, inputs, outputs]))
            }
            Self::Convolution { inputs, outputs, kernel, groups, bias, .. } => {
                let own = [inputs / groups, kernel, kernel];
                let weight = [&[outputs], &own[..]].concat();
                (weights(weight, bias.then_some(outputs)), 2.0 * elements * count(&own))
            }
            Self::DepthwiseSeparable { inputs, outputs, kernel, .. } => {
                let parameters = vec![vec![inputs, 1, kernel, kernel], vec![outputs, inputs, 1, 1]];
                let each = count(&[kernel, kernel]) + outputs as f64;
                (parameters, 2.0 * elements / outputs as f64 * inputs as f64 * each)
            }
            Self::Norm { features, form, .. } => {
                (weights(vec![features], (form != Norm::Rms).then_some(features)), 8.0 * elements)
            }
            Self::Activation { .. } | Self::Dropout { .. } => (Vec::new(), elements),
            Self::Attention { sequence, width, heads, scores, .. } => {
                attention(b, (sequence, width, heads), scores)
            }
            Self::Embedding { vocabulary, width, .. } => (vec![vec![vocabulary, width]], elements),
            Self::CrossEntropy { classes, positions } => (Vec::new(), 4.0 * count(&[b, positions, classes])),
            Self::Transformer { sequence, width, heads, scores, .. } => {
                transformer(b, (sequence, width, heads), scores)
            }
            Self::Block { ref layers, .. } => return block(layers, batch, element_bytes),
        };
        let terms = self.saved(b, c);
        let saved_bytes = terms.iter().try_fold(0, |sum, term| Ok::<u64, Error>(sum + term.bytes()?))?;
        let figures = Figures { parameters, output_bytes, saved_bytes, flops };
        figures.parameter_count()?;
        Ok(figures)
    }

    /// Checks that the kernel of a convolution fits.
    fn check_sides(&self) -> Result<()> {
        if let Self::Convolution { kernel, stride, padding, height, width, .. }
        | Self::DepthwiseSeparable { kernel, stride, padding, height, width, .. } = *self
        {
            for (name, size) in [("kernel", kernel), ("stride", stride), ("height", height), ("width", width)]
            {
                counted_to(name, size, MOST)?;
            }
            convolved(height, kernel, stride, padding)?;
            convolved(width, kernel, stride, padding)?;
        }
        Ok(())
    }

    /// Checks every size.
    fn check(&self) -> Result<()> {
        let sizes: &[(&str, u64)] = match *self {
            Self::Linear { inputs, outputs, positions, .. } => {
                &[("inputs", inputs), ("outputs", outputs), ("positions", positions)]
            }
            Self::Convolution { inputs, outputs, groups, .. } => {
                if groups == 0 || inputs % groups != 0 || outputs % groups != 0 {
                    let what = format!(
                        "{groups} groups of {inputs} channels in and {outputs} out: they must divide both"
                    );
                    return Err(Error::Config(what));
                }
                self.check_sides()?;
                &[("inputs", inputs), ("outputs", outputs)]
            }
            Self::DepthwiseSeparable { inputs, outputs, .. } => {
                self.check_sides()?;
                &[("inputs", inputs), ("outputs", outputs)]
            }
            Self::Norm { features, positions, .. } => &[("features", features), ("positions", positions)],
            Self::Activation { elements } | Self::Dropout { elements } => &[("elements", elements)],
            Self::Attention { sequence, width, heads, scores, .. }
            | Self::Transformer { sequence, width, heads, scores, .. } => {
                if let Scores::Sparse(keys) | Scores::LowRank(keys) = scores {
                    counted_to("keys", keys, sequence)?;
                }
                if heads == 0 || width % heads != 0 {
                    let what = format!("{heads} heads of a width of {width}: they must divide it");
                    return Err(Error::Config(what));
                }
                &[("sequence", sequence), ("width", width)]
            }
            Self::Embedding { vocabulary, width, positions } => {
                &[("vocabulary", vocabulary), ("width", width), ("positions", positions)]
            }
            Self::CrossEntropy { classes, positions } => &[("classes", classes), ("positions", positions)],
            Self::Block { ref layers, repeat, .. } => {
                if layers.is_empty() {
                    return Err(Error::Config("a block without layers".into()));
                }
                &[("repeat", repeat)]
            }
        };
        sizes.iter().try_for_each(|&(name, value)| counted_to(name, value, MOST).map(|_| ()))
    }
}

fn count(sizes: &[u64]) -> f64 {
    sizes.iter().map(|&n| n as f64).product()
}

fn weights(shape: Vec<u64>, bias: Option<u64>) -> Vec<Vec<u64>> {
    std::iter::once(shape).chain(bias.map(|n| vec![n])).collect()
}

/// The parameters of attention, and its multiplications and additions.
fn attention(b: u64, (s, d, _): (u64, u64, u64), scores: Scores) -> (Vec<Vec<u64>>, f64) {
    let mut parameters = vec![vec![3 * d, d], vec![3 * d], vec![d, d], vec![d]];
    if let Scores::LowRank(rank) = scores {
        parameters.extend([vec![rank, s], vec![rank, s]]);
    }
    (parameters, 8.0 * count(&[b, s, d, d]) + scoring(b, (s, d), scores))
}

/// The multiplications and additions of scores and of what they weigh.
fn scoring(b: u64, (s, d): (u64, u64), scores: Scores) -> f64 {
    match scores {
        Scores::Full | Scores::Blockwise => 4.0 * count(&[b, s, s, d]),
        Scores::Sparse(keys) => 4.0 * count(&[b, s, keys, d]),
        // Two products make keys and values of that rank.
        Scores::LowRank(keys) => 8.0 * count(&[b, s, keys, d]),
    }
}

fn transformer(b: u64, sizes: (u64, u64, u64), scores: Scores) -> (Vec<Vec<u64>>, f64) {
    let (s, d, _) = sizes;
    let (mut parameters, _) = attention(b, sizes, scores);
    parameters.extend([vec![4 * d, d], vec![4 * d], vec![d, 4 * d], vec![d]]);
    parameters.extend([vec![d], vec![d], vec![d], vec![d]]);
    (parameters, 24.0 * count(&[b, s, d, d]) + scoring(b, (s, d), scores))
}

/// The layers of a block as one: outputs between them are saved.
fn block(layers: &[Layer], batch: u64, element_bytes: u64) -> Result<Figures> {
    let mut all = Figures::default();
    for (i, layer) in layers.iter().enumerate() {
        if let Layer::Block { repeat, .. } = layer
            && *repeat > 1
        {
            return Err(Error::Config("a repeated block within a block: repeat the outer one".into()));
        }
        let figures = layer.figures(batch, element_bytes)?;
        all.parameters.extend(figures.parameters);
        let inner = if i + 1 < layers.len() { figures.output_bytes } else { 0 };
        all.saved_bytes = product("a block", &[all.saved_bytes + figures.saved_bytes + inner])?;
        all.output_bytes = figures.output_bytes;
        all.flops += figures.flops;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Layer {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn parameters_are_those_of_torch() {
        // torch: Linear(784, 256), Conv2d(3, 64, 7), ResNet's first; GPT-2's block of 7,087,872.
        let count = |text: &str| json(text).figures(1, 4).unwrap().parameter_count().unwrap();
        assert_eq!(count(r#"{"kind":"linear","inputs":784,"outputs":256}"#), 200_960);
        let conv = r#"{"kind":"convolution","inputs":3,"outputs":64,"kernel":7,"stride":2,"padding":3,
                       "bias":false,"height":224,"width":224}"#;
        assert_eq!(count(conv), 9408);
        assert_eq!(json(conv).figures(2, 4).unwrap().output_bytes, 2 * 64 * 112 * 112 * 4);
        let block = r#"{"kind":"transformer","sequence":1024,"width":768,"heads":12}"#;
        assert_eq!(count(block), 7_087_872);
        assert_eq!(count(r#"{"kind":"embedding","vocabulary":50257,"width":768}"#), 38_597_376);
    }

    #[test]
    fn a_depthwise_separable_convolution_takes_the_known_part_of_the_work() {
        let shape = r#""inputs":64,"outputs":128,"kernel":3,"padding":1,"height":56,"width":56"#;
        let separable = json(&format!(r#"{{"kind":"depthwise_separable",{shape}}}"#)).figures(1, 4).unwrap();
        let full = json(&format!(r#"{{"kind":"convolution","bias":false,{shape}}}"#)).figures(1, 4).unwrap();
        let ratio = 9.0 * 128.0 / (9.0 + 128.0);
        assert!((full.flops / separable.flops - ratio).abs() < 1e-9);
        let parameters = full.parameter_count().unwrap() as f64 / separable.parameter_count().unwrap() as f64;
        assert!((parameters - ratio).abs() < 1e-9);
        assert_eq!(separable.saved_bytes, 64 * 56 * 56 * 4);
    }

    #[test]
    fn scores_take_what_their_form_says() {
        let saved = |scores: &str| {
            let text =
                format!(r#"{{"kind":"attention","sequence":1024,"width":512,"heads":8,"scores":{scores}}}"#);
            json(&text).figures(2, 2).unwrap().saved_bytes
        };
        let rest = 4 * 2 * 1024 * 512 * 2;
        assert_eq!(saved(r#""full""#), rest + 2 * 2 * 8 * 1024 * 1024);
        assert_eq!(saved(r#""blockwise""#), rest + 4 * 2 * 8 * 1024);
        assert_eq!(saved(r#"{"sparse":64}"#), rest + 2 * 2 * 8 * 1024 * 64);
        assert_eq!(saved(r#"{"low_rank":64}"#), rest + 2 * 2 * 8 * 1024 * 64 + 2 * 2 * 64 * 512 * 2);
    }

    #[test]
    fn a_transformer_block_is_the_sum_of_the_paper() {
        let (s, b, h, a) = (512u64, 4u64, 1024u64, 16u64);
        let layer =
            Layer::Transformer { sequence: s, width: h, heads: a, scores: Scores::Full, dropout: true };
        let figures = layer.figures(b, 2).unwrap();
        // Without the input, which is the block's before: 2 of the 34.
        assert_eq!(figures.saved_bytes, s * b * h * 32 + 5 * a * s * s * b);
    }

    #[test]
    fn wrong_sizes_are_named() {
        for (text, words) in [
            (r#"{"kind":"linear","inputs":0,"outputs":2}"#, "inputs is 0"),
            (r#"{"kind":"attention","sequence":8,"width":10,"heads":3}"#, "3 heads of a width of 10"),
            (
                r#"{"kind":"convolution","inputs":3,"outputs":4,"kernel":9,"height":4,"width":4}"#,
                "a kernel of 9",
            ),
            (
                r#"{"kind":"convolution","inputs":3,"outputs":4,"groups":2,"kernel":1,"height":4,"width":4}"#,
                "2 groups",
            ),
            (r#"{"kind":"block","layers":[]}"#, "a block without layers"),
            (
                r#"{"kind":"linear","inputs":4294967296,"outputs":4294967296}"#,
                "parameters: 4294967296 × 4294967296",
            ),
            (r#"{"kind":"attention","sequence":8,"width":8,"heads":2,"scores":{"low_rank":9}}"#, "keys is 9"),
        ] {
            let error = json(text).figures(1, 4).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(
            serde_json::from_str::<Layer>(r#"{"kind":"linear","inputs":1,"outputs":2,"bais":true}"#).is_err()
        );
    }
}
