//! The place of a patch in several arrays: by physical units, to the voxel.
//!
//! Flow: scale and translation of each array + the patch in voxels of the first -> the start of
//! each array's patch, and the lattice of places where all patches start at a voxel.
//! Memory: a few words an axis.
//!
//! The corner of a patch is one point in space, and must be the corner of a voxel in each array.
//! If an array is n times as coarse as the first, every n-th voxel of the first is such a place.

use super::ngff::metres;
use crate::{Error, Result};

/// The largest relative difference of equal lengths, unless it shows at the end of the array.
const SAME: f64 = 1e-3;
/// The largest distance to the corner of a voxel, in voxels.
const NEAR: f64 = 0.05;
/// The largest numerator or denominator of a ratio, and the largest of the smaller of both. With
/// two large numbers every length would be a ratio.
const MAX_RATIO: u64 = 64;
const MAX_SMALLER: f64 = 8.0;
/// The most voxels between an array and the first, so that sums do not overflow.
const MAX_OFFSET: f64 = (1u64 << 48) as f64;

/// Voxels in space, along the axes of the patch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Space {
    /// The length of a voxel.
    pub(super) scale: Vec<f64>,
    /// The centre of the first voxel.
    pub(super) translation: Vec<f64>,
    /// The units of both, if there are any.
    pub(super) units: Vec<Option<String>>,
}

/// Voxels of an array along one axis, as a function of those of the first: `num / den * origin +
/// offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Along {
    num: i64,
    den: i64,
    offset: i64,
    /// Voxels of the patch, and of the array.
    pub(super) patch: u64,
    shape: u64,
    /// Voxels by which the patch is wider on each side than that of the first.
    wider: i64,
}

