//! Attention by every path, type and shape against a plain one, and the bits however it is cut.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use super::*;
use crate::isa::Task;
use crate::memory::{Buffer, ScratchBytes, Workspace};
use crate::simd::Simd;
use crate::team::Team;
use crate::testing::{assert_close, decode, encode, poisoned, random, values};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Numbers are of `element`, kept by the cache as `stored`.
#[derive(Clone, Copy, Debug)]
struct Shape {
    element: ElementType,
    stored: ElementType,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// Sequences whose keys and values are known, whole.
struct Contexts {
    shape: Shape,
    /// `[sequence][position][kv_heads · head_dim]`, as the cache rounds them.
    keys: Vec<Vec<Vec<f32>>>,
    values: Vec<Vec<Vec<f32>>>,
}

/// Rounds to `element`.
fn rounded(element: ElementType, values: &[f32]) -> Vec<f32> {
    decode(element, &encode(element, values))
}

impl Contexts {
    fn random(random: &mut ChaCha8Rng, shape: Shape, lengths: &[usize]) -> Self {
        let width = shape.kv_heads * shape.head_dim;
        let mut rows = |length: usize| -> Vec<Vec<f32>> {
            let row = |random: &mut ChaCha8Rng| rounded(shape.stored, &rounded(shape.element, &values(random, width)));
            (0..length).map(|_| row(random)).collect()
        };
        let keys = lengths.iter().map(|length| rows(*length)).collect();
        Self { shape, keys, values: lengths.iter().map(|length| rows(*length)).collect() }
    }

    /// What a query `[heads · head_dim]` of a sequence finds at a position, with a bound of its error.
    fn attend(&self, query: &[f32], sequence: usize, position: usize, scale: f32) -> Vec<f64> {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let mut result = Vec::new();
        for (head, query) in query.chunks_exact(head_dim).enumerate() {
            let from = head / (heads / kv_heads) * head_dim;
            let dot = |key: &Vec<f32>| -> f64 {
                query.iter().zip(&key[from..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
            };
            let scores: Vec<f64> =
                self.keys[sequence][..=position].iter().map(|key| dot(key) * f64::from(scale)).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for at in from..from + head_dim {
                let values = weights.iter().zip(&self.values[sequence]);
                result.push(values.map(|(weight, value)| weight / total * f64::from(value[at])).sum());
            }
        }
        result
    }
}

/// A cache that has contexts, in shuffled blocks; what was never written is NaN.
struct Cache {
    view: CacheView,
    _memory: Buffer,
    tables: Vec<i32>,
    blocks: usize,
}

struct Write<'a>(&'a CacheView, i32, &'a [f32], &'a [f32]);

impl Task for Write<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: the cache is the test's alone.
        unsafe { self.0.write::<S>(self.1, self.2, self.3) };
    }
}

impl Cache {
    fn new(random: &mut ChaCha8Rng, isa: Isa, contexts: &Contexts, block_size: usize) -> Self {
        let Shape { stored, kv_heads, head_dim, .. } = contexts.shape;
        let most = contexts.keys.iter().map(Vec::len).max().unwrap();
        let (blocks, sequences) = (most.div_ceil(block_size), contexts.keys.len());
        let mut tables: Vec<i32> = (0..(blocks * sequences) as i32).collect();
        for at in (1..tables.len()).rev() {
            tables.swap(at, random.random_range(0..=at));
        }
        let bytes = CacheView::bytes(stored, tables.len(), block_size, kv_heads, head_dim).unwrap();
        let mut memory = Buffer::new(bytes).unwrap();
        memory.bytes_mut().fill(0xff);
        let begin = memory.bytes_mut().as_mut_ptr();
        let view = CacheView { begin, element: stored, blocks: tables.len(), block_size, kv_heads, head_dim };
        for (sequence, (keys, values)) in contexts.keys.iter().zip(&contexts.values).enumerate() {
            for (position, (keys, values)) in keys.iter().zip(values).enumerate() {
                let block = tables[sequence * blocks + position / block_size];
                let slot = block * block_size as i32 + (position % block_size) as i32;
                isa.dispatch(Write(&view, slot, keys, values));
            }
        }
        Self { view, _memory: memory, tables, blocks }
    }
}

/// A token: its sequence and position (negative: padding), and its query.
type Token = (usize, i32, Vec<f32>);

