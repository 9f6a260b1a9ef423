//! Whether vector instructions are used; the results are the same either way.
//!
//! Flow: the environment variable `TIDEGATE_SIMD=off`, read once -> [`enabled`].
//! Memory: holds none.

use std::sync::OnceLock;

/// True unless `TIDEGATE_SIMD` is `off` or `0`. zune-jpeg chooses for itself; its results do not depend on it either.
#[must_use]
pub fn enabled() -> bool {
    static ENABLED: OnceLock<bool> = OnceLock::new();
    *ENABLED.get_or_init(|| !matches!(std::env::var("TIDEGATE_SIMD").as_deref(), Ok("off" | "0")))
}
