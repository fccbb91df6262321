//! Tokens chosen on the device: one launch behind the step, whose result is a word for each row instead of its logits.

use std::ops::Range;

use allotrope_runtime::device::{DeviceError, RowSampling};

use super::compile::{Code, Compiler, Request};
use super::internal;
use super::memory::Memory;
use crate::driver::{Buffer, Context, Launch, PinnedBuffer, Stream};
use crate::program::BLOCK;

/// The source of the kernels.
const SOURCE: &str = "sample";

/// Bytes of what the kernel is told of a row: `SampleRow`.
const ROW_BYTES: usize = 24;

/// Bytes of a token.
const TOKEN_BYTES: usize = 4;

/// What the kernels give a row that has no token.
const NO_TOKEN: u32 = u32::MAX;

/// What the kernel takes for a row that is not sampled: a temperature below zero.
const NOT_SAMPLED: f32 = -1.0;

/// The kernels, and memory for as many rows as a step may have.
pub(super) struct Sampling {
    argmax: Code,
    sample: Code,
    rows: Buffer,
    rows_staging: PinnedBuffer,
    tokens: Buffer,
    tokens_read: PinnedBuffer,
}

impl Sampling {
    /// Loads the kernels and allocates memory for so many rows.
    pub(super) fn new(context: &Context, compiler: &mut Compiler, rows: usize) -> Result<Self, DeviceError> {
        let mut code = |entry: &str| {
            let request = Request::Bundled { source: SOURCE, entry: entry.to_owned() };
            compiler.code(&request, entry)
        };
        Ok(Self {
            argmax: code("argmax_f32")?,
            sample: code("sample_f32")?,
            rows: context.allocate(rows * ROW_BYTES)?,
            rows_staging: context.allocate_pinned(rows * ROW_BYTES)?,
            tokens: context.allocate(rows * TOKEN_BYTES)?,
            tokens_read: context.allocate_pinned(rows * TOKEN_BYTES)?,
        })
    }

    /// Launches both kernels over what the live sizes say, which is nothing.
    pub(super) fn warm_up(&self, stream: &Stream, memory: &Memory) -> Result<(), DeviceError> {
        for all_greedy in [true, false] {
            stream.launch(&self.launch(memory, memory.arena().address(), all_greedy, [1, 1])?)?;
        }
        Ok(())
    }

    /// Chooses the tokens of the rows of logits at some bytes of the arena.
    pub(super) fn run(
        &mut self,
        stream: &Stream,
        memory: &Memory,
        logits: Range<usize>,
        rows: &[RowSampling],
    ) -> Result<Vec<Option<u32>>, DeviceError> {
        if rows.iter().all(|row| *row == RowSampling::Read) {
            return Ok(vec![None; rows.len()]);
        }
        let all_greedy = rows.iter().all(|row| *row == RowSampling::Greedy);
        if !all_greedy {
            // The copy refuses more rows than there is room for.
            for (place, row) in self.rows_staging.as_mut_slice::<[u8; ROW_BYTES]>()?.iter_mut().zip(rows) {
                *place = laid_out(row);
            }
            stream.copy_to_device(&self.rows, 0, &self.rows_staging, 0..rows.len() * ROW_BYTES)?;
        }
        let shape = [rows.len(), logits.len() / 4 / rows.len()];
        let address = memory.arena().address() + logits.start as u64;
        stream.launch(&self.launch(memory, address, all_greedy, shape)?)?;
        let bytes = rows.len() * TOKEN_BYTES;
        stream.copy_to_host(&mut self.tokens_read, 0, &self.tokens, 0..bytes)?;
        stream.synchronize()?;
        let tokens = self.tokens_read.as_slice::<u32>()?.iter().take(rows.len());
        Ok(tokens.map(|token| Some(*token).filter(|token| *token != NO_TOKEN)).collect())
    }

    fn launch(
        &self,
        memory: &Memory,
        logits: u64,
        all_greedy: bool,
        [rows, vocabulary]: [usize; 2],
    ) -> Result<Launch, DeviceError> {
        let (code, label) = match all_greedy {
            true => (&self.argmax, "the likeliest tokens"),
            false => (&self.sample, "the sampled tokens"),
        };
        let number = |size: usize| {
            u32::try_from(size).map_err(|_| internal(format!("{size} rows or tokens were to be sampled")))
        };
        let addresses = [memory.sizes(), logits, self.tokens.address(), self.rows.address()];
        let addresses = &addresses[..if all_greedy { 3 } else { 4 }];
        let mut parameters: Vec<u8> = addresses.iter().flat_map(|address| address.to_le_bytes()).collect();
        // The struct is a whole number of addresses long.
        parameters.extend(u64::from(number(vocabulary)?).to_le_bytes());
        Ok(Launch {
            function: code.function.clone(),
            grid: [number(rows)?, 1, 1],
            block: BLOCK,
            shared_memory: 0,
            parameters: parameters.into(),
            dependent: code.dependent,
            label: label.into(),
        })
    }
}

/// What the kernel is told of a row.
fn laid_out(row: &RowSampling) -> [u8; ROW_BYTES] {
    let (temperature, seed, counter) = match *row {
        RowSampling::Read => (NOT_SAMPLED, 0, 0),
        RowSampling::Greedy => (0.0, 0, 0),
        RowSampling::Seeded { temperature, seed, counter } => (temperature, seed, counter),
    };
    let mut bytes = [0; ROW_BYTES];
    bytes[..4].copy_from_slice(&temperature.to_le_bytes());
    bytes[8..16].copy_from_slice(&seed.to_le_bytes());
    bytes[16..].copy_from_slice(&counter.to_le_bytes());
    bytes
}
