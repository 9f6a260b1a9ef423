//! The zigzag order of a block's coefficients.
//!
//! Flow: constants, read by the entropy decoder and the quantization tables.
//! Memory: 192 bytes of constants.
//!
//! Specification: ITU-T T.81, figure A.6.

/// Natural index of each zigzag index. A run that passes the end leads to the last index, so that
/// it needs no check in the inner loop.
pub(super) const NATURAL: [u8; 128] = {
    let mut places = [63; 128];
    let mut k = 0;
    while k < 64 {
        places[k] = ZIGZAG[k];
        k += 1;
    }
    places
};

const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];
