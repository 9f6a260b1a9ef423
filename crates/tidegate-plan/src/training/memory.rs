//! What a training step holds besides activations: parameters, gradients, optimizer, copies.
//!
//! Flow: shapes of parameters, [`Precision`], [`Optimizer`] -> [`Part`]s with their sums in words.
//! Memory: holds none.

use serde::{Deserialize, Serialize};

use crate::error::{Result, product};

/// In which numbers a model trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Everything in 4 bytes.
    #[default]
    Fp32,
    /// torch's autocast: parameters, gradients and optimizer in 4 bytes, activations in 2, and a
    /// copy of the parameters in 2 while the step runs.
    Autocast,
    /// Everything in 2 bytes, the optimizer too.
    Bf16,
    /// Parameters and gradients in 2 bytes; a master copy and the optimizer in 4.
    Bf16Master,
}

impl Precision {
    /// Bytes of a parameter, of its gradient, of a number of the optimizer, of the master copy and
    /// of the copy for autocast.
    #[must_use]
    pub fn parameter_bytes(self) -> [u64; 5] {
        match self {
            Self::Fp32 => [4, 4, 4, 0, 0],
            Self::Autocast => [4, 4, 4, 0, 2],
            Self::Bf16 => [2, 2, 2, 0, 0],
            Self::Bf16Master => [2, 2, 4, 4, 0],
        }
    }

    /// Bytes of an element of an activation.
    #[must_use]
    pub fn element_bytes(self) -> u64 {
        if self == Self::Fp32 { 4 } else { 2 }
    }
}

/// What updates the parameters, by what it keeps for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// Nothing.
    Sgd,
    /// One number: SGD with momentum.
    Momentum,
    /// Two numbers.
    Adam,
    /// Two numbers.
    #[default]
    Adamw,
    /// Two numbers of one byte, and a factor of 4 bytes for 256 of each (torchao, bitsandbytes).
    /// Parameters with fewer than 4,096 elements keep 4-byte numbers.
    Adam8bit,
    /// One number.
    Lion,
    /// For a matrix a number for each row and each column, else one number; no momentum.
    /// N. Shazeer, M. Stern, arXiv:1804.04235.
    Adafactor,
}

/// Elements that share a factor in 8-bit optimizers.
const BLOCK: u64 = 256;
/// Parameters with fewer elements are not kept in 8 bits.
const LEAST_8BIT: u64 = 4096;

impl Optimizer {
    /// The bytes that it keeps for a parameter of a shape, where its numbers have `number_bytes`.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for a shape of more than 2^42 elements.
    pub fn state_bytes(self, shape: &[u64], number_bytes: u64) -> Result<u64> {
        let count = product("the elements of a parameter", shape)?;
        Ok(match self {
            Self::Sgd => 0,
            Self::Momentum | Self::Lion => count * number_bytes,
            Self::Adam | Self::Adamw => 2 * count * number_bytes,
            Self::Adam8bit if count < LEAST_8BIT => 2 * count * 4,
            Self::Adam8bit => 2 * (count + 4 * count.div_ceil(BLOCK)),
            Self::Adafactor => match shape {
                [] | [_] => count * 4,
                // The last two axes are the matrix; the others are many of them.
                [many @ .., rows, columns] => {
                    4 * product(
                        "the factors of a parameter",
                        &[many, &[rows.saturating_add(*columns)]].concat(),
                    )?
                }
            },
        })
    }

    fn words(self, count: u64, number_bytes: u64) -> String {
        match self {
            Self::Sgd => "SGD keeps nothing".into(),
            Self::Momentum | Self::Lion => format!("{count} parameters × 1 number × {number_bytes} bytes"),
            Self::Adam | Self::Adamw => format!("{count} parameters × 2 numbers × {number_bytes} bytes"),
            Self::Adam8bit => {
                format!(
                    "{count} parameters × 2 bytes, and factors of 4 bytes for {BLOCK}; small ones in 8 bytes"
                )
            }
            Self::Adafactor => {
                "4 bytes for each row and column of a matrix, and each element of a vector".into()
            }
        }
    }
}

/// One kind of memory: its bytes, and the sum in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What it is: `parameters`, `gradients`, `optimizer`, …
    pub name: &'static str,
    /// How many bytes.
    pub bytes: u64,
    /// How they come about.
    pub words: String,
}

