//! The location of an array in a file: .npy, a member of an .npz, safetensors, or raw bytes.
//!
//! Flow: a path, and a name if a file has several arrays -> [`Stored`], checked against the file's
//! length.
//! Memory: headers, while they are read.
//!
//! Specifications: NumPy's format; safetensors; ZIP, whose members must be stored, because
//! elements of a deflated member have no offset.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::npy::{self, HEADER_BYTES};
use crate::{DType, Error, Result};

/// The longest safetensors header that is accepted, in bytes.
const TENSORS_HEADER_BYTES: u64 = 16 << 20;

/// An array's file, offset, type and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The file's path.
    pub path: PathBuf,
    /// Element type.
    pub dtype: DType,
    /// Whether elements are big-endian.
    pub big_endian: bool,
    /// Whether the array is in Fortran order: elements next to each other along the first axis are
    /// adjacent in the file.
    pub fortran: bool,
    /// Shape.
    pub shape: Vec<usize>,
    /// Offset of the first element in the file, in bytes.
    pub offset: u64,
}

/// The archive of an .npz, and the number and the name of the array that is wanted.
fn member_of<'a>(
    path: &Path,
    file: &'a File,
    name: Option<&str>,
) -> Result<(zip::ZipArchive<&'a File>, usize, String)> {
    let archive = zip::ZipArchive::new(file).map_err(|e| damaged(path, &e))?;
    let files = archive.file_names().collect::<Result<Vec<_>, _>>().map_err(|e| damaged(path, &e))?;
    let names: Vec<String> = files.iter().map(|n| n.trim_end_matches(".npy").to_owned()).collect();
    let name = chosen(path, name, &names)?;
    let file_name =
        names.iter().zip(&files).find(|(known, _)| **known == name).map(|(_, file)| file.to_string());
    let at = file_name.and_then(|file| archive.index_for_name(&file)).unwrap_or(0);
    Ok((archive, at, name))
}

fn damaged(path: &Path, error: &zip::result::ZipError) -> Error {
    Error::format(path, 0, format!("npz: {error}: it is truncated or damaged"))
}

/// Opens a file for reading; opening a pipe would wait for a program that writes into it.
fn open(path: &Path) -> Result<File> {
    let found = std::fs::metadata(path).map_err(Error::io(path))?;
    if !found.is_file() {
        return Err(Error::misuse(path, "this is no file, but a folder, a pipe or a device"));
    }
    File::open(path).map_err(Error::io(path))
}

