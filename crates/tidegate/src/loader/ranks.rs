//! Which of several training processes this is, from the variables that launchers set.
//!
//! Flow: environment (torchrun, SLURM, Open MPI, MPICH) -> [`Ranks`] and, for the processes of one
//! machine, their [`node_budget`]; called by the Python package and by Rust users.
//! Memory: holds none.

use serde::Serialize;
use tidegate_core::memory::Budget;
use tidegate_data::{Error, Result};

/// This process's place among the processes of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ranks {
    /// The rank of this process, from 0.
    pub rank: u64,
    /// The number of processes.
    pub world_size: u64,
    /// The number of processes on this machine, if a variable says it.
    pub local_world_size: Option<u64>,
    /// The name of the job. No other job on this machine has it.
    pub job: String,
    /// The variables that rank and size are from.
    pub from: &'static str,
}

/// The names of a launcher's variables.
struct Launcher {
    rank: &'static str,
    size: &'static str,
    local: &'static str,
    job: &'static [&'static str],
    from: &'static str,
}

/// The innermost launcher first: torchrun may run inside SLURM. SLURM sets its step variables only
/// under `srun`, not in the shell of `sbatch`.
const LAUNCHERS: [Launcher; 4] = [
    Launcher {
        rank: "RANK",
        size: "WORLD_SIZE",
        local: "LOCAL_WORLD_SIZE",
        job: &["TORCHELASTIC_RUN_ID", "MASTER_PORT"],
        from: "RANK and WORLD_SIZE",
    },
    Launcher {
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local: "OMPI_COMM_WORLD_LOCAL_SIZE",
        job: &["PMIX_NAMESPACE"],
        from: "OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE",
    },
    Launcher {
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local: "MPI_LOCALNRANKS",
        job: &[],
        from: "PMI_RANK and PMI_SIZE",
    },
    Launcher {
        rank: "SLURM_PROCID",
        size: "SLURM_STEP_NUM_TASKS",
        local: "SLURM_STEP_TASKS_PER_NODE",
        job: &["SLURM_JOB_ID", "SLURM_STEP_ID"],
        from: "SLURM_PROCID and SLURM_STEP_NUM_TASKS",
    },
];

