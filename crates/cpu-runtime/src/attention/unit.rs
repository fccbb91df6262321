//! A unit of work: some tokens, one KV head, all of the context or one partition of it.

use super::product::{self, MOST_ROWS, Scores, Sums};
use super::softmax::{Merged, RowState, merge, weigh};
use super::tile::{Keys, Room, Stored, TILE};
use super::{Attention, Batch, PARTITION};
use crate::element::ElementType;
use crate::isa::Task;
use crate::row::math::{self, narrow, widen, with_rounding};
use crate::simd::{BLOCK_BYTES, LANES, Simd};
use std::ops::Range;

/// The most query rows that pass over the context together.
pub(super) const MOST_UNIT_ROWS: usize = 96;

/// Where the parts of a member's scratch begin, in bytes.
pub(super) struct Layout {
    /// Bytes of a query as it is multiplied.
    query_stride: usize,
    /// `head_dim`, rounded up to whole vectors.
    width: usize,
    /// Queries, stored keys, stored values, keys, values, sums of a partition, sums of those before; then the end.
    parts: [usize; 8],
}

impl Layout {
    /// The scratch of `attention`, or `None` if its size overflows.
    pub(super) fn new(attention: &Attention) -> Option<Self> {
        let width = attention.cache.head_dim.checked_next_multiple_of(LANES)?;
        // A word has four bytes at most, and there are no more of them than elements (rounded up).
        let row = width.checked_mul(4)?;
        let sizes = [MOST_UNIT_ROWS, TILE, TILE, TILE, TILE, MOST_UNIT_ROWS, MOST_UNIT_ROWS];
        let mut parts = [0usize; 8];
        for (index, rows) in sizes.into_iter().enumerate() {
            parts[index + 1] = parts[index].checked_add(rows.checked_mul(row)?)?;
        }
        const { assert!(LANES * 4 == BLOCK_BYTES, "parts begin at cache lines") };
        Some(Self { query_stride: row, width, parts })
    }

    /// Bytes of the scratch.
    pub(super) fn bytes(&self) -> usize {
        self.parts[7]
    }
}

/// Numbers of what a partition finds for a row: the state and the sums.
pub(super) fn record_width(head_dim: usize) -> Option<usize> {
    head_dim.checked_next_multiple_of(LANES)?.checked_add(LANES)
}

/// A KV head's work for some tokens.
pub(super) struct Unit<'a> {
    pub(super) attention: &'a Attention,
    pub(super) batch: Batch,
    pub(super) tokens: Range<usize>,
    pub(super) head: usize,
    /// One partition, whose findings are recorded to be merged later, or all.
    pub(super) partition: Option<usize>,
    pub(super) scratch: &'a mut [u8],
}

impl Task for Unit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let attention = self.attention;
        let Some(layout) = Layout::new(attention).filter(|layout| layout.bytes() <= self.scratch.len()) else { return };
        let scratch = self.scratch.as_mut_ptr();
        let mut first = self.tokens.start;
        // Runs of one sequence.
        while first < self.tokens.end {
            // SAFETY: the contract of `Attention::run`; the features are present inside `dispatch`.
            unsafe {
                let sequence = attention.sequence(first, &self.batch);
                let mut end = first + 1;
                while end < self.tokens.end && attention.sequence(end, &self.batch) == sequence {
                    end += 1;
                }
                let tokens = first..end;
                match sequence {
                    Some(sequence) => {
                        let table = attention.block_tables.add(sequence * self.batch.blocks);
                        let table = std::slice::from_raw_parts(table, self.batch.blocks);
                        let (head, partition) = (self.head, self.partition);
                        let group = Group {
                            attention,
                            batch: self.batch,
                            layout: &layout,
                            scratch,
                            table,
                            tokens,
                            head,
                            partition,
                        };
                        let pairs = S::BF16_PAIRS
                            && attention.cache.element == ElementType::Bf16
                            && attention.element == ElementType::Bf16;
                        if pairs { group.run::<S, true>() } else { group.run::<S, false>() }
                    }
                    None if self.partition.is_none_or(|partition| partition == 0) => {
                        tokens.for_each(|token| attention.write_zeros(token, self.head));
                    }
                    None => {}
                }
                first = end;
            }
        }
    }
}

/// Merges what was recorded for a KV head's query heads of a token, and writes them.
pub(super) struct MergeUnit<'a> {
    pub(super) attention: &'a Attention,
    pub(super) batch: Batch,
    pub(super) token: usize,
    pub(super) head: usize,
    pub(super) scratch: &'a mut [u8],
}

