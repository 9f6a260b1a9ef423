//! Memory-mapped arrays: typed, shaped views whose pages the kernel reads when they are touched.
//!
//! Flow: [`Stored`] + [`Mode`] -> [`Mapped`], or a typed [`MappedArray`] -> elements, access
//! hints, resident bytes.
//! Memory: pages of the page cache, which the kernel loads and evicts; they count as resident
//! memory, also of a cgroup. Copies made by writes ([`Mode::CopyOnWrite`]) are private memory. No
//! budget governs either; [`Mapped::usage`] reports both.
//!
//! A mapping suits sparse access. Training reads with [`Mapped::read`] or a source of rows, that
//! is with pread and a checked length: touching a mapping of a file that was truncated kills the
//! process (SIGBUS), and cold random access through a mapping is about twenty times slower.
#![expect(unsafe_code, reason = "maps files, and gives out their elements as slices")]

use std::fs::File;
use std::io::BufRead;
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, madvise, mmap, msync, munmap};

use crate::stored::Stored;
use crate::{DType, Error, Result};

/// Access modes of a mapped array, with NumPy's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `r`: read only.
    Read,
    /// `r+`: read and write. Writes reach the file, at the latest with [`Mapped::flush`].
    ReadWrite,
    /// `c`: read and write. Writes stay in this process.
    CopyOnWrite,
}

impl Mode {
    /// The mode with this name.
    ///
    /// # Errors
    /// A message that lists the known names.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "r" => Ok(Self::Read),
            "r+" => Ok(Self::ReadWrite),
            "c" => Ok(Self::CopyOnWrite),
            _ => Err(format!("unknown mode {name:?}: give \"r\", \"r+\" or \"c\" (copy on write)")),
        }
    }
}

/// The access pattern to expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// No particular pattern.
    Normal,
    /// From beginning to end: the kernel reads far ahead.
    Sequential,
    /// Random access: the kernel does not read ahead.
    Random,
    /// Access soon: the kernel reads all of it now.
    WillNeed,
    /// No access for a while: the kernel may evict the pages. Copies made by writes are discarded.
    DontNeed,
}

impl Advice {
    /// The advice with this name.
    ///
    /// # Errors
    /// A message that lists the known names.
    pub fn parse(name: &str) -> Result<Self, String> {
        Ok(match name {
            "normal" => Self::Normal,
            "sequential" => Self::Sequential,
            "random" => Self::Random,
            "willneed" => Self::WillNeed,
            "dontneed" => Self::DontNeed,
            _ => {
                return Err(format!(
                    "unknown advice {name:?}: give normal, sequential, random, willneed or dontneed"
                ));
            }
        })
    }
}

/// Memory that a mapping uses now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Pages that this process has touched and that are resident.
    pub resident_bytes: u64,
    /// Written pages that are not in the file, in bytes: the copies of [`Mode::CopyOnWrite`].
    pub dirty_bytes: u64,
}

/// A mapped array of any element type.
#[derive(Debug)]
pub struct Mapped {
    stored: Stored,
    mode: Mode,
    file: File,
    /// The mapped pages; `None` for an array without elements.
    pages: Option<(NonNull<u8>, usize)>,
    start: NonNull<u8>,
}

