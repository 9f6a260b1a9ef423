//! Tensor trains: an array as a chain of small arrays, one per axis.
//!
//! Flow: an array and a tolerance -> [`TensorTrain`] (`split`: singular values) -> entries,
//! slices, products, blocks of the array.
//! Memory: the cores; outputs are the caller's, and [`TensorTrain::reconstruct`] keeps within a
//! limit.
//!
//! An element is a product of matrices, `A[i₁, …, i_d] = G₁[i₁] · … · G_d[i_d]`, where core `k` is
//! `r_k × n_k × r_{k+1}` and the outer ranks are 1. TT-SVD (Oseledets, 2011) allows each of the d
//! − 1 splits an error of `ε‖A‖ / √(d − 1)`, so that the total is at most `ε‖A‖`.

mod matrix;
mod split;
mod stored;

pub use self::matrix::TtMatrix;
use self::split::{multiply, orthogonal, split};
use crate::{Error, Result};

/// How exact, or how small, a train must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    /// ‖A − train‖ is at most this share of ‖A‖; 0 drops only rounding errors.
    pub tolerance: f64,
    /// The largest rank, whatever the error; `None` for as many as the tolerance needs.
    pub rank: Option<usize>,
}

/// The finest tolerance that f64 supports.
const FINEST: f64 = 1e-13;

impl Limit {
    fn check(self) -> Result<()> {
        if self.rank == Some(0) {
            return Err(Error::option("a train of rank 0 holds nothing: give at least 1"));
        }
        if !(self.tolerance == 0.0 || (FINEST..1.0).contains(&self.tolerance)) {
            return Err(Error::option(format!(
                "a tolerance of {}: give 0, or from {FINEST:e}, which is what f64 keeps, to below 1",
                self.tolerance
            )));
        }
        Ok(())
    }

    /// The error that each of `splits` splits may leave of an array with this norm.
    fn each(self, norm: f64, splits: usize) -> f64 {
        self.tolerance * norm / (splits.max(1) as f64).sqrt()
    }
}

/// One core of a train: `left × side × right`, in C order.
#[derive(Debug, Clone, PartialEq)]
pub struct Core {
    /// The rank to the left.
    pub left: usize,
    /// Length of the axis.
    pub side: usize,
    /// The rank to the right.
    pub right: usize,
    /// The elements.
    pub data: Vec<f64>,
}

impl Core {
    /// `row · G[index]`.
    fn times(&self, row: &[f64], index: usize) -> Vec<f64> {
        let mut product = vec![0.0; self.right];
        for (left, x) in row.iter().enumerate() {
            let line = &self.data[(left * self.side + index) * self.right..][..self.right];
            product.iter_mut().zip(line).for_each(|(sum, g)| *sum += x * g);
        }
        product
    }

    /// The matrix of one index, `left × right`.
    fn at(&self, index: usize) -> Vec<f64> {
        let line = |left: usize| &self.data[(left * self.side + index) * self.right..][..self.right];
        (0..self.left).flat_map(line).copied().collect()
    }
}

/// An array as a tensor train.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorTrain {
    cores: Vec<Core>,
}

/// The Frobenius norm, without overflow or underflow on the way.
fn norm(values: &[f64]) -> f64 {
    let most = values.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    if most == 0.0 {
        return 0.0;
    }
    values.iter().map(|value| (value / most) * (value / most)).sum::<f64>().sqrt() * most
}

/// The number of elements of a shape.
fn places(shape: &[usize]) -> Result<usize> {
    let places = shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side)).filter(|n| *n > 0);
    places.filter(|_| !shape.is_empty()).ok_or_else(|| {
        Error::value(format!("a shape of {shape:?}: a train needs axes, and elements along each"))
    })
}

impl TensorTrain {
    /// A train from its cores.
    ///
    /// # Errors
    /// [`Error::Value`] if adjacent ranks differ, or if a core has another number of elements than
    /// it states.
    pub fn new(cores: Vec<Core>) -> Result<Self> {
        let mut left = 1;
        for (axis, core) in cores.iter().enumerate() {
            let elements = core.left.checked_mul(core.side).and_then(|n| n.checked_mul(core.right));
            if core.left != left || elements != Some(core.data.len()) || core.data.is_empty() {
                return Err(Error::value(format!(
                    "core {axis} has {} elements as {} × {} × {}, after a rank of {left}",
                    core.data.len(),
                    core.left,
                    core.side,
                    core.right
                )));
            }
            left = core.right;
        }
        if cores.is_empty() || left != 1 {
            return Err(Error::value(format!("{} cores end with a rank of {left}, not of 1", cores.len())));
        }
        Ok(Self { cores })
    }

