//! One axis of what is stitched: where patches lie, how much each of their voxels counts, and which meet a chunk.
//!
//! Flow: origins of patches + a blend -> weights, their sums, and for each chunk its patches.
//! Memory: a few words for each place, voxel and chunk of an axis.
//!
//! Weights of a voxel are products over axes, and patches lie on a lattice, so that the sum of all weights at a voxel is the product
//! of sums an axis: nothing has to be added up besides the predictions.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// How much the voxels of a patch count where patches overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Blend {
    /// Less towards the border: a Gaussian with an eighth of the patch as its standard deviation, as in nnU-Net.
    #[default]
    Gaussian,
    /// Less towards the border, evenly.
    Linear,
    /// All alike.
    Uniform,
}

impl Blend {
    /// The weights of a patch's voxels.
    fn weights(self, patch: usize) -> Vec<f32> {
        let middle = (patch as f64 - 1.0) / 2.0;
        let weight = |voxel: usize| {
            let away = (voxel as f64 - middle).abs();
            match self {
                Self::Gaussian => libm::exp(-0.5 * (away / (patch as f64 / 8.0)).powi(2)),
                Self::Linear => 1.0 - away / (middle + 1.0),
                Self::Uniform => 1.0,
            }
        };
        (0..patch).map(|voxel| weight(voxel) as f32).collect()
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Axis {
    /// Where patches begin, ascending.
    pub(super) origins: Vec<i64>,
    pub(super) patch: usize,
    /// Voxels of the array, and of a chunk.
    pub(super) shape: usize,
    pub(super) chunk: usize,
    /// How much the voxels of a patch count.
    pub(super) weights: Vec<f32>,
    /// What all patches count at a voxel of the array.
    pub(super) sums: Vec<f32>,
    /// The places whose patches meet a chunk.
    pub(super) met: Vec<Range<usize>>,
}

impl Axis {
    pub(super) fn new(origins: Vec<i64>, patch: usize, shape: usize, chunk: usize, blend: Blend) -> Self {
        let weights = blend.weights(patch);
        let mut sums = vec![0.0f64; shape];
        for &origin in &origins {
            for (voxel, weight) in weights.iter().enumerate() {
                if let Some(sum) = usize::try_from(origin + voxel as i64).ok().and_then(|at| sums.get_mut(at))
                {
                    *sum += f64::from(*weight);
                }
            }
        }
        let met = (0..shape.div_ceil(chunk)).map(|number| {
            let (start, end) = ((number * chunk) as i64, ((number + 1) * chunk).min(shape) as i64);
            let first = origins.partition_point(|origin| origin + patch as i64 <= start);
            first..origins.partition_point(|origin| *origin < end).max(first)
        });
        let met = met.collect();
        let sums = sums.into_iter().map(|sum| sum as f32).collect();
        Self { origins, patch, shape, chunk, weights, sums, met }
    }

    /// Chunks.
    pub(super) fn chunks(&self) -> usize {
        self.met.len()
    }

    /// The chunks that a place's patch meets.
    pub(super) fn chunks_of(&self, place: usize) -> Range<usize> {
        let origin = self.origins[place];
        let (low, end) = (origin.max(0), (origin + self.patch as i64).min(self.shape as i64));
        if end <= low {
            return 0..0;
        }
        low as usize / self.chunk..(end as usize - 1) / self.chunk + 1
    }

    /// What a place's patch and a chunk have in common: voxels of the array.
    pub(super) fn common(&self, place: usize, chunk: usize) -> Range<usize> {
        let origin = self.origins[place];
        let low = origin.max((chunk * self.chunk) as i64);
        let end = (origin + self.patch as i64).min(((chunk + 1) * self.chunk).min(self.shape) as i64);
        low as usize..end.max(low) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_and_patches_meet_where_they_have_voxels_in_common() {
        let axis = Axis::new(vec![-3, 5, 13, 14], 10, 24, 7, Blend::Linear);
        assert_eq!(axis.chunks(), 4);
        for place in 0..4 {
            for chunk in 0..4 {
                let voxels = |range: Range<i64>| range.filter(|at| (0..24).contains(at)).collect::<Vec<_>>();
                let patch = voxels(axis.origins[place]..axis.origins[place] + 10);
                let common: Vec<i64> = voxels(chunk as i64 * 7..chunk as i64 * 7 + 7)
                    .into_iter()
                    .filter(|at| patch.contains(at))
                    .collect();
                let found: Vec<i64> = axis.common(place, chunk).map(|at| at as i64).collect();
                assert_eq!(found, common, "{place} {chunk}");
                assert_eq!(axis.met[chunk].contains(&place), !common.is_empty(), "{place} {chunk}");
                assert_eq!(axis.chunks_of(place).contains(&chunk), !common.is_empty(), "{place} {chunk}");
            }
        }
        assert!(axis.sums.iter().all(|sum| *sum > 0.0));
        assert_eq!(axis.sums[0], axis.weights[3]);
    }
}
