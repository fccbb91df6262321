//! A tile of the context: the keys and values of [`TILE`] positions of one KV head, brought to the form in which they
//! are multiplied.

use super::cache::{CacheView, word};
use crate::element::ElementType;
use crate::simd::{LANES, Simd};

/// Positions of a tile.
pub(super) const TILE: usize = 64;
/// Vectors of positions in a tile.
pub(super) const GROUPS: usize = TILE / LANES;

/// Keys with lanes over positions: element (or pair of elements) `i` of [`LANES`] keys is a vector.
#[derive(Clone, Copy)]
pub(super) struct Keys {
    /// The first vectors of each sixteen positions.
    pub(super) groups: [*const u8; GROUPS],
    /// Bytes from a vector to the next.
    pub(super) stride: usize,
}

/// Where tiles are made.
pub(super) struct Room {
    /// Keys as they are stored, if the cache has them not as they are read: `[words][TILE]`.
    pub(super) stored_keys: *mut u8,
    /// Values likewise: `[TILE / W][head_dim]` words.
    pub(super) stored_values: *mut u8,
    /// Keys in single precision: `[head_dim][TILE]`.
    pub(super) keys: *mut f32,
    /// Values in single precision: `[TILE][width]`.
    pub(super) values: *mut f32,
    /// `head_dim`, rounded up to whole vectors.
    pub(super) width: usize,
}

/// A tile as it is stored.
#[derive(Clone, Copy)]
pub(super) struct Stored {
    keys: Keys,
    /// The first words of each sixteen positions.
    values: [*const u8; GROUPS],
}

/// The block of the cache that has a position, if the table and the cache have it.
#[inline(always)]
fn block_of(cache: &CacheView, table: &[i32], position: usize) -> Option<usize> {
    let block = table.get(position / cache.block_size).copied()?;
    usize::try_from(block).ok().filter(|&block| block < cache.blocks)
}

impl Stored {
    /// The first `seen` positions of a tile that begins at `begin`, if the cache has them as they are read.
    ///
    /// # Safety
    /// The cache must be there.
    #[inline(always)]
    pub(super) unsafe fn direct(
        cache: &CacheView,
        table: &[i32],
        head: usize,
        begin: usize,
        seen: usize,
    ) -> Option<Self> {
        if !cache.block_size.is_multiple_of(LANES) {
            return None;
        }
        let nowhere = [std::ptr::null(); GROUPS];
        let stride = cache.block_size * word(cache.element).0;
        let mut found = Self { keys: Keys { groups: nowhere, stride }, values: nowhere };
        for group in 0..seen.div_ceil(LANES) {
            let position = begin + group * LANES;
            let block = block_of(cache, table, position)?;
            // SAFETY: the block is of the cache.
            let (key, value) = unsafe { cache.place(block, position % cache.block_size, head) };
            (found.keys.groups[group], found.values[group]) = (key, value);
        }
        Some(found)
    }

    /// Collects the first `seen` positions of a tile that begins at `begin` in the room. Positions in blocks that the
    /// table or the cache does not have read as zeros.
    ///
    /// # Safety
    /// The cache must be readable, the room as large as its fields say.
    #[inline(always)]
    pub(super) unsafe fn collect(
        cache: &CacheView,
        table: &[i32],
        head: usize,
        begin: usize,
        seen: usize,
        room: &Room,
    ) -> Self {
        let (bytes, elements) = word(cache.element);
        let (words, half) = (cache.key_words(), bytes / elements);
        // SAFETY: blocks are checked; the room has places for all positions of a tile.
        unsafe {
            room.stored_keys.write_bytes(0, words * TILE * bytes);
            room.stored_values.write_bytes(0, TILE / elements * cache.head_dim * bytes);
            for index in 0..seen {
                let Some(block) = block_of(cache, table, begin + index) else { continue };
                let at = (begin + index) % cache.block_size;
                let (key, value) = cache.place(block, at, head);
                for word in 0..words {
                    let to = room.stored_keys.add((word * TILE + index) * bytes);
                    std::ptr::copy_nonoverlapping(key.add(word * cache.block_size * bytes), to, bytes);
                }
                for element in 0..cache.head_dim {
                    let row = room.stored_values.add(index / elements * cache.head_dim * bytes);
                    let to = row.add(element * bytes + index % elements * half);
                    std::ptr::copy_nonoverlapping(value.add(element * bytes + at % elements * half), to, half);
                }
            }
            let group = |group: usize| room.stored_keys.add(group * LANES * bytes).cast_const();
            let rows = LANES / elements * cache.head_dim * bytes;
            Self {
                keys: Keys { groups: std::array::from_fn(group), stride: TILE * bytes },
                values: std::array::from_fn(|group| room.stored_values.add(group * rows).cast_const()),
            }
        }
    }

