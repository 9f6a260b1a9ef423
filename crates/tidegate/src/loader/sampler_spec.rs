//! The samplers that are computed from parameters, by name, for Rust and Python alike.
//!
//! Flow: [`SamplerSpec`] + [`SampleData`] -> an order of `tidegate_order`; its caller passes
//! the order to `Loader::with_order`.
//! Memory: the order charges its tables to the budget; the spec holds none.
//! Not here: lists of ids and functions that give ids (`Loader::with_sampler`), patches of volumes
//! (`PatchSampler`).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidegate_core::memory::Budget;
use tidegate_data::{Error, Result};
use tidegate_order::Order;
use tidegate_order::curriculum::{Curriculum, CurriculumSpec, Pace};
use tidegate_order::feedback::{LossFeedback, LossFeedbackSpec, Rule};
use tidegate_order::stratified::{Classes, Shares, Stratified, Until};
use tidegate_order::uniform::Uniform;
use tidegate_order::weighted::Weighted;
use tidegate_source::Source;

use super::Options;

/// The largest default of `block`.
const MAX_DEFAULT_BLOCK: u64 = 1 << 16;

/// A sampler and its parameters.
///
/// `positions` is the number of ids in an epoch, by default the number of samples. `block` is the
/// number of positions in which classes have their exact shares, by default a global batch (at
/// most 65,536).
///
/// ```
/// use tidegate::loader::{ClassShares, SamplerSpec};
///
/// let spec: SamplerSpec = serde_json::from_str(r#"{"kind": "classes", "shares": "over"}"#)?;
/// let shares = ClassShares::Over;
/// assert_eq!(spec, SamplerSpec::Classes { shares, beta: 0.0, positions: None, block: None });
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SamplerSpec {
    /// Uniform draws with replacement.
    Even {
        /// See [`SamplerSpec`].
        #[serde(default)]
        positions: Option<u64>,
    },
    /// Draws with replacement in proportion to weights.
    Weighted {
        /// See [`SamplerSpec`].
        #[serde(default)]
        positions: Option<u64>,
    },
    /// Exact shares of classes, by labels.
    Classes {
        /// How often each class comes.
        shares: ClassShares,
        /// Of [`ClassShares::Effective`]: 0 keeps the shares of the data, near 1 equals them.
        #[serde(default)]
        beta: f64,
        /// Of [`ClassShares::Effective`]; see [`SamplerSpec`].
        #[serde(default)]
        positions: Option<u64>,
        /// See [`SamplerSpec`].
        #[serde(default)]
        block: Option<u64>,
    },
    /// Exact proportions of sources that follow one another in the data.
    Mixture {
        /// Samples of each source.
        sizes: Vec<u64>,
        /// The proportion of each source, of any sum.
        proportions: Vec<f64>,
        /// When an epoch ends.
        until: MixtureEnd,
        /// See [`SamplerSpec`].
        #[serde(default)]
        block: Option<u64>,
    },
    /// Draws by the losses that `Loader::feedback` is told.
    Feedback {
        /// How a loss becomes a weight.
        rule: FeedbackRule,
        /// The rule's parameter: the power of `hard`, the gamma of `focal`, the gain of
        /// `importance`.
        value: f64,
        /// The fraction of draws that are uniform.
        even: f64,
        /// The weight of a new loss against the mean of those before; 1 forgets them.
        newness: f64,
        /// See [`SamplerSpec`].
        #[serde(default)]
        positions: Option<u64>,
    },
    /// Draws from the easiest samples first, and from more and more of them.
    Curriculum {
        /// The fraction of samples at the beginning.
        start: f64,
        /// The number of epochs after which all samples are drawn from.
        epochs: f64,
        /// How the fraction grows.
        pace: CurriculumPace,
        /// See [`SamplerSpec`].
        #[serde(default)]
        positions: Option<u64>,
    },
}

/// How often each class comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassShares {
    /// Every sample once, each class with its share of the data in every block.
    Stratified,
    /// As many samples of each class as the largest class has.
    Over,
    /// As many samples of each class as the smallest class has.
    Under,
    /// In proportion to the effective number of samples (Cui et al., 2019).
    Effective,
}

impl ClassShares {
    /// The shares by name.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown name, with the names that there are.
    pub fn parse(word: &str) -> Result<Self> {
        let words = [
            ("stratified", Self::Stratified),
            ("over", Self::Over),
            ("under", Self::Under),
            ("effective", Self::Effective),
        ];
        parse_word("how", word, &words, "")
    }
}

/// How a loss becomes a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedbackRule {
    /// A power of the loss: online hard-example mining.
    Hard,
    /// The focal weight of a cross-entropy.
    Focal,
    /// The loss itself, with weights that keep the mean gradient unbiased.
    Importance,
}

impl FeedbackRule {
    /// The rule by name.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown name, with the names that there are.
    pub fn parse(word: &str) -> Result<Self> {
        let words = [("hard", Self::Hard), ("focal", Self::Focal), ("importance", Self::Importance)];
        parse_word("how", word, &words, "")
    }

