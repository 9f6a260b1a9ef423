//! Ways to divide a step among devices: what each holds, what it sends, and how long it takes.
//!
//! Flow: a profile, devices and links -> [`compare`] -> [`Way`]s, the fastest that fits first.
//! Memory: that of a `step::Planner`, one at a time.
//!
//! A ring sends 2·(N − 1)/N of the bytes that it sums, and (N − 1)/N of those that it gathers. The
//! formulas of what is summed are those of ZeRO (arXiv:1910.02054) and of Megatron-LM
//! (arXiv:1909.08053: two sums a block in forward, two in backward). Transfers are not overlapped
//! with arithmetic: a bound from above. torch runs the ways; none of their engines is here.

use serde::{Deserialize, Serialize};

use super::chain::Chain;
use super::profile::{Held, Profile};
use super::stages::{Pipelining, split};
use super::step::{Limits, Planner};
use crate::error::{Result, at_least_one, positive};

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
    /// What a device holds: the peak, or the least that the way would take.
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
    at_least_one("devices", cluster.devices)?;
    positive("link_bytes", cluster.link_bytes)?;
    if !(cluster.latency >= 0.0 && cluster.latency.is_finite()) {
        return Err(crate::Error::parameter("latency", cluster.latency, "a number of 0 or more"));
    }
    let costs = Costs { profile, cluster, limits };
    let mut ways = vec![costs.data()?, costs.zero1()?, costs.sharded()?, costs.tensor()?, costs.pipeline()];
    ways.sort_by(|a, b| {
        let time = |way: &Way| way.time.unwrap_or(f64::INFINITY);
        time(a).total_cmp(&time(b)).then(a.bytes.cmp(&b.bytes))
    });
    Ok(ways)
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
        (sent, messages): (f64, f64),
        batch: u64,
    ) -> Result<Way> {
        let planner = Planner::new(profile, batch, self.limits)?;
        let sent_bytes = sent.ceil() as u64;
        Ok(match planner.plan(self.cluster.memory_bytes) {
            Ok(plan) => Way {
                name,
                torch,
                fits: true,
                bytes: plan.peak_bytes,
                sent_bytes,
                time: Some(plan.time + self.sending(sent, messages)),
                words: format!(
                    "{} samples a device, {} recomputed",
                    batch,
                    tidegate_core::memory::size::counted(plan.recomputed_stages() as u64, "stage")
                ),
            },
            Err(error) => {
                let bytes = planner.floor_bytes();
                Way { name, torch, fits: false, bytes, sent_bytes, time: None, words: error.to_string() }
            }
        })
    }

    fn samples(&self) -> u64 {
        self.profile.batch.div_ceil(self.cluster.devices)
    }

    fn data(&self) -> Result<Way> {
        let sent = (self.summed(self.gradients()), 2.0 * (self.devices() - 1.0));
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
        let sent = self.summed(self.gradients()) + self.summed(self.parameters()) / 2.0;
        let torch = "torch.distributed.optim.ZeroRedundancyOptimizer";
        self.planned("zero1", torch, profile, (sent, 3.0 * (self.devices() - 1.0)), self.samples())
    }

    fn sharded(&self) -> Result<Way> {
        let mut profile = Profile { held: self.held(|_| self.devices()), ..self.profile.clone() };
        let largest = self.profile.chain.stages.iter().map(|stage| stage.gradient_bytes).max().unwrap_or(0);
        for stage in &mut profile.chain.stages {
            stage.gradient_bytes = stage.gradient_bytes.div_ceil(self.cluster.devices);
        }
        // The stage that runs and the one that is gathered meanwhile, and the former's gradients.
        profile.held.push(Held { name: "gathered stages".into(), bytes: 3 * largest });
        let sent = 1.5 * self.summed(self.parameters());
        let messages = 3.0 * self.profile.chain.stages.len() as f64 * (self.devices() - 1.0);
        let torch = "torch.distributed.fsdp.fully_shard";
        self.planned("sharded", torch, profile, (sent, messages), self.samples())
    }

    fn tensor(&self) -> Result<Way> {
        let mut profile = Profile { held: self.held(|_| self.devices()), ..self.profile.clone() };
        let n = self.cluster.devices;
        for stage in &mut profile.chain.stages {
            stage.gradient_bytes = stage.gradient_bytes.div_ceil(n);
            stage.saved_bytes = stage.saved_bytes.div_ceil(n);
            stage.forward_time /= n as f64;
            stage.backward_time /= n as f64;
        }
        let outputs: u64 = profile.chain.stages.iter().map(|stage| stage.output_bytes).sum();
        let sent = 4.0 * self.summed(outputs as f64);
        let messages = 8.0 * profile.chain.stages.len() as f64 * (self.devices() - 1.0);
        let torch = "torch.distributed.tensor.parallel.parallelize_module";
        self.planned("tensor", torch, profile, (sent, messages), self.profile.batch)
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
        // States are in proportion to the parameters of a stage.
        let states = self.profile.held_bytes() as f64 + self.gradients();
        let share = |bytes: u64| (states * bytes as f64 / self.gradients().max(1.0)).ceil() as u64;
        let states: Vec<u64> = chain.stages.iter().map(|stage| share(stage.gradient_bytes)).collect();
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
        let lasts: Vec<String> = found.devices.iter().map(|device| device.last.to_string()).collect();
        Way {
            name,
            torch,
            fits,
            bytes: found.devices.iter().map(|device| device.bytes).max().unwrap_or(0),
            sent_bytes: sent,
            time: fits.then(|| found.time + self.sending(sent as f64, 2.0 * steps)),
            words: format!(
                "{micro} micro-batches, cut behind stages {}, {:.0} % of the time waiting",
                lasts.join(", "),
                100.0 * found.bubble
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
        let outputs: u64 = profile().chain.stages.iter().map(|stage| stage.output_bytes).sum();
        assert!((way(&found, "tensor").sent_bytes as f64 / (outputs as f64 * 6.0) - 1.0).abs() < 1e-6);
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