impl Task for MergeUnit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let attention = self.attention;
        let Some(layout) = Layout::new(attention).filter(|layout| layout.bytes() <= self.scratch.len()) else { return };
        let sharing = attention.sharing();
        // SAFETY: the contract of `Attention::run`: all records are written, and nobody writes them now.
        unsafe {
            if attention.sequence(self.token, &self.batch).is_none() {
                return;
            }
            let seen = attention.seen(self.token, &self.batch);
            let begin = self.scratch.as_mut_ptr().add(layout.parts[6]).cast();
            let sums = std::slice::from_raw_parts_mut(begin, layout.width);
            for head in self.head * sharing..(self.head + 1) * sharing {
                let mut merged = Merged { largest: f32::NEG_INFINITY, total: 0.0 };
                for partition in 0..seen.div_ceil(PARTITION) {
                    let (state, found) = attention.record(&self.batch, (self.token, head), partition);
                    let found = std::slice::from_raw_parts(found.cast_const(), layout.width);
                    take_partition::<S>(partition, &mut merged, sums, state.read(), found);
                }
                attention.finish::<S>(self.token, head, &merged, sums);
            }
        }
    }
}

/// Takes the first partition as it is, and merges the others.
///
/// # Safety
/// As [`merge`].
#[inline(always)]
unsafe fn take_partition<S: Simd>(
    partition: usize,
    merged: &mut Merged,
    sums: &mut [f32],
    found: Merged,
    found_sums: &[f32],
) {
    if partition == 0 {
        *merged = found;
        sums.copy_from_slice(found_sums);
    } else {
        // SAFETY: forwarded.
        unsafe { merge::<S>(merged, sums, found, found_sums) };
    }
}

impl Attention {
    /// The sequence of a token, or `None` for padding.
    ///
    /// # Safety
    /// The token must be of the batch.
    #[inline(always)]
    pub(super) unsafe fn sequence(&self, token: usize, batch: &Batch) -> Option<usize> {
        // SAFETY: the caller's contract.
        let (position, sequence) =
            unsafe { (self.positions.add(token).read(), self.token_sequences.add(token).read()) };
        if position < 0 {
            return None;
        }
        usize::try_from(sequence).ok().filter(|&sequence| sequence < batch.sequences)
    }

    /// Positions that a token sees: none if it is padding, at most those that a block table has room for.
    ///
    /// # Safety
    /// The token must be of the batch.
    #[inline(always)]
    pub(super) unsafe fn seen(&self, token: usize, batch: &Batch) -> usize {
        // SAFETY: the caller's contract.
        let position = unsafe { self.positions.add(token).read() };
        let capacity = batch.blocks.saturating_mul(self.cache.block_size);
        usize::try_from(position).map_or(0, |position| (position + 1).min(capacity))
    }

    /// Byte offset of a query head of a token in queries and output.
    #[inline(always)]
    fn offset(&self, token: usize, head: usize) -> usize {
        (token * self.heads + head) * self.cache.head_dim * self.element.bytes()
    }

    /// Writes zeros for a token's query heads of a KV head.
    ///
    /// # Safety
    /// The contract of [`Attention::run`].
    unsafe fn write_zeros(&self, token: usize, kv_head: usize) {
        let bytes = self.sharing() * self.cache.head_dim * self.element.bytes();
        // SAFETY: the rows are part of the output.
        unsafe { self.output.add(self.offset(token, kv_head * self.sharing())).write_bytes(0, bytes) };
    }

    /// Divides the sums of a row by its total and writes it, rounded.
    ///
    /// # Safety
    /// The contract of [`Attention::run`].
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, token: usize, head: usize, merged: &Merged, sums: &mut [f32]) {
        sums.iter_mut().for_each(|sum| *sum /= merged.total);
        with_rounding!(self.element, R => round_row::<S, R>(sums));
        // SAFETY: the row is part of the output.
        unsafe { narrow::<S>(self.element, &sums[..self.cache.head_dim], self.output.add(self.offset(token, head))) };
    }
}

/// Tokens of one sequence and one KV head, which pass over the cache together.
struct Group<'a> {
    attention: &'a Attention,
    batch: Batch,
    layout: &'a Layout,
    scratch: *mut u8,
    table: &'a [i32],
    tokens: Range<usize>,
    head: usize,
    partition: Option<usize>,
}

/// Query rows of a group, token by token, then head by head, and what is known of each.
struct Rows {
    rows: Range<usize>,
    seen: [usize; MOST_UNIT_ROWS],
    states: [RowState; MOST_UNIT_ROWS],
    merged: [Merged; MOST_UNIT_ROWS],
}