    fn with(self, value: f64) -> Rule {
        match self {
            Self::Hard => Rule::Hard { power: value },
            Self::Focal => Rule::Focal { gamma: value },
            Self::Importance => Rule::Importance { gain: value },
        }
    }
}

/// A number or a word, as an option is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NumberOrWord {
    /// A number.
    Number(u64),
    /// A word.
    Word(String),
}

/// When an epoch of a mixture ends: "first", "all", or a number of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NumberOrWord", into = "NumberOrWord")]
pub enum MixtureEnd {
    /// When the first source has come once.
    First,
    /// When all sources have come once.
    All,
    /// After this many positions.
    Positions(u64),
}

impl TryFrom<NumberOrWord> for MixtureEnd {
    type Error = Error;

    fn try_from(given: NumberOrWord) -> Result<Self> {
        match given {
            NumberOrWord::Number(positions) => Ok(Self::Positions(positions)),
            NumberOrWord::Word(word) => {
                let words = [("first", Self::First), ("all", Self::All)];
                parse_word("until", &word, &words, " or a number of positions")
            }
        }
    }
}

impl From<MixtureEnd> for NumberOrWord {
    fn from(end: MixtureEnd) -> Self {
        match end {
            MixtureEnd::First => Self::Word("first".into()),
            MixtureEnd::All => Self::Word("all".into()),
            MixtureEnd::Positions(positions) => Self::Number(positions),
        }
    }
}

/// How a curriculum grows: "linear", "root", or a number of equal steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NumberOrWord", into = "NumberOrWord")]
pub enum CurriculumPace {
    /// In proportion to the epochs passed.
    Linear,
    /// With the square root of the epochs passed, so faster at first (Platanios et al., 2019).
    Root,
    /// In this many equal steps.
    Steps(u64),
}

impl TryFrom<NumberOrWord> for CurriculumPace {
    type Error = Error;

    fn try_from(given: NumberOrWord) -> Result<Self> {
        match given {
            NumberOrWord::Number(steps) => Ok(Self::Steps(steps)),
            NumberOrWord::Word(word) => {
                let words = [("linear", Self::Linear), ("root", Self::Root)];
                parse_word("pace", &word, &words, " or a number of steps")
            }
        }
    }
}

impl From<CurriculumPace> for NumberOrWord {
    fn from(pace: CurriculumPace) -> Self {
        match pace {
            CurriculumPace::Linear => Self::Word("linear".into()),
            CurriculumPace::Root => Self::Word("root".into()),
            CurriculumPace::Steps(steps) => Self::Number(steps),
        }
    }
}

/// Finds the value of a word, or says which words there are.
fn parse_word<T: Copy>(option: &str, word: &str, words: &[(&str, T)], or: &str) -> Result<T> {
    let found = words.iter().find(|(known, _)| *known == word);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<_> = words.iter().map(|(known, _)| format!("'{known}'")).collect();
        Error::Config(format!("{option}='{word}' is not known: give {}{or}", known.join(", ")))
    })
}

