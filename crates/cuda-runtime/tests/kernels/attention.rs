//! Attention over a paged cache.

use allotrope_cuda_emulator::machine::Random;

use super::common::{Bench, bytes};
use super::elements::{ELEMENTS, Element, between};
use super::{Parameters, launch, texts, untouched};

pub(crate) const KERNELS: [&str; 3] = ["attention_bf16", "attention_f16", "attention_f32"];

/// Keys and values of a sequence, `[length, kv_heads * head_dim]`.
#[derive(Clone)]
struct Sequence {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// A token: its sequence, its position or -1, and its queries.
#[derive(Clone)]
struct Token {
    sequence: usize,
    position: i32,
    queries: Vec<f32>,
}

/// A launch.
#[derive(Clone)]
struct Case {
    element: Element,
    output: Element,
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    block_size: usize,
    scale: f32,
    sequences: Vec<Sequence>,
    tokens: Vec<Token>,
}

impl Case {
    fn random(random: &mut Random, kernel: &str, head_dim: usize) -> Self {
        let element = Element::of(kernel);
        let (kv_heads, group) = (between(random, 1, 3), between(random, 1, 6));
        let width = kv_heads * head_dim;
        let lengths: Vec<usize> = [1, 32, between(random, 2, 100)].into();
        let mut sequences = Vec::new();
        let mut tokens = Vec::new();
        for (sequence, length) in lengths.into_iter().enumerate() {
            let keys = element.random(random, length * width);
            sequences.push(Sequence { keys, values: element.random(random, length * width) });
            for position in [length - 1, random.below(length)] {
                let queries = element.random(random, width * group);
                tokens.push(Token { sequence, position: position as i32, queries });
            }
        }
        // What is seen in its column alone, by all tokens of the sequence.
        sequences[2].values[width - 1] = f32::NAN;
        // Larger than what e4m3 has.
        sequences[1].values.iter_mut().step_by(width).for_each(|value| *value = 600.0);
        // Padding in the midst of others, and behind them, where it has no sequence.
        tokens[2].position = -1;
        tokens.push(Token { sequence: usize::MAX, ..tokens[2].clone() });
        Self {
            element,
            output: Element::F32,
            kv_heads,
            group,
            head_dim,
            block_size: between(random, 1, 17),
            scale: 1.0 + random.below(100) as f32 / 50.0,
            sequences,
            tokens,
        }
    }

    fn columns(&self) -> usize {
        self.kv_heads * self.group * self.head_dim
    }

    /// One token with nothing but its own sequence, in other blocks.
    fn alone(&self, token: usize) -> Self {
        let token = self.tokens[token].clone();
        let sequences = vec![self.sequences[token.sequence].clone()];
        let block_size = self.block_size % 7 + 3;
        Self { block_size, sequences, tokens: vec![Token { sequence: 0, ..token }], ..self.clone() }
    }

    /// The caches and the block tables. Blocks are at random, and what no token may see is NaN.
    fn caches(&self, random: &mut Random) -> ([Vec<u8>; 2], Vec<u32>, usize) {
        let width = self.kv_heads * self.head_dim * self.element.bytes();
        let lengths = self.sequences.iter().map(|sequence| sequence.keys.len() / (self.kv_heads * self.head_dim));
        let lengths: Vec<usize> = lengths.collect();
        let blocks = |length: &usize| length.div_ceil(self.block_size);
        let row = lengths.iter().map(blocks).max().unwrap() + 1;
        let mut free: Vec<usize> = (0..lengths.iter().map(blocks).sum::<usize>() + 3).collect();
        let mut caches = [(); 2].map(|()| vec![0xff; free.len() * self.block_size * width]);
        let mut tables = vec![u32::MAX; row * lengths.len()];
        for (number, sequence) in self.sequences.iter().enumerate() {
            for (at, entry) in tables[number * row..][..blocks(&lengths[number])].iter_mut().enumerate() {
                let block = free.swap_remove(random.below(free.len()));
                *entry = block as u32;
                let first = at * self.block_size;
                let last = lengths[number].min(first + self.block_size);
                for (cache, source) in caches.iter_mut().zip([&sequence.keys, &sequence.values]) {
                    let elements = self.kv_heads * self.head_dim;
                    let data = self.element.encode_all(&source[first * elements..last * elements]);
                    cache[block * self.block_size * width..][..data.len()].copy_from_slice(&data);
                }
            }
        }
        (caches, tables, row)
    }

