//! Whose turn it is: mutual exclusion among a user's processes without a name that others could
//! take.
//!
//! Flow: [`Turn::wait`] -> a ticket, a memory file that the processes of this user find in `/proc`
//! -> the turn, until it is dropped; called when a node's budget is made or joined.
//! Memory: one page, of a memory file that is gone with its process.
//!
//! Lamport's bakery («A New Solution of Dijkstra's Concurrent Programming Problem», 1974): a
//! process shows that it chooses, takes a number above all that it finds, and waits for those with
//! smaller ones. A process that begins later finds this number and takes a greater one. A lock in
//! a common folder, or a socket with a name, could be held by another user.

use std::collections::HashSet;
use std::collections::hash_map::{Entry, HashMap};
use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::PAGE_BYTES;
use super::region::Region;
use crate::sync::Ordering;
use crate::{Error, Result};

const TIMEOUT: Duration = Duration::from_secs(30);
/// A ticket whose process still chooses its number.
const CHOOSING: u64 = 0;
/// What this process or the machine may lack for opening a file that is there.
const LACKING: [Option<i32>; 3] =
    [Some(Errno::MFILE.raw_os_error()), Some(Errno::NFILE.raw_os_error()), Some(Errno::NOMEM.raw_os_error())];
/// A ticket whose turn is over.
const DONE: u64 = u64::MAX;

pub(super) fn refused(what: impl Into<String>) -> Error {
    Error::Node { what: what.into() }
}

/// Makes a memory file of a fixed length, which nobody can shorten under a mapping.
pub(super) fn sealed_file(name: &str, bytes: u64) -> Result<File> {
    let refuse = |error: rustix::io::Errno| refused(format!("the kernel refused a memory file: {error}"));
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(refuse)?;
    ftruncate(&file, bytes).map_err(refuse)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(refuse)?;
    Ok(File::from(file))
}

/// The open files of this name: (the process that has it, its path in `/proc`).
fn handles(name: &str) -> impl Iterator<Item = (u32, PathBuf)> {
    let link = format!("/memfd:{name} (deleted)");
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.flat_map(move |pid| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let named = |path: &PathBuf| std::fs::read_link(path).is_ok_and(|to| to.as_os_str() == &*link);
        files.map(|entry| entry.path()).filter(named).map(|path| (pid, path)).collect::<Vec<_>>()
    })
}

/// Which file this is, and whether this user made it.
fn identity(file: &Metadata) -> Option<(u64, u64)> {
    (file.uid() == geteuid().as_raw()).then(|| (file.dev(), file.ino()))
}

/// Opens a file of this user that nobody can shorten; nothing if it is gone or another one by now.
///
/// # Errors
/// [`Error::Node`] for one that is there and cannot be opened, as with too many open files.
fn open_sealed(path: &Path, id: (u64, u64)) -> Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => {
            let same = file.metadata().is_ok_and(|file| identity(&file) == Some(id));
            let sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
            Ok(Some(file).filter(|_| same && sealed))
        }
        Err(error) if LACKING.contains(&error.raw_os_error()) => {
            Err(refused(format!("a memory file cannot be opened: {error}")))
        }
        // The number of a handle that was closed may have been given to a folder, a pipe, anything.
        Err(_) => Ok(None),
    }
}

/// Opens the memory files of this name, each once.
///
/// # Errors
/// As [`open_sealed`].
pub(super) fn sealed_files(name: &str) -> Result<Vec<File>> {
    let (mut found, mut known) = (Vec::new(), HashSet::new());
    for (_, path) in handles(name) {
        let Some(id) = std::fs::metadata(&path).ok().and_then(|file| identity(&file)) else { continue };
        if !known.contains(&id)
            && let Some(file) = open_sealed(&path, id)?
        {
            known.insert(id);
            found.push(file);
        }
    }
    Ok(found)
}

/// The turn of this process, until it is dropped. See the head of this file.
///
/// The words of a ticket: its number, and the process that it belongs to. Others may have the file
/// open for a moment, and a forked child for long: there it does not count.
#[derive(Debug)]
pub(super) struct Turn {
    ticket: Region,
}

