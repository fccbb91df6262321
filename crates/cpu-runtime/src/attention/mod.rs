//! Attention over a paged KV cache.
//!
//! The context of a token is cut at fixed positions: into partitions of [`PARTITION`], and these into tiles of
//! [`tile::TILE`]. Within a partition softmax is the online form, tile after tile; what the partitions found is merged
//! in their order. A score is one chain of multiply-adds along the key, a sum one chain along positions. So the bits of
//! an output row depend on its inputs and the instruction-set path: not on what is computed together or by whom, nor on
//! the size of blocks.
//!
//! Work is cut into units of some tokens of one KV head. If that gives the team too few, each partition is a unit, and
//! its findings are recorded and merged by a second sharing out.

mod cache;
mod product;
mod softmax;
#[cfg(test)]
mod tests;
mod tile;
mod unit;

use crate::element::ElementType;
use crate::isa::Isa;
use crate::simd::LANES;
use crate::team::{Sharing, Worker};
pub(crate) use cache::CacheView;
use softmax::Merged;
use unit::{Layout, MOST_UNIT_ROWS, MergeUnit, Unit, record_width};

/// Positions of a partition of the context.
pub(crate) const PARTITION: usize = 256;
/// Units per member that make sharing out fair.
const UNITS_PER_MEMBER: usize = 4;
/// Bytes that records of partitions may take.
const MOST_RECORD_BYTES: usize = 64 << 20;

/// Attention of a batch of tokens, to be run inside a dispatch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    /// `[T, heads · head_dim]` of `element`.
    pub(crate) queries: *const u8,
    /// As the queries.
    pub(crate) output: *mut u8,
    /// The type of queries and output; the cache has its own.
    pub(crate) element: ElementType,
    pub(crate) heads: usize,
    pub(crate) scale: f32,
    pub(crate) cache: CacheView,
    /// `[T]`; negative: no position, the output is zero.
    pub(crate) positions: *const i32,
    /// `[T]`: rows of the block table.
    pub(crate) token_sequences: *const i32,
    /// `[S, B]`.
    pub(crate) block_tables: *const i32,
    pub(crate) records: Records,
}

/// Memory for what partitions find, known by address. All attention of a device may share it: one runs at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Records {
    /// Aligned to a cache line.
    pub(crate) begin: *mut u8,
    /// With less than a batch needs, partitions are not units of their own.
    pub(crate) bytes: usize,
}

impl Records {
    /// Bytes with which every batch of at most `tokens` tokens whose contexts have at most `positions` can use all of
    /// `threads` threads, within a limit.
    pub(crate) fn wanted_bytes(
        threads: usize,
        tokens: usize,
        positions: usize,
        heads: usize,
        cache: (usize, usize),
    ) -> usize {
        let (kv_heads, head_dim) = cache;
        let partitions = positions.div_ceil(PARTITION);
        if threads < 2 || partitions < 2 || kv_heads == 0 {
            return 0;
        }
        let tokens = tokens.min((threads * UNITS_PER_MEMBER).div_ceil(kv_heads));
        let row = record_width(head_dim).unwrap_or(usize::MAX).saturating_mul(4);
        let rows = tokens.saturating_mul(heads).saturating_mul(partitions);
        rows.saturating_mul(row).min(MOST_RECORD_BYTES)
    }
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

/// How a batch is cut into units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Tokens of a unit.
    tokens: usize,
    /// Partitions that are units of their own, or `None` if a unit has the whole context.
    partitions: Option<usize>,
}

impl Attention {
    /// Query heads that share a KV head.
    #[inline(always)]
    fn sharing(&self) -> usize {
        self.heads / self.cache.kv_heads
    }

