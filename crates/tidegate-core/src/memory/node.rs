//! One budget for several processes of a machine: its members, what they hold and share.
//!
//! Flow: [`Node::join`] -> the memory file that all members have open; `charge` and `discharge`
//! from the ledger; members claim and seal segments of common memory, and evict them when they
//! lack memory.
//! Memory: a memfd: two pages of figures, a table, and segments (claimed ones are charged to the
//! node, not to a member). It has no name in any file system. The last member empties it, and it
//! is gone when no process has it open.
//!
//! The sum is never stored. Each member has a cell that it alone adds to. Each segment has a word
//! with its size and its writer. The charged bytes are the sum of all cells and words, so a
//! process may be killed between any two instructions and no byte is lost or counted twice. A
//! member adds to its cell first, then sums up, and takes it back if the sum is too large: of two
//! members that add at the same time at least one sees both.
//!
//! A member may hold an equal part of the cap by itself, and always gets that much: only common
//! segments can be in its way, and those are evicted on request. A forked child of a member is not
//! a member: it gets no memory, and what it drops stays charged to the parent.
//!
//! Members notice the death of another by its pidfd, when they lack memory or read figures, and
//! clear its cell. The kernel has taken its pages back by then. No thread waits for it.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use rustix::process::{Pid, PidfdFlags, getuid, pidfd_open};

use super::limit::cgroups;
use super::region::Region;
use super::size::mib;
use super::turn::{Turn, refused, sealed_file, sealed_files};
use super::{PAGE_BYTES, Use};
use crate::Result;
use crate::sync::{AtomicU64, Ordering, lock};

/// The first word of the file; another layout has another number.
const MAGIC: u64 = 0x7469_6465_6e6f_6401;
/// Processes that can be in one budget.
const MEMBERS: usize = 64;
pub(super) const SEGMENTS: usize = 256;
/// Segments that a member may write at the same time: those of two loaders.
pub(super) const WRITTEN: u64 = 2;
/// Words of the file, in lines of eight.
const WORDS: usize = 64 + 8 * MEMBERS + SEGMENTS;
pub(super) const FIGURES_BYTES: u64 = (8 * WORDS as u64).next_multiple_of(PAGE_BYTES);
/// Bytes of the common memory for each object that the table has room for.
const OBJECT_BYTES: u64 = 2048;
const SLOT_BYTES: u64 = 16;
/// The word at which the memory group of the members is stored, and its most bytes.
const GROUP_WORD: usize = 8;
const GROUP_BYTES: usize = 8 * (64 - GROUP_WORD - 1);
/// Marks a live member; the rest of the word is its process id.
const ALIVE: u64 = 1 << 32;
/// Parts of the word of a segment: its bytes, the member that writes or frees it (0 for none), and
/// whether it is being freed.
pub(super) const SIZE: u64 = (1 << 48) - 1;
pub(super) const OWNER_SHIFT: u32 = 48;
pub(super) const FREEING: u64 = 1 << 63;

/// What all members must give alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Agreed {
    cap_bytes: u64,
    members: u64,
}

