//! The operations: one file each, with its shape check, its forward, what backward keeps, and its backward.
//!
//! An operation allocates its results and workspaces and counts its work; the arithmetic on slices is the backend's file of the
//! same name. Work counts the products (a multiplication and an addition are two operations), not the elementwise rest.

pub mod arithmetic;
pub mod attention;
pub mod attention_decoder;
pub mod convolution;
pub mod cross_entropy;
pub mod ctc;
pub mod dropout;
pub mod embedding;
pub mod layer_norm;
pub mod linear;
pub mod linear_cross_entropy;
pub mod log_softmax;
pub mod lstm;
pub mod positions;
pub mod sequences;
pub mod subsample;
pub mod temporal;

use crate::error::{Error, Result};

/// An error unless `found` is `expected`, naming the operation and both shapes.
fn expect_shape(operation: &'static str, what: &str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::operation(operation, format!("{what} has shape {found:?} where {expected:?} is needed")))
}

/// The rows and columns of a matrix.
fn matrix(operation: &'static str, what: &str, shape: &[usize]) -> Result<(usize, usize)> {
    match *shape {
        [rows, columns] => Ok((rows, columns)),
        _ => Err(Error::operation(operation, format!("{what} has shape {shape:?} where a matrix is needed"))),
    }
}
