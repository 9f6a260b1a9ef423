//! Makes the row of a patch: cropped, mirrored, rotated, deformed, its values changed and
//! converted.
//!
//! Flow: the stored patch, in the workspace of its row -> geometry, shared by all fields of the
//! sample -> values -> the row.
//! Memory: the workspace of each row of a batch (account `batch`) holds the stored patch, the grid
//! of a deformation, and float32 numbers that await conversion. Nothing is allocated.
//! Not here: the choice of the patch (`order`), and its chunks (`pipeline::chunks`).
//!
//! A patch has up to three axes, the last ones of the array. With fewer, leading axes of one voxel
//! are added. Axes before them are channels, which share one geometry.

mod elastic;
mod frame;
mod intensity;
mod plan;
mod turn;

use tidegate_array::kernels::convert::{Number, from_f32, to_f32};
use tidegate_array::kernels::wavelet;
use tidegate_array::with_number;

use self::elastic::{Grid, Warp};
use self::frame::{AXES, Frame};
use self::turn::Turn;
use super::COLUMN_ALIGN;
use super::geometry::Draw;
use super::spec::{FieldSpec, Intensity, Level};
use crate::{Error, Result};
use tidegate_decode::npy::DType;
use tidegate_decode::{Field, Schema};
use tidegate_order::random::Purpose;

/// How a field's patches are made.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchPlan {
    channels: usize,
    frame: Frame,
    stored: DType,
    delivered: DType,
    /// The changes of values; None for labels, whose values stay as stored.
    values: Option<Box<Intensity>>,
    /// Axes that are mirrored.
    flip: Vec<usize>,
    /// Axes that are rotated into one another.
    rotate: Vec<usize>,
    /// The grid of a deformation, and its probability.
    grid: Option<(Grid, f64)>,
    /// Voxels of this field for each voxel of the field whose geometry it shares.
    ratio: [f32; AXES],
    /// The level of wavelets that is delivered.
    wavelet: Option<Level>,
    /// The index of the field, which selects its random streams.
    view: u8,
}

impl PatchPlan {
    /// The plan that makes `field` as `spec` says, and the dtype and shape of its rows.
    ///
    /// # Errors [`Error::Config`] for a spec that does not fit the stored patch, or the field
    /// whose geometry it shares.
    pub fn new(
        number: usize,
        field: &Field,
        spec: &FieldSpec,
        schema: &Schema,
        wanted: &[(String, FieldSpec)],
    ) -> Result<(Self, DType, Vec<usize>)> {
        plan::plan(number, field, spec, schema, wanted)
            .map_err(|what| Error::Config(format!("field {:?}: {what}", field.name)))
    }

    /// Whether a stored patch does not make the same row each time.
    #[must_use]
    pub fn varies(&self) -> bool {
        let drawn = self.values.as_ref().is_some_and(|values| values.varies());
        !self.flip.is_empty() || self.rotate.len() > 1 || self.grid.is_some() || drawn
    }

    /// Bytes of the workspace of a row.
    #[must_use]
    pub fn workspace_bytes(&self) -> usize {
        [self.stored_bytes(), self.numbers_bytes(), self.work_bytes()]
            .iter()
            .map(|bytes| bytes.next_multiple_of(COLUMN_ALIGN))
            .sum()
    }

