//! The kernels compiled ahead of time: what `cargo xtask kernels` made of `kernels/*.cu`, embedded in the program.
//!
//! # The format
//!
//! Numbers are little-endian. A bundle is its directory, and behind it the outputs in the order of the directory, with
//! nothing between them and nothing after the last.
//!
//! | bytes | are |
//! |---|---|
//! | 8 | [`MAGIC`], whose last byte is the version of the format |
//! | 4 | the number of entries |
//! | for each entry: 1 | the length of its source's name |
//! | … | the name, of `a`–`z`, `0`–`9` and `_`: `copy` for `kernels/copy.cu` |
//! | 1 | kind: 0 for PTX, 1 for a cubin |
//! | 3 | architecture: major, minor, and 1 if the code runs there alone (`90a`), else 0 |
//! | 4 | how many bytes are stored |
//! | 4 | how many bytes they inflate to, at most [`MAXIMUM_OUTPUT`] |
//! | 32 | SHA-256 of the inflated bytes |
//!
//! Each output is a raw DEFLATE stream of its own, so that a start inflates only what it needs. A reader takes nothing on
//! trust: sizes are checked before anything is allocated, and what was inflated is compared with its size and its hash.

mod entry;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub use entry::{entry, entry_names};
pub use reader::{Bundle, Entry};
pub use writer::{Output, write};

/// How every bundle begins; the last byte is the version of the format.
pub const MAGIC: [u8; 8] = *b"ALKERNL\x01";

/// The most bytes that one output may have when it is inflated.
pub const MAXIMUM_OUTPUT: usize = 64 << 20;

/// Bytes of a SHA-256.
const HASH_BYTES: usize = 32;

/// Why a kernel can't be taken from a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The bytes are no bundle. The build is at fault.
    #[error(
        "the precompiled kernels are damaged: {0}. Build the program again from sources that `cargo xtask kernels --check` accepts"
    )]
    Damaged(String),
    /// Nothing was compiled from a source of this name. The caller is at fault.
    #[error("no kernels were compiled from `kernels/{0}.cu`")]
    UnknownSource(String),
    /// No PTX of a source runs on such a device. The environment is at fault.
    #[error(
        "the kernels of `kernels/{name}.cu` do not run on a GPU of compute capability {}.{}; they need 8.0 or newer",
        .capability.0, .capability.1
    )]
    TooOld {
        /// The source, without folder and ending.
        name: String,
        /// The device's compute capability, major and minor.
        capability: (u32, u32),
    },
    /// Outputs can't be put into a bundle. The caller is at fault.
    #[error("can't write a bundle of kernels: {0}")]
    Unwritable(String),
}

/// What an output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Text that the driver compiles.
    Ptx,
    /// Machine code.
    Cubin,
}

impl Kind {
    /// The name of the kind of architecture that it is compiled for, as nvcc spells it: `compute` or `sm`.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Kind::Ptx => "compute",
            Kind::Cubin => "sm",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Ptx => "ptx",
            Kind::Cubin => "cubin",
        })
    }
}

/// An architecture that code is compiled for, such as `80` or `90a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Architecture {
    /// Major compute capability.
    pub major: u8,
    /// Minor compute capability.
    pub minor: u8,
    /// Whether the code uses what only this architecture has (`a`), and so runs on no other.
    pub specific: bool,
}

impl Architecture {
    /// Whether an output for this architecture runs on a device of a compute capability. A cubin runs where the major
    /// version is the same and the minor one is not below its own; PTX on everything that is not older.
    #[must_use]
    pub fn runs_on(self, kind: Kind, capability: (u32, u32)) -> bool {
        let own = (u32::from(self.major), u32::from(self.minor));
        match kind {
            _ if self.specific => own == capability,
            Kind::Cubin => own.0 == capability.0 && own.1 <= capability.1,
            Kind::Ptx => own <= capability,
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.major, self.minor, if self.specific { "a" } else { "" })
    }
}

impl FromStr for Architecture {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_suffix('a').unwrap_or(text);
        let split = digits.len().saturating_sub(1);
        let number = |digits: Option<&str>| digits.and_then(|digits| digits.parse().ok());
        match (number(digits.get(..split)), number(digits.get(split..))) {
            (Some(major), Some(minor)) => Ok(Architecture { major, minor, specific: digits != text }),
            _ => Err(format!("`{text}` is no architecture such as 80 or 90a")),
        }
    }
}

/// Whether a source may have this name.
fn is_source_name(name: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    !name.is_empty() && name.len() <= usize::from(u8::MAX) && name.bytes().all(fine)
}
