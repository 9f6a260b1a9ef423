//! Field specs: the form in which the user wants each field.
//!
//! Flow: configuration (Python's `tg.Image(...)`, the command line) -> [`FieldSpec`]; read by
//! `layout` and `row`.
//! Memory: holds none.

use serde::{Deserialize, Serialize};

use tidegate_array::kernels::wavelet::Wavelet;

use crate::{Error, Result};
use tidegate_decode::npy::DType;
use tidegate_decode::{Kind, WideGray};
use tidegate_order::random::Stream;

/// The part of an image that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    /// A random box, as torchvision's RandomResizedCrop draws it.
    Random,
    /// The largest centred box of the target's aspect ratio.
    Center,
    /// The whole image.
    None,
}

/// Ranges of random colour changes, as in torchvision's ColorJitter: factors in \[1 − x, 1 + x\],
/// hue in \[−x, x\].
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
    /// Channels first, as in torch.
    Chw,
    /// Channels last, as in TensorFlow and Pillow.
    Hwc,
}

/// How pixel values are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pixels {
    /// uint8, float32, float16 or bfloat16. Floats are x/255, then (x − mean)/std.
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
    /// (height, width); None delivers images at their own sizes, as a ragged column.
    pub size: Option<(u32, u32)>,
    /// The part that is used.
    pub crop: Crop,
    /// Range of a random crop's area, as fractions of the image's area.
    pub scale: (f64, f64),
    /// Range of a random crop's aspect ratio (width/height).
    pub ratio: (f64, f64),
    /// Probability of mirroring.
    pub flip: f64,
    /// Colour changes.
    pub jitter: Option<Jitter>,
    /// Decode JPEGs at a half, a quarter or an eighth of their size if the box still covers
    /// `size`.
    #[serde(default)]
    pub draft: bool,
    /// Fill JPEGs that end too early with gray instead of failing.
    #[serde(default)]
    pub load_truncated: bool,
    /// An image of more pixels fails as damaged ones do; None has no bound.
    #[serde(default)]
    pub max_pixels: Option<u64>,
    /// Turn the image as its Exif orientation says.
    #[serde(default = "turned")]
    pub exif: bool,
    /// How 16-bit gray becomes 8 bits; None refuses it.
    #[serde(default)]
    pub gray16: Option<WideGray>,
    /// How values are delivered.
    pub pixels: Pixels,
}

fn turned() -> bool {
    true
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
            max_pixels: None,
            exif: true,
            gray16: None,
            pixels: Pixels { dtype: DType::Uint8, mean: None, std: None, layout: PixelLayout::Chw },
        }
    }
}

/// A mask: one byte a pixel, resized to the nearest value, cropped and mirrored like its image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MaskSpec {
    /// The name of the image field whose geometry it shares.
    pub of: String,
    /// (height, width); None for the image's size.
    pub size: Option<(u32, u32)>,
    /// Whether it was drawn on the image as its Exif orientation shows it, or else on the stored
    /// pixels. None: its sides tell, or the sample fails.
    #[serde(default)]
    pub exif: Option<bool>,
}

/// A number that is drawn uniformly from a range, with a probability.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drawn {
    /// The lower end of the range.
    pub low: f64,
    /// The upper end of the range.
    pub high: f64,
    /// The probability that it applies to a sample.
    pub p: f64,
}

impl Drawn {
    /// The largest standard deviation of a blur, in voxels.
    pub const BLUR_MAX: f64 = 32.0;

    /// Draws the number for a sample; None if it does not apply.
    #[must_use]
    pub fn draw(&self, stream: &mut Stream) -> Option<f64> {
        (stream.uniform() < self.p).then(|| stream.between(self.low, self.high))
    }
}

/// Axes of a patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Axes {
    /// All axes, or none.
    All(bool),
    /// These axes, numbered from 0.
    Named(Vec<usize>),
}

impl Default for Axes {
    fn default() -> Self {
        Self::All(false)
    }
}