/// What a sampler needs to know of each sample, one element for each.
#[derive(Debug, Clone, Copy)]
pub enum SampleData<'a> {
    /// Nothing.
    None,
    /// Weights in single precision, for [`SamplerSpec::Weighted`].
    Weights32(&'a [f32]),
    /// Weights in double precision, for [`SamplerSpec::Weighted`].
    Weights64(&'a [f64]),
    /// Labels from 0 on, for [`SamplerSpec::Classes`].
    Labels(&'a [u32]),
    /// Difficulties, for [`SamplerSpec::Curriculum`].
    Difficulties(&'a [f64]),
}

impl SampleData<'_> {
    /// Checks that there is one element for each sample.
    fn check(&self, samples: u64) -> Result<()> {
        let (what, given) = match self {
            Self::None => return Ok(()),
            Self::Weights32(weights) => ("weights", weights.len()),
            Self::Weights64(weights) => ("weights", weights.len()),
            Self::Labels(labels) => ("labels", labels.len()),
            Self::Difficulties(difficulties) => ("difficulties", difficulties.len()),
        };
        one_each(what, given as u64, samples)
    }
}

fn one_each(what: &str, given: u64, samples: u64) -> Result<()> {
    if given == samples {
        return Ok(());
    }
    Err(Error::Config(format!("{given} {what} for {samples} samples: give one for each")))
}

fn shared<T: Order + 'static>(order: T) -> Arc<dyn Order> {
    Arc::new(order)
}

impl SamplerSpec {
    fn positions(&self) -> Option<u64> {
        match self {
            Self::Even { positions }
            | Self::Weighted { positions }
            | Self::Classes { positions, .. }
            | Self::Feedback { positions, .. }
            | Self::Curriculum { positions, .. } => *positions,
            Self::Mixture { .. } => None,
        }
    }

    /// Makes the order over a source, with the seed and the global batch of `options`.
    ///
    /// # Errors
    /// [`Error::Config`] for data that do not fit the sampler or the source, and for a
    /// parameter that is out of range; a budget that cannot hold the order's tables.
    pub fn order(
        &self,
        data: SampleData<'_>,
        source: &dyn Source,
        options: &Options,
        budget: &Budget,
    ) -> Result<Arc<dyn Order>> {
        let (samples, runs, seed) = (source.len(), source.shard_lengths().len() as u64, options.seed);
        let default_block = options.global_batch()?.min(MAX_DEFAULT_BLOCK);
        let positions = self.positions().unwrap_or(samples);
        data.check(samples)?;
        match (self, data) {
            (Self::Even { .. }, SampleData::None) => {
                Uniform::new(samples, positions, runs, seed).map(shared).map_err(Error::from)
            }
            (Self::Weighted { .. }, SampleData::Weights32(weights)) => {
                Weighted::new(weights, positions, runs, seed, budget).map(shared).map_err(Error::from)
            }
            (Self::Weighted { .. }, SampleData::Weights64(weights)) => {
                Weighted::new(weights, positions, runs, seed, budget).map(shared).map_err(Error::from)
            }
            (Self::Classes { shares, beta, block, .. }, SampleData::Labels(labels)) => {
                let shares = match shares {
                    ClassShares::Stratified => Shares::Natural,
                    ClassShares::Over => Shares::Oversampled,
                    ClassShares::Under => Shares::Undersampled,
                    ClassShares::Effective => Shares::Effective { beta: *beta, positions },
                };
                let (classes, block) =
                    (Classes::from_labels(labels, budget)?, block.unwrap_or(default_block));
                Stratified::new(classes, &shares, block, runs, seed, budget).map(shared).map_err(Error::from)
            }
            (Self::Mixture { sizes, proportions, until, block }, SampleData::None) => {
                let all = sizes.iter().fold(0u64, |sum, &n| sum.saturating_add(n));
                one_each("samples in all sources", all, samples)?;
                let until = match until {
                    MixtureEnd::First => Until::First,
                    MixtureEnd::All => Until::All,
                    MixtureEnd::Positions(positions) => Until::Positions(*positions),
                };
                let shares = Shares::Proportions { weights: proportions.clone(), until };
                let (classes, block) = (Classes::from_lengths(sizes)?, block.unwrap_or(default_block));
                Stratified::new(classes, &shares, block, runs, seed, budget).map(shared).map_err(Error::from)
            }
            (Self::Feedback { rule, value, even, newness, .. }, SampleData::None) => {
                let (rule, uniform_fraction, momentum) = (rule.with(*value), *even, *newness);
                let spec =
                    LossFeedbackSpec { rule, samples, positions, uniform_fraction, momentum, runs, seed };
                LossFeedback::new(spec, budget).map(shared).map_err(Error::from)
            }
            (Self::Curriculum { start, epochs, pace, .. }, SampleData::Difficulties(difficulties)) => {
                let pace = match pace {
                    CurriculumPace::Linear => Pace::Linear,
                    CurriculumPace::Root => Pace::Root,
                    CurriculumPace::Steps(steps) => Pace::Step(u32::try_from(*steps).unwrap_or(u32::MAX)),
                };
                let (start, epochs) = (*start, *epochs);
                let spec = CurriculumSpec { start, epochs, pace, positions, runs, seed };
                Curriculum::new(difficulties, spec, budget).map(shared).map_err(Error::from)
            }
            _ => Err(Error::Config(
                "this sampler needs other data of samples: weights for weighted, labels for classes, \
                 difficulties for curriculum, none for the others"
                    .into(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_words_are_refused_with_the_known_ones() {
        let error = ClassShares::parse("equal").unwrap_err().to_string();
        assert!(error.contains("how='equal' is not known: give 'stratified', 'over', 'under', 'effective'"));
        let error = FeedbackRule::parse("soft").unwrap_err().to_string();
        assert!(error.contains("'hard', 'focal', 'importance'"));
        let word = |word: &str| NumberOrWord::Word(word.into());
        let error = MixtureEnd::try_from(word("last")).unwrap_err().to_string();
        assert!(error.contains("until='last'") && error.contains("or a number of positions"));
        let error = CurriculumPace::try_from(word("fast")).unwrap_err().to_string();
        assert!(error.contains("pace='fast'") && error.contains("'linear', 'root' or a number of steps"));
        let json = r#"{"kind": "mixture", "sizes": [1], "proportions": [1.0], "until": "last"}"#;
        assert!(serde_json::from_str::<SamplerSpec>(json).unwrap_err().to_string().contains("until='last'"));
    }

    #[test]
    fn words_are_those_of_json() {
        for word in ["stratified", "over", "under", "effective"] {
            let json = serde_json::to_value(ClassShares::parse(word).unwrap()).unwrap();
            assert_eq!(json, word);
        }
        for word in ["hard", "focal", "importance"] {
            assert_eq!(serde_json::to_value(FeedbackRule::parse(word).unwrap()).unwrap(), word);
        }
        let spec = SamplerSpec::Curriculum {
            start: 0.2,
            epochs: 3.0,
            pace: CurriculumPace::Steps(4),
            positions: Some(7),
        };
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<SamplerSpec>(&json).unwrap(), spec, "{json}");
    }
}
