//! Which of several training processes this is, from the variables that their starters set.
//!
//! Flow: environment (torchrun, SLURM, Open MPI, MPICH) -> [`Ranks`], and the [`node_budget`] that those of a machine share; called by
//! the Python package and by Rust users.
//! Memory: holds none.

use serde::Serialize;
use tidegate_core::memory::Budget;
use tidegate_data::{Error, Result};

/// This process among those that train together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ranks {
    /// This one, from 0.
    pub rank: u64,
    /// All of them.
    pub world_size: u64,
    /// Those on this machine, if it is said.
    pub local_world_size: Option<u64>,
    /// What is the same for all processes of the job, and for no other on this machine.
    pub job: String,
    /// The variables that say so.
    pub from: &'static str,
}

/// Names of variables: rank, world size, local world size, and what names the job.
type Names = (&'static str, &'static str, &'static [&'static str], &'static [&'static str]);

const STARTERS: [Names; 4] = [
    ("RANK", "WORLD_SIZE", &["LOCAL_WORLD_SIZE"], &["TORCHELASTIC_RUN_ID", "MASTER_PORT"]),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", &["OMPI_COMM_WORLD_LOCAL_SIZE"], &["PMIX_NAMESPACE"]),
    ("PMI_RANK", "PMI_SIZE", &["MPI_LOCALNRANKS"], &["PMI_ID"]),
    ("SLURM_PROCID", "SLURM_NTASKS", &["SLURM_NTASKS_PER_NODE"], &["SLURM_JOB_ID", "SLURM_STEP_ID"]),
];

/// The ranks that the environment names: of the first starter whose rank and size are both there and fit together.
///
/// ```
/// let variables = |name: &str| match name {
///     "RANK" => Some("2".to_owned()),
///     "WORLD_SIZE" => Some("4".to_owned()),
///     _ => None,
/// };
/// let ranks = tidegate::ranks::detect(&variables).unwrap();
/// assert_eq!((ranks.rank, ranks.world_size, ranks.from), (2, 4, "RANK and WORLD_SIZE"));
/// ```
#[must_use]
pub fn detect(variable: &dyn Fn(&str) -> Option<String>) -> Option<Ranks> {
    let number = |name: &str| variable(name)?.trim().parse::<u64>().ok();
    STARTERS.iter().find_map(|(rank, size, local, job)| {
        let (found, world_size) = (number(rank)?, number(size)?);
        let from = match *rank {
            "RANK" => "RANK and WORLD_SIZE",
            "OMPI_COMM_WORLD_RANK" => "OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE",
            "PMI_RANK" => "PMI_RANK and PMI_SIZE",
            _ => "SLURM_PROCID and SLURM_NTASKS",
        };
        let job: Vec<String> = job.iter().filter_map(|name| variable(name)).collect();
        (found < world_size).then(|| Ranks {
            rank: found,
            world_size,
            local_world_size: local.iter().find_map(|name| number(name)),
            job: job.join("-"),
            from,
        })
    })
}

/// As [`detect`], from the environment of this process.
#[must_use]
pub fn from_environment() -> Option<Ranks> {
    detect(&|name| std::env::var(name).ok())
}

/// The budget that the processes of this job share on this machine; their number and the job's name are the environment's unless
/// they are given.
///
/// # Errors
/// When nobody says how many there are; as [`Budget::node`].
pub fn node_budget(bytes: u64, processes: Option<u64>, name: Option<String>) -> Result<Budget> {
    let found = from_environment();
    let local = || {
        let ranks = found.as_ref()?;
        // Without their number on this machine, all of them may be here only if there is no other.
        ranks.local_world_size.or((ranks.world_size == 1).then_some(1))
    };
    let processes = processes.or_else(local).ok_or_else(|| {
        Error::Config(
            "a budget of a node is divided among its processes, and no variable says how many there are (LOCAL_WORLD_SIZE, \
             SLURM_NTASKS_PER_NODE, OMPI_COMM_WORLD_LOCAL_SIZE): give processes=N"
                .into(),
        )
    })?;
    let job = || found.as_ref().map(|ranks| ranks.job.clone()).filter(|job| !job.is_empty());
    let name = name.or_else(job).unwrap_or_else(|| "default".to_owned());
    Ok(Budget::node(&name, bytes, processes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<(u64, u64, Option<u64>, String)> {
        let find =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        detect(&find).map(|r| (r.rank, r.world_size, r.local_world_size, r.job))
    }

    #[test]
    fn every_starter_is_understood() {
        let torchrun = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("TORCHELASTIC_RUN_ID", "x"),
            ("MASTER_PORT", "29500"),
        ];
        assert_eq!(of(&torchrun), Some((5, 8, Some(4), "x-29500".into())));
        let slurm =
            [("SLURM_PROCID", "3"), ("SLURM_NTASKS", "4"), ("SLURM_JOB_ID", "77"), ("SLURM_STEP_ID", "0")];
        assert_eq!(of(&slurm), Some((3, 4, None, "77-0".into())));
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        assert_eq!(of(&mpi), Some((1, 2, Some(2), String::new())));
        assert_eq!(
            of(&[("PMI_RANK", "0"), ("PMI_SIZE", "3"), ("MPI_LOCALNRANKS", "3")]),
            Some((0, 3, Some(3), String::new()))
        );
        // torchrun within SLURM: the nearer one counts.
        assert_eq!(of(&[&torchrun[..], &slurm[..]].concat()).map(|r| r.0), Some(5));
        for nonsense in [
            &[("RANK", "1")][..],
            &[("RANK", "4"), ("WORLD_SIZE", "4")],
            &[("RANK", "x"), ("WORLD_SIZE", "4")],
            &[],
        ] {
            assert_eq!(of(nonsense), None, "{nonsense:?}");
        }
    }
}
