//! One axis of the array: origins of patches, weights of their voxels, and which patches overlap
//! which chunk.
//!
//! Flow: origins of patches + a blend -> weights, their sums, and the patches of each chunk.
//! Memory: a few words for each origin, voxel and chunk of an axis.
//!
//! The weight of a voxel is a product over axes, and patches form a lattice. So the sum of all
//! weights at a voxel is the product of one sum for each axis, and only predictions have to be
//! summed.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The weights of a patch's voxels where patches overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Blend {
    /// A Gaussian whose standard deviation is an eighth of the patch, as in nnU-Net.
    #[default]
    Gaussian,
    /// Falls linearly towards the border.
    Linear,
    /// Equal weights.
    Uniform,
}

impl Blend {
    /// The weights of a patch's voxels along an axis.
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

/// One axis of the array.
#[derive(Debug)]
pub(super) struct Axis {
    /// The origins of patches, ascending.
    pub(super) origins: Vec<i64>,
    /// The length of a patch in voxels.
    pub(super) patch: usize,
    /// The length of the array in voxels.
    pub(super) shape: usize,
    /// The length of a chunk in voxels.
    pub(super) chunk: usize,
    /// The weights of a patch's voxels.
    pub(super) weights: Vec<f32>,
    /// For each voxel of the array, the sum of all patches' weights.
    pub(super) sums: Vec<f32>,
    /// For each chunk, the indices of the patches that overlap it.
    pub(super) overlapping: Vec<Range<usize>>,
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
        let overlapping = (0..shape.div_ceil(chunk)).map(|number| {
            let (start, end) = ((number * chunk) as i64, ((number + 1) * chunk).min(shape) as i64);
            let first = origins.partition_point(|origin| origin + patch as i64 <= start);
            first..origins.partition_point(|origin| *origin < end).max(first)
        });
        let overlapping = overlapping.collect();
        let sums = sums.into_iter().map(|sum| sum as f32).collect();
        Self { origins, patch, shape, chunk, weights, sums, overlapping }
    }

    /// The number of chunks.
    pub(super) fn chunks(&self) -> usize {
        self.overlapping.len()
    }

    /// The chunks that the patch at an index overlaps.
    pub(super) fn chunks_of(&self, index: usize) -> Range<usize> {
        let origin = self.origins[index];
        let (low, end) = (origin.max(0), (origin + self.patch as i64).min(self.shape as i64));
        if end <= low {
            return 0..0;
        }
        low as usize / self.chunk..(end as usize - 1) / self.chunk + 1
    }

    /// The voxels of the array that the patch at an index and a chunk share.
    pub(super) fn common(&self, index: usize, chunk: usize) -> Range<usize> {
        let origin = self.origins[index];
        let low = origin.max((chunk * self.chunk) as i64);
        let end = (origin + self.patch as i64).min(((chunk + 1) * self.chunk).min(self.shape) as i64);
        low as usize..end.max(low) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_and_patches_overlap_where_they_share_voxels() {
        let axis = Axis::new(vec![-3, 5, 13, 14], 10, 24, 7, Blend::Linear);
        assert_eq!(axis.chunks(), 4);
        for index in 0..4 {
            for chunk in 0..4 {
                let voxels = |range: Range<i64>| range.filter(|at| (0..24).contains(at)).collect::<Vec<_>>();
                let patch = voxels(axis.origins[index]..axis.origins[index] + 10);
                let common: Vec<i64> = voxels(chunk as i64 * 7..chunk as i64 * 7 + 7)
                    .into_iter()
                    .filter(|at| patch.contains(at))
                    .collect();
                let found: Vec<i64> = axis.common(index, chunk).map(|at| at as i64).collect();
                assert_eq!(found, common, "{index} {chunk}");
                assert_eq!(axis.overlapping[chunk].contains(&index), !common.is_empty(), "{index} {chunk}");
                assert_eq!(axis.chunks_of(index).contains(&chunk), !common.is_empty(), "{index} {chunk}");
            }
        }
        assert!(axis.sums.iter().all(|sum| *sum > 0.0));
        assert_eq!(axis.sums[0], axis.weights[3]);
    }
}
