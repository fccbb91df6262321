//! Operands in the form that tiles take them: x in pairs along K, weights widened or padded where they are not tiles already.

use super::{TILE, TILE_BYTES, TILE_DEPTH, TILE_ROW_BYTES};
use crate::element::ElementType;
use crate::linear::RawWeights;
use crate::simd::{BLOCK_BYTES, widen_e4m3_block, widen_e4m3_half};
use std::arch::x86_64::*;
use std::ops::Range;

/// Some rows of x.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) begin: *const u8,
    pub(super) count: usize,
    /// Bytes of a row.
    pub(super) bytes: usize,
    pub(super) element: ElementType,
}

impl Rows {
    /// 32 numbers of a row from tile `depth` along K, as bf16; zeros after its end.
    #[inline(always)]
    unsafe fn load(&self, row: usize, depth: usize) -> __m512i {
        let at = depth * TILE_DEPTH * self.element.bytes();
        let rest = self.bytes.saturating_sub(at);
        // SAFETY: masked loads touch the row's own bytes only; the caller has the features.
        unsafe {
            let from = self.begin.add(row * self.bytes + at);
            match self.element {
                ElementType::F8E4M3 => widen_e4m3_half(_mm256_maskz_loadu_epi8(low_bits(rest) as u32, from.cast())),
                _ => _mm512_maskz_loadu_epi8(low_bits(rest), from.cast()),
            }
        }
    }

    /// Writes the tile of rows from `first` on, at `depth` tiles along K, `columns` rows wide: rows that are missing are
    /// zeros.
    ///
    /// # Safety
    /// The rows must be readable, and a tile's rows, `4 · columns` bytes each, writable at `to`; the machine must have the
    /// features of the path.
    #[inline(always)]
    pub(super) unsafe fn pack(&self, first: usize, columns: usize, depth: usize, to: *mut u8) {
        // SAFETY: the caller's contract.
        unsafe {
            if columns == 1 {
                // A row's pairs lie as the tile wants them.
                _mm512_storeu_si512(to.cast(), self.load(first, depth));
                return;
            }
            let mut rows = [_mm512_setzero_si512(); TILE];
            for (index, row) in rows.iter_mut().enumerate().take(self.count - first) {
                *row = self.load(first + index, depth);
            }
            let mask = low_bits(columns) as u16;
            for (pair, row) in transpose(rows).into_iter().enumerate() {
                _mm512_mask_storeu_epi32(to.add(pair * columns * 4).cast(), mask, row);
            }
        }
    }
}

/// The lowest `count` bits, at most 64.
#[inline(always)]
fn low_bits(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// Whether the tile of rows from `tile · 16` on can be multiplied where it is.
pub(super) fn is_in_place(w: &RawWeights, tile: usize) -> bool {
    let whole = w.is_tiled() || (tile + 1) * TILE <= w.rows && w.row_bytes().is_multiple_of(TILE_ROW_BYTES);
    w.element == ElementType::Bf16 && whole
}

/// Writes tiles `depths` along K of `W` times 16 rows of w from `tile · 16` on, as bf16; what is missing is zeros. Tiles along K
/// come one after the other, those of the next 16 rows `beside` bytes on. Codes are asked for `ahead` bytes before they are read.
///
/// # Safety
/// The weights must be readable, the tiles writable at `to`; the machine must have the features of the path. In FP8,
/// `depths` must begin and end at even numbers.
#[inline(always)]
pub(super) unsafe fn unpack_weights<const W: usize>(
    w: &RawWeights,
    tile: usize,
    depths: Range<usize>,
    ahead: usize,
    (to, beside): (*mut u8, usize),
) {
    let (row_stride, block_stride) = w.strides();
    let per_block = BLOCK_BYTES / w.element.bytes() / TILE_DEPTH;
    let padded = w.is_tiled();
    let begins: [_; W] = std::array::from_fn(|place| w.begin.wrapping_add(w.row_offset((tile + place) * TILE)));
    let rows: [_; W] = std::array::from_fn(|place| match padded {
        true => TILE,
        false => w.rows.saturating_sub((tile + place) * TILE).min(TILE),
    });
    for (index, block) in (depths.start / per_block..depths.end / per_block).enumerate() {
        let rest = if padded { BLOCK_BYTES } else { w.row_bytes().saturating_sub(block * BLOCK_BYTES) };
        let mask = low_bits(rest);
        let to = to.wrapping_add(index * per_block * TILE_BYTES);
        // A line of each of the tiles in turn: the memory is read faster so than tile after tile.
        for row in 0..TILE {
            for place in 0..W {
                let from = begins[place].wrapping_add(block * block_stride + row * row_stride);
                let to = to.wrapping_add(place * beside + row * TILE_ROW_BYTES);
                // SAFETY: masked loads touch the row's own bytes only, and none of a row that does not exist; the tiles are
                // the caller's. A prefetch of any address is harmless.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(ahead).cast());
                    let stored = _mm512_maskz_loadu_epi8(if row < rows[place] { mask } else { 0 }, from.cast());
                    if w.element == ElementType::F8E4M3 {
                        let [low, high] = widen_e4m3_block(stored);
                        _mm512_storeu_si512(to.cast(), low);
                        _mm512_storeu_si512(to.wrapping_add(TILE_BYTES).cast(), high);
                    } else {
                        _mm512_storeu_si512(to.cast(), stored);
                    }
                }
            }
        }
    }
}

/// Exchanges rows and columns of 16 × 16 numbers of 32 bits.
#[inline(always)]
pub(super) unsafe fn transpose(rows: [__m512i; TILE]) -> [__m512i; TILE] {
    let mut a = rows;
    let mut b = rows;
    // SAFETY: the caller has the features.
    unsafe {
        for i in 0..8 {
            b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
        }
        for i in 0..4 {
            for j in 0..2 {
                a[4 * i + 2 * j] = _mm512_unpacklo_epi64(b[4 * i + j], b[4 * i + 2 + j]);
                a[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(b[4 * i + j], b[4 * i + 2 + j]);
            }
        }
        // Now quarter q of a[4i + c] is column 4q + c of rows 4i to 4i + 3.
        for c in 0..4 {
            let even = [
                _mm512_shuffle_i32x4::<0b10_00_10_00>(a[c], a[4 + c]),
                _mm512_shuffle_i32x4::<0b10_00_10_00>(a[8 + c], a[12 + c]),
            ];
            let odd = [
                _mm512_shuffle_i32x4::<0b11_01_11_01>(a[c], a[4 + c]),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(a[8 + c], a[12 + c]),
            ];
            b[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even[0], even[1]);
            b[8 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even[0], even[1]);
            b[4 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd[0], odd[1]);
            b[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd[0], odd[1]);
        }
    }
    b
}
