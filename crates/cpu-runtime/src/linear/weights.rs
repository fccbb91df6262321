//! Weight matrices in memory: as files store them, and tiled for the kernels.

use super::{KERNEL, amx, check_size, size_of};
use crate::element::ElementType;
use crate::error::KernelError;
use crate::isa::Isa;
use crate::simd::BLOCK_BYTES;
use crate::team::Team;
use std::sync::Mutex;

/// Rows of w that a tile of vector registers takes at once.
pub(crate) const TILE_COLUMNS: usize = 4;

/// How a weight matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightLayout {
    /// `[N, K]`, row by row, as safetensors stores it.
    Rows,
    /// `[ceil(N / tile), ceil(K / block), tile, block]` with blocks of 64 bytes: a tile of rows is one contiguous run.
    /// Missing rows and elements are zero.
    Tiled(TileHeight),
}

/// How many rows of w the tiled layout interleaves: as many as a kernel takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TileHeight {
    /// For the kernels of vector registers.
    Four,
    /// For the kernels of AMX.
    Sixteen,
}

impl TileHeight {
    /// What products of `element` take on the path.
    pub fn of(isa: Isa, element: ElementType) -> Self {
        if amx::multiplies(isa, element) { Self::Sixteen } else { Self::Four }
    }

    /// The number of rows.
    pub const fn rows(self) -> usize {
        match self {
            Self::Four => TILE_COLUMNS,
            Self::Sixteen => amx::TILE,
        }
    }
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
    /// Whether the layout is a tiled one, which has whole tiles and blocks.
    #[inline(always)]
    pub(crate) fn is_tiled(&self) -> bool {
        self.layout != WeightLayout::Rows
    }

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
            WeightLayout::Tiled(height) => (BLOCK_BYTES, BLOCK_BYTES * height.rows()),
        }
    }

    /// Byte offset of row `row`'s first block.
    #[inline(always)]
    pub(crate) fn row_offset(&self, row: usize) -> usize {
        match self.layout {
            WeightLayout::Rows => row * self.row_bytes(),
            WeightLayout::Tiled(height) => {
                let tile = self.blocks() * BLOCK_BYTES * height.rows();
                row / height.rows() * tile + row % height.rows() * BLOCK_BYTES
            }
        }
    }
}

/// Bytes of a weight matrix `[rows, columns]` in the tiled layout.
///
/// # Errors
/// [`KernelError::Overflow`] if that does not fit the address space.
pub fn tiled_bytes(
    element: ElementType,
    height: TileHeight,
    rows: usize,
    columns: usize,
) -> Result<usize, KernelError> {
    let row_bytes = size_of(KERNEL, "w", &[columns, element.bytes()])?;
    let blocks = row_bytes.div_ceil(BLOCK_BYTES);
    let tiles = rows.div_ceil(height.rows());
    size_of(KERNEL, "w", &[tiles, height.rows(), blocks, BLOCK_BYTES])
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
            WeightLayout::Tiled(height) => {
                check_size(KERNEL, "w", bytes.len(), &[tiled_bytes(element, height, rows, columns)?])?;
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

/// Copies `source`, which must be in [`WeightLayout::Rows`], to `target` in [`WeightLayout::Tiled`] of that height, with
/// all threads of the team.
///
/// # Errors
/// [`KernelError`] if the source is tiled already or `target` has another size than [`tiled_bytes`] says.
pub fn repack(team: &Team, source: &Weights<'_>, height: TileHeight, target: &mut [u8]) -> Result<(), KernelError> {
    let raw = source.raw;
    if raw.is_tiled() {
        return Err(KernelError::Unsupported {
            kernel: "repack",
            reason: "the source is tiled already; repack takes the layout of the file".into(),
        });
    }
    let expected = tiled_bytes(raw.element, height, raw.rows, raw.columns)?;
    check_size("repack", "target", target.len(), &[expected])?;
    if expected == 0 {
        return Ok(());
    }
    let row_bytes = raw.row_bytes();
    let tile_bytes = raw.blocks() * BLOCK_BYTES * height.rows();
    // Chunks of whole tiles, each handed to the member that copies it.
    let tiles_per_chunk = (CHUNK_BYTES / tile_bytes).max(1);
    let chunks: Vec<_> = target.chunks_mut(tile_bytes * tiles_per_chunk).map(|chunk| Mutex::new(Some(chunk))).collect();
    team.run(|worker| {
        worker.for_each_unit(chunks.len(), |index| {
            let taken = chunks.get(index).and_then(|chunk| chunk.lock().ok()?.take());
            let Some(chunk) = taken else { return };
            let first = index * tiles_per_chunk * height.rows();
            for (tile, target) in chunk.chunks_exact_mut(tile_bytes).enumerate() {
                copy_tile(source.bytes, row_bytes, height.rows(), first + tile * height.rows(), target);
            }
        });
    });
    Ok(())
}

/// Interleaves the rows from `first` on by blocks, padding with zeros.
fn copy_tile(source: &[u8], row_bytes: usize, rows: usize, first: usize, target: &mut [u8]) {
    for row in 0..rows {
        let begin = (first + row) * row_bytes;
        let bytes = source.get(begin..begin + row_bytes).unwrap_or(&[]);
        let mut blocks = bytes.chunks(BLOCK_BYTES);
        for slot in target.chunks_exact_mut(BLOCK_BYTES).skip(row).step_by(rows) {
            let block = blocks.next().unwrap_or(&[]);
            let (head, tail) = slot.split_at_mut(block.len());
            head.copy_from_slice(block);
            tail.fill(0);
        }
    }
}
