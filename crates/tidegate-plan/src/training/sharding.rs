//! ZeRO: what each of N devices holds when states are divided, and what travels in a step.
//!
//! Flow: parameters, devices, stage, accounting -> [`Sharded`].
//! Memory: holds none.
//!
//! Sources: S. Rajbhandari et al., "ZeRO: Memory optimizations toward training trillion parameter
//! models", arXiv:1910.02054; DeepSpeed's estimators (`deepspeed/runtime/zero/stage_1_and_2.py`,
//! `stage3.py`), which count gradients in 4 bytes too.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, at_least_one};

/// How the bytes of a parameter are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accounting {
    /// The paper's: 2 bytes a parameter, 2 a gradient, 12 of Adam and the master copy.
    #[default]
    Paper,
    /// DeepSpeed's estimator: also a gradient of 4 bytes; stages 2 and 3.
    DeepSpeed,
    /// Everything in 4 bytes, as torch's `fully_shard` holds an fp32 model: 4 a parameter, 4 a
    /// gradient, 8 of Adam.
    Fp32,
}

/// What of the states is kept in the memory of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offload {
    /// Nothing.
    #[default]
    None,
    /// The optimizer.
    Optimizer,
    /// The optimizer and the parameters (stage 3).
    Parameters,
}

/// A model whose states are divided among devices.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sharding {
    /// Parameters of the model.
    pub parameters: u64,
    /// Parameters of the largest layer, which stage 3 gathers.
    #[serde(default)]
    pub largest_layer: u64,
    /// Devices.
    pub devices: u64,
    /// 0: nothing is divided. 1: the optimizer. 2: gradients too. 3: parameters too.
    pub stage: u8,
    /// How bytes are counted.
    #[serde(default)]
    pub accounting: Accounting,
    /// What the host keeps.
    #[serde(default)]
    pub offload: Offload,
}

/// What one device holds, and what it sends in a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sharded {
    /// Bytes of states.
    pub bytes: f64,
    /// Bytes of the gathered layer, which `bytes` does not contain.
    pub gathered_bytes: f64,
    /// Elements that a device sends in a step, a ring's (N − 1)/N left out: 2P, 2P, 2P, 3P.
    pub sent_elements: f64,
    /// Bytes that a device of a ring sends in a step.
    pub sent_bytes: f64,
}

impl Sharded {
    /// States and gathered layer.
    #[must_use]
    pub fn total_bytes(&self) -> f64 {
        self.bytes + self.gathered_bytes
    }
}

impl Sharding {
    /// What one device holds, and what it sends.
    ///
    /// # Errors
    /// [`Error::Parameter`] for no parameters, no devices, or a stage above 3; [`Error::Config`]
    /// for what DeepSpeed's estimators do not cover.
    ///
    /// # Example
    /// ```
    /// use tidegate_plan::training::sharding::{Accounting, Offload, Sharding};
    ///
    /// let gb = |stage| {
    ///     let sharding = Sharding {
    ///         parameters: 7_500_000_000, largest_layer: 0, devices: 64, stage,
    ///         accounting: Accounting::Paper, offload: Offload::None,
    ///     };
    ///     sharding.each().map(|each| each.bytes / 1e9)
    /// };
    /// assert_eq!([gb(0)?, gb(1)?, gb(2)?, gb(3)?], [120.0, 31.40625, 16.640625, 1.875]);
    /// # Ok::<(), tidegate_plan::Error>(())
    /// ```
    pub fn each(&self) -> Result<Sharded> {
        at_least_one("parameters", self.parameters)?;
        at_least_one("devices", self.devices)?;
        if self.stage > 3 {
            return Err(Error::parameter("stage", self.stage, "it must be 0, 1, 2 or 3"));
        }
        let (p, n, layer) = (self.parameters as f64, self.devices as f64, self.largest_layer as f64);
        let sent_elements = if self.devices == 1 { 0.0 } else { p * if self.stage == 3 { 3.0 } else { 2.0 } };
        let element_bytes = if self.accounting == Accounting::Fp32 { 4.0 } else { 2.0 };
        let sent_bytes = sent_elements * element_bytes * (n - 1.0) / n;
        let (parameter, gradient, states) = match self.accounting {
            Accounting::Paper => (2.0, 2.0, 12.0),
            Accounting::Fp32 => (4.0, 4.0, 8.0),
            Accounting::DeepSpeed => return self.of_deepspeed(p, n, layer, (sent_elements, sent_bytes)),
        };
        if self.offload != Offload::None {
            let what = "offload is counted by DeepSpeed's accounting: give accounting \"deep_speed\"";
            return Err(Error::Config(what.into()));
        }
        let divided = |from: u8| if self.stage >= from { n } else { 1.0 };
        let bytes = p * (parameter / divided(3) + gradient / divided(2) + states / divided(1));
        let gathered_bytes = if self.stage == 3 && n > 1.0 { parameter * layer } else { 0.0 };
        Ok(Sharded { bytes, gathered_bytes, sent_elements, sent_bytes })
    }