    /// Launches two tokens more than there are, and returns the bytes of the output.
    fn run(&self, bench: &mut Bench, kernel: &str) -> Result<Vec<u8>, String> {
        let mut random = Random::new(bench.seed);
        let (caches, tables, row) = self.caches(&mut random);
        let tokens = self.tokens.len();
        let sizes = bench.put_words(&[tokens as u32, u32::MAX, u32::MAX, row as u32]);
        let queries: Vec<f32> = self.tokens.iter().flat_map(|token| token.queries.clone()).collect();
        let queries = bench.put(&self.element.encode_all(&queries));
        let [keys, values] = caches.map(|cache| bench.put(&cache));
        let positions: Vec<u32> = self.tokens.iter().map(|token| token.position as u32).collect();
        let positions = bench.put_words(&positions);
        let named = self.tokens.iter().filter(|token| token.sequence < self.sequences.len());
        let numbers: Vec<u32> = named.map(|token| token.sequence as u32).collect();
        let numbers = bench.put_words(&numbers);
        let tables = bench.put_words(&tables);
        let columns = self.columns();
        let output = bench.poisoned((tokens + 2) * columns * self.output.bytes());
        bench.holds(&output, self.output.format());
        let width = self.group * self.head_dim;
        let tile = 4 * (width + 32 * (self.head_dim | 1) + 35 * self.group + 32);
        let mut parameters = Parameters::default().address(&sizes).address(&queries).address(&keys).address(&values);
        parameters = parameters.address(&positions).address(&numbers).address(&tables).address(&output);
        parameters = parameters.word(self.kv_heads * self.group).word(self.kv_heads).word(self.head_dim);
        parameters = parameters.word(self.block_size).float(self.scale).word(tile).word(tile + 4 * width);
        // A template's result goes where its slot says, and not where a plain kernel's does.
        let template = kernel.ends_with("_slots");
        parameters = parameters.word(self.output as usize);
        if template {
            parameters.0[56..64].fill(0);
            parameters = parameters.address(&output);
        }
        let grid = [tokens as u32 + 2, self.kv_heads as u32];
        launch(bench, kernel, grid, (tile + 4 * width) as u32, parameters.pad(608))?;
        let live = tokens * columns * self.output.bytes();
        untouched(&output, live)?;
        Ok(bytes(&output)[..live].to_vec())
    }

    /// A head's result for a token.
    fn expected(&self, token: &Token, head: usize) -> Vec<f64> {
        let (dim, width) = (self.head_dim, self.kv_heads * self.head_dim);
        let at = head / self.group * dim;
        let Some(sequence) = self.sequences.get(token.sequence) else { return vec![0.0; dim] };
        let query = &token.queries[head * dim..][..dim];
        let scores: Vec<f64> = (0..(token.position + 1) as usize)
            .map(|position| {
                let key = &sequence.keys[position * width + at..][..dim];
                let terms = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k));
                terms.sum::<f64>() * f64::from(self.scale)
            })
            .collect();
        let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - maximum).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut result = vec![0.0; dim];
        for (position, weight) in weights.iter().enumerate() {
            for (sum, value) in result.iter_mut().zip(&sequence.values[position * width + at..]) {
                *sum += weight / total * f64::from(*value);
            }
        }
        result
    }

    fn compare(&self, got: &[f32]) -> Result<(), String> {
        for (number, token) in self.tokens.iter().enumerate() {
            for head in 0..self.kv_heads * self.group {
                for (d, expected) in self.expected(token, head).into_iter().enumerate() {
                    let got = got[number * self.columns() + head * self.head_dim + d];
                    if !self.output.is_near(got, expected, 2e-5 * (1.0 + expected.abs())) {
                        let position = token.position;
                        return Err(format!("position {position}, head {head}, {d}: {got}, expected {expected}"));
                    }
                }
            }
        }
        Ok(())
    }
}

