//! The linear algebra of trains, on `faer`: matrices in C order in, matrices in C order out.
//!
//! Flow: a matrix -> what is left of it to the left and to the right of a rank; orthogonal rows; products.
//! Memory: a copy or two of the matrix while it is worked on.

use faer::{Mat, MatRef};

use crate::{Error, Result};

fn view(matrix: &[f64], rows: usize) -> MatRef<'_, f64> {
    MatRef::from_row_major_slice(matrix, rows, matrix.len() / rows.max(1))
}

/// In C order.
fn listed(matrix: MatRef<'_, f64>) -> Vec<f64> {
    let lines = (0..matrix.nrows()).flat_map(|row| (0..matrix.ncols()).map(move |col| (row, col)));
    lines.map(|(row, col)| matrix[(row, col)]).collect()
}

/// `one · other`, where `one` has so many rows.
pub(super) fn multiply(one: &[f64], rows: usize, other: &[f64]) -> Vec<f64> {
    let inner = one.len() / rows.max(1);
    listed((view(one, rows) * view(other, inner)).as_ref())
}

/// A matrix of so many rows as `left · right`, where `left` has orthogonal columns, as few as leave at most `leave` (in the Frobenius norm), and no
/// more than `most`; and how many these are.
pub(super) fn split(
    matrix: &[f64],
    rows: usize,
    leave: f64,
    most: Option<usize>,
) -> Result<(Vec<f64>, Vec<f64>, usize)> {
    // Singular values of what is near the ends of f64 are not.
    let largest = matrix.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    if !largest.is_finite() {
        return Err(Error::value("elements that are not finite have no singular values"));
    }
    let scale = if largest > 0.0 { largest } else { 1.0 };
    let scaled = Mat::from_fn(rows, matrix.len() / rows.max(1), |row, col| {
        matrix[row * (matrix.len() / rows.max(1)) + col] / scale
    });
    let parts =
        scaled.thin_svd().map_err(|_| Error::value("the singular values of the array did not converge"))?;
    let (left, values) = (parts.U(), parts.S().column_vector());
    // What rounding makes of nothing counts for nothing.
    let rounding = f64::EPSILON * values.iter().fold(0.0f64, |most, value| most.max(*value));
    let leave = (leave / scale * (1.0 - 1e-9)).max(rounding);
    let mut tail = 0.0f64;
    let kept = (0..values.nrows()).rev().find(|&at| {
        tail += values[at] * values[at];
        tail.sqrt() > leave
    });
    let mut rank = kept.map_or(1, |last| last + 1);
    loop {
        let few = rank.min(most.unwrap_or(rank));
        // Singular vectors of small values may be less than orthogonal; what is left is seen, not believed.
        let basis = left.subcols(0, few).to_owned().qr().compute_thin_Q();
        let others = basis.transpose() * &scaled;
        if few == rank && rank < values.nrows() && leave > rounding {
            let left_over = &scaled - &basis * &others;
            if left_over.norm_l2() > leave {
                rank += 1;
                continue;
            }
        }
        let others = Mat::from_fn(others.nrows(), others.ncols(), |row, col| others[(row, col)] * scale);
        return Ok((listed(basis.as_ref()), listed(others.as_ref()), few));
    }
}

/// A matrix of so many rows as `triangle · rows`, where the rows are orthogonal; and how many these are.
pub(super) fn orthogonal(matrix: &[f64], rows: usize) -> Result<(Vec<f64>, Vec<f64>, usize)> {
    if matrix.iter().any(|value| !value.is_finite()) {
        return Err(Error::value("elements that are not finite have no norm"));
    }
    let parts = view(matrix, rows).transpose().to_owned().qr();
    let (triangle, lines) = (parts.thin_R(), parts.compute_thin_Q());
    let count = lines.ncols();
    Ok((listed(triangle.transpose()), listed(lines.transpose()), count))
}
