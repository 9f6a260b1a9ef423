//! One sentence on what limits the flow.
//!
//! Flow: where threads spent their time -> a sentence; called by `Report::new`.
//! Memory: holds none.

use std::time::Duration;

use tidegate_core::memory::size::counted;
use tidegate_data::pipeline::StageStats;

/// What limits the flow, from the times of the stages.
pub(super) fn sentence(s: &StageStats, elapsed: Duration) -> String {
    if s.batches == 0 {
        return "no batch was delivered yet".into();
    }
    let elapsed_ns = (elapsed.as_nanos() as f64).max(1.0);
    let percent = |ns: u64, threads: u64| 100.0 * ns as f64 / (elapsed_ns * threads.max(1) as f64);
    let (waits, busy) = (percent(s.consumer_wait_ns, 1), percent(s.work_ns, s.workers));
    let scratch = percent(s.scratch_wait_ns, s.workers);
    let reading = percent(s.read_ns, s.readers);
    if waits < 10.0 {
        format!("the consumer limits: it waited {waits:.0} % of the time; the workers were busy {busy:.0} %")
    } else if scratch > 20.0 {
        format!(
            "the budget limits: workers waited {scratch:.0} % of the time for scratch memory; \
             raise memory"
        )
    } else if busy > 70.0 {
        format!(
            "decoding limits: {} busy {busy:.0} % of the time, the consumer waiting {waits:.0} %; more \
             cores would help, faster disks would not",
            counted(s.workers, "worker")
        )
    } else if reading > 50.0 {
        format!(
            "reading limits: {} busy {reading:.0} % of the time, the workers only {busy:.0} %",
            counted(s.readers, "reader")
        )
    } else {
        format!(
            "no stage limits for long: workers busy {busy:.0} %, readers {reading:.0} %, consumer \
             waiting \
             {waits:.0} %"
        )
    }
}
