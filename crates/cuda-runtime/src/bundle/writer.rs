//! Writes bundles: the same outputs give the same bytes.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use sha2::{Digest as _, Sha256};

use super::{Architecture, BundleError, Kind, MAGIC, MAXIMUM_OUTPUT, is_source_name};

/// What a compiler made of one source for one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The source, without folder and ending.
    pub source: String,
    /// What it is.
    pub kind: Kind,
    /// What it is compiled for.
    pub architecture: Architecture,
    /// The text or the machine code.
    pub content: Vec<u8>,
}

/// The bundle of some outputs, in their order.
///
/// # Errors
/// [`BundleError::Unwritable`] if a name is none that the format allows, an output is too large or there twice.
pub fn write(outputs: &[Output]) -> Result<Vec<u8>, BundleError> {
    let count = u32::try_from(outputs.len()).map_err(|_| unwritable("too many outputs"))?;
    let mut directory = [MAGIC.as_slice(), &count.to_le_bytes()].concat();
    let mut stored = Vec::new();
    for (index, output) in outputs.iter().enumerate() {
        let Output { source, kind, architecture, content } = output;
        let name_bytes = u8::try_from(source.len()).ok().filter(|_| is_source_name(source));
        let name_bytes = name_bytes.ok_or_else(|| unwritable(&format!("`{source}` is no name for a source")))?;
        if content.len() > MAXIMUM_OUTPUT {
            return Err(unwritable(&format!("{kind} {architecture} of {source} has {} bytes", content.len())));
        }
        let same = |other: &Output| (&other.source, other.kind, other.architecture) == (source, *kind, *architecture);
        if outputs[..index].iter().any(same) {
            return Err(unwritable(&format!("{kind} {architecture} of {source} is there twice")));
        }
        let start = stored.len();
        let failed = |error: std::io::Error| unwritable(&error.to_string());
        let mut encoder = DeflateEncoder::new(&mut stored, Compression::best());
        encoder.write_all(content).and_then(|()| encoder.finish().map(|_| ())).map_err(failed)?;
        let size = |bytes: usize| u32::try_from(bytes).map_err(|_| unwritable("an output is too large"));
        directory.push(name_bytes);
        directory.extend(source.as_bytes());
        directory.push(match kind {
            Kind::Ptx => 0,
            Kind::Cubin => 1,
        });
        directory.extend([architecture.major, architecture.minor, u8::from(architecture.specific)]);
        directory.extend(size(stored.len() - start)?.to_le_bytes());
        directory.extend(size(content.len())?.to_le_bytes());
        directory.extend(Sha256::digest(content));
    }
    directory.extend(stored);
    Ok(directory)
}

fn unwritable(message: &str) -> BundleError {
    BundleError::Unwritable(message.to_owned())
}