impl Group<'_> {
    /// The token and the query head of a row.
    #[inline(always)]
    fn row(&self, row: usize) -> (usize, usize) {
        let sharing = self.attention.sharing();
        (self.tokens.start + row / sharing, self.head * sharing + row % sharing)
    }

    /// The address of a part of the scratch.
    #[inline(always)]
    fn part(&self, index: usize) -> *mut u8 {
        self.scratch.wrapping_add(self.layout.parts[index])
    }

    /// The sums of a row, in part 5 or 6 of the scratch.
    ///
    /// # Safety
    /// They must not be borrowed already.
    #[inline(always)]
    unsafe fn sums<'s>(&self, part: usize, row: usize) -> &'s mut [f32] {
        let width = self.layout.width;
        // SAFETY: the part has `MOST_UNIT_ROWS` rows.
        unsafe { std::slice::from_raw_parts_mut(self.part(part).cast::<f32>().add(row * width), width) }
    }

    /// Attends to all positions of all rows, or to those of one partition.
    ///
    /// # Safety
    /// The contract of [`Attention::run`].
    #[inline(always)]
    unsafe fn run<S: Simd, const PAIRS: bool>(&self) {
        let all = self.tokens.len() * self.attention.sharing();
        // A KV head may have more query heads than there is room for: so many at a time.
        for begin in (0..all).step_by(MOST_UNIT_ROWS) {
            let mut rows = Rows {
                rows: begin..all.min(begin + MOST_UNIT_ROWS),
                seen: [0; MOST_UNIT_ROWS],
                states: [RowState::EMPTY; MOST_UNIT_ROWS],
                merged: [Merged { largest: f32::NEG_INFINITY, total: 0.0 }; MOST_UNIT_ROWS],
            };
            // SAFETY: the caller's contract.
            unsafe {
                for (index, row) in rows.rows.clone().enumerate() {
                    rows.seen[index] = self.attention.seen(self.row(row).0, &self.batch);
                    self.load_query::<S, PAIRS>(index, row);
                }
                let most = rows.seen.iter().copied().max().unwrap_or(0);
                let partitions = match self.partition {
                    Some(partition) => partition..(partition + 1).min(most.div_ceil(PARTITION)),
                    None => 0..most.div_ceil(PARTITION),
                };
                for partition in partitions {
                    self.partition::<S, PAIRS>(partition, most, &mut rows);
                    self.keep_partition::<S>(partition, &mut rows);
                }
                if self.partition.is_none() {
                    for (index, row) in rows.rows.clone().enumerate() {
                        let (token, head) = self.row(row);
                        self.attention.finish::<S>(token, head, &rows.merged[index], self.sums(6, index));
                    }
                }
            }
        }
    }

    /// Brings a query to the form in which it is multiplied.
    ///
    /// # Safety
    /// The contract of [`Attention::run`].
    #[inline(always)]
    unsafe fn load_query<S: Simd, const PAIRS: bool>(&self, index: usize, row: usize) {
        let attention = self.attention;
        let (token, head) = self.row(row);
        let head_dim = attention.cache.head_dim;
        // SAFETY: the row is part of the queries; the scratch has room for the query.
        unsafe {
            let from = attention.queries.add(attention.offset(token, head));
            let to = self.part(0).add(index * self.layout.query_stride);
            if PAIRS {
                // The second half of a pair that is not full must not be NaN.
                to.add(head_dim / 2 * 4).write_bytes(0, 4);
                std::ptr::copy_nonoverlapping(from, to, head_dim * 2);
            } else {
                widen::<S>(attention.element, from, std::slice::from_raw_parts_mut(to.cast(), head_dim));
            }
        }
    }

    /// The sums of one partition for all rows. `most` is how many positions any row sees.
    ///
    /// # Safety
    /// The contract of [`Attention::run`].
    #[inline(always)]
    unsafe fn partition<S: Simd, const PAIRS: bool>(&self, partition: usize, most: usize, rows: &mut Rows) {
        let (cache, width) = (&self.attention.cache, self.layout.width);
        let begin = partition * PARTITION;
        let end = most.min(begin + PARTITION);
        let room = Room {
            stored_keys: self.part(1),
            stored_values: self.part(2),
            keys: self.part(3).cast(),
            values: self.part(4).cast(),
            width,
        };
        rows.states.fill(RowState::EMPTY);
        let seen_of = |begin: usize| (most - begin).min(TILE);
        // SAFETY: the caller's contract.
        unsafe {
            self.part(5).write_bytes(0, rows.rows.len() * width * 4);
            let find = |begin: usize| Stored::direct(cache, self.table, self.head, begin, seen_of(begin));
            let mut next = find(begin);
            for begin in (begin..end).step_by(TILE) {
                let seen = seen_of(begin);
                let stored = match next {
                    Some(stored) => stored,
                    None => Stored::collect(cache, self.table, self.head, begin, seen, &room),
                };
                next = if begin + TILE < most { find(begin + TILE) } else { None };
                stored.widen_values::<S>(cache, seen, &room, next.as_ref());
                let next_keys = next.map(|next| next.keys());
                let (keys, ahead) = match PAIRS {
                    true => (stored.keys(), next_keys),
                    false => (stored.widened_keys::<S>(cache, seen, &room, next_keys), None),
                };
                self.tile::<S, PAIRS>(begin, keys, ahead, room.values, rows);
            }
        }
    }

    /// One tile of the context for all rows: scores, weights, sums.
    ///
    /// # Safety
    /// As [`Group::partition`].
    #[inline(always)]
    unsafe fn tile<S: Simd, const PAIRS: bool>(
        &self,
        begin: usize,
        keys: Keys,
        mut next: Option<Keys>,
        values: *const f32,
        rows: &mut Rows,
    ) {
        let (attention, width) = (self.attention, self.layout.width);
        let scale = attention.scale * std::f32::consts::LOG2_E;
        let depth = if PAIRS { attention.cache.key_words() } else { attention.cache.head_dim };
        let count = rows.rows.len();
        let parts = count.div_ceil(S::TILE_ROWS);
        let mut scores = ScoreRows([0.0; MOST_ROWS * TILE]);
        let scores = scores.0.as_mut_ptr();
        for part in 0..parts {
            let share = crate::team::partition(count, part, parts);
            let visible = |row: usize| rows.seen[row].saturating_sub(begin).min(TILE);
            let most = share.clone().map(visible).max().unwrap_or(0);
            if most == 0 {
                continue;
            }
            // Values that a row does not see must not be multiplied, not even with zero: they may be NaN.
            let common = share.clone().map(visible).min().unwrap_or(0);
            // SAFETY: the caller's contract; a share has at most `MOST_ROWS` rows.
            unsafe {
                let queries = self.part(0).add(share.start * self.layout.query_stride);
                let query_stride = self.layout.query_stride;
                let task = Scores { queries, query_stride, keys, depth, next: next.take(), scores };
                product::multiply_keys::<S, PAIRS>(share.len(), most.div_ceil(LANES), &task);
                let mut factors = [1.0; MOST_ROWS];
                for (index, row) in share.clone().enumerate() {
                    if visible(row) > 0 {
                        let scores = scores.add(index * TILE);
                        factors[index] = weigh::<S>(scores, visible(row), scale, &mut rows.states[row]);
                    }
                }
                let sums = self.part(5).cast::<f32>().add(share.start * width);
                let task = Sums { sums, weights: scores, values, width, begin: 0, end: common, factors };
                product::add_values::<S>(share.len(), &task);
                for (index, row) in share.clone().enumerate().filter(|(_, row)| visible(*row) > common) {
                    let single = Sums {
                        sums: sums.add(index * width),
                        weights: scores.add(index * TILE),
                        begin: common,
                        end: visible(row),
                        factors: [1.0; MOST_ROWS],
                        ..task
                    };
                    product::add_values::<S>(1, &single);
                }
            }
        }
    }

    /// Merges what the partition found with what those before it did, or records it.
    ///
    /// # Safety
    /// The contract of [`Attention::run`].
    #[inline(always)]
    unsafe fn keep_partition<S: Simd>(&self, partition: usize, rows: &mut Rows) {
        for (index, row) in rows.rows.clone().enumerate() {
            if rows.seen[index] <= partition * PARTITION {
                continue;
            }
            let state = &rows.states[index];
            let found = Merged { largest: state.largest, total: math::sum(state.totals) };
            // SAFETY: the sums of a row are borrowed once here; the record is this unit's.
            unsafe {
                let sums = self.sums(5, index);
                if self.partition.is_some() {
                    let (state, to) = self.attention.record(&self.batch, self.row(row), partition);
                    state.write(found);
                    std::ptr::copy_nonoverlapping(sums.as_ptr(), to, sums.len());
                } else {
                    take_partition::<S>(partition, &mut rows.merged[index], self.sums(6, index), found, sums);
                }
            }
        }
    }
}

/// Scores of a register tile's rows.
#[repr(align(64))]
struct ScoreRows([f32; MOST_ROWS * TILE]);

/// Rounds a row in place.
#[inline(always)]
fn round_row<S: Simd, R: math::Rounding>(row: &mut [f32]) {
    for chunk in row.as_chunks_mut::<LANES>().0 {
        *chunk = R::round::<S>(*chunk);
    }
}
