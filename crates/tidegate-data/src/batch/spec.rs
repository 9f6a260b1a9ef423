//! What the user wants of each field.
//!
//! Flow: configuration (Python's `tg.Image(...)`, the command line) -> [`FieldSpec`]; read by `layout` and `row`.
//! Memory: holds none.

use serde::{Deserialize, Serialize};

use crate::decode::npy::DType;
use crate::source::Kind;
use crate::{Error, Result};

/// Which part of a picture is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    /// A random box, as torchvision's RandomResizedCrop draws it.
    Random,
    /// The largest centred box of the target's aspect ratio.
    Center,
    /// The whole picture.
    None,
}

/// Ranges of random colour changes, as torchvision's ColorJitter: factors in \[1 − x, 1 + x\], hue in \[−x, x\].
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jitter {
    /// Brightness.
    pub brightness: f32,
    /// Contrast.
    pub contrast: f32,
    /// Saturation.
    pub saturation: f32,
    /// Hue, at most 0.5.
    pub hue: f32,
}

/// Order of axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PixelLayout {
    /// Planes first: what torch wants.
    Chw,
    /// Pixels first: what TensorFlow and Pillow want.
    Hwc,
}

/// How pixel values are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pixels {
    /// uint8, float32, float16 or bfloat16; floats are x/255, then (x − mean)/std.
    pub dtype: DType,
    /// Means of R, G, B in \[0, 1\].
    pub mean: Option<[f32; 3]>,
    /// Standard deviations of R, G, B.
    pub std: Option<[f32; 3]>,
    /// Order of axes.
    pub layout: PixelLayout,
}

/// An image field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// (height, width), or none for pictures as they are (a ragged column).
    pub size: Option<(u32, u32)>,
    /// Which part is taken.
    pub crop: Crop,
    /// Area of a random crop, as fractions of the picture's.
    pub scale: (f64, f64),
    /// Aspect ratio (width/height) of a random crop.
    pub ratio: (f64, f64),
    /// Probability of mirroring.
    pub flip: f64,
    /// Colour changes.
    pub jitter: Option<Jitter>,
    /// JPEGs are decoded at a half, a quarter or an eighth of their size where the box still covers the target.
    #[serde(default)]
    pub draft: bool,
    /// JPEGs that end too early are filled with gray instead of failing.
    #[serde(default)]
    pub load_truncated: bool,
    /// How values are delivered.
    pub pixels: Pixels,
}

impl Default for ImageSpec {
    fn default() -> Self {
        Self {
            size: None,
            crop: Crop::None,
            scale: (0.08, 1.0),
            ratio: (3.0 / 4.0, 4.0 / 3.0),
            flip: 0.0,
            jitter: None,
            draft: false,
            load_truncated: false,
            pixels: Pixels { dtype: DType::Uint8, mean: None, std: None, layout: PixelLayout::Chw },
        }
    }
}

/// A mask: one byte a pixel, the nearest value, cropped and mirrored as the image it belongs to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MaskSpec {
    /// The image field whose geometry it shares.
    pub of: String,
    /// (height, width), or none for the image's size.
    pub size: Option<(u32, u32)>,
}

/// What is wanted of a field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum FieldSpec {
    /// Pixels.
    Image(ImageSpec),
    /// Labels of pixels.
    Mask(MaskSpec),
    /// int64.
    Int,
    /// float64.
    Float,
    /// UTF-8 text, ragged.
    Text,
    /// Bytes as stored, ragged.
    Bytes,
    /// A JSON document, ragged text, checked.
    Json,
    /// An array of a fixed dtype and shape; a ragged one where the shape is left out.
    Array {
        /// Element type; none for what is stored.
        dtype: Option<DType>,
        /// Shape.
        shape: Option<Vec<usize>>,
    },
}

impl FieldSpec {
    /// What a field of this kind gives when nothing is said.
    #[must_use]
    pub fn inferred(kind: &Kind) -> Self {
        match kind {
            Kind::Image | Kind::Pixels => FieldSpec::Image(ImageSpec::default()),
            Kind::Bytes => FieldSpec::Bytes,
            Kind::Text => FieldSpec::Text,
            Kind::Json => FieldSpec::Json,
            Kind::Int => FieldSpec::Int,
            Kind::Float => FieldSpec::Float,
            Kind::Npy => FieldSpec::Array { dtype: None, shape: None },
            Kind::Patch { dtype, shape } => {
                FieldSpec::Array { dtype: Some(*dtype), shape: Some(shape.clone()) }
            }
            Kind::NdArray { dtype, shape } => FieldSpec::Array {
                dtype: dtype.as_deref().and_then(|d| DType::parse(d).ok()),
                shape: shape.clone(),
            },
        }
    }

    /// Checks ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field and the parameter.
    pub fn check(&self, name: &str) -> Result<()> {
        let wrong = |what: &str| Err(Error::Config(format!("field {name:?}: {what}")));
        match self {
            FieldSpec::Image(image) => {
                let range = |(low, high): (f64, f64)| low > 0.0 && low <= high && high.is_finite();
                if !range(image.scale) || image.scale.1 > 1.0 {
                    return wrong("scale must be a range within (0, 1]");
                }
                if !range(image.ratio) {
                    return wrong("ratio must be an ascending range of positive numbers");
                }
                if image.crop == Crop::Random && image.size.is_none() {
                    return wrong("a random crop needs a size, such as tg.Image(224, crop=\"random\")");
                }
                if image.size.is_some_and(|(h, w)| h == 0 || w == 0 || h > 16_384 || w > 16_384) {
                    return wrong("size must be between 1 and 16384");
                }
                if !(0.0..=1.0).contains(&image.flip) {
                    return wrong("flip is a probability between 0 and 1");
                }
                let pixels = &image.pixels;
                let float = matches!(pixels.dtype, DType::Float32 | DType::Float16 | DType::Bfloat16);
                if !float && pixels.dtype != DType::Uint8 {
                    return wrong("dtype must be uint8, float32, float16 or bfloat16");
                }
                if !float && (pixels.mean.is_some() || pixels.std.is_some()) {
                    return wrong("mean and std need a float dtype, such as dtype=\"float32\"");
                }
                if pixels.std.is_some_and(|s| s.iter().any(|&x| x <= 0.0 || !x.is_finite())) {
                    return wrong("std must be positive");
                }
                if image.size.is_none() && float {
                    return wrong("pictures of many sizes are delivered as uint8: give a size for floats");
                }
                if image.jitter.is_some_and(|j| !(0.0..=0.5).contains(&j.hue)) {
                    return wrong("hue jitter must lie between 0 and 0.5");
                }
                if image.jitter.is_some_and(|j| j.brightness < 0.0 || j.contrast < 0.0 || j.saturation < 0.0)
                {
                    return wrong("jitter must not be negative");
                }
                Ok(())
            }
            FieldSpec::Mask(mask) if mask.size.is_some_and(|(h, w)| h == 0 || w == 0) => {
                wrong("size must be at least 1")
            }
            _ => Ok(()),
        }
    }
}
