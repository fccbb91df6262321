//! The one parameter of a kernel: bytes, some of them addresses that the device fills in.

use crate::program::Pointer;

/// A part of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Word {
    /// Four bytes.
    Number(u32),
    /// Four bytes: tokens in a block of the KV caches, which the device knows.
    BlockSize,
    /// Eight bytes, at a multiple of eight, that are no address.
    Long(u64),
    /// Eight bytes, at a multiple of eight: an address or a constant.
    Pointer(Pointer),
}

/// The bytes of a parameter in order. Addresses are zero until the device is known.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parameter {
    bytes: Vec<u8>,
    pointers: Vec<(usize, Pointer)>,
    block_size: Option<usize>,
}

impl Parameter {
    /// Adds a part.
    pub fn push(&mut self, word: Word) {
        match word {
            Word::Number(number) => self.bytes.extend(number.to_le_bytes()),
            Word::BlockSize => {
                self.block_size = Some(self.bytes.len());
                self.bytes.extend([0; 4]);
            }
            Word::Long(number) => {
                self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
                self.bytes.extend(number.to_le_bytes());
            }
            Word::Pointer(pointer) => {
                self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
                self.pointers.push((self.bytes.len(), pointer));
                self.bytes.extend([0; 8]);
            }
        }
    }

    /// Adds several parts.
    pub fn extend(&mut self, words: impl IntoIterator<Item = Word>) {
        words.into_iter().for_each(|word| self.push(word));
    }

    /// Puts addresses one after the other where there are zeros, from an offset on.
    pub fn place(&mut self, offset: usize, pointers: &[Pointer]) {
        self.pad(offset + 8 * pointers.len());
        self.pointers.extend(pointers.iter().enumerate().map(|(place, pointer)| (offset + 8 * place, *pointer)));
    }

    /// Says how many tokens a block of the KV caches holds.
    pub fn set_block_size(&mut self, tokens: usize) {
        let number = u32::try_from(tokens).unwrap_or(u32::MAX).to_le_bytes();
        if let Some(place) = self.block_size.and_then(|offset| self.bytes.get_mut(offset..offset + 4)) {
            place.copy_from_slice(&number);
        }
    }

    /// Fills with zeros up to so many bytes.
    pub fn pad(&mut self, bytes: usize) {
        self.bytes.resize(self.bytes.len().max(bytes), 0);
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes with every address in its place.
    ///
    /// # Errors
    /// Whatever `resolve` says of an address.
    pub fn resolved<E>(&self, mut resolve: impl FnMut(&Pointer) -> Result<u64, E>) -> Result<Vec<u8>, E> {
        let mut bytes = self.bytes.clone();
        for (offset, pointer) in &self.pointers {
            let value = match pointer {
                Pointer::Constant(number) => u64::from(number.to_bits()),
                pointer => resolve(pointer)?,
            };
            if let Some(place) = bytes.get_mut(*offset..offset + 8) {
                place.copy_from_slice(&value.to_le_bytes());
            }
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_aligned_and_constants_are_their_bits() {
        let mut parameter = Parameter::default();
        parameter.extend([Word::Number(7), Word::Pointer(Pointer::Sizes), Word::Pointer(Pointer::Constant(1.0))]);
        parameter.pad(32);
        let bytes = parameter.resolved(|_| Ok::<_, ()>(0x1122_3344_5566_7788)).unwrap_or_default();
        assert_eq!(bytes.len(), 32);
        assert_eq!(bytes[..8], [7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[8..16], 0x1122_3344_5566_7788_u64.to_le_bytes());
        assert_eq!(bytes[16..24], [0, 0, 0x80, 0x3f, 0, 0, 0, 0]);
        assert_eq!(parameter.resolved(|_| Err("nowhere")), Err("nowhere"));
    }
}
