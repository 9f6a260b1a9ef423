//! Whether vector instructions are used; the results are the same either way.
//!
//! Flow: the environment variable `TIDEGATE_SIMD=off`, read once -> [`enabled`]; the processor ->
//! [`avx2`], [`avx512`].
//! Memory: holds none.

use std::sync::OnceLock;

/// True unless `TIDEGATE_SIMD` is `off` or `0`.
#[must_use]
pub fn enabled() -> bool {
    static ENABLED: OnceLock<bool> = OnceLock::new();
    *ENABLED.get_or_init(|| !matches!(std::env::var("TIDEGATE_SIMD").as_deref(), Ok("off" | "0")))
}

/// Whether AVX2, FMA, BMI1, BMI2 and LZCNT are used. Processors have all of them or none.
#[must_use]
pub fn avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return enabled()
        && std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("bmi1")
        && std::arch::is_x86_feature_detected!("bmi2")
        && std::arch::is_x86_feature_detected!("lzcnt");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Whether AVX-512 (F, VL and DQ) is used.
#[must_use]
pub fn avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    return enabled()
        && std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("avx512dq");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}