/// Another member, as it was when it was looked up.
#[derive(Debug)]
struct Peer {
    state: u64,
    start: u64,
    /// `None` where the kernel has no pidfds.
    pidfd: Option<OwnedFd>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Node {
    region: Region,
    pub(super) file: File,
    pub(super) me: usize,
    pid: u32,
    peers: Mutex<HashMap<usize, Peer>>,
    /// Held together with the lock of the file, which does not tell threads apart.
    entry: Mutex<()>,
}

/// When a process began, in the kernel's ticks; nothing if there is none.
fn start_of(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may have spaces: the start is the twentieth field behind it.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The memory groups of this process, in words, and the space in which its process number counts.
fn group() -> String {
    let groups: Vec<String> = cgroups().iter().map(|group| group.dir.display().to_string()).collect();
    let numbers = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let words = format!("{}, {}", groups.join(", "), numbers.display());
    // The end tells groups apart.
    let start = words.len().saturating_sub(GROUP_BYTES);
    (start..words.len()).find_map(|at| words.get(at..)).unwrap_or_default().to_owned()
}

impl Node {
    /// The node budget of this name, made or joined.
    ///
    /// # Errors
    /// [`Error::Node`] if the other members gave another size or number, are in another memory
    /// group, or are too many.
    pub(super) fn join(name: &str, cap_bytes: u64, members: u64) -> Result<Self> {
        let name = format!("tidegate-{}-{name}", getuid().as_raw());
        if name.len() > 90 || name.contains(['/', '\0']) {
            return Err(refused("a name of at most 64 characters without a slash is wanted"));
        }
        if members == 0 || members > MEMBERS as u64 {
            return Err(refused(format!("it can have 1 to {MEMBERS} processes, not {members}")));
        }
        let agreed = Agreed { cap_bytes, members };
        let _turn = Turn::wait(&name)?;
        for file in sealed_files(&name)? {
            let Ok(mut there) = Self::attach(file) else { continue };
            there.reap();
            if there.alive() > 0 {
                there.agrees(&agreed)?;
                if there.enter(members)? {
                    return Ok(there);
                }
            }
            // Only children of dead members have it open.
            there.empty();
        }
        let mut node = Self::create(&name, &agreed)?;
        let _first = node.enter(members)?;
        Ok(node)
    }

    /// Whether another loader of this process may use it: not after a fork, and not with another
    /// size or number.
    pub(super) fn rejoin(&self, cap_bytes: u64, members: u64) -> Result<bool> {
        if self.here() {
            self.agrees(&Agreed { cap_bytes, members })?;
        }
        Ok(self.here())
    }

    /// Gives back all pages.
    fn empty(&self) {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _anyhow = fallocate(&self.file, hole, 0, self.segment_start(SEGMENTS as u32));
    }

    fn create(name: &str, agreed: &Agreed) -> Result<Self> {
        let table = (agreed.cap_bytes / OBJECT_BYTES * SLOT_BYTES).next_multiple_of(PAGE_BYTES);
        // Half of them for a budget that grows.
        let segment =
            (2 * agreed.cap_bytes / SEGMENTS as u64).clamp(PAGE_BYTES, 1 << 30) / PAGE_BYTES * PAGE_BYTES;
        let file = sealed_file(name, FIGURES_BYTES + table + segment * SEGMENTS as u64)?;
        if FIGURES_BYTES + table > agreed.cap_bytes / 4 {
            return Err(refused(format!("{} MiB is too small for it", mib(agreed.cap_bytes))));
        }
        let node = Self::over(file)?;
        let group = group();
        for (word, value) in
            [(1, agreed.cap_bytes), (7, agreed.cap_bytes), (2, agreed.members), (4, table), (5, segment)]
        {
            node.word(word).store(value, Ordering::Relaxed);
        }
        node.word(GROUP_WORD).store(group.len() as u64, Ordering::Relaxed);
        for (i, bytes) in group.as_bytes().chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            node.word(GROUP_WORD + 1 + i).store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
        node.word(0).store(MAGIC, Ordering::SeqCst);
        Ok(node)
    }

    fn attach(file: File) -> Result<Self> {
        let len = file.metadata().map_or(0, |file| file.len());
        if len < FIGURES_BYTES {
            return Err(refused("another file has its name"));
        }
        let node = Self::over(file)?;
        let whole = FIGURES_BYTES + node.table_bytes() + node.segment_bytes().saturating_mul(SEGMENTS as u64);
        if node.word(0).load(Ordering::SeqCst) != MAGIC || whole != len {
            return Err(refused("another version of Tidegate made it"));
        }
        Ok(node)
    }

    fn over(file: File) -> Result<Self> {
        let fd = file.try_clone().map_err(|e| refused(e.to_string()))?;
        let region = Region::attach(fd.into(), FIGURES_BYTES as usize)?;
        let (peers, entry) = Default::default();
        Ok(Self { region, file, me: MEMBERS, pid: std::process::id(), peers, entry })
    }

    /// Whether this is still the process that joined, not a child of it.
    #[must_use]
    pub fn here(&self) -> bool {
        self.pid == std::process::id()
    }

    fn agrees(&self, asked: &Agreed) -> Result<()> {
        // The cap may have been changed since.
        let have = Agreed { cap_bytes: self.word(7).load(Ordering::Relaxed), members: self.members() };
        if have != *asked {
            return Err(refused(format!(
                "it has {} MiB for {} processes here, and {} MiB for {} are asked for: give all of them the same, or this one \
                 another name",
                mib(have.cap_bytes),
                have.members,
                mib(asked.cap_bytes),
                asked.members
            )));
        }
        let (theirs, own) = (self.their_group(), group());
        if theirs != own {
            return Err(refused(format!(
                "this process is in the memory group {own:?} and the others are in {theirs:?}: no budget holds across memory \
                 groups; start all ranks in one group, or give each its own tidegate.Budget(…)"
            )));
        }
        Ok(())
    }

    fn their_group(&self) -> String {
        let len = (self.word(GROUP_WORD).load(Ordering::Relaxed) as usize).min(GROUP_BYTES);
        let words = (0..len.div_ceil(8)).map(|i| self.word(GROUP_WORD + 1 + i).load(Ordering::Relaxed));
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).take(len).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Enters the members; false if the last of them has just left.
    fn enter(&mut self, members: u64) -> Result<bool> {
        match self.take_place(members)? {
            Some(place) => self.me = place,
            None => return Ok(false),
        }
        Ok(true)
    }

    fn take_place(&self, members: u64) -> Result<Option<usize>> {
        let _held = self.held();
        if self.word(0).load(Ordering::SeqCst) != MAGIC {
            return Ok(None);
        }
        let there = self.alive();
        if there >= members {
            return Err(refused(format!(
                "it is for {members} processes, and {there} have joined: give all of them the number that there will be, and other \
                 jobs another name"
            )));
        }
        let free = (0..MEMBERS).find(|&m| self.state(m).load(Ordering::SeqCst) == 0);
        let free = free.ok_or_else(|| refused("all its places are taken"))?;
        self.cell(free).store(0, Ordering::SeqCst);
        self.start(free).store(start_of(self.pid).unwrap_or(0), Ordering::SeqCst);
        self.state(free).store(ALIVE | u64::from(self.pid), Ordering::SeqCst);
        Ok(Some(free))
    }

    /// Keeps others from entering and from reaping, until it is dropped.
    fn held(&self) -> Held<'_> {
        let alone = lock(&self.entry);
        while flock(&self.file, FlockOperation::LockExclusive) == Err(rustix::io::Errno::INTR) {}
        Held(&self.file, alone)
    }

    pub(super) fn word(&self, i: usize) -> &AtomicU64 {
        self.region.word(i)
    }
    fn state(&self, member: usize) -> &AtomicU64 {
        self.word(64 + 8 * member)
    }
    fn start(&self, member: usize) -> &AtomicU64 {
        self.word(64 + 8 * member + 1)
    }
    fn cell(&self, member: usize) -> &AtomicU64 {
        self.word(64 + 8 * member + 2)
    }
    pub(super) fn segment(&self, i: usize) -> &AtomicU64 {
        self.word(64 + 8 * MEMBERS + i)
    }

    fn alive(&self) -> u64 {
        (0..MEMBERS).filter(|&m| self.state(m).load(Ordering::SeqCst) != 0).count() as u64
    }

    /// The cap over all members.
    #[must_use]
    pub fn cap_bytes(&self) -> u64 {
        self.word(1).load(Ordering::Relaxed)
    }

    /// How many processes may join.
    #[must_use]
    pub fn members(&self) -> u64 {
        self.word(2).load(Ordering::Relaxed).max(1)
    }

    /// Bytes that each member may hold by itself: an equal part, so that no member can keep
    /// another from its own.
    #[must_use]
    pub fn share_bytes(&self) -> u64 {
        self.share_of(self.cap_bytes())
    }

    /// Bytes that segments may take if each member leaves `by_each` of its part. Segments being
    /// written belong to no part.
    #[must_use]
    pub fn left_bytes(&self, by_each: u64) -> u64 {
        self.members() * (by_each + WRITTEN * self.segment_bytes())
    }

    /// Bytes that each member could hold by itself under another cap.
    #[must_use]
    pub fn share_of(&self, cap_bytes: u64) -> u64 {
        // Segments that are being written cannot be evicted.
        let kept = self.fixed_bytes() + self.members() * WRITTEN * self.segment_bytes();
        cap_bytes.saturating_sub(kept) / self.members() / PAGE_BYTES * PAGE_BYTES
    }

    pub(super) fn set_cap(&self, bytes: u64) {
        self.word(1).store(bytes, Ordering::SeqCst);
        self.evict(self.missing(0));
    }

    fn fixed_bytes(&self) -> u64 {
        FIGURES_BYTES + self.table_bytes()
    }

    fn total(&self) -> u64 {
        let cells = (0..MEMBERS).map(|m| self.cell(m).load(Ordering::SeqCst)).fold(0, u64::wrapping_add);
        self.fixed_bytes().wrapping_add(cells).wrapping_add(self.segments_held_bytes())
    }

    /// Bytes charged over all members, and the most ever charged.
    #[must_use]
    pub fn usage(&self) -> Use {
        self.reap();
        let peak_bytes = self.word(3).load(Ordering::Relaxed);
        Use { cap_bytes: self.cap_bytes(), charged_bytes: self.total(), peak_bytes, waits: 0 }
    }

    /// Bytes that must be freed before `bytes` can be charged.
    pub(super) fn missing(&self, bytes: u64) -> u64 {
        self.total().saturating_add(bytes).saturating_sub(self.cap_bytes())
    }

    /// Whether `bytes` more are within the part of this member. Then it gets them once enough
    /// segments are evicted.
    fn is_due(&self, bytes: u64) -> bool {
        let held = self.cell(self.me).load(Ordering::SeqCst);
        self.here() && held.saturating_add(bytes) <= self.share_bytes()
    }

    /// Bytes that must be freed before this member can charge `bytes`.
    pub(super) fn lacks(&self, bytes: u64) -> u64 {
        if self.is_due(bytes) && self.evictable_bytes() == 0 { 0 } else { self.missing(bytes) }
    }

    /// Evicts segments until this member can charge `bytes`, if they are within its part.
    pub(super) fn make_room(&self, bytes: u64) {
        if self.is_due(bytes) {
            self.evict(self.missing(bytes));
        }
    }

    /// Runs `add`, and `undo` if the sum is too large then; true if it is not.
    pub(super) fn try_add(&self, bytes: u64, add: impl Fn(), undo: impl Fn()) -> bool {
        for attempt in 0..4 {
            if self.missing(bytes) > 0 && (attempt > 0 || !self.reap() || self.missing(bytes) > 0) {
                return false;
            }
            add();
            let total = self.total();
            if total <= self.cap_bytes() {
                self.word(3).fetch_max(total, Ordering::Relaxed);
                return true;
            }
            undo();
            // Another member tried at the same time, and perhaps took it back as well.
            std::thread::yield_now();
        }
        false
    }

    /// Charges bytes to this member, unless the cap of all forbids it.
    pub(super) fn charge(&self, bytes: u64) -> bool {
        if !self.here() {
            return false;
        }
        let cell = self.cell(self.me);
        let add = || {
            cell.fetch_add(bytes, Ordering::SeqCst);
        };
        if self.try_add(bytes, add, || self.discharge(bytes)) {
            return true;
        }
        // All shares and the segments being written are together within the cap. So if nothing can
        // be evicted, the sum is too large only because of an attempt that will be taken back, or
        // of a member that still holds more than a lower cap allows.
        if self.is_due(bytes) && self.evictable_bytes() == 0 {
            add();
            self.word(3).fetch_max(self.total(), Ordering::Relaxed);
            return true;
        }
        false
    }

    pub(super) fn discharge(&self, bytes: u64) {
        if self.here() {
            self.cell(self.me).fetch_sub(bytes, Ordering::SeqCst);
        }
    }

    /// Clears what dead members held; true if there were any.
    fn reap(&self) -> bool {
        let others = (0..MEMBERS).filter(|&m| m != self.me && self.state(m).load(Ordering::SeqCst) != 0);
        let dead: Vec<usize> = others.filter(|&m| self.is_dead(m)).collect();
        if dead.is_empty() || !self.here() {
            return false;
        }
        let _held = self.held();
        for member in dead {
            // Another member may have reaped it, and another process may have its place.
            let state = self.state(member).load(Ordering::SeqCst);
            if state == 0 || !self.is_dead(member) {
                continue;
            }
            self.cell(member).store(0, Ordering::SeqCst);
            for i in 0..SEGMENTS {
                let (word, now) = (self.segment(i), self.segment(i).load(Ordering::SeqCst));
                let freeing = now & SIZE | FREEING | (self.me as u64 + 1) << OWNER_SHIFT;
                let its = now >> OWNER_SHIFT & 0xff == member as u64 + 1;
                if its && word.compare_exchange(now, freeing, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                    self.free(i);
                }
            }
            self.state(member).store(0, Ordering::SeqCst);
        }
        true
    }

    fn is_dead(&self, member: usize) -> bool {
        let state = self.state(member).load(Ordering::SeqCst);
        let start = self.start(member).load(Ordering::SeqCst);
        let Some(pid) = Pid::from_raw((state as u32).cast_signed()) else { return false };
        let mut peers = lock(&self.peers);
        if peers.get(&member).is_none_or(|peer| peer.state != state || peer.start != start) {
            let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(pidfd) => Some(pidfd),
                Err(rustix::io::Errno::SRCH) => return true,
                Err(_) => None,
            };
            // The process that has its number now may be another one.
            if start_of(state as u32) != Some(start) {
                return true;
            }
            peers.insert(member, Peer { state, start, pidfd });
        }
        match peers.get(&member).and_then(|peer| peer.pidfd.as_ref()) {
            Some(pidfd) => {
                let mut ended = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
                poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0)
            }
            None => start_of(state as u32) != Some(start),
        }
    }

    /// The members' process ids and what each holds.
    #[must_use]
    pub fn held_by_process(&self) -> Vec<(u32, u64)> {
        self.reap();
        let states = (0..MEMBERS).map(|m| (m, self.state(m).load(Ordering::SeqCst)));
        states
            .filter(|(_, s)| *s != 0)
            .map(|(m, s)| (s as u32, self.cell(m).load(Ordering::SeqCst)))
            .collect()
    }
}

