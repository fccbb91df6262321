//! What can be wrong with the arguments of a kernel.

use crate::memory::AllocationError;

/// A kernel refused its arguments. The texts name the argument, what it is and what it should be.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A buffer has the wrong number of bytes.
    #[error("{kernel}: `{argument}` has {found} bytes where its shape needs {expected}")]
    Size {
        /// The kernel.
        kernel: &'static str,
        /// The buffer.
        argument: &'static str,
        /// Its bytes.
        found: usize,
        /// The bytes that it should have.
        expected: usize,
    },
    /// A shape does not fit in the address space.
    #[error("{kernel}: the size of `{argument}` overflows the address space; its dimensions are wrong")]
    Overflow {
        /// The kernel.
        kernel: &'static str,
        /// The buffer.
        argument: &'static str,
    },
    /// A combination of arguments has no kernel.
    #[error("{kernel}: {reason}")]
    Unsupported {
        /// The kernel.
        kernel: &'static str,
        /// What is not possible and what is.
        reason: String,
    },
    /// An index points outside what it indexes.
    #[error("{kernel}: `{argument}`[{position}] is {value}, outside 0..{limit}")]
    Index {
        /// The kernel.
        kernel: &'static str,
        /// The buffer of indices.
        argument: &'static str,
        /// Where in the buffer.
        position: usize,
        /// The index found there.
        value: i64,
        /// One more than the largest that would be right.
        limit: usize,
    },
    /// Memory could not be had.
    #[error(transparent)]
    Allocation(#[from] AllocationError),
}

/// The product of `factors`, or an error that names the argument whose size it is.
pub(crate) fn size_of(kernel: &'static str, argument: &'static str, factors: &[usize]) -> Result<usize, KernelError> {
    factors
        .iter()
        .try_fold(1usize, |product, &factor| product.checked_mul(factor))
        .filter(|&size| isize::try_from(size).is_ok())
        .ok_or(KernelError::Overflow { kernel, argument })
}

/// Checks that `argument`, which has `found` bytes, has the product of `factors`.
pub(crate) fn check_size(
    kernel: &'static str,
    argument: &'static str,
    found: usize,
    factors: &[usize],
) -> Result<(), KernelError> {
    let expected = size_of(kernel, argument, factors)?;
    if found == expected { Ok(()) } else { Err(KernelError::Size { kernel, argument, found, expected }) }
}