/// Runs a batch on `threads` threads, with or without room for records, in a poisoned output.
fn run(isa: Isa, threads: usize, records: bool, contexts: &Contexts, cache: &Cache, tokens: &[Token]) -> Vec<u8> {
    let Shape { element, heads, kv_heads, head_dim, .. } = contexts.shape;
    let queries: Vec<f32> = tokens.iter().flat_map(|(_, _, query)| query.iter().copied()).collect();
    let queries = encode(element, &queries);
    let positions: Vec<i32> = tokens.iter().map(|token| token.1).collect();
    let sequences: Vec<i32> = tokens.iter().map(|token| token.0 as i32).collect();
    let mut output = poisoned(queries.len());
    let capacity = cache.blocks * cache.view.block_size;
    let bytes = Records::wanted_bytes(threads, tokens.len(), capacity, heads, (kv_heads, head_dim));
    let mut memory = Buffer::new(if records { bytes } else { 0 }).unwrap();
    memory.bytes_mut().fill(0xff);
    let attention = Attention {
        queries: queries.as_ptr(),
        output: output.as_mut_ptr(),
        element,
        heads,
        scale: SCALE,
        cache: cache.view,
        positions: positions.as_ptr(),
        token_sequences: sequences.as_ptr(),
        block_tables: cache.tables.as_ptr(),
        records: Records { begin: memory.bytes_mut().as_mut_ptr(), bytes: memory.len() },
    };
    let batch = Batch { tokens: tokens.len(), sequences: contexts.keys.len(), blocks: cache.blocks };
    let mut workspace = Workspace::default();
    let own = attention.scratch_bytes().unwrap();
    workspace.reserve(threads, ScratchBytes { own, shared: 0 }).unwrap();
    let scratch = workspace.scratch();
    // SAFETY: all is as large as the batch says, and only this team uses it.
    let job = |worker: &Worker<'_>| unsafe {
        let scratch = scratch.part(worker.index()).own;
        match (tokens, kv_heads) {
            ([_], 1) => attention.run_heads(isa, worker, batch, scratch),
            _ => attention.run(isa, worker, batch, scratch),
        }
    };
    Team::new(threads).unwrap().run(job);
    output
}

const SCALE: f32 = 0.7;

fn query(random: &mut ChaCha8Rng, shape: Shape) -> Vec<f32> {
    rounded(shape.element, &values(random, shape.heads * shape.head_dim))
}

#[test]
fn members_that_share_out_heads_find_what_one_does() {
    let mut random = random();
    let shape = Shape { element: ElementType::Bf16, stored: ElementType::Bf16, heads: 5, kv_heads: 1, head_dim: 32 };
    for isa in Isa::available() {
        let contexts = Contexts::random(&mut random, shape, &[700]);
        let cache = Cache::new(&mut random, isa, &contexts, 16);
        // A short context, and one that is cut where there is room for records; and padding.
        for position in [30, 699, -1] {
            let token: Token = (0, position, query(&mut random, shape));
            let two = run(isa, 1, false, &contexts, &cache, &[token.clone(), token.clone()]);
            for (threads, records) in [(1, false), (2, true), (3, false), (7, true)] {
                let alone = run(isa, threads, records, &contexts, &cache, std::slice::from_ref(&token));
                assert!(
                    alone == two[..alone.len()],
                    "{isa}, {threads} threads, position {position}, records={records}"
                );
            }
        }
    }
}

/// One shape on one path: against the reference; then in other blocks, by other teams, in chunks and alone.
fn check(random: &mut ChaCha8Rng, isa: Isa, shape: Shape, block_sizes: [usize; 2]) {
    let lengths = [random.random_range(1..70), random.random_range(257..600), random.random_range(513..530)];
    let what = format!("{isa}: {shape:?}, lengths {lengths:?}, blocks of {block_sizes:?}");
    let contexts = Contexts::random(random, shape, &lengths);
    let mut tokens: Vec<Token> = Vec::new();
    for (sequence, length) in lengths.iter().enumerate() {
        let count = random.random_range(1..=(*length).min(30));
        tokens.extend((length - count..*length).map(|position| (sequence, position as i32, query(random, shape))));
        tokens.push((sequence, -1, query(random, shape)));
    }
    let cache = Cache::new(random, isa, &contexts, block_sizes[0]);
    let found = run(isa, 1, false, &contexts, &cache, &tokens);
    let width = shape.heads * shape.head_dim;
    let expected = tokens.iter().flat_map(|(sequence, position, query)| match usize::try_from(*position) {
        Ok(position) => contexts.attend(query, *sequence, position, SCALE),
        Err(_) => vec![0.0; width],
    });
    let expected: Vec<f64> = expected.collect();
    let unit = match shape.element {
        ElementType::Bf16 => 2f64.powi(-8),
        ElementType::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-22),
    };
    let tolerance = |index: usize| expected[index].abs() * unit * 1.01 + 2e-6;
    assert_close(&decode(shape.element, &found), &expected, tolerance, &what);
    let row = width * shape.element.bytes();
    let other = Cache::new(random, isa, &contexts, block_sizes[1]);
    for threads in 1..=4 {
        let again = run(isa, threads, threads % 2 == 0, &contexts, &other, &tokens);
        assert!(again == found, "{what}: other bits by {threads} threads in other blocks");
    }
    let mut at = 0;
    while at < tokens.len() {
        let end = (at + random.random_range(1..7)).min(tokens.len());
        let threads = random.random_range(1..=4);
        let part = run(isa, threads, true, &contexts, &cache, &tokens[at..end]);
        assert!(part == found[at * row..end * row], "{what}: other bits for {at}..{end} by {threads} threads");
        at = end;
    }
}