impl Axes {
    /// The numbers of the axes, for a patch of `axes` axes.
    ///
    /// # Errors
    /// In words, for an axis that the patch lacks or that is named twice.
    pub fn resolve(&self, axes: usize) -> Result<Vec<usize>, String> {
        let named = match self {
            Self::All(all) => return Ok(if *all { (0..axes).collect() } else { Vec::new() }),
            Self::Named(named) => named,
        };
        match named.iter().enumerate().find(|(i, axis)| **axis >= axes || named[..*i].contains(axis)) {
            Some((_, axis)) => Err(format!(
                "axis {axis} of a patch of {axes} axes, or named twice: name each of 0 to {} once",
                axes - 1
            )),
            None => Ok(named.clone()),
        }
    }
}

/// An elastic deformation: normally distributed displacements at the points of a grid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Elastic {
    /// Voxels between two points: one number, or one for each axis of the patch.
    pub spacing: Vec<f64>,
    /// The standard deviation of displacements in voxels: one number, or one for each axis.
    pub deviation: Vec<f64>,
    /// The probability that a sample is deformed.
    pub p: f64,
}

/// The geometry of a patch. It is drawn once a sample and shared by all fields that name it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PatchGeometry {
    /// The size of the delivered part, in the middle of the patch.
    pub crop: Option<Vec<usize>>,
    /// Axes that are mirrored, each in half of the samples.
    pub flip: Axes,
    /// Axes that are rotated into one another by quarter turns; all rotations are equally likely.
    pub rotate: Axes,
    /// Deformation.
    pub elastic: Option<Elastic>,
}

/// Changes of a patch's values, in this order.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Intensity {
    /// Subtracted: one number, or one for each channel.
    pub mean: Vec<f32>,
    /// Divisor: one number, or one for each channel.
    pub std: Vec<f32>,
    /// The standard deviation of Gaussian noise.
    pub noise: Option<Drawn>,
    /// The standard deviation of a Gaussian blur, in voxels.
    pub blur: Option<Drawn>,
    /// A factor.
    pub intensity: Option<Drawn>,
    /// A factor for the distance from the mean.
    pub contrast: Option<Drawn>,
    /// An exponent, relative to the range of the values.
    pub gamma: Option<Drawn>,
}

impl Intensity {
    /// The random changes, with their names.
    fn drawn(&self) -> [(&'static str, Option<Drawn>); 5] {
        let Self { noise, blur, intensity, contrast, gamma, .. } = self;
        [
            ("noise", *noise),
            ("blur", *blur),
            ("intensity", *intensity),
            ("contrast", *contrast),
            ("gamma", *gamma),
        ]
    }

    /// Whether any change is random.
    #[must_use]
    pub fn varies(&self) -> bool {
        self.drawn().iter().any(|(_, drawn)| drawn.is_some())
    }

    /// Whether values change at all.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.varies() || !self.mean.is_empty() || !self.std.is_empty()
    }
}

/// A patch of a volume.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PatchSpec {
    /// The field whose geometry it shares; None if it has its own.
    pub of: Option<String>,
    /// Its own geometry.
    pub geometry: PatchGeometry,
    /// Element type; None for the stored one.
    pub dtype: Option<DType>,
    /// Changes of its values.
    pub intensity: Intensity,
    /// The wavelet level that is delivered, after all other changes.
    pub wavelet: Option<Level>,
}

/// A wavelet level: the coarse coefficients after a number of transforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// The kind.
    pub kind: Wavelet,
    /// How often each length is halved.
    pub levels: u32,
}

