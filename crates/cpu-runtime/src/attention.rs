//! Attention over a paged KV cache.
//!
//! A layer's cache is `[blocks][2][kv_heads][block_size][head_dim]` (2: keys, values), so that the keys of one head in
//! one block are one contiguous run. Softmax is the online form (Milakov and Gimelshein, 2018), in single precision,
//! over runs of one block: the order of every sum depends on the token's position alone.

use crate::element::ElementType;
use crate::isa::{Isa, Task};
use crate::linear::TILE_COLUMNS;
use crate::linear::tile::{self, Columns, Sums, Tile};
use crate::linear::unit::unpack_row;
use crate::row::math::{self, narrow, widen, with_rounding};
use crate::simd::{BLOCK_BYTES, Dot, LANES, Simd};
use crate::team::Worker;
use std::ops::Range;

/// The most query rows that pass over the cache together.
const GROUP_ROWS: usize = 48;
/// Units per member that make sharing out fair.
const UNITS_PER_MEMBER: usize = 4;

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

impl CacheView {
    /// Bytes of a head's row in the cache.
    #[inline(always)]
    fn row_bytes(&self) -> usize {
        self.head_dim * self.element.bytes()
    }

    /// The addresses of its bytes.
    pub(crate) fn bytes(&self) -> Range<usize> {
        let begin = self.begin.addr();
        begin..begin + self.blocks * 2 * self.kv_heads * self.block_size * self.row_bytes()
    }

    /// Byte offsets of the keys and of the values of a head in a block.
    #[inline(always)]
    fn offsets(&self, block: usize, head: usize) -> (usize, usize) {
        let run = self.block_size * self.row_bytes();
        let keys = (block * 2 * self.kv_heads + head) * run;
        (keys, keys + self.kv_heads * run)
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
        let heads = keys.chunks_exact(self.head_dim).zip(values.chunks_exact(self.head_dim));
        for (head, (keys, values)) in heads.enumerate().take(self.kv_heads) {
            let (to_keys, to_values) = self.offsets(block, head);
            // SAFETY: the block was checked above.
            unsafe {
                let begin = self.begin.add(at * self.row_bytes());
                narrow::<S>(self.element, keys, begin.add(to_keys));
                narrow::<S>(self.element, values, begin.add(to_values));
            }
        }
    }
}

/// Attention of a batch of tokens, to be run inside a dispatch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    /// `[T, heads · head_dim]` of the cache's type.
    pub(crate) queries: *const u8,
    /// As the queries.
    pub(crate) output: *mut u8,
    pub(crate) heads: usize,
    pub(crate) scale: f32,
    pub(crate) cache: CacheView,
    /// `[T]`; negative: no position, the output is zero.
    pub(crate) positions: *const i32,
    /// `[T]`: rows of the block table.
    pub(crate) token_sequences: *const i32,
    /// `[S, B]`.
    pub(crate) block_tables: *const i32,
}

// SAFETY: addresses and numbers; use across threads is governed by the contract of `run`.
unsafe impl Sync for Attention {}
// SAFETY: as above.
unsafe impl Send for Attention {}

/// The sizes of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    pub(crate) tokens: usize,
    /// Rows of the block table.
    pub(crate) sequences: usize,
    /// Blocks in a row of it.
    pub(crate) blocks: usize,
}

/// Where the parts of a member's scratch begin, in bytes, for groups of at most `rows` query rows.
struct Layout {
    rows: usize,
    /// An unpacked query.
    query_bytes: usize,
    /// Numbers in a row of scores.
    scores: usize,
    /// Numbers in a row of values or sums.
    width: usize,
    /// Queries, scores, sums, values; then the end.
    parts: [usize; 5],
}

