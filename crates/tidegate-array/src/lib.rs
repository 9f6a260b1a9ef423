//! Arrays: locating them in files, mapping them into memory, and kernels that move their elements.
//!
//! Flow: .npy, .npz, safetensors and raw files -> [`stored::Stored`] -> [`mmap::Mapped`]; elements
//! in C order -> reordered, converted or compressed elements ([`kernels`], [`codec`],
//! [`quantize`]).
//! Memory: mapped pages are the kernel's page cache and are charged to no budget; kernels hold
//! none.
//! Not here: samples of arrays (`tidegate-data`), budgets (`tidegate-core`).

pub mod codec;
mod dtype;
pub mod entropy;
pub mod error;
pub mod kernels;
pub mod mmap;
pub mod npy;
pub mod quantize;
#[cfg(feature = "sparse")]
pub mod sparse;
pub mod stored;
#[cfg(feature = "tensor-train")]
pub mod tensor_train;

pub use dtype::DType;
pub use error::{Error, Result};

/// An array of `len` elements that all have one value; `None` stands for a length above 2^64.
///
/// # Errors
/// [`Error::Value`] if the allocation fails.
pub fn filled<T: Copy>(len: Option<usize>, value: T) -> Result<Vec<T>> {
    let mut array = Vec::new();
    let reserved = len.filter(|len| array.try_reserve_exact(*len).is_ok());
    let what = len.map_or_else(|| "2^64 or more".to_owned(), |len| len.to_string());
    let len = reserved.ok_or_else(|| {
        Error::value(format!("an array of {what} elements is more than memory has: give a smaller shape"))
    })?;
    array.resize(len, value);
    Ok(array)
}