/// An epilogue that stores the tile as `f32` where the first pointer says. Each thread stores what another computed.
fn epilogue(kernel: &str, columns: usize, width: usize, registers: &[&str]) -> String {
    let [tile, row0, live, column0, bundle, _] = registers else { panic!("{registers:?}") };
    format!(
        ".reg .pred %sp; .reg .b32 %s<5>; .reg .f32 %sf; .reg .b64 %sd<2>;
         mov.u32 %s0, %tid.x;
         xor.b32 %s0, %s0, 33;
         ld.param.u64 %sd0, [{kernel}_param_0+96];
         mad.lo.u32 %s1, {live}, {width}, {bundle};
         $SLOT_LOOP:
         setp.ge.u32 %sp, %s0, %s1;
         @%sp bra $SLOT_NEXT;
         shl.b32 %s2, %s0, 2;
         add.u32 %s2, %s2, {tile};
         ld.shared.f32 %sf, [%s2];
         mad.lo.u32 %s3, {row0}, {columns}, {column0};
         add.u32 %s3, %s3, %s0;
         mul.wide.u32 %sd1, %s3, 4;
         add.u64 %sd1, %sd1, %sd0;
         st.global.f32 [%sd1], %sf;
         $SLOT_NEXT:
         add.u32 %s0, %s0, 128;
         setp.lt.u32 %sp, %s0, 2048;
         @%sp bra $SLOT_LOOP;"
    )
}

/// Random launches, element by element; a template's with a slot that stores.
pub(crate) fn check(text: &str, kernel: &str) -> Result<(), String> {
    let mut random = Random::new(super::common::seed());
    // Those that loops of four and of eight leave something of, and that they do not.
    let random_dims = [4 * random.below(9) + 2, 4 * random.below(9) + 5, 8 * between(&mut random, 1, 5)];
    let head_dims = [1, random_dims[0], random_dims[1], random_dims[2]];
    for (head_dim, output) in head_dims.into_iter().zip(ELEMENTS) {
        let mut case = Case { output, ..Case::random(&mut random, kernel, head_dim) };
        let mut text = text.to_owned();
        if kernel.ends_with("_slots") {
            case.output = Element::F32;
            let width = case.group * case.head_dim;
            text = texts::fill(&text, &|_, registers| epilogue(kernel, case.columns(), width, registers));
        }
        let mut bench = Bench::new(&text).map_err(|error| error.to_string())?;
        let got = case.run(&mut bench, kernel)?;
        case.compare(&case.output.decode(&got))?;
    }
    Ok(())
}

#[test]
fn a_token_has_the_same_bits_alone_and_in_company_in_any_blocks() {
    for kernel in KERNELS {
        let text = texts::kernel("attention", "sm_80", kernel);
        let mut bench = Bench::new(&text).unwrap_or_else(|error| panic!("{kernel}: {error}"));
        let mut random = Random::new(bench.seed);
        let head_dim = between(&mut random, 1, 64);
        let case = Case::random(&mut random, kernel, head_dim);
        let company = case.run(&mut bench, kernel).unwrap_or_else(|message| panic!("{kernel}: {message}"));
        let row = case.columns() * 4;
        for token in 0..case.tokens.len() - 1 {
            let alone = case.alone(token).run(&mut bench, kernel);
            let alone = alone.unwrap_or_else(|message| panic!("{kernel}: {message}"));
            assert_eq!(alone, &company[token * row..][..row], "{kernel}, token {token}");
        }
    }
}