fn divide_up(a: i64, b: i64) -> i64 {
    a.div_euclid(b) + i64::from(a.rem_euclid(b) != 0)
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A ratio of small numbers, if it is one.
fn ratio(x: f64) -> Option<(i64, i64)> {
    (1..=MAX_RATIO).find_map(|den| {
        let num = (x * den as f64).round();
        let small = num >= 1.0 && num <= MAX_RATIO as f64 && num.min(den as f64) <= MAX_SMALLER;
        let near = small && (x * den as f64 - num).abs() <= SAME * num;
        near.then_some((num as i64, den as i64))
    })
}

/// The corner of the first array minus that of an array, in voxels of the array.
///
/// So are its arguments: the translation of the first and the length of its voxels, and the
/// array's translation. By the specification a translation is the centre of the first voxel. Many
/// writers give all levels the same one, or that of the corner.
fn voxels_away((first, first_scale): (f64, f64), translation: f64) -> Result<i64, String> {
    let (centre, corner) = ((first - first_scale / 2.0) - (translation - 0.5), first - translation);
    let whole = |x: f64| (x - x.round()).abs() <= NEAR;
    let voxels = match () {
        () if corner.abs() <= SAME => 0.0,
        () if whole(centre) => centre.round(),
        () if whole(corner) => corner.round(),
        () => {
            return Err(format!(
                "it begins {:.2} of its voxels away from the first array, so their voxels have no corners \
                 in common: correct the translations",
                -centre
            ));
        }
    };
    // A translation that is no number is not whole either.
    if voxels.abs() > MAX_OFFSET {
        return Err(format!("it begins {voxels} of its voxels away from the first array"));
    }
    Ok(voxels as i64)
}

impl Space {
    /// The sum over axes of the logarithm of the ratio to another space, to choose a level.
    ///
    /// None where they cannot be aligned.
    pub(super) fn distance(&self, first: &Self) -> Option<f64> {
        let each = (0..self.scale.len()).map(|axis| {
            let x = first.metre(axis)? * first.scale[axis] / (self.metre(axis)? * self.scale[axis]);
            ratio(x).map(|_| x.ln().abs())
        });
        each.sum()
    }

    /// Its unit along an axis in metres; 1 without a unit.
    fn metre(&self, axis: usize) -> Option<f64> {
        self.units[axis].as_deref().map_or(Some(1.0), metres)
    }
}

impl Along {
    /// The first array itself.
    pub(super) fn first(patch: u64, shape: u64) -> Self {
        Self { num: 1, den: 1, offset: 0, patch, shape, wider: 0 }
    }

    /// An axis of another array than the first.
    ///
    /// Its patch has `patch` voxels; without one, as many as the patch of the first covers.
    ///
    /// # Errors
    /// Why it cannot be aligned.
    pub(super) fn aligned(
        axis: usize,
        (space, first): (&Space, &Space),
        first_patch: u64,
        patch: Option<u64>,
        shape: u64,
    ) -> Result<Self, String> {
        let (unit, first_unit) = (&space.units[axis], &first.units[axis]);
        let words = |unit: &Option<String>| unit.clone().unwrap_or_else(|| "none".into());
        let metre = match (unit, first_unit) {
            (a, b) if a == b => 1.0,
            (Some(a), Some(b)) if let (Some(a), Some(b)) = (metres(a), metres(b)) => a / b,
            (a, b) => {
                return Err(format!("its unit is {} where the first array's is {}", words(a), words(b)));
            }
        };
        let (scale, first_scale) = (space.scale[axis] * metre, first.scale[axis]);
        let Some((num, den)) = ratio(first_scale / scale) else {
            return Err(format!(
                "its voxels are {scale} long where the first array's are {first_scale}: no ratio of small \
                 numbers"
            ));
        };
        let apart = (first_scale / scale * den as f64 / num as f64 - 1.0).abs() * shape as f64;
        if apart > 1.0 {
            return Err(format!(
                "its voxels are {scale} long where the first array's are {first_scale}: as {num} to {den} \
                 they would be {apart:.1} voxels apart at its end"
            ));
        }
        let offset = voxels_away(
            (first.translation[axis] / scale, first_scale / scale),
            space.translation[axis] * metre / scale,
        )?;
        let covers = first_patch as i64 * num;
        if covers % den != 0 {
            return Err(format!(
                "a patch of {first_patch} voxels is {} of its own: make the patch a multiple of {den}",
                covers as f64 / den as f64
            ));
        }
        let covers = covers / den;
        let patch = patch.map_or(covers, u64::cast_signed);
        if (patch - covers) % 2 != 0 {
            return Err(format!(
                "a patch of {patch} voxels cannot have the centre of one of {covers}: make both even or odd"
            ));
        }
        Ok(Self { num, den, offset, patch: patch.cast_unsigned(), shape, wider: (patch - covers) / 2 })
    }

    /// The ratio to the first array: this number of its voxels are that number of the first's.
    pub(super) fn voxels(&self) -> (u32, u32) {
        (self.num as u32, self.den as u32)
    }

    /// The start of its patch.
    pub(super) fn begin(&self, origin: i64) -> i64 {
        origin * self.num / self.den + self.offset - self.wider
    }

    /// The first and the last origin with the patch inside the array.
    fn inside(&self) -> (i64, i64) {
        let low = divide_up((self.wider - self.offset) * self.den, self.num);
        let room = self.shape as i64 - self.patch as i64 - self.offset + self.wider;
        (low, (room * self.den).div_euclid(self.num))
    }

    /// The voxels of the first array that it covers.
    fn covers(&self) -> (i64, i64) {
        let at = |voxel: i64| (voxel - self.offset) * self.den;
        (divide_up(at(0), self.num), at(self.shape as i64).div_euclid(self.num))
    }
}

/// The starts of patches along one axis, in voxels of the first array.
///
/// They are evenly apart, except the last: the last patch ends with the array, so all is covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) low: i64,
    pub(super) stride: u64,
    pub(super) count: u64,
    /// From the first place to the last.
    pub(super) room: i64,
}

