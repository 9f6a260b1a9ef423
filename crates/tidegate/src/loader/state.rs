//! The state of a loader: an order and a position in it. Resuming is a seek, never a replay.
//!
//! Flow: loader -> [`State`] -> JSON (at most 1 KiB, plus failed positions) -> another loader.
//! Memory: a few words.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tidegate_data::{Error, Result};
use tidegate_order::Shuffle;

const VERSION: u32 = 1;

/// All that another loader needs to continue. Workers, budget and ranks are not part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// The fingerprint of the data, in hexadecimal.
    pub fingerprint: String,
    /// Samples in the data.
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
    /// The digest of a sampler's ids, in hexadecimal: of all ids of this epoch if the sampler
    /// lists them, else of those delivered so far.
    #[serde(rename = "ids", default, skip_serializing_if = "Option::is_none")]
    pub ids_digest: Option<String>,
    /// The number of ids delivered so far, if the sampler gives ids one by one.
    #[serde(rename = "came", default, skip_serializing_if = "Option::is_none")]
    pub ids_delivered: Option<u64>,
}

impl State {
    /// The state at a position, without failures and without a sampler.
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
            ids_digest: None,
            ids_delivered: None,
        }
    }

    /// The state as JSON.
    ///
    /// # Errors
    /// Never in practice: all of it can be written.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::State(e.to_string()))
    }

    /// Reads a state from JSON.
    ///
    /// # Errors
    /// [`Error::State`] for text that is not a state, and for a state of another version.
    pub fn from_json(text: &str) -> Result<Self> {
        let wrong = |what: String| Error::State(format!("it is not what Loader.state_dict returned: {what}"));
        let members: Map<String, Value> =
            serde_json::from_str(text).map_err(|_| wrong("it is no object of JSON".into()))?;
        for name in ["version", "samples", "seed", "epoch", "position"] {
            match members.get(name) {
                None => return Err(wrong(format!("it has no {name:?}"))),
                Some(value) if value.as_u64().is_none() => {
                    return Err(wrong(format!("its {name:?} is {value}, not a number from 0 on")));
                }
                Some(_) => {}
            }
        }
        let misfit =
            "a member is missing, or has a value of another kind (fingerprint, shuffle, failed, ids)";
        let state: Self = serde_json::from_value(members.into()).map_err(|_| wrong(misfit.into()))?;
        if state.version != VERSION {
            return Err(Error::State(format!(
                "its version is {}; this program reads version {VERSION}",
                state.version
            )));
        }
        Ok(state)
    }

    /// Checks that the state belongs to data with this fingerprint.
    ///
    /// # Errors
    /// [`Error::State`] with both fingerprints.
    pub fn check(&self, fingerprint: u64, samples: u64, name: &str) -> Result<()> {
        let have = format!("{fingerprint:016x}");
        if self.fingerprint != have || self.samples != samples {
            return Err(Error::State(format!(
                "it was saved for other data ({} samples, fingerprint {}); {name} has {samples} samples \
                 and \
                 fingerprint {have}",
                self.samples, self.fingerprint
            )));
        }
        let positions = if let Shuffle::Sampler { positions } = self.shuffle { positions } else { samples };
        if self.position > positions {
            return Err(Error::State(format!(
                "its position {} is beyond the {positions} positions of an epoch",
                self.position
            )));
        }
        parse_positions(&self.failed).map(|_| ())
    }

    /// Sets the digest of a sampler's ids: `delivered` is (count, digest) of the ids delivered so
    /// far, `all` is the digest of all ids of the epoch.
    pub fn set_ids(&mut self, delivered: Option<(u64, u64)>, all: Option<u64>) {
        self.ids_delivered = delivered.map(|(count, _)| count);
        self.ids_digest = delivered.map(|(_, digest)| digest).or(all).map(|digest| format!("{digest:016x}"));
    }

    /// (count, digest) of the ids delivered so far, for a sampler that gives ids one by one.
    #[must_use]
    pub fn delivered_ids(&self) -> Option<(u64, u64)> {
        Some((self.ids_delivered?, u64::from_str_radix(self.ids_digest.as_ref()?, 16).ok()?))
    }

    /// Checks that the state fits a loader's order, where the state or the loader has a sampler.
    ///
    /// `digest` is that of all ids of the epoch, if the loader's sampler lists them.
    ///
    /// # Errors
    /// [`Error::State`] with the difference.
    pub fn check_order(&self, order: Shuffle, digest: Option<u64>) -> Result<()> {
        let words = |shuffle| match shuffle {
            Shuffle::Sampler { positions } => format!("a sampler of {positions} ids"),
            _ => "no sampler".into(),
        };
        let (saved, here) = (words(self.shuffle), words(order));
        if self.shuffle != order {
            return Err(Error::State(format!("it was saved with {saved}, and this loader has {here}")));
        }
        let digest = digest.map(|digest| format!("{digest:016x}"));
        if self.ids_digest.is_some() && self.ids_delivered.is_some() == digest.is_some() {
            let what = "a sampler that lists its ids";
            return Err(Error::State(match digest {
                None => format!("it was saved with {what}, and this loader's gives them one by one"),
                Some(_) => {
                    format!("this loader has {what}, and it was saved with one that gives them one by one")
                }
            }));
        }
        if digest.is_some() && self.ids_digest.is_some() && self.ids_digest != digest {
            return Err(Error::State(format!(
                "the sampler gives other ids for epoch {} than when it was saved: give it the same ids, \
                 weights \
                 or labels, with the same parameters and block (by default the global batch), and load its \
                 feedback first if it takes any",
                self.epoch
            )));
        }
        Ok(())
    }

    /// Sets the positions that failed.
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

    /// The positions that failed, in ascending order.
    #[must_use]
    pub fn failed(&self) -> Vec<u64> {
        parse_positions(&self.failed).unwrap_or_default()
    }
}

fn parse_positions(text: &str) -> Result<Vec<u64>> {
    let bad = || Error::State(format!("{text:?} is not a list of positions"));
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
        let shuffle = Shuffle::Window { samples: u64::MAX, canonical_nodes: u64::MAX, range_samples: 0 };
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
