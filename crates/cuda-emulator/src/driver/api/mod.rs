//! The exported functions. Their pointers come from callers that were promised the driver's rules, so each is wrapped
//! at once in a type that checks for null; what follows them is in this file alone.

mod device;
mod graph;
mod launch;
mod link;
mod memory;
mod module;
mod stream;

use std::ffi::{CStr, c_char, c_void};

use super::status::Status;
use super::work::HostPointer;

pub(super) use link::Link;

/// What the functions return inside.
type Outcome = Result<(), Status>;

/// A place for a result.
#[repr(transparent)]
struct Out<T>(*mut T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Out<T> {}

impl<T> Out<T> {
    /// Writes the result.
    fn set(self, value: T) -> Outcome {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: an `Out` is made by callers of the driver alone, who must pass null or a place for a value.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Writes the result if there is a place for it.
    fn set_if_wanted(self, value: T) {
        let _ = self.set(value);
    }

    /// Writes an element of an array of results.
    fn set_at(self, index: usize, value: T) -> Outcome {
        Self(self.0.wrapping_add(index)).set(value)
    }

    fn is_null(self) -> bool {
        self.0.is_null()
    }
}

/// A value to read.
#[repr(transparent)]
struct In<T>(*const T);

impl<T: Copy> In<T> {
    fn get(&self) -> Result<T, Status> {
        self.at(0)
    }

    fn at(&self, index: usize) -> Result<T, Status> {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: an `In` is made by callers of the driver alone, who must pass null or as many values as they say.
        Ok(unsafe { self.0.add(index).read() })
    }
}

/// A pointer to host memory that is not followed here, or only for a stated number of bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Pointer(*mut c_void);

impl Pointer {
    fn address(self) -> usize {
        self.0 as usize
    }

    fn host(self) -> HostPointer {
        HostPointer(self.0 as usize)
    }

    /// A copy of the bytes behind the pointer.
    fn bytes(self, count: usize) -> Result<Vec<u8>, Status> {
        if count == 0 {
            return Ok(Vec::new());
        }
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: callers of the driver promise that so many bytes can be read.
        Ok(unsafe { std::slice::from_raw_parts(self.0.cast::<u8>(), count) }.to_vec())
    }
}

/// A text of the caller.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Text(*const c_char);

impl Text {
    fn get(self) -> Result<String, Status> {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: callers of the driver promise a text that ends with a zero.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map(str::to_owned).map_err(|_| Status::INVALID_VALUE)
    }

    /// Whether the bytes begin with these.
    fn begins_with(self, start: &[u8]) -> bool {
        // SAFETY: the comparison ends at the first byte that differs: in a text at its zero at the latest, since what is
        // looked for begins with four bytes that are none; and a file that begins like them has headers of 16 bytes.
        start.iter().enumerate().all(|(index, byte)| unsafe { *self.0.add(index).cast::<u8>() == *byte })
    }
}

/// Declares exported functions.
macro_rules! export {
    ($($(#[doc = $doc:literal])? fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)+) => {
        $(
            $(#[doc = $doc])?
            #[unsafe(no_mangle)]
            extern "C" fn $name($($argument: $type),*) -> crate::driver::status::Status {
                #[allow(clippy::too_many_arguments, reason = "the signatures are those of the driver")]
                fn body($($argument: $type),*) -> crate::driver::api::Outcome $body
                if let Some(status) = crate::driver::faults::planned(stringify!($name)) {
                    return status;
                }
                body($($argument),*).err().unwrap_or(crate::driver::status::Status::SUCCESS)
            }
        )+
    };
}
use export;
