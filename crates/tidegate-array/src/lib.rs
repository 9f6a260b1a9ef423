//! Arrays: where they lie in files, mapped into memory, and the kernels that move their elements.
//!
//! Flow: .npy, .npz, safetensors, raw files -> [`stored::Stored`] -> [`mmap::Mapped`]; elements in C order -> the same elsewhere.
//! Memory: mapped pages, which are the kernel's page cache and of no budget; kernels have none.
//! Not here: samples of arrays (`tidegate-data`), budgets (`tidegate-core`).

mod dtype;
pub mod error;
pub mod kernels;
pub mod mmap;
pub mod npy;
pub mod stored;

pub use dtype::DType;
pub use error::{Error, Result};