// SAFETY: the mapping lives until drop and moves with its owner; elements are written only through
// raw pointers, whose users answer for them.
unsafe impl Send for Mapped {}
// SAFETY: `&self` gives no writable reference.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps an array.
    ///
    /// # Errors
    /// The file does not exist, may not be written, has been truncated since it was located, or
    /// cannot be mapped.
    pub fn open(stored: Stored, mode: Mode) -> Result<Self> {
        let path = &stored.path;
        let file =
            File::options().read(true).write(mode == Mode::ReadWrite).open(path).map_err(Error::io(path))?;
        let bytes = stored.bytes();
        let len = file.metadata().map_err(Error::io(path))?.len();
        if stored.offset.checked_add(bytes).is_none_or(|end| end > len) {
            return Err(Error::format(
                path,
                stored.offset,
                "the file is shorter than when it was opened: restore it",
            ));
        }
        if bytes == 0 {
            return Ok(Self { stored, mode, file, pages: None, start: NonNull::<u64>::dangling().cast() });
        }
        let page = rustix::param::page_size() as u64;
        let skip = stored.offset % page;
        let whole = usize::try_from(bytes + skip)
            .map_err(|_| Error::misuse(path, "the array is larger than the address space"))?;
        let (protection, flags) = match mode {
            Mode::Read => (ProtFlags::READ, MapFlags::SHARED),
            Mode::ReadWrite => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
            Mode::CopyOnWrite => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE),
        };
        // SAFETY: a new mapping at an address that the kernel chooses; the offset is a multiple of
        // the page size and the range is in the file.
        let pages =
            unsafe { mmap(std::ptr::null_mut(), whole, protection, flags, &file, stored.offset - skip) };
        let pages = pages.map_err(|e| Error::io(path)(e.into()))?;
        let pages = NonNull::new(pages.cast::<u8>())
            .ok_or_else(|| Error::internal("the kernel mapped a file at address zero"))?;
        // SAFETY: `skip` is within the mapping of `whole` bytes.
        let start = unsafe { pages.add(skip as usize) };
        Ok(Self { stored, mode, file, pages: Some((pages, whole)), start })
    }

    /// The array's location and type.
    #[must_use]
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// The access mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Address of the first element: valid for [`Stored::bytes`] while it is mapped, and writable
    /// unless the mode is [`Mode::Read`]. Touching an element that the file no longer has kills
    /// the process.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Reads elements, as bytes from `start` on, with pread. Writes to a copy
    /// ([`Mode::CopyOnWrite`]) are not seen.
    ///
    /// # Errors
    /// The range is outside the array, or the file has been truncated.
    pub fn read(&self, start: u64, into: &mut [u8]) -> Result<()> {
        let (path, offset) = (&self.stored.path, self.stored.offset.saturating_add(start));
        if start.checked_add(into.len() as u64).is_none_or(|end| end > self.stored.bytes()) {
            return Err(Error::misuse(
                path,
                format!(
                    "bytes {start} to {} are outside the array of {} bytes",
                    start + into.len() as u64,
                    self.stored.bytes()
                ),
            ));
        }
        self.file.read_exact_at(into, offset).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::format(
                path,
                offset,
                "the file now ends here: it was cut short while it was open; restore it",
            ),
            _ => Error::io(path)(error),
        })
    }

    /// Tells the kernel which access pattern to expect.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn advise(&self, advice: Advice) -> Result<()> {
        use rustix::mm::Advice as System;
        let Some((pages, len)) = self.pages else { return Ok(()) };
        let advice = match advice {
            Advice::Normal => System::Normal,
            Advice::Sequential => System::Sequential,
            Advice::Random => System::Random,
            Advice::WillNeed => System::WillNeed,
            // On Linux this is MADV_DONTNEED: pages of the file are read again, copies made by
            // writes are lost, as documented.
            Advice::DontNeed => System::LinuxDontNeed,
        };
        // SAFETY: the range is this mapping; none of these advices unmaps it.
        unsafe { madvise(pages.as_ptr().cast(), len, advice) }
            .map_err(|e| Error::io(&self.stored.path)(e.into()))
    }

    /// Writes modified pages to the file and waits for completion.
    ///
    /// # Errors
    /// The operating system's error, such as a full disk.
    pub fn flush(&self) -> Result<()> {
        let Some((pages, len)) = self.pages.filter(|_| self.mode == Mode::ReadWrite) else { return Ok(()) };
        // SAFETY: the range is this mapping.
        unsafe { msync(pages.as_ptr().cast(), len, MsyncFlags::SYNC) }
            .map_err(|e| Error::io(&self.stored.path)(e.into()))
    }

    /// Memory that the mapping uses now.
    ///
    /// # Errors
    /// [`Error::Io`] if `/proc` cannot be read.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        let Some((pages, len)) = self.pages else { return Ok(usage) };
        let (from, to) = (pages.as_ptr() as u64, pages.as_ptr() as u64 + len as u64);
        let path = Path::new("/proc/self/smaps");
        let lines = std::io::BufReader::new(File::open(path).map_err(Error::io(path))?).lines();
        let mut ours = false;
        for line in lines {
            let line = line.map_err(Error::io(path))?;
            let mut words = line.split_whitespace();
            let Some(first) = words.next() else { continue };
            if let Some(name) = first.strip_suffix(':') {
                let kib: u64 = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
                match name {
                    "Rss" if ours => usage.resident_bytes += kib << 10,
                    "Shared_Dirty" | "Private_Dirty" if ours => usage.dirty_bytes += kib << 10,
                    _ => {}
                }
            } else if let Some((start, end)) = first.split_once('-') {
                let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
                // Advice may have split the mapping into several.
                ours = number(start) >= from && number(end) <= to.next_multiple_of(4096);
            }
        }
        Ok(usage)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if let Some((pages, len)) = self.pages {
            // SAFETY: mapped in `open` and unmapped only here; every view borrows this value or
            // keeps it alive.
            // A failure leaks the mapping: there is nothing else to do in a drop.
            unsafe { munmap(pages.as_ptr().cast(), len) }.ok();
        }
    }
}

