//! The linear algebra of tensor trains, with `faer`: matrices in C order in and out.
//!
//! Flow: a matrix -> its two factors at a rank; orthogonal rows; products.
//! Memory: one or two copies of the matrix during a call.

use faer::{Mat, MatRef};

use crate::{Error, Result};

fn view(matrix: &[f64], rows: usize) -> MatRef<'_, f64> {
    MatRef::from_row_major_slice(matrix, rows, matrix.len() / rows.max(1))
}

/// The elements in C order.
fn listed(matrix: MatRef<'_, f64>) -> Vec<f64> {
    let lines = (0..matrix.nrows()).flat_map(|row| (0..matrix.ncols()).map(move |col| (row, col)));
    lines.map(|(row, col)| matrix[(row, col)]).collect()
}

/// `one · other`, where `one` has `rows` rows.
pub(super) fn multiply(one: &[f64], rows: usize, other: &[f64]) -> Vec<f64> {
    let inner = one.len() / rows.max(1);
    listed((view(one, rows) * view(other, inner)).as_ref())
}

/// Factors a matrix of `rows` rows into `left · right` and returns the rank. `left` has orthogonal
/// columns: as few as leave an error of at most `leave` (in the Frobenius norm), and at most
/// `most`.
pub(super) fn split(
    matrix: &[f64],
    rows: usize,
    leave: f64,
    most: Option<usize>,
) -> Result<(Vec<f64>, Vec<f64>, usize)> {
    // Singular values near the limits of f64 would be inexact.
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
    // Values at the level of rounding errors are ignored.
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
        // Singular vectors of small values may not be orthogonal, so the error is measured.
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

/// Factors a matrix of `rows` rows into `triangle · rows`, where the rows are orthogonal, and
/// returns their number.
pub(super) fn orthogonal(matrix: &[f64], rows: usize) -> Result<(Vec<f64>, Vec<f64>, usize)> {
    if matrix.iter().any(|value| !value.is_finite()) {
        return Err(Error::value("elements that are not finite have no norm"));
    }
    let parts = view(matrix, rows).transpose().to_owned().qr();
    let (triangle, lines) = (parts.thin_R(), parts.compute_thin_Q());
    let count = lines.ncols();
    Ok((listed(triangle.transpose()), listed(lines.transpose()), count))
}