    /// Bytes of the stored patch, which is at the beginning of the workspace.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        self.channels * self.frame.voxels().0 * self.stored.size()
    }

    /// Bytes of float32 numbers that await conversion to another type or a wavelet transform.
    fn numbers_bytes(&self) -> usize {
        let straight = self.delivered == DType::Float32 && self.wavelet.is_none() || self.values.is_none();
        if straight { 0 } else { self.channels * self.frame.voxels().1 * size_of::<f32>() }
    }

    /// Bytes of the largest temporary of deformation, blur and wavelets.
    fn work_bytes(&self) -> usize {
        let blur = self.values.as_ref().map_or(0, |values| intensity::scratch_len(values, &self.frame));
        let grid = self.grid.map_or(0, |(grid, _)| grid.scratch_len(self.frame.delivered[2]));
        let lines = self.wavelet.map_or(0, |_| wavelet::scratch_len(&self.frame.delivered));
        grid.max(blur).max(lines) * size_of::<f32>()
    }

    /// Makes the row of a sample from the stored patch in its workspace.
    ///
    /// # Panics
    /// If the workspace or the row is not as long as planned, or not aligned to its numbers.
    pub fn make(&self, draw: Draw, workspace: &mut [u8], row: &mut [u8]) {
        let (stored, rest) = workspace.split_at_mut(self.stored_bytes().next_multiple_of(COLUMN_ALIGN));
        let (numbers, work) = rest.split_at_mut(self.numbers_bytes().next_multiple_of(COLUMN_ALIGN));
        let stored = &stored[..self.stored_bytes()];
        let work: &mut [f32] = bytemuck::cast_slice_mut(work);
        let turn = Turn::draw(
            &self.flip,
            &self.rotate,
            &mut draw.stream(Purpose::Flip),
            &mut draw.stream(Purpose::Turn),
        );
        let warp = self.warp(draw, turn, work);
        let values = match &self.values {
            Some(values)
                if self.delivered != self.stored
                    || values.changes()
                    || warp.is_some()
                    || self.wavelet.is_some() =>
            {
                values
            }
            _ => {
                let warp = warp.as_ref();
                return with_number!(self.stored, T => self.move_elements::<T>(turn, warp, stored, row, work));
            }
        };
        let mut numbers_of = |made: &mut [f32]| {
            match &warp {
                Some(warp) => {
                    with_number!(self.stored, T => warp.linear::<T>(work, bytemuck::cast_slice(stored), made));
                }
                None if turn == Turn::NONE && self.frame.stored == self.frame.delivered => {
                    to_f32(self.stored, stored, made);
                }
                None => with_number!(self.stored, T => {
                    turn.copy::<T, f32>(&self.frame, bytemuck::cast_slice(stored), made, Number::to_f32);
                }),
            }
            intensity::apply(values, &self.frame, (draw, self.view), made, work);
        };
        let bytes = self.numbers_bytes();
        if bytes == 0 {
            return numbers_of(bytemuck::cast_slice_mut(row));
        }
        let made: &mut [f32] = bytemuck::cast_slice_mut(&mut numbers[..bytes]);
        numbers_of(made);
        let count = self.wavelet.map_or(made.len(), |level| self.coarse(level, made, work));
        from_f32(&made[..count], self.delivered, row);
    }

    /// Moves the coarse coefficients to the front and returns their count.
    fn coarse(&self, Level { kind, levels }: Level, made: &mut [f32], work: &mut [f32]) -> usize {
        let side = self.frame.delivered;
        let low = wavelet::coarse(&side, levels);
        let voxels = self.frame.voxels().1;
        let mut done = 0;
        for channel in 0..self.channels {
            let start = channel * voxels;
            wavelet::forward(&mut made[start..start + voxels], &side, kind, levels, work);
            for z in 0..low[0] {
                for y in 0..low[1] {
                    let row = start + (z * side[1] + y) * side[2];
                    made.copy_within(row..row + low[2], done);
                    done += low[2];
                }
            }
        }
        done
    }

    /// The deformation of a sample, if the draw selects one.
    fn warp(&self, draw: Draw, turn: Turn, work: &mut [f32]) -> Option<Warp<'_>> {
        let (grid, p) = self.grid?;
        let mut stream = draw.stream(Purpose::Elastic);
        if stream.uniform() >= p {
            return None;
        }
        grid.draw(&mut stream, &mut work[..AXES * grid.points()]);
        Some(Warp { frame: &self.frame, turn, grid, ratio: self.ratio })
    }

    /// Copies stored elements, each from its source voxel.
    fn move_elements<T: bytemuck::Pod>(
        &self,
        turn: Turn,
        warp: Option<&Warp<'_>>,
        stored: &[u8],
        row: &mut [u8],
        work: &mut [f32],
    ) {
        let (stored, row): (&[T], &mut [T]) = (bytemuck::cast_slice(stored), bytemuck::cast_slice_mut(row));
        match warp {
            Some(warp) => warp.nearest(work, stored, row),
            None => turn.copy(&self.frame, stored, row, |x| x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::spec::{Axes, Drawn, Elastic, MaskSpec, PatchGeometry, PatchSpec};
    use tidegate_decode::Kind;

    fn field(name: &str, dtype: DType, side: usize, ratio: (u32, u32)) -> Field {
        Field { name: name.into(), kind: Kind::Patch { dtype, shape: vec![side; 3], voxels: vec![ratio; 3] } }
    }

    fn schema() -> Schema {
        vec![
            field("raw", DType::Uint16, 32, (1, 1)),
            field("labels", DType::Uint32, 16, (1, 2)),
            field("same", DType::Uint8, 32, (1, 1)),
        ]
    }

    fn geometry() -> PatchGeometry {
        PatchGeometry {
            crop: Some(vec![16, 16, 16]),
            flip: Axes::All(true),
            rotate: Axes::Named(vec![2, 0, 1]),
            elastic: Some(Elastic { spacing: vec![8.0], deviation: vec![2.0; 3], p: 0.5 }),
        }
    }

    fn plans(wanted: &[(String, FieldSpec)]) -> Result<Vec<PatchPlan>> {
        let schema = schema();
        let plan = |(name, spec): &(String, FieldSpec)| {
            let number = schema.iter().position(|field| &field.name == name).unwrap_or(0);
            PatchPlan::new(number, &schema[number], spec, &schema, wanted).map(|(plan, ..)| plan)
        };
        wanted.iter().map(plan).collect()
    }

    fn made(plan: &PatchPlan, stored: &[u8], position: u64) -> Vec<u8> {
        let mut workspace = vec![0u64; plan.workspace_bytes() / 8];
        let workspace: &mut [u8] = bytemuck::cast_slice_mut(&mut workspace);
        workspace[..stored.len()].copy_from_slice(stored);
        let voxels = plan.channels * plan.frame.voxels().1;
        let mut row = vec![0u64; (voxels * plan.delivered.size()).div_ceil(8)];
        let row: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut row)[..voxels * plan.delivered.size()];
        plan.make(Draw { seed: 1, epoch: 0, position }, workspace, row);
        row.to_vec()
    }

    /// Image and labels show the same object at the same voxels after any rotation, deformation
    /// and crop, and at half the resolution too.
    #[test]
    fn fields_share_geometry() {
        let numbers = PatchSpec { geometry: geometry(), dtype: Some(DType::Float32), ..PatchSpec::default() };
        let mask = |of: &str| FieldSpec::Mask(MaskSpec { of: of.into(), size: None, exif: None });
        let wanted = [
            ("raw".to_owned(), FieldSpec::Patch(Box::new(numbers))),
            ("labels".to_owned(), mask("raw")),
            ("same".to_owned(), mask("raw")),
        ];
        let plans = plans(&wanted).unwrap();
        // A ball off the middle.
        let inside =
            |z: f64, y: f64, x: f64| (z - 13.0).powi(2) + (y - 18.0).powi(2) + (x - 15.0).powi(2) < 36.0;
        let ball = |side: usize| -> Vec<bool> {
            let at = |i: usize| (i as f64 + 0.5) * 32.0 / side as f64;
            (0..side.pow(3)).map(|i| inside(at(i / side / side), at(i / side % side), at(i % side))).collect()
        };
        let raw: Vec<u8> = ball(32).iter().flat_map(|&b| (1000 * u16::from(b)).to_le_bytes()).collect();
        let labels: Vec<u8> = ball(16).iter().flat_map(|&b| u32::from(b).to_le_bytes()).collect();
        let same: Vec<u8> = ball(32).iter().map(|&b| u8::from(b)).collect();
        let (mut deformed, mut different, mut aparts) = (0, 0, 0.0);
        for position in 0..40 {
            let raw = made(&plans[0], &raw, position);
            let raw: &[f32] = bytemuck::cast_slice(&raw);
            let (labels, same) = (made(&plans[1], &labels, position), made(&plans[2], &same, position));
            assert_eq!((raw.len(), labels.len(), same.len()), (4096, 4 * 512, 4096));
            let disagree = raw.iter().zip(&same).filter(|(x, l)| (**x > 500.0) != (**l == 1)).count();
            let halves = raw.iter().filter(|x| ![0.0, 1000.0].contains(*x)).count();
            assert!(disagree * 5 <= halves, "{position}: {disagree} of {halves}");
            deformed += usize::from(halves > 0);
            let volume = |n: usize| n as f64;
            let coarse = volume(labels.chunks(4).filter(|l| l[0] == 1).count()) * 8.0;
            let fine = volume(same.iter().filter(|l| **l == 1).count());
            assert!((coarse - fine).abs() < 0.2 * fine + 60.0, "{position}: {coarse} {fine}");
            let centre = |size: usize, is: &dyn Fn(usize) -> bool| -> Vec<f64> {
                let all: Vec<usize> = (0..size.pow(3)).filter(|i| is(*i)).collect();
                let mean = |of: &dyn Fn(usize) -> usize| {
                    all.iter().map(|i| (of(*i) as f64 + 0.5) * 16.0 / size as f64).sum::<f64>()
                        / all.len() as f64
                };
                vec![mean(&|i| i / size / size), mean(&|i| i / size % size), mean(&|i| i % size)]
            };
            let (a, b) = (centre(16, &|i| same[i] == 1), centre(8, &|i| labels[4 * i] == 1));
            let apart: f64 = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(apart < 1.0, "{position}: {a:?} {b:?}");
            aparts += apart;
            different += usize::from((a[0] - 5.0).abs() > 1.0);
        }
        assert!((10..30).contains(&deformed) && different > 10, "{deformed} {different}");
        assert!(aparts / 40.0 < 0.25, "{aparts}");
    }

    #[test]
    fn values_are_changed_and_the_type_kept_or_not() {
        let intensity = Intensity {
            noise: Some(Drawn { low: 5.0, high: 5.0, p: 1.0 }),
            intensity: Some(Drawn { low: 2.0, high: 2.0, p: 1.0 }),
            ..Intensity::default()
        };
        let stored: Vec<u8> = (0..32usize.pow(3)).flat_map(|_| 1000u16.to_le_bytes()).collect();
        for dtype in [None, Some(DType::Float32), Some(DType::Float16)] {
            let spec = PatchSpec { dtype, intensity: intensity.clone(), ..PatchSpec::default() };
            let plan = &plans(&[("raw".to_owned(), FieldSpec::Patch(Box::new(spec)))]).unwrap()[0];
            let row = made(plan, &stored, 3);
            let mut numbers = vec![0.0; 32usize.pow(3)];
            let mut aligned = vec![0u64; row.len() / 8];
            bytemuck::cast_slice_mut(&mut aligned).copy_from_slice(&row);
            to_f32(dtype.unwrap_or(DType::Uint16), bytemuck::cast_slice(&aligned), &mut numbers);
            let mean = numbers.iter().sum::<f32>() / numbers.len() as f32;
            let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / numbers.len() as f32;
            assert!(
                (mean - 2000.0).abs() < 0.5 && (variance.sqrt() - 10.0).abs() < 0.3,
                "{dtype:?} {mean} {variance}"
            );
            assert_ne!(row, made(plan, &stored, 4));
        }
    }

    #[test]
    fn misfits_are_named() {
        let raw = |geometry: PatchGeometry| {
            ("raw".to_owned(), FieldSpec::Patch(Box::new(PatchSpec { geometry, ..PatchSpec::default() })))
        };
        let mask = |of: &str, size| {
            ("labels".to_owned(), FieldSpec::Mask(MaskSpec { of: of.into(), size, exif: None }))
        };
        let crop = |side| PatchGeometry { crop: Some(vec![side; 3]), ..PatchGeometry::default() };
        let dense = Elastic { spacing: vec![0.5; 3], deviation: vec![1.0; 3], p: 1.0 };
        for (wanted, word) in [
            (vec![raw(PatchGeometry::default()), mask("same", None)], "\"same\""),
            (vec![raw(PatchGeometry::default()), mask("raw", Some((4, 4)))], "leave size out"),
            (vec![raw(crop(34))], "34"),
            (vec![raw(crop(31))], "even or odd"),
            (vec![raw(crop(30)), mask("raw", None)], "axis 0: a crop of 15"),
            (
                vec![raw(PatchGeometry { flip: Axes::Named(vec![3]), ..PatchGeometry::default() })],
                "flip: axis 3",
            ),
            (vec![raw(PatchGeometry { elastic: Some(dense), ..PatchGeometry::default() })], "wider spacing"),
        ] {
            let error = plans(&wanted).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