/// Element types that have the same representation in files and in memory.
///
/// # Safety
/// Any bytes must be a valid value of the type, which has no padding and no drop.
pub unsafe trait Element: Copy + 'static {
    /// The element type in files.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),*) => {$(
        // SAFETY: any bytes are a valid value of a plain number.
        unsafe impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}
elements!(u8 => Uint8, i8 => Int8, u16 => Uint16, i16 => Int16, u32 => Uint32, i32 => Int32, u64 => Uint64, i64 => Int64, f32 => Float32,
    f64 => Float64);

/// A mapped array of a known element type.
///
/// ```
/// use std::io::Write;
/// use tidegate_array::mmap::{MappedArray, Mode};
/// use tidegate_array::stored::Stored;
/// use tidegate_array::DType;
/// let mut file = tempfile::NamedTempFile::new()?;
/// file.write_all(&[1, 0, 2, 0, 3, 0])?;
/// let stored = Stored::raw(file.path(), DType::Uint16, vec![3], 0)?;
/// let array = MappedArray::<u16>::open(stored, Mode::Read)?;
/// // SAFETY: no one writes to the file or truncates it.
/// assert_eq!(unsafe { array.elements() }, [1, 2, 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct MappedArray<T> {
    mapped: Mapped,
    element: PhantomData<T>,
}

impl<T: Element> MappedArray<T> {
    /// Maps an array whose elements are of this type.
    ///
    /// # Errors
    /// As [`Mapped::open`]; also if elements have another type or byte order, or are not aligned
    /// to their size.
    pub fn open(stored: Stored, mode: Mode) -> Result<Self> {
        let (path, offset) = (stored.path.clone(), stored.offset);
        if stored.dtype != T::DTYPE {
            return Err(Error::misuse(
                path,
                format!("its elements are {}, not {}", stored.dtype.name(), T::DTYPE.name()),
            ));
        }
        if stored.big_endian != cfg!(target_endian = "big") && size_of::<T>() > 1 {
            return Err(Error::misuse(
                path,
                "its elements have the other byte order: save them in this machine's, or read and swap them",
            ));
        }
        let mapped = Mapped::open(stored, mode)?;
        if !mapped.start.cast::<T>().is_aligned() {
            let what =
                format!("its elements begin at byte {offset}, no multiple of their size: read them instead");
            return Err(Error::misuse(path, what));
        }
        Ok(Self { mapped, element: PhantomData })
    }

    /// The untyped mapping.
    #[must_use]
    pub fn mapped(&self) -> &Mapped {
        &self.mapped
    }