    /// Decomposes an array in C order by TT-SVD.
    ///
    /// # Errors
    /// [`Error::Value`] for elements that are not finite (the message names the index), and for a
    /// shape of another number of elements; [`Error::Option`] for an invalid limit.
    ///
    /// ```
    /// use tidegate_array::tensor_train::{Limit, TensorTrain};
    /// let sum = |i: usize| (i / 100 + i / 10 % 10 + i % 10) as f64;
    /// let values: Vec<f64> = (0..1000).map(sum).collect();
    /// let limit = Limit { tolerance: 1e-10, rank: None };
    /// let train = TensorTrain::decompose(&values, &[10, 10, 10], limit)?;
    /// assert_eq!(train.ranks(), [1, 2, 2, 1]);
    /// assert!((train.entry(&[3, 4, 5])? - 12.0).abs() < 1e-9);
    /// # Ok::<(), tidegate_array::Error>(())
    /// ```
    pub fn decompose(values: &[f64], shape: &[usize], limit: Limit) -> Result<Self> {
        limit.check()?;
        if places(shape)? != values.len() {
            return Err(Error::value(format!(
                "{} elements in the shape {shape:?}: give one value per element",
                values.len()
            )));
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::value(format!(
                "element {at} is {}, which has no singular values: replace it first",
                values[at]
            )));
        }
        let each = limit.each(norm(values), shape.len() - 1);
        let (mut rest, mut left, mut cores) = (None::<Vec<f64>>, 1, Vec::with_capacity(shape.len()));
        for &side in &shape[..shape.len() - 1] {
            let matrix = rest.as_deref().unwrap_or(values);
            let (data, others, right) = split(matrix, left * side, each, limit.rank)?;
            cores.push(Core { left, side, right, data });
            (rest, left) = (Some(others), right);
        }
        let data = rest.unwrap_or_else(|| values.to_vec());
        cores.push(Core { left, side: data.len() / left, right: 1, data });
        Self::new(cores)
    }

    /// The shape of the array.
    #[must_use]
    pub fn shape(&self) -> Vec<usize> {
        self.cores.iter().map(|core| core.side).collect()
    }

    /// Ranks before, between and after the cores.
    #[must_use]
    pub fn ranks(&self) -> Vec<usize> {
        std::iter::once(1).chain(self.cores.iter().map(|core| core.right)).collect()
    }

    /// The cores.
    #[must_use]
    pub fn cores(&self) -> &[Core] {
        &self.cores
    }

    /// Number of elements of all cores.
    #[must_use]
    pub fn held(&self) -> usize {
        self.cores.iter().map(|core| core.data.len()).sum()
    }

    /// Elements of the array per element of the cores.
    #[must_use]
    pub fn compression(&self) -> f64 {
        self.cores.iter().map(|core| core.side as f64).product::<f64>() / self.held() as f64
    }

    fn check_index(&self, axis: usize, index: usize) -> Result<&Core> {
        let core = self.cores.get(axis);
        let core =
            core.ok_or_else(|| Error::value(format!("axis {axis} is beyond the {} axes", self.cores.len())))?;
        if index >= core.side {
            return Err(Error::value(format!("index {index} of {} along axis {axis}", core.side)));
        }
        Ok(core)
    }

    /// One element.
    ///
    /// # Errors
    /// [`Error::Value`] for an index that does not exist.
    pub fn entry(&self, at: &[usize]) -> Result<f64> {
        if at.len() != self.cores.len() {
            return Err(Error::value(format!("{} indices for {} axes", at.len(), self.cores.len())));
        }
        let mut row = vec![1.0];
        for (axis, &index) in at.iter().enumerate() {
            row = self.check_index(axis, index)?.times(&row, index);
        }
        Ok(row[0])
    }

    /// The array at one index of an axis, without that axis.
    ///
    /// # Errors
    /// [`Error::Value`] for an index that does not exist, and for an array of one axis: use
    /// [`TensorTrain::entry`].
    pub fn slice(&self, axis: usize, index: usize) -> Result<Self> {
        let core = self.check_index(axis, index)?;
        let fixed = core.at(index);
        let mut cores = self.cores.clone();
        cores.remove(axis);
        if let Some(next) = cores.get_mut(axis) {
            next.data = multiply(&fixed, core.left, &next.data);
            next.left = core.left;
        } else if let Some(last) = cores.last_mut() {
            last.data = multiply(&last.data, last.left * last.side, &fixed);
            last.right = core.right;
        } else {
            return Err(Error::value("an array of one axis has no slices: ask for the entry"));
        }
        Self::new(cores)
    }

    /// The inner product with another array of the same shape.
    ///
    /// # Errors
    /// [`Error::Value`] for another shape.
    pub fn dot(&self, other: &Self) -> Result<f64> {
        if self.shape() != other.shape() {
            return Err(Error::value(format!(
                "arrays of {:?} and {:?} have no inner product: their shapes must be equal",
                self.shape(),
                other.shape()
            )));
        }
        // Axes: left rank of this × left rank of the other.
        let mut sums = vec![1.0];
        for (one, other) in self.cores.iter().zip(&other.cores) {
            let mut next = vec![0.0; one.right * other.right];
            for index in 0..one.side {
                for left in 0..one.left {
                    let row = other.times(&sums[left * other.left..][..other.left], index);
                    let line = &one.data[(left * one.side + index) * one.right..][..one.right];
                    for (sums, g) in next.chunks_exact_mut(other.right).zip(line) {
                        sums.iter_mut().zip(&row).for_each(|(sum, x)| *sum += g * x);
                    }
                }
            }
            sums = next;
        }
        Ok(sums[0])
    }

    /// The Frobenius norm: the norm of the first core once all others are orthogonal.
    ///
    /// # Errors
    /// [`Error::Value`] if elements are not finite.
    pub fn norm(&self) -> Result<f64> {
        Ok(norm(&self.orthogonalized()?.cores[0].data))
    }

    /// The same array with all cores but the first orthogonal.
    fn orthogonalized(&self) -> Result<Self> {
        let mut cores = self.cores.clone();
        for axis in (1..cores.len()).rev() {
            let core = &cores[axis];
            let (triangle, data, left) = orthogonal(&core.data, core.left)?;
            cores[axis] = Core { left, data, ..*core };
            let before = &mut cores[axis - 1];
            before.data = multiply(&before.data, before.left * before.side, &triangle);
            before.right = left;
        }
        Self::new(cores)
    }

    /// A train as close to this one as the limit requires, with the smallest ranks that allow it.
    ///
    /// # Errors
    /// As [`TensorTrain::norm`]; [`Error::Option`] for an invalid limit.
    pub fn round(&self, limit: Limit) -> Result<Self> {
        limit.check()?;
        let mut cores = self.orthogonalized()?.cores;
        let each = limit.each(norm(&cores[0].data), cores.len() - 1);
        for axis in 0..cores.len() - 1 {
            let core = &cores[axis];
            let (data, others, right) = split(&core.data, core.left * core.side, each, limit.rank)?;
            cores[axis] = Core { right, data, ..*core };
            let next = &mut cores[axis + 1];
            next.data = multiply(&others, right, &next.data);
            next.left = right;
        }
        Self::new(cores)
    }

    /// Reconstructs the array block by block, in C order: `each` receives the index of a block's
    /// first element, and its elements. Memory held is at most `memory_bytes`, or a row of ranks
    /// if that is more.
    ///
    /// # Errors
    /// The errors of `each`.
    pub fn reconstruct(
        &self,
        memory_bytes: u64,
        mut each: impl FnMut(usize, &[f64]) -> Result<()>,
    ) -> Result<()> {
        // Multiplies the last axes into one matrix, as many as fit in memory next to the previous
        // matrix, or a block.
        let (mut first, mut tail, mut width) = (self.cores.len(), vec![1.0], 1);
        while let Some(core) = first.checked_sub(1).map(|axis| &self.cores[axis]) {
            let block = (core.side as u64).saturating_mul(width as u64);
            let next = block.saturating_mul(core.left as u64);
            // Products exist twice until they are in C order.
            let held = next.saturating_add(block).saturating_mul(2).saturating_add(tail.len() as u64);
            if held.saturating_mul(8) > memory_bytes {
                break;
            }
            tail = multiply(&core.data, core.left * core.side, &tail);
            (first, width) = (first - 1, width * core.side);
        }
        // For each earlier axis, the row of the current index.
        let mut at = vec![0; first];
        let mut rows = vec![vec![1.0]];
        let mut start = 0;
        loop {
            while rows.len() <= first {
                let axis = rows.len() - 1;
                let row = self.cores[axis].times(&rows[axis], at[axis]);
                rows.push(row);
            }
            each(start, &multiply(&rows[first], 1, &tail))?;
            start += width;
            let Some(axis) = (0..first).rev().find(|&axis| at[axis] + 1 < self.cores[axis].side) else {
                return Ok(());
            };
            at[axis] += 1;
            at[axis + 1..].fill(0);
            rows.truncate(axis + 1);
        }
    }

    /// The whole array in C order.
    ///
    /// # Errors
    /// [`Error::Value`] if the allocation fails.
    pub fn to_dense(&self) -> Result<Vec<f64>> {
        let mut whole = crate::filled(places(&self.shape()).ok(), 0.0)?;
        self.reconstruct(u64::MAX, |start, block| {
            whole[start..start + block.len()].copy_from_slice(block);
            Ok(())
        })?;
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 1 / (sum of indices + first), like a Hilbert matrix.
    fn hilbert(sides: &[usize], first: usize) -> Vec<f64> {
        let count: usize = sides.iter().product();
        let sum = |at: usize| {
            let digit = |(rest, sum): (usize, usize), side: &usize| (rest / side, sum + rest % side);
            sides.iter().rev().fold((at, 0), digit).1
        };
        (0..count).map(|at| 1.0 / (sum(at) + first) as f64).collect()
    }

    fn distance(one: &[f64], other: &[f64]) -> f64 {
        norm(&one.iter().zip(other).map(|(a, b)| a - b).collect::<Vec<_>>())
    }

    #[test]
    fn tensors_of_hilberts_kind_have_small_ranks() {
        // 1 / (1 + x + y + z + w) at sixteenths, and with the pole one step away.
        for (first, ranks, held) in [(16, [1, 3, 3, 3, 1], 384), (1, [1, 5, 6, 5, 1], 1120)] {
            let values = hilbert(&[16; 4], first);
            let decomposed = |tolerance| {
                let train =
                    TensorTrain::decompose(&values, &[16; 4], Limit { tolerance, rank: None }).unwrap();
                let error = distance(&train.to_dense().unwrap(), &values) / norm(&values);
                assert!(error <= tolerance, "{error:e} where {tolerance:e} was asked for");
                train
            };
            let train = decomposed(1e-4);
            assert_eq!((train.ranks(), train.held()), (ranks.to_vec(), held));
            // Down to what f64 supports, where singular values are nearly rounding errors.
            for tolerance in [1e-8, 1e-11, 1e-12, 1e-13] {
                decomposed(tolerance);
            }
        }
    }

    /// An array with random shape, random ranks (or none) and random scale.
    fn array() -> impl Strategy<Value = (Vec<usize>, Vec<f64>)> {
        (proptest::collection::vec(1usize..7, 1..6), any::<u64>(), 0usize..4, -200i32..200).prop_map(
            |(shape, seed, rank, scale)| {
                let drawn = |i: u64| {
                    (tidegate_core::hash::splitmix64(seed ^ i) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
                };
                let count: usize = shape.iter().product();
                let values: Vec<f64> = if rank == 0 {
                    (0..count as u64).map(drawn).collect()
                } else {
                    let side = |axis: usize| {
                        shape[axis]
                            * if axis == 0 { 1 } else { rank }
                            * if axis + 1 == shape.len() { 1 } else { rank }
                    };
                    let core = |axis: usize| Core {
                        left: if axis == 0 { 1 } else { rank },
                        side: shape[axis],
                        right: if axis + 1 == shape.len() { 1 } else { rank },
                        data: (0..side(axis) as u64).map(|i| drawn(i + 1000 * axis as u64)).collect(),
                    };
                    TensorTrain::new((0..shape.len()).map(core).collect()).unwrap().to_dense().unwrap()
                };
                (shape, values.into_iter().map(|value| value * 10f64.powi(scale)).collect())
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn the_error_is_never_beyond_the_tolerance((shape, values) in array(), digits in 0.1f64..12.9) {
            let (tolerance, whole) = (10f64.powf(-digits), norm(&values));
            let limit = Limit { tolerance, rank: None };
            let train = TensorTrain::decompose(&values, &shape, limit).unwrap();
            prop_assert!(distance(&train.to_dense().unwrap(), &values) <= tolerance * whole);
            let exact = TensorTrain::decompose(&values, &shape, Limit { tolerance: 0.0, rank: None }).unwrap();
            prop_assert!(distance(&exact.to_dense().unwrap(), &values) <= 1e-13 * whole);
            let rounded = exact.round(limit).unwrap();
            prop_assert!(distance(&rounded.to_dense().unwrap(), &values) <= tolerance * whole * (1.0 + 1e-6) + 1e-13 * whole);
            prop_assert!(rounded.ranks().iter().zip(exact.ranks()).all(|(a, b)| *a <= b));
            let small = TensorTrain::decompose(&values, &shape, Limit { tolerance: 0.0, rank: Some(2) }).unwrap();
            prop_assert!(small.ranks().iter().all(|rank| *rank <= 2));
        }
    }

    proptest! {
        #[test]
        fn entries_slices_products_and_blocks_are_those_of_the_array((shape, values) in array(), memory in 0u64..4000, at: u64) {
            prop_assume!(norm(&values).is_normal() && norm(&values) < 1e100 && norm(&values) > 1e-100);
            let train = TensorTrain::decompose(&values, &shape, Limit { tolerance: 0.0, rank: None }).unwrap();
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-12 * norm(&values);
            let mut came = vec![f64::NAN; values.len()];
            train.reconstruct(memory, |start, block| {
                assert!(block.len() as u64 * 8 <= memory.max(8));
                came[start..start + block.len()].copy_from_slice(block);
                Ok(())
            }).unwrap();
            prop_assert!(came.iter().zip(&values).all(|(a, b)| near(*a, *b)));
            let at = (at % values.len() as u64) as usize;
            let mut rest = at;
            let mut index: Vec<usize> = shape.iter().rev().map(|side| { let i = rest % side; rest /= side; i }).collect();
            index.reverse();
            prop_assert!(near(train.entry(&index).unwrap(), values[at]));
            for axis in 0..shape.len() {
                if shape.len() == 1 {
                    prop_assert!(train.slice(0, index[0]).is_err());
                    continue;
                }
                let mut others = index.clone();
                others.remove(axis);
                prop_assert!(near(train.slice(axis, index[axis]).unwrap().entry(&others).unwrap(), values[at]));
            }
            let whole = norm(&values);
            prop_assert!((train.norm().unwrap() - whole).abs() <= 1e-12 * whole);
            prop_assert!((train.dot(&train).unwrap() - whole * whole).abs() <= 1e-11 * whole * whole);
        }
    }

    #[test]
    fn what_is_no_array_says_why() {
        let limit = Limit { tolerance: 1e-3, rank: None };
        let words = |values: &[f64], shape: &[usize], limit| {
            TensorTrain::decompose(values, shape, limit).unwrap_err().to_string()
        };
        assert!(words(&[1.0, f64::NAN], &[2], limit).contains("element 1 is NaN"));
        assert!(words(&[1.0], &[2], limit).contains("1 elements in the shape [2]"));
        assert!(words(&[], &[0, 2], limit).contains("a train needs axes"));
        assert!(words(&[1.0], &[], limit).contains("a train needs axes"));
        assert!(words(&[1.0], &[1], Limit { tolerance: -1.0, rank: None }).contains("a tolerance of -1"));
        assert!(words(&[1.0], &[1], Limit { tolerance: 1e-20, rank: None }).contains("what f64 keeps"));
        assert!(words(&[1.0], &[1], Limit { tolerance: 0.0, rank: Some(0) }).contains("rank 0"));
        let zero = TensorTrain::decompose(&[0.0; 8], &[2, 2, 2], limit).unwrap();
        assert_eq!((zero.ranks(), zero.to_dense().unwrap()), (vec![1; 4], vec![0.0; 8]));
        assert!(zero.entry(&[0, 0]).unwrap_err().to_string().contains("2 indices for 3"));
        assert!(zero.entry(&[0, 2, 0]).unwrap_err().to_string().contains("index 2 of 2 along axis 1"));
        assert!(
            zero.dot(&zero.slice(0, 0).unwrap()).unwrap_err().to_string().contains("[2, 2, 2] and [2, 2]")
        );
        let core = Core { left: 1, side: 2, right: 2, data: vec![0.0; 4] };
        assert!(TensorTrain::new(vec![core]).unwrap_err().to_string().contains("end with a rank of 2"));
    }
}
