//! The linker, which is how programs have PTX compiled without loading it.
//!
//! What it gives in place of machine code is the PTX in the wrapping of an ELF file, so that programs which look at the
//! headers of what they store find them in order.
#![allow(non_snake_case, reason = "the names are those of the driver")]

use super::module::{LogBuffer, compile};
use super::{In, Out, Pointer, Text, export};
use crate::driver::state::{Handle, driver, enter};
use crate::driver::status::Status;

/// The kind of input that is PTX.
const PTX: u32 = 1;

/// Bytes of the header of an ELF file.
const HEADER: usize = 64;

/// How an image of this linker begins. The last seven bytes are zero in other files.
const BEGINNING: &[u8; 16] = b"\x7fELF\x02\x01\x01\x33\x07emulate";

/// A link in progress.
pub(in crate::driver) struct Link {
    log: LogBuffer,
    text: Option<String>,
    image: Box<[u8]>,
}

/// An image of PTX.
fn wrapped(text: &str) -> Box<[u8]> {
    let mut image = vec![0; HEADER];
    image[..16].copy_from_slice(BEGINNING);
    // An executable for CUDA, of this version of the format.
    image[16] = 2;
    image[18] = 190;
    image[20] = 1;
    let end = (HEADER + text.len() + 1) as u64;
    // The table of sections has no entries, at the very end.
    image[40..48].copy_from_slice(&end.to_le_bytes());
    image[52] = HEADER as u8;
    image[58] = 64;
    image.extend(text.as_bytes());
    image.push(0);
    image.into()
}

/// The PTX in an image of this linker.
pub(super) fn unwrapped(image: Text) -> Option<Text> {
    image.begins_with(BEGINNING).then(|| Text(image.0.wrapping_add(HEADER)))
}

export! {
    fn cuLinkCreate_v2(count: u32, options: In<u32>, values: In<usize>, link: Out<u64>) {
        let log = LogBuffer::of(count, &options, &values)?;
        let mut state = enter()?;
        let handle = state.handle();
        state.links.insert(handle, Link { log, text: None, image: Box::default() });
        link.set(handle)
    }

    fn cuLinkAddData_v2(
        link: Handle, kind: u32, data: Pointer, bytes: usize, _name: Pointer,
        _count: u32, _options: In<u32>, _values: In<usize>,
    ) {
        let mut state = enter()?;
        let capability = state.options.capability;
        let known = state.links.get_mut(&link).ok_or(Status::INVALID_HANDLE)?;
        // Linking several texts together is a thing that nobody asked for yet.
        if kind != PTX || known.text.is_some() {
            return Err(Status::NOT_SUPPORTED);
        }
        let bytes = data.bytes(bytes)?;
        let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let text = String::from_utf8(bytes[..length].to_vec()).map_err(|_| Status::INVALID_PTX)?;
        // Where variables lie does not matter before the image is loaded.
        if let Err((status, message)) = compile(&text, capability, &mut |_| Some(0x1000)) {
            known.log.write(&message);
            drop(state);
            driver().complain(&message);
            return Err(status);
        }
        known.text = Some(text);
        Ok(())
    }

    fn cuLinkComplete(link: Handle, image: Out<usize>, bytes: Out<usize>) {
        let mut state = enter()?;
        let known = state.links.get_mut(&link).ok_or(Status::INVALID_HANDLE)?;
        known.image = wrapped(known.text.as_deref().ok_or(Status::INVALID_VALUE)?);
        // It is the link's, and good as long as that.
        image.set(known.image.as_ptr() as usize)?;
        bytes.set_if_wanted(known.image.len());
        Ok(())
    }

    fn cuLinkDestroy(link: Handle) {
        enter()?.links.remove(&link).map(|_| ()).ok_or(Status::INVALID_HANDLE)
    }
}
