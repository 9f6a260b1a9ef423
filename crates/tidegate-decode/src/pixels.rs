//! Uncompressed pixels, as MDS' `pil` column stores them.
//!
//! Flow: bytes -> rows of the region.
//! Memory: holds none.

use crate::image::{Decode, Decoded, Pixel, Request, RowSink, write_rows};
use crate::{Error, Result};

/// The decoder of uncompressed pixels.
#[derive(Debug, Default)]
pub(super) struct Pixels;

impl Decode for Pixels {
    fn decode(
        &mut self,
        bytes: &[u8],
        request: &Request<'_>,
        _: &mut [u8],
        rows: &mut dyn RowSink,
    ) -> Result<Decoded> {
        let h = request.header;
        let depth = h.components as usize;
        let data = bytes.get(h.data_at..).unwrap_or_default();
        let belong = h.width as usize * h.height as usize * depth;
        if data.len() != belong {
            let what = format!("{} bytes of pixels where {belong} belong", data.len());
            return Err(match data.len() < belong {
                true => Error::Truncated(what),
                false => Error::Decode(what),
            });
        }
        if request.pixel == Pixel::Raw && depth != 1 {
            return Err(Error::unsupported("a mask must have one channel"));
        }
        write_rows(data, depth, request, rows);
        Ok(Decoded::Whole)
    }
}
