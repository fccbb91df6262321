//! The paged cache of a layer: where keys and values lie, and how they are written.
//!
//! A block has, head after head, all keys and then all values. Keys lie as attention reads them, lanes over positions:
//! `[head_dim / W][block_size][W]`, where `W` elements of a key make a *word* (two elements, or one of single
//! precision). Values have lanes over the head's dimension and words of two positions:
//! `[block_size / W][head_dim][W]`. What does not fill a word is padded.

use crate::element::ElementType;
use crate::row::math::narrow;
use crate::simd::{LANES, Simd};
use std::ops::Range;

/// A layer's paged cache, known by address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheView {
    pub(crate) begin: *mut u8,
    pub(crate) element: ElementType,
    pub(crate) blocks: usize,
    pub(crate) block_size: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// The bytes of a word, and how many elements it has.
#[inline(always)]
pub(super) const fn word(element: ElementType) -> (usize, usize) {
    let elements = if matches!(element, ElementType::F32) { 1 } else { 2 };
    (elements * element.bytes(), elements)
}

impl CacheView {
    /// Bytes of a head's keys and of its values in a block, or `None` if they overflow.
    fn runs(element: ElementType, block_size: usize, head_dim: usize) -> Option<(usize, usize)> {
        let (bytes, elements) = word(element);
        let keys = head_dim.div_ceil(elements).checked_mul(block_size)?.checked_mul(bytes)?;
        let values = block_size.div_ceil(elements).checked_mul(head_dim)?.checked_mul(bytes)?;
        Some((keys, values))
    }

    /// Bytes of a cache of these sizes, or `None` if they overflow.
    pub(crate) fn bytes(
        element: ElementType,
        blocks: usize,
        block_size: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Option<usize> {
        let (keys, values) = Self::runs(element, block_size, head_dim)?;
        keys.checked_add(values)?.checked_mul(kv_heads)?.checked_mul(blocks)
    }

    /// The addresses of its bytes.
    pub(crate) fn addresses(&self) -> Range<usize> {
        let bytes = Self::bytes(self.element, self.blocks, self.block_size, self.kv_heads, self.head_dim);
        let begin = self.begin.addr();
        begin..begin.saturating_add(bytes.unwrap_or(usize::MAX))
    }

    /// Words of a key.
    #[inline(always)]
    pub(super) fn key_words(&self) -> usize {
        self.head_dim.div_ceil(word(self.element).1)
    }

    /// Byte offsets of the keys and of the values of a head in a block.
    #[inline(always)]
    fn offsets(&self, block: usize, head: usize) -> (usize, usize) {
        let (bytes, elements) = word(self.element);
        let keys = self.key_words() * self.block_size * bytes;
        let values = self.block_size.div_ceil(elements) * self.head_dim * bytes;
        let begin = block * self.kv_heads * (keys + values);
        (begin + head * keys, begin + self.kv_heads * keys + head * values)
    }

    /// Addresses of a position of a block: of the first word of its key, the words of which are `block_size` words
    /// apart, and of the words with its values.
    ///
    /// # Safety
    /// The block must be of the cache, the position of the block.
    #[inline(always)]
    pub(super) unsafe fn place(&self, block: usize, at: usize, head: usize) -> (*mut u8, *mut u8) {
        let (bytes, elements) = word(self.element);
        let (keys, values) = self.offsets(block, head);
        // SAFETY: within the block, by the caller's contract.
        unsafe { (self.begin.add(keys + at * bytes), self.begin.add(values + at / elements * self.head_dim * bytes)) }
    }

    /// Writes the keys and values of a token, all heads, to its slot. A slot out of range writes nothing.
    ///
    /// # Safety
    /// The cache must be writable and nobody else touch the slot; the path's features must be present.
    #[inline(always)]
    pub(crate) unsafe fn write<S: Simd>(&self, slot: i32, keys: &[f32], values: &[f32]) {
        let Ok(slot) = usize::try_from(slot) else { return };
        let (block, at) = (slot / self.block_size, slot % self.block_size);
        if block >= self.blocks {
            return;
        }
        // SAFETY: forwarded; the block was checked above.
        unsafe {
            match self.element {
                ElementType::F32 => self.write_words::<S, u32, u32>((block, at), keys, values),
                ElementType::Bf16 | ElementType::F16 => self.write_words::<S, u32, u16>((block, at), keys, values),
                ElementType::F8E4M3 => self.write_words::<S, u16, u8>((block, at), keys, values),
            }
        }
    }

    /// The same, with words and elements as integers of their sizes.
    ///
    /// # Safety
    /// As [`CacheView::write`]; the block and the position in it must exist.
    #[inline(always)]
    unsafe fn write_words<S: Simd, Word: Copy, Number: Copy>(
        &self,
        (block, at): (usize, usize),
        keys: &[f32],
        values: &[f32],
    ) {
        let elements = size_of::<Word>() / size_of::<Number>();
        debug_assert_eq!((size_of::<Word>(), elements), word(self.element));
        let heads = keys.chunks_exact(self.head_dim).zip(values.chunks_exact(self.head_dim));
        for (head, (keys, values)) in heads.enumerate().take(self.kv_heads) {
            // SAFETY: the caller's contract.
            let (to_key, to_value) = unsafe { self.place(block, at, head) };
            let to_key = to_key.cast::<Word>();
            let to_value = to_value.cast::<Word>().cast::<Number>().wrapping_add(at % elements);
            // A chunk has whole words; the last may be padded.
            for (chunk, (keys, values)) in keys.chunks(LANES).zip(values.chunks(LANES)).enumerate() {
                let (mut key, mut value) = ([0u8; LANES * 4], [0u8; LANES * 4]);
                // SAFETY: a chunk's words and elements are within the head's rows, and in the buffers.
                unsafe {
                    narrow::<S>(self.element, keys, key.as_mut_ptr());
                    narrow::<S>(self.element, values, value.as_mut_ptr());
                    for index in 0..keys.len().div_ceil(elements) {
                        let word = chunk * (LANES / elements) + index;
                        let from = key.as_ptr().cast::<Word>().add(index).read_unaligned();
                        to_key.add(word * self.block_size).write_unaligned(from);
                    }
                    for index in 0..values.len() {
                        let from = value.as_ptr().cast::<Number>().add(index).read_unaligned();
                        to_value.add((chunk * LANES + index) * elements).write_unaligned(from);
                    }
                }
            }
        }
    }
}