    fn of_deepspeed(&self, p: f64, n: f64, layer: f64, sent: (f64, f64)) -> Result<Sharded> {
        let (bytes, gathered_bytes) = match (self.stage, self.offload) {
            (2, Offload::None) => (4.0 * p + 16.0 * p / n, 0.0),
            (2, Offload::Optimizer) => (2.0 * p, 0.0),
            (3, Offload::None) => (18.0 * p / n, 4.0 * layer),
            (3, Offload::Optimizer) => (2.0 * p / n, 4.0 * layer),
            (3, Offload::Parameters) => (0.0, 4.0 * layer),
            (2, Offload::Parameters) => {
                return Err(Error::Config(
                    "stage 2 keeps parameters on the device: offload the optimizer".into(),
                ));
            }
            (stage, _) => {
                return Err(Error::Config(format!("DeepSpeed estimates stages 2 and 3, not stage {stage}")));
            }
        };
        Ok(Sharded { bytes, gathered_bytes, sent_elements: sent.0, sent_bytes: sent.1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(parameters: f64, devices: u64, stage: u8, accounting: Accounting) -> Sharded {
        let parameters = parameters as u64;
        let offload = Offload::None;
        Sharding { parameters, largest_layer: 0, devices, stage, accounting, offload }.each().unwrap()
    }

    /// The table of the paper, in GB; it prints figures rounded to three places at most.
    #[test]
    fn the_papers_table() {
        let of = |parameters, devices| {
            [1, 2, 3].map(|stage| each(parameters, devices, stage, Accounting::Paper).bytes / 1e9)
        };
        let near = |found: [f64; 3], table: [f64; 3]| {
            let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 0.06f64.max(0.01 * b);
            assert!(found.iter().zip(&table).all(close), "{found:?} {table:?}");
        };
        near(of(7.5e9, 1), [120.0, 120.0, 120.0]);
        near(of(7.5e9, 4), [52.5, 41.3, 30.0]);
        near(of(7.5e9, 16), [35.6, 21.6, 7.5]);
        near(of(7.5e9, 64), [31.4, 16.6, 1.88]);
        near(of(7.5e9, 256), [30.4, 15.4, 0.47]);
        near(of(7.5e9, 1024), [30.1, 15.1, 0.12]);
        near(of(128e9, 64), [536.0, 284.0, 32.0]);
        near(of(1e12, 64), [4187.5, 2218.75, 250.0]);
        assert_eq!(each(7.5e9, 64, 2, Accounting::Paper).sent_elements, 15e9);
        assert_eq!(each(7.5e9, 64, 3, Accounting::Paper).sent_elements, 22.5e9);
        assert_eq!(each(8.0, 4, 1, Accounting::Fp32).sent_bytes, 2.0 * 8.0 * 4.0 * 0.75);
    }

    /// What DeepSpeed's documentation prints: 2,851 million parameters on 8 devices, and t5-large
    /// on 4.
    #[test]
    fn deepspeeds_estimates() {
        let of = |parameters: f64, layer: f64, devices, stage, offload| {
            let (parameters, largest_layer) = (parameters as u64, layer as u64);
            let accounting = Accounting::DeepSpeed;
            Sharding { parameters, largest_layer, devices, stage, accounting, offload }.each()
        };
        let gib = |sharded: Sharded| (sharded.total_bytes() / (1u64 << 30) as f64 * 100.0).round() / 100.0;
        assert_eq!(gib(of(2851e6, 32e6, 8, 2, Offload::None).unwrap()), 15.93);
        assert_eq!(gib(of(2851e6, 32e6, 8, 3, Offload::None).unwrap()), 6.09);
        let mib = |sharded: Sharded| (sharded.total_bytes() / (1u64 << 20) as f64).floor();
        assert_eq!(mib(of(737.67e6, 32.9e6, 4, 3, Offload::None).unwrap()), 3291.0);
        assert_eq!(mib(of(737.67e6, 32.9e6, 4, 3, Offload::Parameters).unwrap()), 125.0);
        assert_eq!(mib(of(737.67e6, 32.9e6, 4, 3, Offload::Optimizer).unwrap()), 477.0);
        assert!(of(1e6, 0.0, 4, 1, Offload::None).is_err());
    }

    #[test]
    fn an_fp32_model_takes_sixteen_bytes_divided() {
        assert_eq!(each(11.64e6, 2, 3, Accounting::Fp32).bytes, 16.0 * 11.64e6 / 2.0);
        assert_eq!(each(11.64e6, 1, 0, Accounting::Fp32).sent_elements, 0.0);
        let wrong = Sharding { stage: 4, ..sharding() };
        assert!(wrong.each().unwrap_err().to_string().contains("it must be 0, 1, 2 or 3"));
        assert!(Sharding { offload: Offload::Optimizer, ..sharding() }.each().is_err());
    }

    fn sharding() -> Sharding {
        Sharding {
            parameters: 10,
            largest_layer: 1,
            devices: 2,
            stage: 3,
            accounting: Accounting::Paper,
            offload: Offload::None,
        }
    }
}
