//! Host memory whose size a caller chooses: an error where there is none, instead of an abort.

use std::fmt::Display;

use bytemuck::Zeroable;

use crate::error::{Error, Result};

/// So many zeros. The system provides the pages when they are first written, as for `vec![0; n]`.
///
/// # Errors
/// No memory.
pub(crate) fn zeros<T: Zeroable>(len: usize, what: impl Display) -> Result<Vec<T>> {
    bytemuck::allocation::try_zeroed_vec(len).map_err(|()| none_left::<T>(len, what))
}

/// A copy of these elements.
///
/// # Errors
/// No memory.
pub(crate) fn copied<T: Copy>(elements: &[T], what: impl Display) -> Result<Vec<T>> {
    let mut copy = with_room(elements.len(), what)?;
    copy.extend_from_slice(elements);
    Ok(copy)
}

/// An empty vector with room for so many elements.
///
/// # Errors
/// No memory.
pub(crate) fn with_room<T>(len: usize, what: impl Display) -> Result<Vec<T>> {
    let mut empty = Vec::new();
    empty.try_reserve_exact(len).map_err(|_| none_left::<T>(len, what))?;
    Ok(empty)
}

fn none_left<T>(len: usize, what: impl Display) -> Error {
    // As f64: the number of bytes may be beyond any integer.
    let gib = len as f64 * size_of::<T>() as f64 / f64::from(1 << 30);
    Error::out_of_memory(format!("no memory for {what}: {gib:.1} GiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_an_error() {
        for len in [1 << 58, usize::MAX] {
            let e = zeros::<f32>(len, "the momentum").unwrap_err();
            assert!(e.is_out_of_memory() && e.to_string().contains("the momentum"), "{e}");
            assert!(with_room::<f64>(len, "x").unwrap_err().is_out_of_memory());
        }
        assert_eq!(zeros::<f32>(3, "x").unwrap(), [0.0; 3]);
        assert!(zeros::<f32>(0, "x").unwrap().is_empty());
        assert_eq!(copied(&[1, 2], "x").unwrap(), [1, 2]);
    }
}