    /// The shape. In Fortran order, elements next to each other along the first axis are adjacent
    /// in memory.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.mapped.stored.shape
    }

    fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// All elements, in the order of the file.
    ///
    /// # Safety
    /// While the slice exists, no one may write to or truncate the file, or discard its pages with
    /// [`Advice::DontNeed`].
    #[must_use]
    pub unsafe fn elements(&self) -> &[T] {
        // SAFETY: mapped for this length, aligned (checked in `open`), and any bytes are elements;
        // the caller ensures that no one writes.
        unsafe { std::slice::from_raw_parts(self.mapped.start.cast::<T>().as_ptr(), self.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn npy(dir: &Path, descr: &str, fortran: &str, shape: &str, data: &[u8]) -> std::path::PathBuf {
        let text = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
        let header = format!("{text:<117}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        let path = dir.join("a.npy");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn words(n: u16) -> Vec<u8> {
        (0..n).flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn modes_write_where_they_should() {
        let dir = tempfile::tempdir().unwrap();
        let path = npy(dir.path(), "<u2", "False", "(100, 50)", &words(5000));
        let open = |mode| MappedArray::<u16>::open(Stored::open(&path, None).unwrap(), mode).unwrap();
        let at = |i: u64| {
            let mut bytes = [0; 2];
            open(Mode::Read).mapped().read(2 * i, &mut bytes).unwrap();
            u16::from_le_bytes(bytes)
        };
        let copy = open(Mode::CopyOnWrite);
        // SAFETY: mapped writable, 5,000 elements; only this test uses the file.
        unsafe { copy.mapped().start().cast::<u16>().add(7).write(1) };
        assert_eq!((at(7), copy.shape()), (7, &[100, 50][..]));
        assert!(copy.mapped().usage().unwrap().dirty_bytes >= 4096);
        let shared = open(Mode::ReadWrite);
        // SAFETY: as above.
        unsafe { shared.mapped().start().cast::<u16>().add(8).write(2) };
        shared.mapped().flush().unwrap();
        assert_eq!(at(8), 2);
        let read = open(Mode::Read);
        // SAFETY: as above.
        assert_eq!(unsafe { read.elements() }[9], 9);
        let touched = read.mapped().usage().unwrap().resident_bytes;
        assert!(touched > 0);
        for advice in ["normal", "sequential", "random", "willneed", "dontneed"] {
            read.mapped().advise(Advice::parse(advice).unwrap()).unwrap();
        }
        assert!(read.mapped().usage().unwrap().resident_bytes < touched + 4096);
        assert!(
            Advice::parse("x").unwrap_err().contains("willneed")
                && Mode::parse("w").unwrap_err().contains("r+")
        );
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = npy(dir.path(), "<u2", "False", "(100, 50)", &words(4999));
        let error = |path: &Path| Stored::open(path, None).unwrap_err().to_string();
        assert!(error(&path).contains("10000 bytes, and the file has 9998"), "{}", error(&path));
        let raw = |shape: Vec<usize>| {
            Stored::raw(&path, DType::Uint16, shape, 128).map(|_| ()).map_err(|e| e.to_string())
        };
        assert!(raw(vec![4999]).is_ok());
        assert!(raw(vec![5000]).unwrap_err().contains("give the shape"));
        assert!(raw(vec![usize::MAX, 8]).unwrap_err().contains("more than 2^64"));
        let big = npy(dir.path(), ">u2", "False", "(5,)", &words(5));
        let stored = Stored::open(&big, None).unwrap();
        let refused = |e: Result<MappedArray<u16>>| e.unwrap_err().to_string();
        assert!(refused(MappedArray::open(stored.clone(), Mode::Read)).contains("byte order"));
        let other = MappedArray::<f32>::open(stored.clone(), Mode::Read).unwrap_err().to_string();
        assert!(other.contains("uint16, not float32"), "{other}");
        let odd = Stored::raw(&big, DType::Uint16, vec![4], 130 + 1).unwrap_err().to_string();
        assert!(odd.contains("give the shape"), "{odd}");
        fs::write(dir.path().join("odd"), [0; 9]).unwrap();
        let odd = Stored::raw(&dir.path().join("odd"), DType::Uint16, vec![4], 1).unwrap();
        assert!(refused(MappedArray::open(odd, Mode::Read)).contains("no multiple"));
        // Reads of a file that was truncated while it was open fail with a message.
        let mapped = Mapped::open(stored, Mode::Read).unwrap();
        File::options().write(true).open(&big).unwrap().set_len(130).unwrap();
        let cut = mapped.read(0, &mut [0; 10]).unwrap_err().to_string();
        assert!(cut.contains("cut short"), "{cut}");
        assert!(
            mapped
                .read(8, &mut [0; 4])
                .unwrap_err()
                .to_string()
                .contains("8 to 12 are outside the array of 10")
        );
        let empty = npy(dir.path(), "<f4", "False", "(0, 7)", &[]);
        let empty = MappedArray::<f32>::open(Stored::open(&empty, None).unwrap(), Mode::Read).unwrap();
        // SAFETY: there are no elements.
        let none = unsafe { empty.elements() };
        assert!(none.is_empty() && empty.mapped().usage().unwrap() == Usage::default());
    }
}