#[test]
fn attention_is_the_reference_s_with_the_same_bits_however_it_is_cut() {
    use ElementType::{Bf16, F8E4M3, F16, F32};
    let mut random = random();
    for isa in Isa::available() {
        for (element, stored, heads, kv_heads, head_dim, block_sizes) in [
            (Bf16, Bf16, 8, 2, 64, [16, 32]),
            (Bf16, Bf16, 6, 2, 80, [5, 16]),
            (Bf16, Bf16, 3, 3, 96, [32, 1]),
            (Bf16, Bf16, 8, 1, 128, [16, 48]),
            (Bf16, Bf16, 7, 1, 9, [1, 16]),
            (Bf16, F8E4M3, 4, 1, 64, [16, 5]),
            (Bf16, F8E4M3, 3, 1, 13, [7, 32]),
            (F16, F16, 3, 1, 80, [16, 3]),
            (F16, F8E4M3, 2, 2, 24, [16, 3]),
            (F32, F32, 2, 2, 21, [16, 5]),
            (F32, F32, 100, 1, 16, [16, 32]),
        ] {
            check(&mut random, isa, Shape { element, stored, heads, kv_heads, head_dim }, block_sizes);
        }
    }
}

#[test]
fn what_a_row_does_not_see_does_not_reach_it() {
    let mut random = random();
    let shape = Shape { element: ElementType::Bf16, stored: ElementType::Bf16, heads: 4, kv_heads: 2, head_dim: 32 };
    for isa in Isa::available() {
        let mut contexts = Contexts::random(&mut random, shape, &[150]);
        let tokens: Vec<Token> = (100..150).map(|position| (0, position, query(&mut random, shape))).collect();
        let cache = Cache::new(&mut random, isa, &contexts, 16);
        let before = run(isa, 1, false, &contexts, &cache, &tokens);
        // The later half becomes NaN and infinite.
        for position in 125..150 {
            contexts.keys[0][position].fill(f32::INFINITY);
            contexts.values[0][position].fill(f32::NAN);
        }
        let cache = Cache::new(&mut random, isa, &contexts, 16);
        let after = run(isa, 2, true, &contexts, &cache, &tokens);
        let half = before.len() / 2;
        assert!(after[..half] == before[..half], "{isa}: a later position changed an earlier one");
        let rest = decode(shape.element, &after[half..]);
        assert!(rest.iter().all(|value| value.is_nan()), "{isa}: NaN values were lost");
    }
}

#[test]
fn slots_and_blocks_that_are_not_there_are_not_followed() {
    let mut random = random();
    let shape = Shape { element: ElementType::F16, stored: ElementType::F16, heads: 2, kv_heads: 1, head_dim: 16 };
    for isa in Isa::available() {
        let contexts = Contexts::random(&mut random, shape, &[40]);
        let mut cache = Cache::new(&mut random, isa, &contexts, 16);
        let row = vec![1.0; 16];
        for slot in [-1, i32::MIN, 48, i32::MAX] {
            isa.dispatch(Write(&cache.view, slot, &row, &row));
        }
        cache.tables = vec![cache.tables[0], i32::MAX, -7];
        let mut tokens: Vec<Token> = [0, 39, 10_000, i32::MAX].map(|at| (0, at, query(&mut random, shape))).into();
        tokens.push((usize::MAX >> 33, 3, query(&mut random, shape)));
        let found = decode(shape.element, &run(isa, 1, false, &contexts, &cache, &tokens));
        let expected = contexts.attend(&tokens[0].2, 0, 0, SCALE);
        assert_close(&found[..32], &expected, |_| 1e-3, "the token whose context is there");
        assert_eq!(&found[4 * 32..], &[0.0; 32], "{isa}: a sequence that is not there");
    }
}

#[test]
fn few_tokens_are_cut_by_partitions_where_there_is_room_for_records() {
    let view = CacheView {
        begin: std::ptr::null_mut(),
        element: ElementType::Bf16,
        blocks: 0,
        block_size: 16,
        kv_heads: 8,
        head_dim: 64,
    };
    let bytes = Records::wanted_bytes(64, 256, 131_072, 32, (8, 64));
    let attention = |bytes: usize| Attention {
        queries: std::ptr::null(),
        output: std::ptr::null_mut(),
        element: ElementType::Bf16,
        heads: 32,
        scale: 1.0,
        cache: view,
        positions: std::ptr::null(),
        token_sequences: std::ptr::null(),
        block_tables: std::ptr::null(),
        records: Records { begin: std::ptr::null_mut(), bytes },
    };
    // One sequence: each of 64 members has a partition of a head.
    assert_eq!(attention(bytes).cut(1, 2048, 64), Cut { tokens: 1, partitions: Some(8) });
    assert_eq!(attention(0).cut(1, 2048, 64), Cut { tokens: 1, partitions: None });
    assert_eq!(attention(bytes).cut(1, 256, 64).partitions, None);
    assert_eq!(attention(bytes).cut(32, 2048, 64).partitions, None);
    assert_eq!(attention(bytes).cut(512, 512, 2), Cut { tokens: 24, partitions: None });
    assert_eq!(Records::wanted_bytes(1, 256, 131_072, 32, (8, 64)), 0);
}