    /// The keys as they are stored.
    pub(super) fn keys(&self) -> Keys {
        self.keys
    }

    /// The keys in single precision, widened to the room unless they are stored so. Asks for those of `next`.
    ///
    /// # Safety
    /// The cache must be readable, the room as large as its fields say, the path's features present.
    #[inline(always)]
    pub(super) unsafe fn widened_keys<S: Simd>(
        &self,
        cache: &CacheView,
        seen: usize,
        room: &Room,
        next: Option<Keys>,
    ) -> Keys {
        if cache.element == ElementType::F32 {
            return self.keys;
        }
        let next = next.unwrap_or(self.keys);
        // SAFETY: a group has a vector for each word; the room has rows for `head_dim` elements.
        unsafe {
            for word in 0..cache.key_words() {
                for group in 0..seen.div_ceil(LANES) {
                    S::prefetch(next.groups[group].wrapping_add(word * next.stride));
                    let from = self.keys.groups[group].add(word * self.keys.stride);
                    let [even, odd] = load_pairs::<S>(cache.element, from);
                    let to = room.keys.add(2 * word * TILE + group * LANES);
                    S::store_f32(to, even);
                    if 2 * word + 1 < cache.head_dim {
                        S::store_f32(to.add(TILE), odd);
                    }
                }
            }
            let group = |group: usize| room.keys.add(group * LANES).cast_const().cast();
            Keys { groups: std::array::from_fn(group), stride: TILE * 4 }
        }
    }

    /// Widens the values of `seen` positions to the room, and asks for those of `next`.
    ///
    /// # Safety
    /// As [`Stored::widened_keys`].
    #[inline(always)]
    pub(super) unsafe fn widen_values<S: Simd>(
        &self,
        cache: &CacheView,
        seen: usize,
        room: &Room,
        next: Option<&Stored>,
    ) {
        let (bytes, elements) = word(cache.element);
        let row_bytes = cache.head_dim * bytes;
        let whole = cache.head_dim / LANES * LANES;
        // SAFETY: rows are those of the positions seen; a part of a vector is copied before it is read as one.
        unsafe {
            for row in 0..seen.div_ceil(elements) {
                let (group, row_of_group) = (row * elements / LANES, row % (LANES / elements));
                let offset = row_of_group * row_bytes;
                let from = self.values[group].add(offset);
                let ahead = next.map_or(from, |next| next.values[group].wrapping_add(offset));
                let to = room.values.add(row * elements * room.width);
                for at in (0..whole).step_by(LANES) {
                    S::prefetch(ahead.wrapping_add(at * bytes));
                    widen_words::<S>(cache.element, from.add(at * bytes), to.add(at), room.width);
                }
                if whole < cache.head_dim {
                    let mut padded = [0u8; LANES * 4];
                    let rest = (cache.head_dim - whole) * bytes;
                    std::ptr::copy_nonoverlapping(from.add(whole * bytes), padded.as_mut_ptr(), rest);
                    widen_words::<S>(cache.element, padded.as_ptr(), to.add(whole), room.width);
                }
            }
        }
    }
}

/// Widens a vector of words to one row, or to two that are `width` numbers apart.
///
/// # Safety
/// The words must be readable, the rows writable, the path's features present.
#[inline(always)]
unsafe fn widen_words<S: Simd>(element: ElementType, from: *const u8, to: *mut f32, width: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        if element == ElementType::F32 {
            S::store_f32(to, S::load_f32(from.cast()));
            return;
        }
        let [even, odd] = load_pairs::<S>(element, from);
        S::store_f32(to, even);
        S::store_f32(to.add(width), odd);
    }
}

/// Widens the first and the second elements of [`LANES`] words.
///
/// # Safety
/// As [`widen_words`].
#[inline(always)]
unsafe fn load_pairs<S: Simd>(element: ElementType, from: *const u8) -> [S::Lanes; 2] {
    // SAFETY: the caller's contract.
    unsafe {
        match element {
            ElementType::F16 => S::load_pairs_f16(from),
            ElementType::F8E4M3 => S::load_pairs_e4m3(from),
            // Single precision has no pairs, and is read as it is.
            ElementType::Bf16 | ElementType::F32 => S::load_pairs_bf16(from),
        }
    }
}