impl Layout {
    fn new<D: Dot>(attention: &Attention, rows: usize) -> Option<Self> {
        let cache = &attention.cache;
        let blocks = cache.row_bytes().div_ceil(BLOCK_BYTES);
        let query_bytes = blocks.checked_mul(D::PARTS * D::OPERAND_BYTES)?;
        let scores = cache.block_size.checked_next_multiple_of(LANES)?;
        let width = cache.head_dim.checked_next_multiple_of(LANES)?;
        let sizes = [
            rows.checked_mul(query_bytes)?,
            rows.checked_mul(scores)?.checked_mul(4)?,
            rows.checked_mul(width)?.checked_mul(4)?,
            cache.block_size.checked_mul(width)?.checked_mul(4)?,
        ];
        let mut parts = [0usize; 5];
        for (index, size) in sizes.into_iter().enumerate() {
            parts[index + 1] = parts[index].checked_add(size.checked_next_multiple_of(BLOCK_BYTES)?)?;
        }
        Some(Self { rows, query_bytes, scores, width, parts })
    }
}

impl Attention {
    /// Query heads that share a KV head.
    #[inline(always)]
    fn sharing(&self) -> usize {
        self.heads / self.cache.kv_heads
    }

    /// Attention of some of the heads that share the only KV head, for a batch of one token.
    pub(crate) fn heads_of_one_token(&self, heads: Range<usize>) -> Self {
        let offset = heads.start * self.cache.row_bytes();
        let (queries, output) = (self.queries.wrapping_add(offset), self.output.wrapping_add(offset));
        Self { queries, output, heads: heads.len(), ..*self }
    }

    /// Tokens of a unit: as many as give every member several units, and fit the scratch.
    fn tokens_per_unit(&self, tokens: usize, threads: usize) -> usize {
        let fair = (tokens * self.cache.kv_heads).div_ceil(threads * UNITS_PER_MEMBER);
        fair.min(tokens).min(GROUP_ROWS / self.sharing()).max(1)
    }

    /// Bytes of scratch that each member needs, or `None` if they overflow.
    pub(crate) fn scratch_bytes(&self, isa: Isa) -> Option<usize> {
        isa.dispatch(ScratchBytes(self))
    }

    /// Does this member's part. All members must call it; the output is complete after the next barrier.
    ///
    /// # Safety
    /// All addresses must be valid for the batch (block numbers and sequences are checked before they are followed),
    /// the output must overlap nothing else, and nobody may write any of them until the barrier. `scratch` must have
    /// `scratch_bytes` bytes, aligned to a cache line.
    pub(crate) unsafe fn run(&self, isa: Isa, worker: &Worker<'_>, batch: Batch, scratch: &mut [u8]) {
        if batch.tokens == 0 {
            return;
        }
        let each = self.tokens_per_unit(batch.tokens, worker.count());
        let kv_heads = self.cache.kv_heads;
        worker.for_each_unit(batch.tokens.div_ceil(each) * kv_heads, |unit| {
            let first = unit / kv_heads * each;
            let tokens = first..(first + each).min(batch.tokens);
            isa.dispatch(RunUnit { attention: self, batch, tokens, head: unit % kv_heads, scratch });
        });
    }
}

struct ScratchBytes<'a>(&'a Attention);

impl Task for ScratchBytes<'_> {
    type Output = Option<usize>;
    fn run<S: Simd>(self) -> Option<usize> {
        let rows = GROUP_ROWS.max(self.0.sharing());
        let layout = match self.0.cache.element {
            ElementType::Bf16 => Layout::new::<S::Bf16>(self.0, rows),
            ElementType::F16 => Layout::new::<S::F16>(self.0, rows),
            ElementType::F32 => Layout::new::<S::F32>(self.0, rows),
            ElementType::F8E4M3 => None,
        };
        layout.map(|layout| layout.parts[4])
    }
}

/// A KV head's work for some tokens.
struct RunUnit<'a> {
    attention: &'a Attention,
    batch: Batch,
    tokens: Range<usize>,
    head: usize,
    scratch: &'a mut [u8],
}

impl Task for RunUnit<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: the contract of `Attention::run`; the features are present inside `dispatch`.
        unsafe {
            match self.attention.cache.element {
                ElementType::Bf16 => self.all_tokens::<S, S::Bf16>(),
                ElementType::F16 => self.all_tokens::<S, S::F16>(),
                ElementType::F32 => self.all_tokens::<S, S::F32>(),
                // Refused when the phase was prepared: it has no scratch size.
                ElementType::F8E4M3 => {}
            }
        }
    }
}

