//! Arrays: where they lie in files, mapped into memory, and the kernels that move their elements.
//!
//! Flow: .npy, .npz, safetensors, raw files -> [`stored::Stored`] -> [`mmap::Mapped`]; elements in C order -> the same elsewhere, or made
//! small ([`quantize`]).
//! Memory: mapped pages, which are the kernel's page cache and of no budget; kernels have none.
//! Not here: samples of arrays (`tidegate-data`), budgets (`tidegate-core`).

pub mod codec;
mod dtype;
pub mod entropy;
pub mod error;
pub mod kernels;
pub mod mmap;
pub mod npy;
pub mod quantize;
pub mod sparse;
pub mod stored;
#[cfg(feature = "tensor-train")]
pub mod tensor_train;

pub use dtype::DType;
pub use error::{Error, Result};

/// An array of one value.
///
/// # Errors
/// [`Error::Value`] where memory has no room for it.
pub fn filled<T: Copy>(len: Option<usize>, value: T) -> Result<Vec<T>> {
    let mut array = Vec::new();
    let room = len.filter(|len| array.try_reserve_exact(*len).is_ok());
    let what = len.map_or_else(|| "2^64 or more".to_owned(), |len| len.to_string());
    let len =
        room.ok_or_else(|| Error::value(format!("an array of {what} elements is more than memory has")))?;
    array.resize(len, value);
    Ok(array)
}