    /// Cuts a batch of contexts of at most `seen` positions so that each of `threads` members gets several units, and a
    /// unit fits the scratch.
    fn cut(&self, tokens: usize, seen: usize, threads: usize) -> Cut {
        let wanted = threads * UNITS_PER_MEMBER;
        let partitions = seen.div_ceil(PARTITION);
        let each = |units: usize| (units / wanted).clamp(1, tokens).min(MOST_UNIT_ROWS / self.sharing()).max(1);
        let split = threads > 1
            && partitions > 1
            && tokens * self.cache.kv_heads < wanted
            && self.record_bytes(tokens).saturating_mul(partitions) <= self.records.bytes;
        match split {
            true => Cut { tokens: each(tokens * self.cache.kv_heads * partitions), partitions: Some(partitions) },
            false => Cut { tokens: each(tokens * self.cache.kv_heads), partitions: None },
        }
    }

    /// Bytes of records of one partition.
    fn record_bytes(&self, tokens: usize) -> usize {
        let row = record_width(self.cache.head_dim).unwrap_or(usize::MAX).saturating_mul(4);
        row.saturating_mul(self.heads).saturating_mul(tokens)
    }

    /// Where it is recorded what a partition found for a row: the state, and the sums.
    ///
    /// # Safety
    /// The records must have room for the token and the partition.
    #[inline(always)]
    unsafe fn record(&self, batch: &Batch, (token, head): (usize, usize), partition: usize) -> (*mut Merged, *mut f32) {
        let row = record_width(self.cache.head_dim).unwrap_or(0);
        // SAFETY: the caller's contract; a record begins with a vector's room for the state.
        unsafe {
            let begin =
                self.records.begin.cast::<f32>().add(((partition * batch.tokens + token) * self.heads + head) * row);
            (begin.cast(), begin.add(LANES))
        }
    }

    /// Bytes of scratch that each member needs, or `None` if they overflow.
    pub(crate) fn scratch_bytes(&self) -> Option<usize> {
        Layout::new(self).map(|layout| layout.bytes())
    }

    /// As [`Attention::run`], for one token over one KV head: where its context is not cut, members share out the heads.
    ///
    /// # Safety
    /// As [`Attention::run`].
    pub(crate) unsafe fn run_heads(&self, isa: Isa, worker: &Worker<'_>, batch: Batch, scratch: &mut [u8]) {
        // SAFETY: the caller's contract.
        let seen = if batch.tokens == 0 { 0 } else { unsafe { self.seen(0, &batch) } };
        if self.cut(1, seen, worker.count()).partitions.is_some() {
            // SAFETY: forwarded.
            return unsafe { self.run(isa, worker, batch, scratch) };
        }
        let heads = worker.partition(self.heads);
        let offset = heads.start * self.cache.head_dim * self.element.bytes();
        let (queries, output) = (self.queries.wrapping_add(offset), self.output.wrapping_add(offset));
        // Records are of all heads, so a member by itself has none.
        let records = Records { bytes: 0, ..self.records };
        let own = Self { queries, output, heads: heads.len(), records, ..*self };
        if own.heads > 0 {
            // SAFETY: forwarded; a token's heads lie one after the other, and members have different ones.
            worker.with_sharing(Sharing::Alone, || unsafe { own.run(isa, worker, batch, scratch) });
        }
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
        // SAFETY: the caller's contract.
        let seen = (0..batch.tokens).map(|token| unsafe { self.seen(token, &batch) }).max().unwrap_or(0);
        let cut = self.cut(batch.tokens, seen, worker.count());
        let kv_heads = self.cache.kv_heads;
        let groups = batch.tokens.div_ceil(cut.tokens);
        worker.for_each_unit(groups * kv_heads * cut.partitions.unwrap_or(1), |unit| {
            let (unit, partition) = match cut.partitions {
                Some(partitions) => (unit / partitions, Some(unit % partitions)),
                None => (unit, None),
            };
            let first = unit / kv_heads * cut.tokens;
            let tokens = first..(first + cut.tokens).min(batch.tokens);
            let head = unit % kv_heads;
            isa.dispatch(Unit { attention: self, batch, tokens, head, partition, scratch });
        });
        if cut.partitions.is_some() {
            // Begins with a barrier: all partitions are there.
            worker.for_each_unit(batch.tokens * kv_heads, |unit| {
                let (token, head) = (unit / kv_heads, unit % kv_heads);
                isa.dispatch(MergeUnit { attention: self, batch, token, head, scratch });
            });
        }
    }
}
