//! The memory limit of this process: the least of the machine, every ancestor cgroup (v1, v2), the
//! address space of the process, and what the kernel promises.
//!
//! Flow: /proc and the cgroup file systems -> [`Limit`]; [`Cgroup`] also reads usage and peak.
//! Memory: holds none.
//!
//! Reading only the own group is the classic mistake: the limit of a container is usually set on
//! an ancestor.

use std::fs;
use std::path::{Path, PathBuf};

/// The memory limit of this process and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// The limit in bytes.
    pub bytes: u64,
    /// Where it comes from: the machine, a limit in words, or the path of the file that holds it.
    pub source: String,
}

/// The memory control group of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// The group's folder.
    pub dir: PathBuf,
    /// The mount point above which there are no more groups.
    pub root: PathBuf,
    /// Whether this is the unified hierarchy (v2).
    pub unified: bool,
}

/// The limit of this process.
#[must_use]
pub fn discover() -> Limit {
    discover_in(Path::new("/"))
}

/// As [`discover`], with `/proc` and the control groups read below `root`: what the fixture trees
/// of the tests use.
#[must_use]
pub fn discover_in(root: &Path) -> Limit {
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
    let memory = read("proc/meminfo");
    let kib = |name: &str| figure(&memory, name).map_or(u64::MAX, |kib| kib.saturating_mul(1024));
    let machine = Limit { bytes: kib("MemTotal:"), source: "the machine".into() };
    let address_space = figure(&read("proc/self/limits"), "Max address space")
        .map(|bytes| Limit { bytes, source: "the address space of the process (ulimit -v)".into() });
    // Otherwise the kernel promises more than it has.
    let strict = read("proc/sys/vm/overcommit_memory").trim() == "2";
    let promised = strict.then(|| Limit {
        bytes: kib("CommitLimit:"),
        source: "what the kernel promises in all (vm.overcommit_memory=2)".into(),
    });
    let groups = cgroups_in(root);
    let others = groups.iter().filter_map(Cgroup::limit).chain(address_space).chain(promised);
    others.fold(machine, |a, b| if b.bytes < a.bytes { b } else { a })
}

/// The number behind a name at the beginning of a line; None for words, such as "unlimited".
fn figure(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// The memory control groups of this process: at most one of each version.
#[must_use]
pub fn cgroups() -> Vec<Cgroup> {
    cgroups_in(Path::new("/"))
}

fn cgroups_in(root: &Path) -> Vec<Cgroup> {
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
    let mounts = read("proc/self/mountinfo");
    let mut found = Vec::new();
    for line in read("proc/self/cgroup").lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let unified = controllers.is_empty();
        if !unified && !controllers.split(',').any(|c| c == "memory") {
            continue;
        }
        for (mount_root, mount_point) in mounts.lines().filter_map(|l| cgroup_mount(l, unified)) {
            let mount = root.join(mount_point.trim_start_matches('/'));
            // In a container the group's path may name folders outside the mount; then the mount
            // is the group.
            let inside = path.strip_prefix(mount_root.trim_end_matches('/')).unwrap_or(path);
            let dir = mount.join(inside.trim_start_matches('/'));
            let dir = if !inside.contains("..") && dir.is_dir() { dir } else { mount.clone() };
            let group = Cgroup { dir, root: mount, unified };
            if group.read("usage").is_some() || group.limit().is_some() {
                found.push(group);
                break;
            }
        }
    }
    found
}

/// (root, mount point) of a line of mountinfo, if it is a control group file system of the wanted
/// version.
fn cgroup_mount(line: &str, unified: bool) -> Option<(&str, &str)> {
    let (before, after) = line.split_once(" - ")?;
    let mut kind = after.split(' ');
    let fits = match kind.next()? {
        "cgroup2" => unified,
        "cgroup" => !unified && kind.nth(1).is_some_and(|options| options.split(',').any(|o| o == "memory")),
        _ => false,
    };
    let mut fields = before.split(' ').skip(3);
    let found = (fields.next()?, fields.next()?);
    fits.then_some(found)
}

