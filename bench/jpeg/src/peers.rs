//! The other decoders, used as their own documentation shows.
//!
//! Flow: JPEG -> RGB rows, of the region where the library can.
//! Memory: the caller's.
#![expect(unsafe_code, reason = "libjpeg-turbo is a C library")]

use std::ffi::{CStr, c_void};

use tidegate_decode::Region;
use tidegate_decode::header::ImageHeader;
use turbojpeg_sys as tj;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;

use crate::Failure;

/// The region that a peer decoded to the start of a buffer; it contains the requested one.
#[derive(Clone, Copy)]
pub struct Decoded {
    pub region: Region,
    /// Bytes a pixel: 3 for RGB, 4 for RGB and an unused byte.
    pub channels: u32,
}

impl Decoded {
    pub fn bytes(&self) -> usize {
        (self.region.width * self.region.height * self.channels) as usize
    }
}

/// A decompressor and a compressor of libjpeg-turbo.
pub struct Turbo {
    decompressor: *mut c_void,
    compressor: *mut c_void,
}

impl Turbo {
    pub fn new() -> Result<Self, Failure> {
        // SAFETY: these take no memory of ours.
        let (decompressor, compressor) = unsafe {
            (tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as i32), tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as i32))
        };
        if decompressor.is_null() || compressor.is_null() {
            return Err("libjpeg-turbo does not start".into());
        }
        Ok(Self { decompressor, compressor })
    }

    fn check(handle: *mut c_void, code: i32) -> Result<(), Failure> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the handle lives as long as `self`, and the text until the next call.
        let text = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(handle)) };
        Err(text.to_string_lossy().into_owned().into())
    }

    /// Decodes the columns of MCUs and the rows around a region, at 1/`scale` of the size.
    pub fn partial(
        &mut self,
        bytes: &[u8],
        region: Region,
        scale: u32,
        into: &mut Vec<u8>,
    ) -> Result<Decoded, Failure> {
        let handle = self.decompressor;
        // SAFETY: the bytes are borrowed during the call.
        let header = unsafe { tj::tj3DecompressHeader(handle, bytes.as_ptr(), bytes.len() as _) };
        Self::check(handle, header)?;
        let factor = tj::tjscalingfactor { num: 1, denom: scale as i32 };
        // SAFETY: calls with numbers only.
        let (code, width, height, subsampling) = unsafe {
            (
                tj::tj3SetScalingFactor(handle, factor),
                tj::tj3Get(handle, tj::TJPARAM_TJPARAM_JPEGWIDTH as i32) as u32,
                tj::tj3Get(handle, tj::TJPARAM_TJPARAM_JPEGHEIGHT as i32) as u32,
                tj::tj3Get(handle, tj::TJPARAM_TJPARAM_SUBSAMP as i32),
            )
        };
        Self::check(handle, code)?;
        let mcu = match subsampling {
            tj::TJSAMP_TJSAMP_420 | tj::TJSAMP_TJSAMP_422 => 16,
            tj::TJSAMP_TJSAMP_411 => 32,
            _ => 8,
        };
        let unit = (mcu / scale).max(1);
        let (width, height) = (width.div_ceil(scale), height.div_ceil(scale));
        let x = region.x / scale / unit * unit;
        let y = region.y / scale;
        let right = (region.x + region.width).div_ceil(scale).min(width);
        let bottom = (region.y + region.height).div_ceil(scale).min(height);
        let got = Region { x, y, width: right - x, height: bottom - y };
        let crop = tj::tjregion { x: x as i32, y: y as i32, w: got.width as i32, h: got.height as i32 };
        // SAFETY: numbers only.
        Self::check(handle, unsafe { tj::tj3SetCroppingRegion(handle, crop) })?;
        let image = Decoded { region: got, channels: 4 };
        self.rgb(bytes, image, into)?;
        Ok(image)
    }

    /// Decodes a whole image.
    pub fn whole(
        &mut self,
        bytes: &[u8],
        header: &ImageHeader,
        channels: u32,
        into: &mut Vec<u8>,
    ) -> Result<Decoded, Failure> {
        let handle = self.decompressor;
        let one = tj::tjscalingfactor { num: 1, denom: 1 };
        let all = tj::tjregion { x: 0, y: 0, w: 0, h: 0 };
        // SAFETY: the bytes are borrowed during the call; the others take numbers only.
        let codes = unsafe {
            [
                tj::tj3DecompressHeader(handle, bytes.as_ptr(), bytes.len() as _),
                tj::tj3SetScalingFactor(handle, one),
                tj::tj3SetCroppingRegion(handle, all),
            ]
        };
        for code in codes {
            Self::check(handle, code)?;
        }
        let region = Region { x: 0, y: 0, width: header.width, height: header.height };
        let image = Decoded { region, channels };
        self.rgb(bytes, image, into)?;
        Ok(image)
    }

    fn rgb(&mut self, bytes: &[u8], image: Decoded, into: &mut Vec<u8>) -> Result<(), Failure> {
        if into.len() < image.bytes() {
            into.resize(image.bytes(), 0);
        }
        let handle = self.decompressor;
        let pitch = (image.channels * image.region.width) as i32;
        let format = if image.channels == 3 { tj::TJPF_TJPF_RGB } else { tj::TJPF_TJPF_RGBX };
        // SAFETY: `into` has room for the rows of the region that was set; both are borrowed
        // during the call.
        let code = unsafe {
            tj::tj3Decompress8(handle, bytes.as_ptr(), bytes.len() as _, into.as_mut_ptr(), pitch, format)
        };
        Self::check(handle, code)
    }

    /// Encodes the same image at 4:2:0 and quality 85.
    pub fn subsampled(&mut self, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
        let header = tidegate_decode::header::parse(bytes)?;
        let mut pixels = Vec::new();
        self.whole(bytes, &header, 3, &mut pixels)?;
        let (handle, mut out, mut size) = (self.compressor, std::ptr::null_mut(), 0);
        let (width, height) = (header.width as i32, header.height as i32);
        // SAFETY: the pixels are borrowed during the call; the library allocates the output,
        // which is copied and freed.
        unsafe {
            let codes = [
                tj::tj3Set(handle, tj::TJPARAM_TJPARAM_QUALITY as i32, 85),
                tj::tj3Set(handle, tj::TJPARAM_TJPARAM_SUBSAMP as i32, tj::TJSAMP_TJSAMP_420),
                tj::tj3Compress8(
                    handle,
                    pixels.as_ptr(),
                    width,
                    0,
                    height,
                    tj::TJPF_TJPF_RGB,
                    &mut out,
                    &mut size,
                ),
            ];
            for code in codes {
                Self::check(handle, code)?;
            }
            let made = std::slice::from_raw_parts(out, size as usize).to_vec();
            tj::tj3Free(out.cast());
            Ok(made)
        }
    }
}

impl Drop for Turbo {
    fn drop(&mut self) {
        // SAFETY: nobody uses the handles any more.
        unsafe {
            tj::tj3Destroy(self.decompressor);
            tj::tj3Destroy(self.compressor);
        }
    }
}

/// Decodes a whole image with zune-jpeg.
pub fn zune(
    bytes: &[u8],
    header: &ImageHeader,
    channels: u32,
    into: &mut Vec<u8>,
) -> Result<Decoded, Failure> {
    let color = if channels == 3 { ColorSpace::RGB } else { ColorSpace::RGBA };
    let options = DecoderOptions::default().jpeg_set_out_colorspace(color);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let region = Region { x: 0, y: 0, width: header.width, height: header.height };
    let image = Decoded { region, channels };
    into.resize(image.bytes().max(into.len()), 0);
    decoder.decode_into(&mut into[..image.bytes()])?;
    Ok(image)
}