impl RunUnit<'_> {
    /// Cuts the tokens into runs of one sequence.
    ///
    /// # Safety
    /// The contract of [`Attention::run`].
    #[inline(always)]
    unsafe fn all_tokens<S: Simd, D: Dot>(self) {
        let attention = self.attention;
        let rows = GROUP_ROWS.max(attention.sharing());
        let Some(layout) = Layout::new::<D>(attention, rows) else { return };
        if layout.parts[4] > self.scratch.len() {
            return;
        }
        let scratch = self.scratch.as_mut_ptr();
        let mut first = self.tokens.start;
        while first < self.tokens.end {
            // SAFETY: tokens are within the batch.
            unsafe {
                let sequence = attention.sequence(first, &self.batch);
                let mut end = first + 1;
                while end < self.tokens.end && attention.sequence(end, &self.batch) == sequence {
                    end += 1;
                }
                let group = Group { attention, layout: &layout, scratch, tokens: first..end, head: self.head };
                match sequence {
                    Some(sequence) => {
                        let table = attention.block_tables.add(sequence * self.batch.blocks);
                        group.run::<S, D>(std::slice::from_raw_parts(table, self.batch.blocks));
                    }
                    None => group.zeros(),
                }
                first = end;
            }
        }
    }
}

impl Attention {
    /// The sequence of a token, or `None` for padding.
    ///
    /// # Safety
    /// The token must be of the batch.
    #[inline(always)]
    unsafe fn sequence(&self, token: usize, batch: &Batch) -> Option<usize> {
        // SAFETY: the caller's contract.
        let (position, sequence) =
            unsafe { (self.positions.add(token).read(), self.token_sequences.add(token).read()) };
        if position < 0 {
            return None;
        }
        usize::try_from(sequence).ok().filter(|&sequence| sequence < batch.sequences)
    }
}

/// Tokens of one sequence and one KV head, which pass over the cache together.
struct Group<'a> {
    attention: &'a Attention,
    layout: &'a Layout,
    scratch: *mut u8,
    tokens: Range<usize>,
    head: usize,
}

/// The state of the online softmax of a query row.
#[derive(Clone, Copy)]
struct Softmax {
    largest: f32,
    /// Sums of weights by position modulo the number of lanes.
    totals: math::Chunk,
}