impl Stored {
    /// Locates the array in a file, by the file's extension. `name` is required if the file has
    /// several arrays.
    ///
    /// # Errors
    /// The file is malformed or too short, or has no array of this name (the message lists its
    /// names).
    pub fn open(path: &Path, name: Option<&str>) -> Result<Self> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("npz") => Self::npz(path, name),
            Some("safetensors") => Self::safetensors(path, name),
            _ if name.is_some() => {
                let what = "this file has one array, which has no name: leave the name out";
                Err(Error::misuse(path, what))
            }
            _ => Self::npy(path),
        }
    }

    /// Raw elements in a file, from byte `offset` to its end.
    ///
    /// # Errors
    /// The file's length is not what type and shape need.
    pub fn raw(path: &Path, dtype: DType, shape: Vec<usize>, offset: u64) -> Result<Self> {
        let stored = Self { path: path.to_owned(), dtype, big_endian: false, fortran: false, shape, offset };
        let file = open(path)?;
        let len = file.metadata().map_err(Error::io(path))?.len();
        let bytes = stored.checked_bytes()?;
        if offset.checked_add(bytes) != Some(len) {
            let what = format!(
                "{} of {:?} is {bytes} bytes, and the file has {} from here: give the shape that it has, or the offset",
                dtype.name(),
                stored.shape,
                len.saturating_sub(offset)
            );
            return Err(Error::format(path, offset, what));
        }
        Ok(stored)
    }

    fn npy(path: &Path) -> Result<Self> {
        let file = open(path)?;
        Self::member(path, &file, 0)
    }

    /// Locates the .npy that begins at byte `start` of a file.
    fn member(path: &Path, file: &File, start: u64) -> Result<Self> {
        let mut bytes = vec![0; HEADER_BYTES];
        let mut read = 0;
        while read < bytes.len() {
            match file.read_at(&mut bytes[read..], start + read as u64).map_err(Error::io(path))? {
                0 => break,
                n => read += n,
            }
        }
        let header = npy::header(&bytes[..read]).map_err(|what| Error::format(path, start, what))?;
        let npy::Header { dtype, big_endian, fortran, shape, offset } = header;
        let offset = start + offset as u64;
        Self { path: path.to_owned(), dtype, big_endian, fortran, shape, offset }.inside(file)
    }

    /// Reads an array of an .npz once, and compares it with the checksum that the file has of it.
    ///
    /// # Errors
    /// Another checksum, and as [`Stored::open`]; a file of another kind, which has none.
    pub fn verify(path: &Path, name: Option<&str>) -> Result<()> {
        if path.extension().is_none_or(|extension| extension != "npz") {
            return Err(Error::misuse(path, "only .npz files have checksums: leave verify out"));
        }
        let file = open(path)?;
        let (mut archive, at, name) = member_of(path, &file, name)?;
        let mut member = archive.by_index(at).map_err(|e| damaged(path, &e))?;
        std::io::copy(&mut member, &mut std::io::sink()).map_err(|e| {
            Error::format(path, 0, format!("npz: array {name:?}: {e}: it was changed or damaged; restore it"))
        })?;
        Ok(())
    }

    fn npz(path: &Path, name: Option<&str>) -> Result<Self> {
        let file = open(path)?;
        let (mut archive, at, name) = member_of(path, &file, name)?;
        let member = archive.by_index_raw(at).map_err(|e| damaged(path, &e))?;
        if member.compression() != zip::CompressionMethod::Stored {
            let what = format!(
                "array {name:?} is compressed, so its elements have no offset in the file: save it with np.savez"
            );
            return Err(Error::misuse(path, what));
        }
        let start = member
            .data_start()
            .ok_or_else(|| Error::format(path, 0, "npz: a member has no offset: the file is damaged"))?;
        let end = start + member.size();
        drop(member);
        let stored = Self::member(path, &file, start)?;
        if stored.offset + stored.bytes() != end {
            let what = format!("npz: array {name:?} does not fill its member: the file is damaged");
            return Err(Error::format(path, start, what));
        }
        Ok(stored)
    }

    fn safetensors(path: &Path, name: Option<&str>) -> Result<Self> {
        let mut file = open(path)?;
        let wrong = |what: String| Error::format(path, 0, format!("safetensors: {what}"));
        let mut len = [0; 8];
        file.read_exact(&mut len).map_err(|_| wrong("it ends before its header".into()))?;
        let len = u64::from_le_bytes(len);
        let whole = file.metadata().map_err(Error::io(path))?.len();
        if len > TENSORS_HEADER_BYTES || len + 8 > whole {
            return Err(wrong(format!(
                "a header of {len} bytes in a file of {whole}: it is truncated or damaged"
            )));
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 8).map_err(Error::io(path))?;
        let metadata: Metadata = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        // Parsing has already checked that there are no gaps or overlaps.
        let end = metadata.tensors().values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
        if (8 + len).checked_add(end) != Some(whole) {
            return Err(wrong(format!(
                "its tensors end {end} bytes after a header of {len}, in a file of {whole}: it is truncated or damaged"
            )));
        }
        let mut names: Vec<String> = metadata.tensors().keys().cloned().collect();
        names.sort_unstable();
        let name = chosen(path, name, &names)?;
        let info = metadata.info(&name).ok_or_else(|| wrong("it has no tensors".into()))?;
        let dtype = match info.dtype {
            Dtype::BOOL => DType::Bool,
            Dtype::U8 => DType::Uint8,
            Dtype::I8 => DType::Int8,
            Dtype::U16 => DType::Uint16,
            Dtype::I16 => DType::Int16,
            Dtype::U32 => DType::Uint32,
            Dtype::I32 => DType::Int32,
            Dtype::U64 => DType::Uint64,
            Dtype::I64 => DType::Int64,
            Dtype::F16 => DType::Float16,
            Dtype::BF16 => DType::Bfloat16,
            Dtype::F32 => DType::Float32,
            Dtype::F64 => DType::Float64,
            other => {
                return Err(wrong(format!(
                    "tensor {name:?} has elements of {other:?}, which cannot be read: save it as another type"
                )));
            }
        };
        let (from, to) = info.data_offsets;
        let shape = info.shape.clone();
        let offset = 8 + len + from as u64;
        let stored = Self { path: path.to_owned(), dtype, big_endian: false, fortran: false, shape, offset };
        if stored.checked_bytes()? != (to - from) as u64 {
            return Err(wrong(format!(
                "tensor {name:?} of {:?} does not take {} bytes: the header is damaged",
                stored.shape,
                to - from
            )));
        }
        stored.inside(&file)
    }

    /// Bytes of all elements.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shape.iter().fold(self.dtype.size() as u64, |n, &side| n.saturating_mul(side as u64))
    }

    fn checked_bytes(&self) -> Result<u64> {
        let bytes =
            self.shape.iter().try_fold(self.dtype.size() as u64, |n, &side| n.checked_mul(side as u64));
        bytes.ok_or_else(|| {
            Error::format(
                &self.path,
                self.offset,
                format!(
                    "a shape of {:?} is more than 2^64 bytes: the header is damaged, or the shape is wrong",
                    self.shape
                ),
            )
        })
    }

    /// Returns the array if the file holds all of it.
    fn inside(self, file: &File) -> Result<Self> {
        let len = file.metadata().map_err(Error::io(&self.path))?.len();
        let bytes = self.checked_bytes()?;
        if self.offset.checked_add(bytes).is_none_or(|end| end > len) {
            let what = format!(
                "{} of {:?} is {bytes} bytes, and the file has {} from here: it is truncated, or its header is wrong",
                self.dtype.name(),
                self.shape,
                len.saturating_sub(self.offset)
            );
            return Err(Error::format(&self.path, self.offset, what));
        }
        Ok(self)
    }
}

/// The given name if the file has it, or the only name.
fn chosen(path: &Path, name: Option<&str>, names: &[String]) -> Result<String> {
    let known = || names.join(", ");
    match (name, names) {
        (Some(name), _) if names.iter().any(|known| known == name) => Ok(name.to_owned()),
        (Some(name), _) => {
            Err(Error::misuse(path, format!("there is no array {name:?}: the file has {}", known())))
        }
        (None, [only]) => Ok(only.clone()),
        (None, []) => Err(Error::misuse(path, "the file has no arrays")),
        (None, _) => {
            Err(Error::misuse(path, format!("the file has several arrays: give a name, one of {}", known())))
        }
    }
}