/// Reads the rank from variables: those of the first launcher whose rank and size are both set.
///
/// ```
/// let variables = |name: &str| match name {
///     "RANK" => Some("2".to_owned()),
///     "WORLD_SIZE" => Some("4".to_owned()),
///     _ => None,
/// };
/// let ranks = tidegate::loader::ranks::detect(&variables)?.unwrap();
/// assert_eq!((ranks.rank, ranks.world_size, ranks.from), (2, 4, "RANK and WORLD_SIZE"));
/// # Ok::<(), tidegate::Error>(())
/// ```
///
/// # Errors
/// [`Error::Config`] for values that are not a rank, by name.
pub fn detect(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Ranks>> {
    let found = |launcher: &&Launcher| variable(launcher.rank).is_some() && variable(launcher.size).is_some();
    let Some(launcher) = LAUNCHERS.iter().find(found) else { return alone(variable) };
    let text = |name: &str| variable(name).unwrap_or_default();
    let (rank, size) = (text(launcher.rank), text(launcher.size));
    let fit = rank
        .trim()
        .parse::<u64>()
        .ok()
        .zip(size.trim().parse::<u64>().ok())
        .filter(|(rank, size)| rank < size);
    let (rank, world_size) = fit.ok_or_else(|| {
        Error::Config(format!(
            "{}={rank} and {}={size} name no rank: correct them, or give rank and world_size",
            launcher.rank, launcher.size
        ))
    })?;
    let local_world_size = tasks_here(&text(launcher.local), text("SLURM_NODEID").trim().parse().ok());
    let job: Vec<String> = launcher.job.iter().filter_map(|name| variable(name)).collect();
    Ok(Some(Ranks { rank, world_size, local_world_size, job: job.join("-"), from: launcher.from }))
}

/// No launcher says which process this is: an error where torchrun's variable says that there are
/// several.
fn alone(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Ranks>> {
    match variable("WORLD_SIZE") {
        Some(size) if size.trim() != "1" && variable("RANK").is_none() => Err(Error::Config(format!(
            "WORLD_SIZE={size} says that several processes train together, and no variable says which one \
             this is: set RANK, begin the epoch after torch.distributed is initialized, or give rank and \
             world_size"
        ))),
        _ => Ok(None),
    }
}

/// The number of processes on machine `node`, from a number or a list of SLURM: "2(x3),1" says that
/// three machines have two each and the fourth has one.
fn tasks_here(list: &str, node: Option<usize>) -> Option<u64> {
    let runs = list.split(',').map(|run| {
        let (tasks, times) = run.trim().split_once("(x").unwrap_or((run.trim(), "1)"));
        Some((tasks.parse::<u64>().ok()?, times.strip_suffix(')')?.parse::<usize>().ok()?))
    });
    let runs: Vec<(u64, usize)> = runs.collect::<Option<_>>()?;
    match runs.as_slice() {
        [(tasks, _)] => Some(*tasks),
        runs => {
            let mut left = node?;
            let here = runs.iter().find(|(_, times)| {
                let here = left < *times;
                left = left.saturating_sub(*times);
                here
            });
            here.map(|(tasks, _)| *tasks)
        }
    }
}

/// Reads the rank from the environment of this process; see [`detect`].
///
/// # Errors
/// As [`detect`].
pub fn from_environment() -> Result<Option<Ranks>> {
    detect(&|name| std::env::var(name).ok())
}

/// Makes the budget that the processes of this job share on this machine.
///
/// `bytes` is the size of the whole budget. `processes` is the number of processes and `name` the
/// name of the job; by default both are from the environment.
///
/// # Errors
/// When neither says how many processes there are, or how the job is called; as [`Budget::node`].
pub fn node_budget(bytes: u64, processes: Option<u64>, name: Option<String>) -> Result<Budget> {
    let found = from_environment()?;
    let local = || {
        let ranks = found.as_ref()?;
        // Without the number on this machine only a job of one process is certain.
        ranks.local_world_size.or((ranks.world_size == 1).then_some(1))
    };
    let processes = processes.or_else(local).ok_or_else(|| {
        Error::Config(
            "a budget of a node is divided among its processes, and no variable says how many there are \
             (LOCAL_WORLD_SIZE, SLURM_STEP_TASKS_PER_NODE, OMPI_COMM_WORLD_LOCAL_SIZE): give processes=N"
                .into(),
        )
    })?;
    let job = || found.as_ref().map(|ranks| ranks.job.clone()).filter(|job| !job.is_empty());
    let name =
        name.or_else(job).or_else(|| (processes == 1).then(|| format!("process-{}", std::process::id())));
    let name = name.ok_or_else(|| {
        Error::Config(
            "a budget of a node has the name of its job, and no variable says it (TORCHELASTIC_RUN_ID, \
             MASTER_PORT, SLURM_JOB_ID): give name=\"…\", the same in all processes of this job and in no \
             other"
                .into(),
        )
    })?;
    Ok(Budget::node(&name, bytes, processes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(variables: &[(&str, &str)]) -> Option<(u64, u64, Option<u64>, String)> {
        found(variables).unwrap().map(|r| (r.rank, r.world_size, r.local_world_size, r.job))
    }

    fn found(variables: &[(&str, &str)]) -> Result<Option<Ranks>> {
        detect(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn every_launcher_is_understood() {
        let torchrun = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("TORCHELASTIC_RUN_ID", "x"),
            ("MASTER_PORT", "29500"),
        ];
        assert_eq!(summary(&torchrun), Some((5, 8, Some(4), "x-29500".into())));
        let slurm = [
            ("SLURM_PROCID", "3"),
            ("SLURM_NTASKS", "4"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x2)"),
            ("SLURM_JOB_ID", "77"),
            ("SLURM_STEP_ID", "0"),
        ];
        assert_eq!(summary(&slurm), Some((3, 4, Some(2), "77-0".into())));
        assert_eq!(
            summary(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]),
            None,
            "the shell of sbatch is no rank"
        );
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        assert_eq!(summary(&mpi), Some((1, 2, Some(2), String::new())));
        let mpich = [("PMI_RANK", "0"), ("PMI_SIZE", "3"), ("MPI_LOCALNRANKS", "3"), ("PMI_ID", "0")];
        assert_eq!(summary(&mpich), Some((0, 3, Some(3), String::new())));
        // torchrun inside SLURM: the inner launcher counts.
        assert_eq!(summary(&[&torchrun[..], &slurm[..]].concat()).map(|r| r.0), Some(5));
        assert_eq!(summary(&[("RANK", "1")]), None);
        assert_eq!(summary(&[("WORLD_SIZE", "1")]), None);
        assert_eq!(summary(&[]), None);
    }

    #[test]
    fn the_lists_of_slurm_are_understood() {
        let here = |list, node| tasks_here(list, node);
        assert_eq!(["4", "4(x2)"].map(|list| here(list, None)), [Some(4); 2]);
        let nodes = [0, 1, 2, 3].map(Some);
        assert_eq!(nodes.map(|node| here("2(x2),1", node)), [Some(2), Some(2), Some(1), None]);
        assert_eq!(nodes.map(|node| here("3,2(x2)", node)), [Some(3), Some(2), Some(2), None]);
        // Without the machine's number a list of several says nothing.
        assert_eq!(["2(x2),1", "", "x", "2(x", "2(xx)", "1,,2"].map(|list| here(list, None)), [None; 6]);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let said = found(&[("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")]).unwrap_err().to_string();
        assert!(said.contains("WORLD_SIZE=2") && said.contains("RANK"), "{said}");
        for (rank, size) in [("4", "4"), ("x", "4"), ("0", "0"), ("-1", "2"), ("0", "")] {
            let said = found(&[("RANK", rank), ("WORLD_SIZE", size)]).unwrap_err().to_string();
            assert!(said.contains(&format!("RANK={rank} and WORLD_SIZE={size}")), "{said}");
        }
    }
}
