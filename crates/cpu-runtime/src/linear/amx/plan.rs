//! How a product is cut up: a function of shapes and team size, which results do not depend on.

use super::{TILE, TILE_BYTES, TILE_DEPTH};
use crate::element::ElementType;
use crate::linear::{RawWeights, Tuning};
use crate::memory::ScratchBytes;
use crate::simd::BLOCK_BYTES;
use std::ops::Range;

/// The most rows of x whose tiles every member packs for itself, and that pass over the weights once: two tiles.
pub(super) const FEW_ROWS: usize = 2 * TILE;
/// Rows of x that are packed together and pass over the weights once, where there are many.
pub(super) const ROW_BLOCK: usize = 512;
/// Tiles that are unpacked before they are multiplied, in a stream of weights: some KiB, in the first-level cache.
pub(super) const UNPACKED_TILES: usize = 8;
/// Tiles of w that are read side by side where there is one tile of x.
const STREAMS: usize = 4;
/// Units per member that make sharing out fair.
const UNITS_PER_MEMBER: usize = 4;

/// A product cut up for a batch.
#[derive(Clone, Copy, Debug)]
pub(in crate::linear) struct Plan {
    /// Rows of x that run together.
    pub(super) rows: usize,
    /// Tiles of w: sixteen rows each.
    pub(super) tiles: usize,
    /// Tiles along K.
    pub(super) depth: usize,
    /// Tiles of w in a unit.
    pub(super) unit_tiles: usize,
    /// Tiles along K of a run.
    pub(super) run: usize,
    /// Whether a unit's weights are unpacked, or copied to be one contiguous run, before they are multiplied.
    pub(super) unpacks: bool,
}

impl Plan {
    /// For `rows` rows of x that run together, at most [`ROW_BLOCK`].
    pub(in crate::linear) fn new(w: &RawWeights, tuning: &Tuning, rows: usize, threads: usize) -> Self {
        let tiles = w.rows.div_ceil(TILE);
        let fair = tiles.div_ceil(threads.saturating_mul(UNITS_PER_MEMBER)).max(1);
        let depth = depth_of(w);
        let (unit_tiles, side_by_side, run) = if rows <= FEW_ROWS {
            ((tuning.stream_bytes / (w.row_bytes() * TILE).max(1)).max(STREAMS), STREAMS, depth)
        } else {
            (tuning.unit_columns / TILE, 2, depth.min(tuning.run))
        };
        let unit_tiles = unit_tiles.min(fair).max(1);
        let unit_tiles = unit_tiles.next_multiple_of(side_by_side.min(unit_tiles.next_power_of_two()));
        let unpacks = w.element != ElementType::Bf16 || !w.is_tiled();
        Self { rows, tiles, depth, unit_tiles, run, unpacks }
    }

    /// Whether every member packs x for itself.
    pub(super) fn is_few(&self) -> bool {
        self.rows <= FEW_ROWS
    }

    /// Tiles of w.
    pub(in crate::linear) fn tiles(&self) -> usize {
        self.tiles
    }

    /// The number of units.
    pub(super) fn units(&self) -> usize {
        self.tiles.div_ceil(self.unit_tiles)
    }

    /// The tiles of w of a unit.
    pub(super) fn unit(&self, index: usize) -> Range<usize> {
        let first = index * self.unit_tiles;
        first..(first + self.unit_tiles).min(self.tiles)
    }

    /// Tiles of x.
    pub(super) fn x_tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// Rows of x in a tile.
    pub(super) fn x_columns(&self) -> usize {
        self.rows.min(TILE)
    }

    /// Bytes of all tiles of x.
    pub(super) fn x_bytes(&self) -> Option<usize> {
        self.x_tiles().checked_mul(self.depth)?.checked_mul(TILE_BYTES)
    }

    /// Bytes of the unpacked weights of a unit, and of sums kept between runs.
    pub(super) fn unit_bytes(&self) -> Option<[usize; 2]> {
        if self.is_few() {
            return Some([2 * UNPACKED_TILES * TILE_BYTES, 0]);
        }
        let weights = self.unit_tiles.checked_mul(self.run)?.checked_mul(TILE_BYTES)?;
        let sums = self.unit_tiles.next_multiple_of(2) * self.x_tiles().next_multiple_of(2) * TILE_BYTES;
        Some([if self.unpacks { weights } else { 0 }, if self.run < self.depth { sums } else { 0 }])
    }

    /// The scratch that it needs.
    pub(super) fn scratch_bytes(&self) -> Option<ScratchBytes> {
        let [weights, sums] = self.unit_bytes()?;
        let (own, shared) = if self.is_few() { (self.x_bytes()?, 0) } else { (0, self.x_bytes()?) };
        Some(ScratchBytes { own: own.checked_add(weights)?.checked_add(sums)?, shared })
    }
}

/// Tiles along K. In FP8 they come in pairs, one block of codes each.
fn depth_of(w: &RawWeights) -> usize {
    let per_block = BLOCK_BYTES / w.element.bytes() / TILE_DEPTH;
    w.blocks() * per_block
}
