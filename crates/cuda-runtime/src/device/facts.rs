//! What the settings' rules need to know of the GPU before it is opened.

use allotrope_config::{AttentionGraphSupport, DeviceFacts};
use allotrope_runtime::device::DeviceError;

use super::DEVICE;
use crate::driver::probe;

/// What the settings' rules need to know of the first GPU, or why there is none that can be used.
///
/// # Errors
/// [`DeviceError::Environment`] without a driver, with one that is too old, or without a GPU.
pub fn facts() -> Result<DeviceFacts, DeviceError> {
    let info = probe()?;
    Ok(DeviceFacts {
        name: info.name,
        kind: DEVICE.to_owned(),
        attention_graph_support: AttentionGraphSupport::Always,
        parallelism: info.multiprocessors as usize,
        available_memory: info.memory_free,
        dedicated_memory: true,
        kernel_cache: None,
        autotune: false,
        persistent_decode: false,
        repack_weights: false,
        fp8_kv_cache: false,
    })
}
