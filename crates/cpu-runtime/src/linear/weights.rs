//! Weight matrices in memory: as files store them, and tiled for the kernels.

use super::{KERNEL, check_size, size_of};
use crate::element::ElementType;
use crate::error::KernelError;
use crate::simd::BLOCK_BYTES;
use crate::team::Team;
use std::sync::Mutex;

/// Rows of w that a register tile takes at once, and that the tiled layout interleaves.
pub const TILE_COLUMNS: usize = 4;

/// How a weight matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightLayout {
    /// `[N, K]`, row by row, as safetensors stores it.
    Rows,
    /// `[ceil(N / 4), ceil(K / block), 4, block]` with blocks of 64 bytes: a tile of four rows is one contiguous run.
    /// Missing rows and elements are zero.
    Tiled,
}

/// A weight matrix `[N, K]`.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    bytes: &'a [u8],
    raw: RawWeights,
}

/// A weight matrix known by address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawWeights {
    pub(crate) begin: *const u8,
    pub(crate) element: ElementType,
    pub(crate) layout: WeightLayout,
    /// N.
    pub(crate) rows: usize,
    /// K.
    pub(crate) columns: usize,
}

// SAFETY: `RawWeights` is an address with a shape; `Weights` only reads its borrowed bytes.
unsafe impl Sync for RawWeights {}
// SAFETY: as above.
unsafe impl Send for RawWeights {}

impl RawWeights {
    /// Bytes of a row of the file.
    pub(crate) fn row_bytes(&self) -> usize {
        self.columns * self.element.bytes()
    }

    /// Blocks of a row, the last one possibly partial.
    pub(crate) fn blocks(&self) -> usize {
        self.row_bytes().div_ceil(BLOCK_BYTES)
    }

    /// Address of row `row` (in the tiled layout a row is not contiguous), distance between rows of a tile and between
    /// blocks of a row.
    #[inline(always)]
    pub(crate) fn strides(&self) -> (usize, usize) {
        match self.layout {
            WeightLayout::Rows => (self.row_bytes(), BLOCK_BYTES),
            WeightLayout::Tiled => (BLOCK_BYTES, BLOCK_BYTES * TILE_COLUMNS),
        }
    }

    /// Byte offset of row `row`'s first block.
    #[inline(always)]
    pub(crate) fn row_offset(&self, row: usize) -> usize {
        match self.layout {
            WeightLayout::Rows => row * self.row_bytes(),
            WeightLayout::Tiled => {
                let tile = self.blocks() * BLOCK_BYTES * TILE_COLUMNS;
                row / TILE_COLUMNS * tile + row % TILE_COLUMNS * BLOCK_BYTES
            }
        }
    }
}

/// Bytes of a weight matrix `[rows, columns]` in the tiled layout.
///
/// # Errors
/// [`KernelError::Overflow`] if that does not fit the address space.
pub fn tiled_bytes(element: ElementType, rows: usize, columns: usize) -> Result<usize, KernelError> {
    let row_bytes = size_of(KERNEL, "w", &[columns, element.bytes()])?;
    let blocks = row_bytes.div_ceil(BLOCK_BYTES);
    let tiles = rows.div_ceil(TILE_COLUMNS);
    size_of(KERNEL, "w", &[tiles, TILE_COLUMNS, blocks, BLOCK_BYTES])
}

impl<'a> Weights<'a> {
    /// A matrix of `rows` (N) by `columns` (K) in `bytes`.
    ///
    /// # Errors
    /// [`KernelError`] if `bytes` has another size than the shape and the layout say.
    pub fn new(
        bytes: &'a [u8],
        element: ElementType,
        layout: WeightLayout,
        rows: usize,
        columns: usize,
    ) -> Result<Self, KernelError> {
        match layout {
            WeightLayout::Rows => {
                check_size(KERNEL, "w", bytes.len(), &[rows, columns, element.bytes()])?;
            }
            WeightLayout::Tiled => {
                check_size(KERNEL, "w", bytes.len(), &[tiled_bytes(element, rows, columns)?])?;
            }
        }
        Ok(Self { bytes, raw: RawWeights { begin: bytes.as_ptr(), element, layout, rows, columns } })
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.raw.rows
    }

    /// K.
    pub fn columns(&self) -> usize {
        self.raw.columns
    }

    /// The element type.
    pub fn element(&self) -> ElementType {
        self.raw.element
    }

    /// The layout.
    pub fn layout(&self) -> WeightLayout {
        self.raw.layout
    }

    pub(crate) fn raw(&self) -> RawWeights {
        self.raw
    }
}

/// Bytes that a member copies at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Copies `source`, which must be in [`WeightLayout::Rows`], to `target` in [`WeightLayout::Tiled`], with all threads of
/// the team.
///
/// # Errors
/// [`KernelError`] if the source is tiled already or `target` has another size than [`tiled_bytes`] says.
pub fn repack(team: &Team, source: &Weights<'_>, target: &mut [u8]) -> Result<(), KernelError> {
    let raw = source.raw;
    if raw.layout != WeightLayout::Rows {
        return Err(KernelError::Unsupported {
            kernel: "repack",
            reason: "the source is tiled already; repack takes the layout of the file".into(),
        });
    }
    let expected = tiled_bytes(raw.element, raw.rows, raw.columns)?;
    check_size("repack", "target", target.len(), &[expected])?;
    if expected == 0 {
        return Ok(());
    }
    let row_bytes = raw.row_bytes();
    let tile_bytes = raw.blocks() * BLOCK_BYTES * TILE_COLUMNS;
    // Chunks of whole tiles, each handed to the member that copies it.
    let tiles_per_chunk = (CHUNK_BYTES / tile_bytes).max(1);
    let chunks: Vec<_> = target.chunks_mut(tile_bytes * tiles_per_chunk).map(|chunk| Mutex::new(Some(chunk))).collect();
    team.run(|worker| {
        worker.for_each_unit(chunks.len(), |index| {
            let taken = chunks.get(index).and_then(|chunk| chunk.lock().ok()?.take());
            let Some(chunk) = taken else { return };
            let first = index * tiles_per_chunk * TILE_COLUMNS;
            for (tile, target) in chunk.chunks_exact_mut(tile_bytes).enumerate() {
                copy_tile(source.bytes, row_bytes, first + tile * TILE_COLUMNS, target);
            }
        });
    });
    Ok(())
}

/// Interleaves the rows from `first` on by blocks, padding with zeros.
fn copy_tile(source: &[u8], row_bytes: usize, first: usize, target: &mut [u8]) {
    for row in 0..TILE_COLUMNS {
        let begin = (first + row) * row_bytes;
        let bytes = source.get(begin..begin + row_bytes).unwrap_or(&[]);
        let mut blocks = bytes.chunks(BLOCK_BYTES);
        for slot in target.chunks_exact_mut(BLOCK_BYTES).skip(row).step_by(TILE_COLUMNS) {
            let block = blocks.next().unwrap_or(&[]);
            let (head, tail) = slot.split_at_mut(block.len());
            head.copy_from_slice(block);
            tail.fill(0);
        }
    }
}