/// The parts that do not depend on the batch. Gradients are among them, for a step that keeps them.
///
/// # Errors
/// [`crate::Error::Config`] for more than 2^42 parameters.
///
/// # Example
/// ```
/// use tidegate_plan::training::memory::{Optimizer, Precision, states};
/// // 16 bytes a parameter, whichever of the two usual ways a model trains with Adam.
/// for precision in [Precision::Fp32, Precision::Bf16Master] {
///     let parts = states(&[vec![1000, 1000]], precision, Optimizer::Adamw)?;
///     assert_eq!(parts.iter().map(|part| part.bytes).sum::<u64>(), 16_000_000);
/// }
/// # Ok::<(), tidegate_plan::Error>(())
/// ```
pub fn states(shapes: &[Vec<u64>], precision: Precision, optimizer: Optimizer) -> Result<Vec<Part>> {
    let mut count = 0;
    for shape in shapes {
        count = product("the parameters", &[count + product("the elements of a parameter", shape)?])?;
    }
    let [parameter, gradient, number, master, cast] = precision.parameter_bytes();
    let mut state = 0;
    for shape in shapes {
        state += optimizer.state_bytes(shape, number)?;
    }
    let each = |bytes: u64| format!("{count} parameters × {bytes} bytes");
    let parts = [
        Part { name: "parameters", bytes: count * parameter, words: each(parameter) },
        Part { name: "gradients", bytes: count * gradient, words: each(gradient) },
        Part { name: "optimizer", bytes: state, words: optimizer.words(count, number) },
        Part { name: "master copy", bytes: count * master, words: each(master) },
        Part { name: "autocast copy", bytes: count * cast, words: each(cast) },
    ];
    Ok(parts.into_iter().filter(|part| part.bytes > 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(shapes: &[Vec<u64>], precision: Precision, optimizer: Optimizer) -> u64 {
        states(shapes, precision, optimizer).unwrap().iter().map(|part| part.bytes).sum()
    }

    /// What Hugging Face's `estimate-memory` prints for bert-base-cased (413.18 MB of parameters)
    /// and resnet50 (97.7 MB): training with Adam takes four times the parameters.
    #[test]
    fn adam_takes_four_times_the_parameters() {
        for (parameters, mb, adam) in [(108_310_272u64, 413.18, 1652.7), (25_610_152, 97.7, 390.78)] {
            let shapes = [vec![parameters]];
            let mega = |bytes: u64| bytes as f64 / (1 << 20) as f64;
            assert!((mega(4 * parameters) - mb).abs() < 0.05);
            assert!((mega(total(&shapes, Precision::Fp32, Optimizer::Adam)) - adam).abs() < 0.3);
        }
    }

    #[test]
    fn each_optimizer_keeps_what_it_says() {
        let shapes = [vec![1024, 512], vec![512]];
        let (matrix, vector) = (1024 * 512, 512);
        let kept =
            |optimizer: Optimizer| shapes.iter().map(|s| optimizer.state_bytes(s, 4).unwrap()).sum::<u64>();
        assert_eq!(kept(Optimizer::Sgd), 0);
        assert_eq!(kept(Optimizer::Momentum), 4 * (matrix + vector));
        assert_eq!(kept(Optimizer::Lion), 4 * (matrix + vector));
        assert_eq!(kept(Optimizer::Adamw), 8 * (matrix + vector));
        assert_eq!(kept(Optimizer::Adam8bit), 2 * matrix + 2 * 4 * matrix / 256 + 8 * vector);
        assert_eq!(kept(Optimizer::Adafactor), 4 * (1024 + 512) + 4 * vector);
        assert_eq!(total(&shapes, Precision::Bf16, Optimizer::Adamw), 8 * (matrix + vector));
        assert_eq!(total(&shapes, Precision::Autocast, Optimizer::Sgd), 10 * (matrix + vector));
    }

    #[test]
    fn the_sums_are_in_words() {
        let parts = states(&[vec![1 << 20]], Precision::Fp32, Optimizer::Adamw).unwrap();
        let words: Vec<&str> = parts.iter().map(|part| part.words.as_str()).collect();
        let each = "1048576 parameters × 4 bytes";
        assert_eq!(words, [each, each, "1048576 parameters × 2 numbers × 4 bytes"]);
        assert!(states(&[vec![1 << 30, 1 << 30]], Precision::Fp32, Optimizer::Adamw).is_err());
    }
}