impl PatchSpec {
    fn check(&self) -> Result<(), &'static str> {
        let PatchGeometry { crop, elastic, .. } = &self.geometry;
        if self.of.is_some() && self.geometry != PatchGeometry::default() {
            return Err("its geometry is that of another field: give crop, flip, rotate and elastic there");
        }
        if crop.as_ref().is_some_and(|crop| crop.contains(&0)) {
            return Err("crop must be at least 1 along each axis");
        }
        let chance = |p: f64| (0.0..=1.0).contains(&p);
        if let Some(Elastic { spacing, deviation, p }) = elastic {
            let finite = |x: &f64| (0.0..=1e6).contains(x);
            if spacing.is_empty()
                || deviation.is_empty()
                || !spacing.iter().all(|x| finite(x) && *x >= 1e-3)
                || !deviation.iter().all(finite)
                || !chance(*p)
            {
                return Err("elastic is (voxels between points, standard deviation in voxels): \
                     positive numbers, and p a probability");
            }
        }
        if matches!(self.dtype, Some(DType::Bool)) {
            return Err("a patch cannot become bool: labels are a tg.Mask");
        }
        if self.wavelet.is_some_and(|wavelet| !(1..=16).contains(&wavelet.levels)) {
            return Err("wavelet is (kind, levels), and levels between 1 and 16");
        }
        let float =
            matches!(self.dtype, Some(DType::Float16 | DType::Bfloat16 | DType::Float32 | DType::Float64));
        let Intensity { mean, std, blur, gamma, .. } = &self.intensity;
        if !(float || mean.is_empty() && std.is_empty()) {
            return Err("mean and std need a float dtype, such as dtype=\"float32\"");
        }
        if std.iter().any(|&x| x <= 0.0 || !x.is_finite()) || mean.iter().any(|x| !x.is_finite()) {
            return Err("std must be positive, and mean a number");
        }
        if self
            .intensity
            .drawn()
            .iter()
            .filter_map(|(_, drawn)| *drawn)
            .any(|Drawn { low, high, p }| !(low >= 0.0 && low <= high && high.is_finite() && chance(p)))
        {
            return Err("noise, blur, intensity, contrast and gamma are ascending ranges of numbers \
                 that are not negative, and p probabilities");
        }
        if blur.is_some_and(|blur| blur.high > Drawn::BLUR_MAX) {
            return Err("blur must be at most 32 voxels");
        }
        if gamma.is_some_and(|gamma| gamma.low <= 0.0) {
            return Err("gamma must be above 0");
        }
        Ok(())
    }
}

/// The form in which a field is wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum FieldSpec {
    /// An image.
    Image(ImageSpec),
    /// A mask of labels.
    Mask(MaskSpec),
    /// A patch of a volume.
    Patch(Box<PatchSpec>),
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
    /// An array of a fixed dtype and shape; a ragged one if the shape is left out.
    Array {
        /// Element type; None for the stored one.
        dtype: Option<DType>,
        /// Shape.
        shape: Option<Vec<usize>>,
    },
    /// A field that some samples lack.
    Optional(Box<OptionalSpec>),
    /// Whether a sample has the field: bool. A column of its own beside an optional field.
    Valid,
}

/// A field that some samples lack, and what they get instead.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptionalSpec {
    /// The form of the values that are there.
    pub of: FieldSpec,
    /// The bytes of the row of a sample that lacks it; in a column of fixed shape they repeat. None
    /// is a row of zeros, and an empty one in a ragged column.
    pub default: Option<Vec<u8>>,
    /// Whether a column `NAME.valid` says which samples have it.
    pub valid: bool,
}

impl FieldSpec {
    /// The default spec of a field of this kind.
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
            Kind::Numbers { dtype } => FieldSpec::Array { dtype: Some(*dtype), shape: None },
            Kind::Sparse { part, .. } => FieldSpec::Array { dtype: Some(part.dtype()), shape: None },
            Kind::Compact { dtype, shape, .. } => {
                let dtype =
                    if *dtype == DType::Float64 && kind.is_quantized() { DType::Float32 } else { *dtype };
                FieldSpec::Array { dtype: Some(dtype), shape: Some(shape.clone()) }
            }
            Kind::Patch { dtype, shape, .. } => {
                FieldSpec::Array { dtype: Some(*dtype), shape: Some(shape.clone()) }
            }
            Kind::NdArray { dtype, shape } => FieldSpec::Array {
                dtype: dtype.as_deref().and_then(|d| DType::parse(d).ok()),
                shape: shape.clone(),
            },
        }
    }

    /// Checks the ranges of all options.
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
                    return wrong("images of many sizes are delivered as uint8: give a size for floats");
                }
                if image.jitter.is_some_and(|j| !(0.0..=0.5).contains(&j.hue)) {
                    return wrong("hue jitter must be between 0 and 0.5");
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
            FieldSpec::Patch(patch) => patch.check().or_else(wrong),
            FieldSpec::Optional(optional) => match &optional.of {
                FieldSpec::Patch(_) => wrong("a patch of a volume is never missing: leave optional out"),
                of => of.check(name),
            },
            _ => Ok(()),
        }
    }
}