impl Group<'_> {
    fn rows(&self) -> usize {
        self.tokens.len() * self.attention.sharing()
    }

    /// Byte offset of a query row (token by token, then head by head) in queries and output.
    #[inline(always)]
    fn offset(&self, row: usize) -> usize {
        let sharing = self.attention.sharing();
        let token = self.tokens.start + row / sharing;
        let head = self.head * sharing + row % sharing;
        (token * self.attention.heads + head) * self.attention.cache.row_bytes()
    }

    /// The numbers of one part of the scratch.
    ///
    /// # Safety
    /// The part must not be borrowed already.
    #[inline(always)]
    #[expect(
        clippy::mut_from_ref,
        reason = "the parts are disjoint, and each is borrowed once, by this function's contract"
    )]
    unsafe fn part(&self, index: usize) -> &mut [f32] {
        let (begin, end) = (self.layout.parts[index], self.layout.parts[index + 1]);
        // SAFETY: the scratch has all parts, which begin at multiples of a cache line.
        unsafe { std::slice::from_raw_parts_mut(self.scratch.add(begin).cast(), (end - begin) / 4) }
    }

    /// Writes zeros.
    ///
    /// # Safety
    /// The contract of [`Attention::run`].
    unsafe fn zeros(&self) {
        let row_bytes = self.attention.cache.row_bytes();
        for row in 0..self.rows() {
            // SAFETY: the row is part of the output.
            unsafe { self.attention.output.add(self.offset(row)).write_bytes(0, row_bytes) };
        }
    }

    /// Attends to all positions of all rows, block by block.
    ///
    /// # Safety
    /// The contract of [`Attention::run`].
    #[inline(always)]
    unsafe fn run<S: Simd, D: Dot>(&self, table: &[i32]) {
        let (attention, layout) = (self.attention, self.layout);
        let (cache, rows) = (&attention.cache, self.rows());
        debug_assert!(rows <= layout.rows);
        let mut softmax = [Softmax { largest: f32::NEG_INFINITY, totals: [0.0; LANES] }; GROUP_ROWS];
        // More heads than GROUP_ROWS to a KV head: one token at a time, so many heads of it at a time.
        for begin in (0..rows).step_by(GROUP_ROWS) {
            let rows = begin..rows.min(begin + GROUP_ROWS);
            let state = &mut softmax[..rows.len()];
            state.fill(Softmax { largest: f32::NEG_INFINITY, totals: [0.0; LANES] });
            // SAFETY: the caller's contract; parts 0 to 3 are disjoint.
            unsafe {
                for (index, row) in rows.clone().enumerate() {
                    let to = self.scratch.add(index * layout.query_bytes);
                    let from = attention.queries.add(self.offset(row));
                    unpack_row::<S, D>(from, BLOCK_BYTES, cache.row_bytes(), to);
                }
                self.part(2).fill(0.0);
                let last = self.tokens.clone().map(|token| attention.positions.add(token).read()).max();
                let positions = last.map_or(0, |last| last.max(-1).cast_unsigned() as usize + 1);
                for (index, block) in table.iter().take(positions.div_ceil(cache.block_size)).enumerate() {
                    let Some(block) = usize::try_from(*block).ok().filter(|&block| block < cache.blocks) else {
                        continue;
                    };
                    self.block::<S, D>(rows.clone(), index * cache.block_size, block, positions, state);
                }
                for (index, row) in rows.enumerate() {
                    let total = math::sum(state[index].totals);
                    let sums = &mut self.part(2)[index * layout.width..(index + 1) * layout.width];
                    for sum in sums.iter_mut() {
                        *sum /= total;
                    }
                    with_rounding!(cache.element, R => round_row::<S, R>(sums));
                    narrow::<S>(cache.element, &sums[..cache.head_dim], attention.output.add(self.offset(row)));
                }
            }
        }
    }

    /// One block of the cache for some rows: scores, softmax, sums. `begin` is the block's first position,
    /// `positions` how many any row sees.
    ///
    /// # Safety
    /// The contract of [`Attention::run`]; the block must be of the cache.
    #[inline(always)]
    unsafe fn block<S: Simd, D: Dot>(
        &self,
        rows: Range<usize>,
        begin: usize,
        block: usize,
        positions: usize,
        softmax: &mut [Softmax],
    ) {
        let (attention, layout) = (self.attention, self.layout);
        let cache = &attention.cache;
        let seen = (positions - begin).min(cache.block_size);
        let (keys, values) = cache.offsets(block, self.head);
        // SAFETY: the block is of the cache, the rows' state of the scratch.
        unsafe {
            let widened = self.part(3);
            for (row, to) in widened.chunks_exact_mut(layout.width).take(seen).enumerate() {
                let from = cache.begin.add(values + row * cache.row_bytes());
                widen::<S>(cache.element, from, &mut to[..cache.head_dim]);
            }
            self.scores::<S, D>(rows.len(), cache.begin.add(keys), seen);
            let (scores, sums) = (self.part(1), self.part(2));
            for (index, row) in rows.enumerate() {
                let token = self.tokens.start + row / attention.sharing();
                let position = attention.positions.add(token).read().max(0).cast_unsigned() as usize;
                let visible = (position + 1).saturating_sub(begin).min(cache.block_size);
                if visible == 0 {
                    continue;
                }
                let scores = &mut scores[index * layout.scores..(index + 1) * layout.scores];
                let sums = &mut sums[index * layout.width..(index + 1) * layout.width];
                weigh(scores, visible, attention.scale, &mut softmax[index], sums);
                add_values::<S>(sums, &scores[..visible], widened);
            }
        }
    }

    /// Scores of the first `seen` keys of a block (rounded up to a tile where there are keys), `rows` rows.
    ///
    /// # Safety
    /// As [`Group::block`].
    #[inline(always)]
    unsafe fn scores<S: Simd, D: Dot>(&self, rows: usize, keys: *const u8, seen: usize) {
        let (layout, row_bytes) = (self.layout, self.attention.cache.row_bytes());
        let tiles = rows.div_ceil(S::TILE_ROWS);
        for tile in 0..tiles {
            let share = crate::team::partition(rows, tile, tiles);
            let mut key = 0;
            while key < seen {
                let whole = key + TILE_COLUMNS <= self.attention.cache.block_size;
                let columns = if whole { TILE_COLUMNS } else { 1 };
                // SAFETY: the block has the keys; the scratch has the rows' queries and scores.
                unsafe {
                    let begin = keys.add(key * row_bytes);
                    let scores = self.scratch.add(layout.parts[1]).cast::<f32>();
                    let tile = Tile {
                        x: self.scratch.add(share.start * layout.query_bytes),
                        x_stride: layout.query_bytes,
                        w: Columns {
                            begin,
                            row_stride: row_bytes,
                            block_stride: BLOCK_BYTES,
                            next: begin.wrapping_add(columns * row_bytes),
                        },
                        blocks: row_bytes / BLOCK_BYTES,
                        tail: row_bytes % BLOCK_BYTES,
                        sums: Sums {
                            saved: std::ptr::null_mut(),
                            begins: true,
                            ends: true,
                            totals: scores.add(share.start * layout.scores + key),
                            totals_stride: layout.scores,
                        },
                    };
                    tile::multiply::<S, D>(share.len(), whole, &tile);
                }
                key += columns;
            }
        }
    }
}