/// Why an axis has no places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Misfit {
    /// The array that does not fit, if it is one array.
    pub(super) array: Option<usize>,
    /// Why, for the user.
    pub(super) what: String,
    /// Whether the patch has more voxels than the array.
    pub(super) larger: bool,
}

impl Places {
    /// The places along an axis of aligned arrays: those with all patches inside.
    ///
    /// If patches may go `over` the border, those with more than half of the first patch inside.
    ///
    /// # Errors
    /// A stride that is no multiple of the aligned one; the array that leaves no place.
    pub(super) fn of(arrays: &[Along], stride: Option<u64>, over: bool) -> Result<Self, Misfit> {
        let aligned = arrays.iter().fold(1, |all, along| {
            let den = along.den / gcd(along.num, along.den);
            all / gcd(all, den) * den
        });
        let stride = stride.map_or(aligned, u64::cast_signed);
        if stride < 1 || stride % aligned != 0 {
            let what = format!(
                "a stride of {stride} where a voxel of the coarsest array is {aligned}: make it a multiple"
            );
            return Err(Misfit { array: None, what, larger: false });
        }
        let patch = arrays.first().map_or(1, |first| first.patch.cast_signed());
        let range = |along: &Along| match over {
            false => along.inside(),
            true => {
                // Less than half of it beyond the border, so that the mirrored voxels are in the
                // patch.
                let ((low, end), beyond) = (along.covers(), (patch - 1) / 2);
                (low - beyond, end - patch + beyond)
            }
        };
        let (mut low, mut high) = (i64::MIN, i64::MAX);
        for (i, along) in arrays.iter().enumerate() {
            let (from, to) = range(along);
            (low, high) = (low.max(from), high.min(to));
            if divide_up(low, aligned) * aligned > high {
                let what = if to < from {
                    format!("it has {} voxels, fewer than the patch of {}", along.shape, along.patch)
                } else {
                    "it does not cover a patch together with the arrays before it".to_owned()
                };
                return Err(Misfit { array: Some(i), what, larger: to < from });
            }
        }
        let low = divide_up(low, aligned) * aligned;
        let room = (high - low) / aligned * aligned;
        let count = divide_up(room, stride).cast_unsigned() + 1;
        Ok(Self { low, stride: stride.cast_unsigned(), count, room })
    }

    /// The start of number `at`.
    pub(super) fn origin(&self, at: u64) -> i64 {
        self.low + (at * self.stride).cast_signed().min(self.room)
    }

    /// The number of the place nearest to a voxel.
    pub(super) fn nearest(&self, voxel: i64) -> u64 {
        let from_low = voxel.saturating_sub(self.low).clamp(0, self.room).cast_unsigned();
        let below = (from_low / self.stride).min(self.count - 1);
        let above = (below + 1).min(self.count - 1);
        let away = |at: u64| voxel.abs_diff(self.origin(at));
        if away(above) < away(below) { above } else { below }
    }
}

