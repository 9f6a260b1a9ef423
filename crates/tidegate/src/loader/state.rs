//! The state of a loader: where in which order the consumer is. A seek, never a replay.
//!
//! Flow: loader -> [`State`] -> JSON of at most 1 KiB (listed failures besides) -> another loader.
//! Memory: a few words.

use serde::{Deserialize, Serialize};
use tidegate_data::{Error, Result};
use tidegate_order::Shuffle;

const VERSION: u32 = 1;

/// Everything that is needed to go on; workers, budget and ranks are not part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// The data's fingerprint, in hexadecimal.
    pub fingerprint: String,
    /// Samples in an epoch.
    pub samples: u64,
    /// The seed.
    pub seed: u64,
    /// The order.
    pub shuffle: Shuffle,
    /// The epoch.
    pub epoch: u64,
    /// Global positions consumed in this epoch.
    pub position: u64,
    /// Positions that failed in this epoch, as "3,7-9".
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub failed: String,
    /// What tells a sampler's ids from others, in hexadecimal: those of this epoch where it lists them, else those that came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<String>,
    /// How many ids came, where the sampler gives them one after another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub came: Option<u64>,
}

impl State {
    /// A state at a position.
    #[must_use]
    pub fn new(
        fingerprint: u64,
        samples: u64,
        seed: u64,
        shuffle: Shuffle,
        epoch: u64,
        position: u64,
    ) -> Self {
        let fingerprint = format!("{fingerprint:016x}");
        Self {
            version: VERSION,
            fingerprint,
            samples,
            seed,
            shuffle,
            epoch,
            position,
            failed: String::new(),
            ids: None,
            came: None,
        }
    }

    /// The state as JSON.
    ///
    /// # Errors
    /// Never in practice: all of it can be written.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::State(e.to_string()))
    }

    /// The state in a JSON text.
    ///
    /// # Errors
    /// [`Error::State`] for another version or no state at all.
    pub fn from_json(text: &str) -> Result<Self> {
        let state: Self =
            serde_json::from_str(text).map_err(|e| Error::State(format!("it is no state: {e}")))?;
        if state.version != VERSION {
            return Err(Error::State(format!("its version is {}, this one reads {VERSION}", state.version)));
        }
        Ok(state)
    }

    /// Checks that it belongs to data with this fingerprint.
    ///
    /// # Errors
    /// [`Error::State`] with both fingerprints.
    pub fn check(&self, fingerprint: u64, samples: u64, name: &str) -> Result<()> {
        let have = format!("{fingerprint:016x}");
        if self.fingerprint != have || self.samples != samples {
            return Err(Error::State(format!(
                "it was saved for other data ({} samples, fingerprint {}); {name} has {samples} samples and fingerprint \
                 {have}",
                self.samples, self.fingerprint
            )));
        }
        let positions = if let Shuffle::Given { positions } = self.shuffle { positions } else { samples };
        if self.position > positions {
            return Err(Error::State(format!(
                "its position {} lies past the {positions} of an epoch",
                self.position
            )));
        }
        parse_positions(&self.failed).map(|_| ())
    }

    /// Sets what tells a sampler's ids from others: of those that came, which are so many, or of all of an epoch.
    pub fn set_ids(&mut self, came: Option<(u64, u64)>, all: Option<u64>) {
        self.came = came.map(|(count, _)| count);
        self.ids = came.map(|(_, print)| print).or(all).map(|print| format!("{print:016x}"));
    }

    /// How many ids came of a sampler that gives them one after another, and what tells them from others.
    #[must_use]
    pub fn came(&self) -> Option<(u64, u64)> {
        Some((self.came?, u64::from_str_radix(self.ids.as_ref()?, 16).ok()?))
    }

    /// Checks that it belongs to the order of a loader, which has a sampler or should have one.
    ///
    /// # Errors
    /// [`Error::State`] with what differs.
    pub fn check_order(&self, order: Shuffle, print: Option<u64>) -> Result<()> {
        let words = |shuffle| match shuffle {
            Shuffle::Given { positions } => format!("a sampler of {positions} ids"),
            _ => "no sampler".into(),
        };
        let (saved, here) = (words(self.shuffle), words(order));
        if self.shuffle != order {
            return Err(Error::State(format!("it was saved with {saved}, and this loader has {here}")));
        }
        let print = print.map(|print| format!("{print:016x}"));
        if self.ids.is_some() && self.came.is_some() == print.is_some() {
            let what = "a sampler that lists its ids";
            return Err(Error::State(match print {
                None => format!("it was saved with {what}, and this one gives them one after another"),
                Some(_) => format!(
                    "this loader has {what}, and it was saved with one that gives them one after another"
                ),
            }));
        }
        if print.is_some() && self.ids.is_some() && self.ids != print {
            let what = "the sampler gives other ids for epoch";
            return Err(Error::State(format!(
                "{what} {} than when it was saved: give it the same ids, weights or labels, with the same parameters and block (by default the global batch), and load its \
                 feedback first if it takes any",
                self.epoch
            )));
        }
        Ok(())
    }

    /// Sets the failed positions.
    pub fn set_failed(&mut self, mut positions: Vec<u64>) {
        positions.sort_unstable();
        positions.dedup();
        let mut words: Vec<String> = Vec::new();
        let mut i = 0;
        while i < positions.len() {
            let start = positions[i];
            while i + 1 < positions.len() && positions[i + 1] == positions[i] + 1 {
                i += 1;
            }
            words.push(if positions[i] == start {
                start.to_string()
            } else {
                format!("{start}-{}", positions[i])
            });
            i += 1;
        }
        self.failed = words.join(",");
    }

    /// The failed positions, ascending.
    #[must_use]
    pub fn failed(&self) -> Vec<u64> {
        parse_positions(&self.failed).unwrap_or_default()
    }
}

fn parse_positions(text: &str) -> Result<Vec<u64>> {
    let bad = || Error::State(format!("{text:?} is no list of positions"));
    let mut positions = Vec::new();
    for word in text.split(',').filter(|w| !w.is_empty()) {
        let (start, end) = word.split_once('-').unwrap_or((word, word));
        let (start, end): (u64, u64) = (start.parse().map_err(|_| bad())?, end.parse().map_err(|_| bad())?);
        if end < start || end - start > 10_000_000 {
            return Err(bad());
        }
        positions.extend(start..=end);
    }
    Ok(positions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_json_and_is_small() {
        let shuffle = Shuffle::Window { samples: u64::MAX, canonical_nodes: u64::MAX, ranges: 0 };
        let mut state = State::new(u64::MAX, u64::MAX, u64::MAX, shuffle, u64::MAX, u64::MAX - 1);
        state.set_failed(vec![9, 3, 8, 7]);
        assert_eq!(state.failed, "3,7-9");
        let json = state.to_json().unwrap();
        assert!(json.len() < 512, "{} bytes", json.len());
        let back = State::from_json(&json).unwrap();
        assert_eq!((back.failed(), &back), (vec![3, 7, 8, 9], &state));
    }

    #[test]
    fn other_data_and_nonsense_are_refused() {
        let state = State::new(1, 10, 0, Shuffle::Full, 0, 5);
        assert!(state.check(2, 10, "x").unwrap_err().to_string().contains("other data"));
        assert!(State::from_json("{}").is_err() && State::from_json("nonsense").is_err());
        assert!(State { failed: "5-1".into(), ..state }.check(1, 10, "x").is_err());
    }
}
