//! Error codes, with their names.

use std::ffi::CStr;

/// What a driver function returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Status(pub(super) u32);

macro_rules! statuses {
    ($($name:ident = $code:literal, $text:literal, $says:literal;)+) => {
        impl Status {
            $(#[doc = $says] pub(super) const $name: Self = Self($code);)+

            /// The name and the meaning of a code.
            pub(super) fn describe(code: u32) -> Option<(&'static CStr, &'static CStr)> {
                match code {
                    $($code => Some((text(concat!($text, "\0")), text(concat!($says, "\0")))),)+
                    _ => None,
                }
            }
        }
    };
}

fn text(with_end: &'static str) -> &'static CStr {
    CStr::from_bytes_with_nul(with_end.as_bytes()).unwrap_or_default()
}

statuses! {
    SUCCESS = 0, "CUDA_SUCCESS", "no error";
    INVALID_VALUE = 1, "CUDA_ERROR_INVALID_VALUE", "invalid argument";
    OUT_OF_MEMORY = 2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory";
    NOT_INITIALIZED = 3, "CUDA_ERROR_NOT_INITIALIZED", "cuInit was not called";
    NO_DEVICE = 100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is visible";
    INVALID_DEVICE = 101, "CUDA_ERROR_INVALID_DEVICE", "no such device";
    INVALID_CONTEXT = 201, "CUDA_ERROR_INVALID_CONTEXT", "no valid context is current to this thread";
    NO_BINARY_FOR_GPU = 209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no code for this device: only PTX is emulated";
    INVALID_PTX = 218, "CUDA_ERROR_INVALID_PTX", "the PTX was refused; the reason is on standard error";
    UNSUPPORTED_PTX_VERSION = 222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the PTX is newer than this driver";
    FILE_NOT_FOUND = 301, "CUDA_ERROR_FILE_NOT_FOUND", "file not found";
    INVALID_HANDLE = 400, "CUDA_ERROR_INVALID_HANDLE", "invalid or destroyed handle";
    ILLEGAL_STATE = 401, "CUDA_ERROR_ILLEGAL_STATE", "the stream is in a state in which this is not allowed";
    NOT_FOUND = 500, "CUDA_ERROR_NOT_FOUND", "no such name";
    NOT_READY = 600, "CUDA_ERROR_NOT_READY", "not finished yet";
    ILLEGAL_ADDRESS = 700, "CUDA_ERROR_ILLEGAL_ADDRESS", "a kernel or copy accessed memory that is not allocated";
    LAUNCH_OUT_OF_RESOURCES = 701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "a block of this size does not fit";
    MISALIGNED_ADDRESS = 716, "CUDA_ERROR_MISALIGNED_ADDRESS", "a kernel accessed a misaligned address";
    LAUNCH_FAILED = 719, "CUDA_ERROR_LAUNCH_FAILED", "a kernel failed; the report is on standard error";
    COOPERATIVE_LAUNCH_TOO_LARGE = 720, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "the blocks cannot all be resident";
    NOT_SUPPORTED = 801, "CUDA_ERROR_NOT_SUPPORTED", "not supported by the emulator";
    CAPTURE_UNSUPPORTED = 900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "not permitted while a stream is capturing";
    CAPTURE_INVALIDATED = 901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "the capture was invalidated by an earlier error";
    CAPTURE_MERGE = 902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "this would join two captures";
    CAPTURE_UNMATCHED = 903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "the capture did not begin on this stream";
    CAPTURE_UNJOINED = 904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "work of another stream was not joined to the capture";
    CAPTURE_ISOLATION = 905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "a dependency on work outside of the capture";
    CAPTURE_IMPLICIT = 906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "an implicit dependency of the legacy stream on a capture";
    CAPTURED_EVENT = 907, "CUDA_ERROR_CAPTURED_EVENT", "the event was last recorded in a capture";
    CAPTURE_WRONG_THREAD = 908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "the capture began in another thread";
    GRAPH_EXEC_UPDATE_FAILURE = 910, "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE", "the graph differs in more than parameters";
}