impl Cgroup {
    /// The least limit of this group and its ancestors.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        let names: &[&str] =
            if self.unified { &["memory.max", "memory.high"] } else { &["memory.limit_in_bytes"] };
        let mut least: Option<Limit> = None;
        for dir in self.dir.ancestors().take_while(|dir| dir.starts_with(&self.root)) {
            for file in names.iter().map(|name| dir.join(name)) {
                let Some(bytes) = number(&file) else { continue };
                // v1 writes "no limit" as the largest multiple of a page.
                if bytes < 1 << 62 && least.as_ref().is_none_or(|l| bytes < l.bytes) {
                    least = Some(Limit { bytes, source: file.display().to_string() });
                }
            }
        }
        least
    }

    /// What the group uses now, page cache included.
    #[must_use]
    pub fn usage_bytes(&self) -> Option<u64> {
        self.read("usage")
    }

    /// The most it ever used.
    #[must_use]
    pub fn peak_bytes(&self) -> Option<u64> {
        self.read("peak")
    }

    fn read(&self, what: &str) -> Option<u64> {
        number(&self.dir.join(match (what, self.unified) {
            ("usage", true) => "memory.current",
            ("usage", false) => "memory.usage_in_bytes",
            (_, true) => "memory.peak",
            (_, false) => "memory.max_usage_in_bytes",
        }))
    }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a tree of files below a fresh folder.
    fn tree(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("tidegate-limit-{name}-{}", std::process::id()));
        for (path, text) in files {
            let file = root.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n");

    #[test]
    fn v2_takes_the_least_of_all_ancestors() {
        let root = tree(
            "v2",
            &[
                MEMINFO,
                ("proc/self/cgroup", "0::/pod/job/step\n"),
                ("proc/self/mountinfo", "30 1 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n"),
                ("sys/fs/cgroup/pod/memory.max", "8388608\n"),
                ("sys/fs/cgroup/pod/job/memory.max", "max\n"),
                ("sys/fs/cgroup/pod/job/memory.high", "9000000\n"),
                ("sys/fs/cgroup/pod/job/step/memory.max", "max\n"),
                ("sys/fs/cgroup/pod/job/step/memory.current", "4096\n"),
            ],
        );
        let limit = discover_in(&root);
        assert_eq!(limit.bytes, 8_388_608);
        assert!(limit.source.ends_with("pod/memory.max"), "{}", limit.source);
        assert_eq!(cgroups_in(&root)[0].usage_bytes(), Some(4096));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn v1_ignores_the_unlimited_figure_and_finds_the_ancestor() {
        let root = tree(
            "v1",
            &[
                MEMINFO,
                ("proc/self/cgroup", "5:cpu:/x\n4:memory:/a/b\n0::/\n"),
                (
                    "proc/self/mountinfo",
                    "9 1 0:3 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n10 1 0:4 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
                ),
                ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1048576\n"),
                ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/a/b/memory.max_usage_in_bytes", "77\n"),
            ],
        );
        assert_eq!(discover_in(&root).bytes, 1 << 20);
        assert_eq!(cgroups_in(&root)[0].peak_bytes(), Some(77));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_mount() {
        let root = tree(
            "ns",
            &[
                MEMINFO,
                ("proc/self/cgroup", "0::/../../other\n"),
                ("proc/self/mountinfo", "30 1 0:26 /kubepods/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
                ("sys/fs/cgroup/memory.max", "2097152\n"),
            ],
        );
        assert_eq!(discover_in(&root).bytes, 2 << 20);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn limits_of_address_space_and_of_promises_count() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max address space         4194304              unlimited            bytes\n";
        let promises = ("proc/meminfo", "MemTotal: 16384 kB\nCommitLimit: 3072 kB\nCommitted_AS: 1 kB\n");
        let root = tree("space", &[promises, ("proc/self/limits", limits)]);
        let found = discover_in(&root);
        assert!(found.bytes == 4 << 20 && found.source.contains("ulimit -v"), "{found:?}");
        fs::remove_dir_all(&root).unwrap();
        let strict = ("proc/sys/vm/overcommit_memory", "2\n");
        let root = tree("promises", &[promises, ("proc/self/limits", limits), strict]);
        let found = discover_in(&root);
        assert!(found.bytes == 3 << 20 && found.source.contains("overcommit_memory"), "{found:?}");
        fs::remove_dir_all(&root).unwrap();
        let unlimited = limits.replace("4194304  ", "unlimited");
        let root = tree("unlimited", &[promises, ("proc/self/limits", &unlimited)]);
        assert_eq!(discover_in(&root).bytes, 16 << 20);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn without_groups_the_machine_is_the_limit() {
        let root = tree("bare", &[MEMINFO]);
        assert_eq!(discover_in(&root), Limit { bytes: 16 << 20, source: "the machine".into() });
        fs::remove_dir_all(root).unwrap();
        assert!(discover().bytes > 1 << 20);
    }
}