/// The lock of the file.
struct Held<'a>(&'a File, #[expect(dead_code, reason = "is dropped")] MutexGuard<'a, ()>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Unlocking cannot fail while the file is open, and closing it unlocks too.
        flock(self.0, FlockOperation::Unlock).ok();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A child of the member has no place of its own.
        if self.me < MEMBERS && self.here() {
            let _held = self.held();
            self.cell(self.me).store(0, Ordering::SeqCst);
            self.state(self.me).store(0, Ordering::SeqCst);
            if self.alive() == 0 {
                self.empty();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    const CAP: u64 = 32 << 20;

    fn agreed(members: u64) -> Agreed {
        Agreed { cap_bytes: CAP, members }
    }

    /// A node and its members, each as if it were another process.
    fn members(n: u64) -> Vec<Node> {
        let first = Node::create("tidegate-test", &agreed(n)).unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&first.file));
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let mut all: Vec<Node> = (1..n).map(|_| Node::attach(open()).unwrap()).collect();
        all.insert(0, first);
        assert!(all.iter_mut().all(|node| node.enter(n).unwrap()));
        all[0].set_segments_limit(CAP);
        all
    }

    /// Another process in the place of a member.
    fn put_child_in_place_of(node: &Node, member: usize) -> Child {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        node.start(member).store(start_of(child.id()).unwrap(), Ordering::SeqCst);
        node.state(member).store(ALIVE | u64::from(child.id()), Ordering::SeqCst);
        child
    }

    #[test]
    fn what_all_hold_together_is_bounded() {
        let all = members(4);
        let fixed = all[0].fixed_bytes();
        assert!(all[1].charge(10 << 20) && all[2].charge(10 << 20) && !all[3].charge(12 << 20));
        assert_eq!(all[0].usage().charged_bytes, fixed + (20 << 20));
        assert!(all[0].claim_segment().is_some());
        assert!(!all[0].charge(12 << 20), "segments count as well");
        all[1].discharge(10 << 20);
        assert!(all[3].charge(12 << 20));
        let peak = fixed + (22 << 20) + all[0].segment_bytes();
        assert_eq!((all[2].usage().charged_bytes, all[2].usage().peak_bytes), (peak, peak));
        drop(all);
    }

    #[test]
    fn of_members_that_charge_at_the_same_time_no_two_exceed_the_cap() {
        let all = members(4);
        let (room, held) = (CAP - all[0].fixed_bytes(), AtomicU64::new(0));
        let admitted = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for (i, node) in all.iter().enumerate() {
                let (held, admitted) = (&held, &admitted);
                std::thread::Builder::new()
                    .spawn_scoped(scope, move || {
                        for turn in 0..20_000 {
                            let bytes = (1 + (turn * 7 + i as u64) % 5) << 21;
                            if node.charge(bytes) {
                                let now = held.fetch_add(bytes, Ordering::SeqCst) + bytes;
                                assert!(now <= room, "{now} of {room}");
                                admitted.fetch_add(1, Ordering::Relaxed);
                                held.fetch_sub(bytes, Ordering::SeqCst);
                                node.discharge(bytes);
                            }
                        }
                    })
                    .unwrap();
            }
        });
        assert!(admitted.load(Ordering::Relaxed) > 10_000);
        assert_eq!(all[0].total(), all[0].fixed_bytes());
    }

    #[test]
    fn what_a_killed_process_held_is_free_at_once() {
        let all = members(3);
        assert!(all[1].charge(5 << 20));
        let (open, sealed) = (all[1].claim_segment().unwrap(), all[1].claim_segment().unwrap());
        all[1].file.write_all_at(&[7; 4096], all[1].segment_start(open)).unwrap();
        all[1].seal_segment(sealed);
        let mut child = put_child_in_place_of(&all[0], 1);
        let before = all[2].usage().charged_bytes;
        assert_eq!(before, all[0].fixed_bytes() + (5 << 20) + 2 * all[0].segment_bytes());
        assert_eq!(all[2].held_by_process().len(), 3);
        child.kill().unwrap();
        let began = Instant::now();
        // The kernel ends a process in its own time; not yet waited for, it is a zombie.
        while all[2].usage().charged_bytes == before && began.elapsed() < Duration::from_secs(20) {
            std::thread::yield_now();
        }
        assert_eq!(all[2].usage().charged_bytes, all[0].fixed_bytes() + all[0].segment_bytes());
        let mut page = [1; 4096];
        all[2].file.read_exact_at(&mut page, all[2].segment_start(open)).unwrap();
        assert_eq!((page, all[2].held_by_process().len()), ([0; 4096], 2));
        child.wait().unwrap();
    }

    #[test]
    fn memory_of_others_is_had_by_evicting_what_is_common() {
        let all = members(2);
        let bytes = all[0].segment_bytes();
        let mut segments = Vec::new();
        while let Some(segment) = all[0].claim_segment() {
            let at = all[0].segment_start(segment);
            all[0].file.write_all_at(&vec![7; bytes as usize], at).unwrap();
            all[0].seal_segment(segment);
            segments.push(segment);
        }
        let resident = || all[0].file.metadata().unwrap().blocks() * 512;
        let full = resident();
        assert!(full >= segments.len() as u64 * bytes && segments.len() as u64 * bytes > CAP * 9 / 10);
        assert!(!all[1].charge(4 << 20));
        let missing = all[1].missing(4 << 20);
        assert!(all[1].evictable_bytes() >= missing);
        all[1].evict(missing);
        assert!(all[1].charge(4 << 20) && resident() <= full - missing);
        assert!(all[0].claim_segment().is_none(), "not before the limit is set again");
        let mut byte = [0];
        all[1].file.read_exact_at(&mut byte, all[1].segment_start(segments[0])).unwrap();
        assert_eq!(byte, [7], "the last ones went");
        all[1].set_cap(8 << 20);
        assert!(all[1].usage().charged_bytes <= 8 << 20);
    }

    #[test]
    fn a_share_is_had_whatever_others_keep_in_common_or_have_not_given_back() {
        let all = members(2);
        while let Some(segment) = all[0].claim_segment() {
            all[0].seal_segment(segment);
        }
        let share = all[1].share_bytes();
        assert!(!all[1].charge(share));
        assert!(all[1].lacks(share) > 0);
        all[1].make_room(share);
        assert!(all[1].charge(share) && all[0].usage().charged_bytes <= CAP);
        all[0].evict(CAP);
        all[0].set_segments_limit(CAP);
        assert!(all[0].charge(share), "all shares fit together");
        let written: Vec<_> = (0..3).map_while(|_| all[0].claim_segment()).collect();
        assert_eq!(written.len() as u64, WRITTEN, "and what is being written");
        // A lower cap: the member that has given back gets its part at once, the other one nothing
        // more.
        all[0].set_cap(CAP / 2);
        let less = all[0].share_bytes();
        all[0].discharge(share);
        assert!(all[0].charge(less) && !all[0].charge(PAGE_BYTES) && !all[1].charge(PAGE_BYTES));
    }

    #[test]
    fn who_does_not_fit_is_refused_with_the_reason() {
        let words = |outcome: Result<()>| outcome.unwrap_err().to_string();
        let mut all = members(2);
        let asked = Agreed { cap_bytes: 2 * CAP, ..agreed(2) };
        assert!(words(all[0].agrees(&asked)).contains("it has 32.0 MiB for 2 processes here"));
        assert!(all[0].agrees(&agreed(2)).is_ok());
        assert!(words(all[0].enter(2).map(drop)).contains("2 have joined"));
        all[0].word(GROUP_WORD).store(3, Ordering::Relaxed);
        all[0].word(GROUP_WORD + 1).store(u64::from_le_bytes(*b"/x/\0\0\0\0\0"), Ordering::Relaxed);
        let said = words(all[1].agrees(&agreed(2)));
        assert!(said.contains("\"/x/\"") && said.contains("no budget holds across memory groups"), "{said}");
        all[0].me = MEMBERS;
        assert!(words(Node::join("a/b", CAP, 2).map(drop)).contains("without a slash"));
        assert!(words(Node::join("x", CAP, 65).map(drop)).contains("1 to 64"));
        assert!(words(Node::join("tiny", 20_000, 2).map(drop)).contains("too small"));
    }

    #[test]
    fn a_node_is_there_as_long_as_a_member_is() {
        let first = Node::join("stays", CAP, 2).unwrap();
        // Found by its file, as another process finds it.
        let second = Node::join("stays", CAP, 2).unwrap();
        assert!(first.charge(1 << 20));
        assert_eq!(second.usage().charged_bytes, second.fixed_bytes() + (1 << 20));
        assert!(Node::join("stays", CAP, 2).unwrap_err().to_string().contains("2 have joined"));
        drop(first);
        assert_eq!(second.usage().charged_bytes, second.fixed_bytes());
        let file = second.file().unwrap();
        drop(second);
        assert_eq!(file.metadata().unwrap().blocks(), 0, "the last one empties it");
        let third = Node::join("stays", 2 * CAP, 3).unwrap();
        assert_eq!(third.alive(), 1, "a node without members is gone");
    }
}