/// Turns the first `visible` scores into weights, relative to the largest score so far, and rescales what was summed
/// relative to an earlier one.
#[inline(always)]
fn weigh(scores: &mut [f32], visible: usize, scale: f32, state: &mut Softmax, sums: &mut [f32]) {
    let mut largest = [f32::NEG_INFINITY; LANES];
    for (chunk, scores) in scores.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        for (lane, (score, largest)) in scores.iter_mut().zip(&mut largest).enumerate() {
            let masked = chunk * LANES + lane >= visible;
            *score = if masked { f32::NEG_INFINITY } else { *score * scale };
            *largest = largest.max(*score);
        }
    }
    let largest = largest.into_iter().fold(state.largest, f32::max);
    // While every score is -inf, all weights are zero.
    let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
    if state.largest != largest && state.largest != f32::NEG_INFINITY {
        let factor = math::exp(state.largest - base);
        state.totals.iter_mut().chain(sums).for_each(|sum| *sum *= factor);
    }
    state.largest = largest;
    for scores in scores.as_chunks_mut::<LANES>().0 {
        for (score, total) in scores.iter_mut().zip(&mut state.totals) {
            *score = math::exp(*score - base);
            *total += *score;
        }
    }
}

/// Adds weighted values, position by position, lanes over the head's dimension.
///
/// # Safety
/// The path's features must be present.
#[inline(always)]
unsafe fn add_values<S: Simd>(sums: &mut [f32], weights: &[f32], values: &[f32]) {
    let width = sums.len();
    let mut at = 0;
    // SAFETY: every value row has `width` numbers; the caller vouches for the features.
    unsafe {
        while at + 4 * LANES <= width {
            add_columns::<S, 4>(&mut sums[at..], weights, &values[at..], width);
            at += 4 * LANES;
        }
        while at < width {
            add_columns::<S, 1>(&mut sums[at..], weights, &values[at..], width);
            at += LANES;
        }
    }
}

/// Adds weighted values in `N` vectors of columns.
///
/// # Safety
/// As [`add_values`]; `sums` and every row of `values` must have `N` vectors.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "counted loops over constants keep the sums in registers")]
unsafe fn add_columns<S: Simd, const N: usize>(sums: &mut [f32], weights: &[f32], values: &[f32], width: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut local = [S::splat(0.0); N];
        for n in 0..N {
            local[n] = S::load_f32(sums.as_ptr().add(n * LANES));
        }
        for (position, weight) in weights.iter().enumerate() {
            let weight = S::splat(*weight);
            for n in 0..N {
                let value = S::load_f32(values.as_ptr().add(position * width + n * LANES));
                local[n] = S::multiply_add(local[n], weight, value);
            }
        }
        for n in 0..N {
            S::store_f32(sums.as_mut_ptr().add(n * LANES), local[n]);
        }
    }
}

/// Rounds a row in place.
#[inline(always)]
fn round_row<S: Simd, R: math::Rounding>(row: &mut [f32]) {
    for chunk in row.as_chunks_mut::<LANES>().0 {
        *chunk = R::round::<S>(*chunk);
    }
}
