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
use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create};
use rustix::process::geteuid;

use super::PAGE_BYTES;
use super::region::Region;
use crate::sync::Ordering;
use crate::{Error, Result};

const TIMEOUT: Duration = Duration::from_secs(30);
/// A ticket whose process still chooses its number.
const CHOOSING: u64 = 0;

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

/// Opens the memory files of this name that processes have, each once, if this user made them and
/// nobody can shorten them.
///
/// # Errors
/// [`Error::Node`] for one that is there and cannot be opened, as with too many open files.
pub(super) fn sealed_files(name: &str) -> Result<Vec<File>> {
    let link = format!("/memfd:{name} (deleted)");
    let entries =
        |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let processes = entries("/proc".into())
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit()));
    let files = processes.flat_map(|process| entries(process.join("fd")));
    let is_named = |path: &PathBuf| std::fs::read_link(path).is_ok_and(|to| to.as_os_str() == &*link);
    let (mut found, mut known) = (Vec::new(), HashSet::new());
    for path in files.filter(is_named) {
        // Others look as well: of each file there may be many handles.
        let Ok(about) = std::fs::metadata(&path) else { continue };
        let id = (about.dev(), about.ino());
        if about.uid() != geteuid().as_raw() || known.contains(&id) {
            continue;
        }
        match OpenOptions::new().read(true).write(true).open(&path) {
            // The number of a handle that was closed may have been given to another file.
            Ok(file) => {
                let same = file.metadata().is_ok_and(|file| (file.dev(), file.ino()) == id);
                let sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
                if same && sealed {
                    known.insert(id);
                    found.push(file);
                }
            }
            Err(error) if is_named(&path) => {
                return Err(refused(format!("a memory file cannot be opened: {error}")));
            }
            Err(_) => {}
        }
    }
    Ok(found)
}

/// The turn of this process, until it is dropped. See the head of this file.
#[derive(Debug)]
pub(super) struct Turn {
    _ticket: Region,
}

impl Turn {
    /// Waits for the turn among the processes that ask under this name.
    ///
    /// # Errors
    /// [`Error::Node`] after 30 seconds in which another process of this user has had it.
    pub(super) fn wait(name: &str) -> Result<Self> {
        let name = format!("{name}-joining");
        let file = sealed_file(&name, PAGE_BYTES)?;
        let own = inode(&file)?;
        let ticket = Region::attach(file.into(), PAGE_BYTES as usize)?;
        let largest = others(&name, own)?.iter().map(|(_, number)| *number).max().unwrap_or(CHOOSING);
        let number = largest + 1;
        ticket.word(0).store(number, Ordering::SeqCst);
        let since = Instant::now();
        // Those that choose may get a smaller number, or the same.
        while others(&name, own)?
            .iter()
            .any(|&(id, theirs)| theirs == CHOOSING || (theirs, id) < (number, own))
        {
            if since.elapsed() > TIMEOUT {
                return Err(refused(format!(
                    "another process of this user has been joining for {} s",
                    TIMEOUT.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Self { _ticket: ticket })
    }
}

fn inode(file: &File) -> Result<u64> {
    file.metadata().map(|file| file.ino()).map_err(|error| refused(error.to_string()))
}

/// The tickets of others: (which, its number). Those that end meanwhile may be missing.
fn others(name: &str, own: u64) -> Result<Vec<(u64, u64)>> {
    let read = |file: File| {
        let id = inode(&file)?;
        let ticket = Region::attach(file.into(), PAGE_BYTES as usize)?;
        Ok((id, ticket.word(0).load(Ordering::SeqCst)))
    };
    let mut found = sealed_files(name)?.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    found.retain(|(id, _)| *id != own);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn one_has_the_turn_at_a_time() {
        let name = format!("tidegate-turn-{}", std::process::id());
        let (taken, turns) = (AtomicBool::new(false), 8);
        std::thread::scope(|scope| {
            for _ in 0..6 {
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