impl Turn {
    /// Waits for the turn among the processes that ask under this name.
    ///
    /// # Errors
    /// [`Error::Node`] after 30 seconds in which the same one of this user was joining.
    pub(super) fn wait(name: &str) -> Result<Self> {
        let name = format!("{name}-joining");
        let file = sealed_file(&name, PAGE_BYTES)?;
        let own = file.metadata().map_err(|error| refused(error.to_string()))?.ino();
        let turn = Self { ticket: Region::attach(file.into(), PAGE_BYTES as usize)? };
        turn.ticket.word(1).store(u64::from(std::process::id()), Ordering::SeqCst);
        let largest = others(&name, own)?.values().max().copied().unwrap_or(CHOOSING);
        let number = largest + 1;
        turn.ticket.word(0).store(number, Ordering::SeqCst);
        let (mut since, mut least) = (Instant::now(), usize::MAX);
        loop {
            // Those that choose may get a smaller number, or the same.
            let first = |(id, theirs): (u64, u64)| theirs == CHOOSING || (theirs, id) < (number, own);
            let ahead = others(&name, own)?.into_iter().filter(|other| first(*other)).count();
            if ahead == 0 {
                break;
            }
            if ahead < least {
                (since, least) = (Instant::now(), ahead);
            }
            if since.elapsed() > TIMEOUT {
                let seconds = TIMEOUT.as_secs();
                return Err(refused(format!(
                    "another process of this user has been joining for {seconds} s"
                )));
            }
            // Looking takes as long as there are processes; who is next looks often.
            std::thread::sleep(Duration::from_millis(2 * ahead.min(25) as u64));
        }
        Ok(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.ticket.word(0).store(DONE, Ordering::SeqCst);
    }
}

/// The tickets of others by file, with their numbers. Those that end meanwhile may be missing.
fn others(name: &str, own: u64) -> Result<HashMap<u64, u64>> {
    // What is known of a ticket: the process that it belongs to, and its number.
    let (mut seen, mut found) = (HashMap::new(), HashMap::new());
    for (pid, path) in handles(name) {
        let Some(id) = std::fs::metadata(&path).ok().and_then(|file| identity(&file)) else { continue };
        let (owner, number) = match seen.entry(id) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(unknown) => {
                let Some(file) = open_sealed(&path, id)? else { continue };
                let ticket = Region::attach(file.into(), PAGE_BYTES as usize)?;
                let [number, owner] = [0, 1].map(|word| ticket.word(word).load(Ordering::SeqCst));
                *unknown.insert((owner, number))
            }
        };
        if owner == u64::from(pid) && number != DONE && id.1 != own {
            found.insert(id.1, number);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn one_has_the_turn_at_a_time() {
        let name = format!("tidegate-turn-{}", std::process::id());
        let (taken, turns) = (AtomicBool::new(false), 4);
        std::thread::scope(|scope| {
            for _ in 0..20 {
                let work = || {
                    for _ in 0..turns {
                        let turn = Turn::wait(&name).unwrap();
                        assert!(!taken.swap(true, std::sync::atomic::Ordering::SeqCst));
                        std::thread::yield_now();
                        taken.store(false, std::sync::atomic::Ordering::SeqCst);
                        drop(turn);
                    }
                };
                std::thread::Builder::new().spawn_scoped(scope, work).unwrap();
            }
        });
        assert!(others(&format!("{name}-joining"), 0).unwrap().is_empty());
    }

    #[test]
    fn what_can_be_shortened_is_not_ours() {
        let name = format!("tidegate-short-{}", std::process::id());
        let file = memfd_create(&*name, MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, PAGE_BYTES).unwrap();
        assert!(sealed_files(&name).unwrap().is_empty());
        let sealed = sealed_file(&name, PAGE_BYTES).unwrap();
        assert_eq!(sealed_files(&name).unwrap().len(), 1);
        assert!(ftruncate(&sealed, 0).is_err());
    }
}