/// Names an axis of a patch in an error.
pub(super) fn on_axis(array: &str, axis: usize, what: &str) -> Error {
    Error::Config(format!("array {array:?}, axis {axis} of the patch: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(scale: f64, translation: f64, unit: &str) -> Space {
        Space {
            scale: vec![scale],
            translation: vec![translation],
            units: vec![(!unit.is_empty()).then(|| unit.into())],
        }
    }

    fn aligned(
        other: &Space,
        first: &Space,
        patch: u64,
        wanted: Option<u64>,
        shape: u64,
    ) -> Result<Along, String> {
        Along::aligned(0, (other, first), patch, wanted, shape)
    }

    #[test]
    fn voxels_are_found_in_arrays_of_other_resolutions() {
        let first = space(4.0, 2.0, "nanometer");
        // Twice as coarse, with the translation that averaging makes and with the one that many
        // writers leave out.
        for translation in [4.0, 2.0] {
            let coarse = aligned(&space(8.0, translation, "nanometer"), &first, 64, None, 100).unwrap();
            assert_eq!((coarse.patch, coarse.begin(0), coarse.begin(10)), (32, 0, 5));
        }
        // By corners, three times finer with the same translation, and half of its voxel away.
        let by_corners = aligned(&space(8.0, 802.0, "nanometer"), &first, 64, None, 100).unwrap();
        assert_eq!(by_corners.begin(200), 0);
        assert_eq!(aligned(&space(4.0 / 3.0, 2.0, "nanometer"), &first, 64, None, 300).unwrap().begin(5), 15);
        // Finer, in another unit, beginning elsewhere: its voxel 0 is at the first's 10.
        let fine = aligned(&space(0.002, 0.041, "micrometer"), &first, 10, None, 100).unwrap();
        assert_eq!((fine.patch, fine.begin(10), fine.begin(12)), (20, 0, 4));
        // A wider one around the same centre.
        let wide = aligned(&space(8.0, 4.0, "nanometer"), &first, 64, Some(64), 100).unwrap();
        assert_eq!((wide.patch, wide.begin(32)), (64, 0));
        for (other, patch, wanted, word) in [
            (space(8.0, 4.0, ""), 64, None, "unit is none"),
            (space(8.0, 4.0, "second"), 64, None, "second"),
            (space(8.0, 4.0, "nanometer"), 63, None, "multiple of 2"),
            (space(8.0, 4.0, "nanometer"), 64, Some(33), "even or odd"),
            (space(4.0 * 1.237, 4.0, "nanometer"), 64, None, "small numbers"),
            (space(4.0 * 1.0008, 2.0, "nanometer"), 64, None, "voxels apart at its end"),
            (space(8.0, 8.0, "nanometer"), 64, None, "begins 0.50 of its voxels away"),
            (space(8.0, 1e30, "nanometer"), 64, None, "voxels away"),
        ] {
            assert!(aligned(&other, &first, patch, wanted, 2000).unwrap_err().contains(word), "{word}");
        }
    }

    #[test]
    fn places_are_those_where_all_arrays_have_a_patch() {
        let first = Along::first(8, 100);
        let of = |arrays: &[Along], stride, over| Places::of(arrays, stride, over);
        assert_eq!(of(&[first], None, false).unwrap(), Places { low: 0, stride: 1, count: 93, room: 92 });
        let wide = of(&[first], Some(40), false).unwrap();
        assert_eq!(wide, Places { low: 0, stride: 40, count: 4, room: 92 });
        assert_eq!([0, 1, 2, 3].map(|at| wide.origin(at)), [0, 40, 80, 92]);
        assert_eq!([-5, 19, 21, 39, 85, 87, i64::MAX].map(|at| wide.nearest(at)), [0, 0, 1, 1, 2, 3, 3]);
        // Less than half of it is beyond the border.
        assert_eq!(of(&[first], None, true).unwrap(), Places { low: -3, stride: 1, count: 99, room: 98 });
        // Half as many voxels from the first's 21 on, which is none of its corners.
        let space = |scale, translation| space(scale, translation, "");
        let coarse = aligned(&space(2.0, 22.5), &space(1.0, 0.0), 8, None, 20).unwrap();
        let places = of(&[first, coarse], None, false).unwrap();
        assert_eq!((places.low, places.stride, coarse.begin(places.low)), (22, 2, 0));
        assert_eq!(places.origin(places.count - 1) + 8, 62);
        assert!(of(&[first, coarse], Some(3), false).unwrap_err().what.contains("multiple"));
        let small = Along::first(8, 7);
        assert!(of(&[first, small], None, false).unwrap_err().what.contains("7 voxels, fewer"));
        assert_eq!(of(&[small], None, true).unwrap().count, 6);
        let apart = Along { offset: -200, ..Along::first(8, 100) };
        assert_eq!(of(&[first, apart], None, false).unwrap_err().array, Some(1));
    }
}
