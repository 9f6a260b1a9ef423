//! The sizes of a patch, as stored and as delivered.
//!
//! Flow: made by `plan`; read by `turn`, `elastic` and `intensity`.
//! Memory: holds none.

/// Axes that a patch has, after missing ones were added.
pub(super) const AXES: usize = 3;

/// The sizes of a stored patch and of the part in its middle that is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) stored: [usize; AXES],
    pub(super) delivered: [usize; AXES],
}

impl Frame {
    /// The first delivered voxel.
    pub(super) fn begin(&self) -> [usize; AXES] {
        std::array::from_fn(|axis| (self.stored[axis] - self.delivered[axis]) / 2)
    }

    /// Voxels of a channel: stored, and delivered.
    pub(super) fn voxels(&self) -> (usize, usize) {
        (self.stored.iter().product(), self.delivered.iter().product())
    }
}
