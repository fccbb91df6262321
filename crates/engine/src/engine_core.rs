//! The engine core: token ids in, token ids out. One step at a time, it schedules, runs the executor and samples.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use allotrope_graph::StepInputs;
use allotrope_runtime::{Device, Executor, RowSampling};

use crate::block_pool::{BlockPool, BlockPoolError};
use crate::error::EngineError;
use crate::request::{FinishReason, Request, TokenLogits};
use crate::sampling::{Sampler, SamplingContext, SamplingParams, SamplingScratch, TokenCounts};
use crate::scheduler::{Scheduled, Scheduler, SchedulerLimits, SequenceId};

/// A token that a step produced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Produced {
    pub(crate) id: SequenceId,
    pub(crate) token: u32,
    pub(crate) finish_reason: Option<FinishReason>,
    /// From the sequence's first step to its first token.
    pub(crate) prefill: Duration,
    /// From the first token to this one.
    pub(crate) decode: Duration,
}

/// Tokens and time, by the kind of step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Throughput {
    /// Tokens run in steps that held part of a prompt.
    pub prefill_tokens: u64,
    /// Time of those steps.
    pub prefill_time: Duration,
    /// Tokens run in steps that only decoded.
    pub decode_tokens: u64,
    /// Time of those steps.
    pub decode_time: Duration,
    /// Kernels in the last step that only decoded.
    pub launches_per_decode_step: usize,
    /// Launches and replays that started them. One more chooses tokens, where the device does.
    pub submissions_per_decode_step: usize,
    /// Tokens that the device chose; the others the host did, from logits that it read.
    pub tokens_sampled_on_device: u64,
    /// How often a sequence gave its KV blocks back and was computed again.
    pub preemptions: u64,
}

struct Live {
    request: Request,
    sampler: Sampler,
    seen: TokenCounts,
    generated: usize,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

pub(crate) struct EngineCore<D: Device> {
    executor: Executor<D>,
    scheduler: Scheduler,
    live: HashMap<SequenceId, Live>,
    inputs: StepInputs,
    scratch: SamplingScratch,
    vocabulary: usize,
    block_size: usize,
    next_id: u64,
    throughput: Throughput,
}

impl<D: Device> EngineCore<D> {
    pub(crate) fn new(executor: Executor<D>) -> Self {
        let options = executor.options();
        let limits = SchedulerLimits {
            max_num_seqs: options.limits.sequences,
            max_num_batched_tokens: options.limits.tokens,
            block_size: options.cache.block_size,
        };
        let scheduler = Scheduler::new(limits, BlockPool::new(u32::try_from(options.cache.blocks).unwrap_or(u32::MAX)));
        EngineCore {
            scheduler,
            live: HashMap::new(),
            inputs: StepInputs::default(),
            scratch: SamplingScratch::default(),
            vocabulary: options.vocabulary,
            block_size: options.cache.block_size,
            next_id: 0,
            throughput: Throughput::default(),
            executor,
        }
    }

    pub(crate) fn executor(&self) -> &Executor<D> {
        &self.executor
    }

    pub(crate) fn throughput(&self) -> Throughput {
        Throughput { preemptions: self.scheduler.preemptions(), ..self.throughput }
    }

    /// Queues a request that was checked against the vocabulary, the context and the KV cache.
    pub(crate) fn add(&mut self, request: Request, seed: u64) -> Result<SequenceId, EngineError> {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let sampler = Sampler::new(&request.params, seed)?.with_end_tokens(&request.end_tokens);
        let seen = TokenCounts::of_prompt(&request.prompt);
        self.scheduler.add(id, request.prompt.clone());
        let live = Live { request, sampler, seen, generated: 0, started: None, first_token: None };
        self.live.insert(id, live);
        Ok(id)
    }

    /// Drops a request, wherever it is.
    pub(crate) fn abort(&mut self, id: SequenceId) -> Result<(), EngineError> {
        self.live.remove(&id);
        self.scheduler.remove(id).map_err(books)
    }

    /// Runs one step and gives the tokens it produced; `None` when nothing is left to run.
    pub(crate) fn step(&mut self) -> Result<Option<Vec<Produced>>, EngineError> {
        let started = Instant::now();
        let step = self.scheduler.schedule().map_err(books)?;
        if step.is_empty() {
            return Ok(None);
        }
        for scheduled in &step {
            if let Some(live) = self.live.get_mut(&self.scheduler.running()[scheduled.place].id) {
                live.started.get_or_insert(started);
            }
        }
        let sampled = self.fill_inputs(&step);
        let decode_only = self.inputs.is_uniform_decode();
        self.scheduler.advance(&step);
        let mut produced = Vec::with_capacity(sampled.len());
        self.executor.run(&self.inputs)?;
        let chosen = self.sample_on_device(&sampled)?;
        // One read, of all rows from the first to the last that the host is to sample.
        let is_open = |token: &Option<u32>| token.is_none();
        let first = chosen.iter().position(is_open).unwrap_or(0);
        let end = chosen.iter().rposition(is_open).map_or(first, |last| last + 1);
        let logits = if first < end { self.executor.logits(first..end)? } else { &[] };
        for (row, (place, chosen)) in sampled.iter().zip(chosen).enumerate() {
            let id = self.scheduler.running()[*place].id;
            let Some(live) = self.live.get_mut(&id) else { continue };
            let token = match chosen {
                Some(token) => {
                    self.throughput.tokens_sampled_on_device += 1;
                    token
                }
                None => {
                    let logits = &logits[(row - first) * self.vocabulary..][..self.vocabulary];
                    let tokens = &self.scheduler.running()[*place].tokens;
                    let output = &tokens[tokens.len() - live.generated..];
                    let context = SamplingContext { seen: &live.seen, output, grammar: None };
                    live.sampler.sample(logits, &mut self.scratch, context)?.token
                }
            };
            live.seen.add_output(token);
            live.generated += 1;
            produced.push((*place, live.produced(id, token)));
        }
        for (place, token) in &produced {
            self.scheduler.append(*place, token.token);
        }
        let produced: Vec<Produced> = produced.into_iter().map(|(_, token)| token).collect();
        for token in produced.iter().filter(|token| token.finish_reason.is_some()) {
            self.abort(token.id)?;
        }
        self.account(&step, decode_only, started.elapsed());
        Ok(Some(produced))
    }

    /// The tokens that the device chooses for the rows of the step; none where the host is to: because of the request's parameters,
    /// because this device never does, or because there is nothing to choose from, which the host's sampler explains.
    fn sample_on_device(&mut self, sampled: &[usize]) -> Result<Vec<Option<u32>>, EngineError> {
        let running = self.scheduler.running();
        let sampling = |place: &usize| match self.live.get(&running[*place].id) {
            Some(live) => live.sampler.on_device(live.generated as u64),
            None => RowSampling::Read,
        };
        let rows: Vec<RowSampling> = sampled.iter().map(sampling).collect();
        let chosen = match rows.iter().all(|row| *row == RowSampling::Read) {
            true => None,
            false => self.executor.sample(&rows)?,
        };
        Ok(chosen.unwrap_or_else(|| vec![None; rows.len()]))
    }

    /// Writes the step's inputs and gives the places of the sequences whose logits are wanted, in order of rows.
    fn fill_inputs(&mut self, step: &[Scheduled]) -> Vec<usize> {
        let inputs = &mut self.inputs;
        inputs.token_ids.clear();
        inputs.positions.clear();
        inputs.slots.clear();
        inputs.token_sequences.clear();
        inputs.block_tables.clear();
        inputs.logit_rows.clear();
        let running = self.scheduler.running();
        inputs.blocks = step.iter().map(|scheduled| running[scheduled.place].blocks.len()).max().unwrap_or(0);
        let mut sampled = Vec::new();
        for (row, scheduled) in step.iter().enumerate() {
            let sequence = &running[scheduled.place];
            let end = sequence.computed + scheduled.tokens;
            for position in sequence.computed..end {
                let slot =
                    sequence.blocks[position / self.block_size] as usize * self.block_size + position % self.block_size;
                inputs.token_ids.push(sequence.tokens[position] as i32);
                inputs.positions.push(position as i32);
                inputs.slots.push(slot as i32);
                inputs.token_sequences.push(row as i32);
            }
            let table = sequence.blocks.iter().map(|block| *block as i32);
            inputs.block_tables.extend(table.chain(std::iter::repeat(0)).take(inputs.blocks));
            if end == sequence.tokens.len() {
                inputs.logit_rows.push(inputs.token_ids.len() as i32 - 1);
                sampled.push(scheduled.place);
            }
        }
        sampled
    }

    fn account(&mut self, step: &[Scheduled], decode_only: bool, time: Duration) {
        let tokens = step.iter().map(|scheduled| scheduled.tokens as u64).sum::<u64>();
        if decode_only {
            self.throughput.decode_tokens += tokens;
            self.throughput.decode_time += time;
            self.throughput.launches_per_decode_step = self.executor.statistics().launches;
            self.throughput.submissions_per_decode_step = self.executor.statistics().submissions;
        } else {
            self.throughput.prefill_tokens += tokens;
            self.throughput.prefill_time += time;
        }
    }

    /// The logits at every position of `tokens`, then of a greedy continuation of `new_tokens`. Needs an idle core.
    pub(crate) fn logits(&mut self, tokens: &[u32], new_tokens: usize) -> Result<TokenLogits, EngineError> {
        let vocabulary = self.vocabulary;
        let (mut prompt_logits, mut picked, mut step_logits) = (Vec::new(), Vec::new(), Vec::new());
        let chunk = self.executor.options().limits.logit_rows.min(self.executor.options().limits.tokens);
        let blocks = (tokens.len() + new_tokens).div_ceil(self.block_size);
        let mut run = |start: usize, part: &[u32], into: &mut Vec<f32>| -> Result<(), EngineError> {
            let positions = start as i32..(start + part.len()) as i32;
            self.inputs = StepInputs {
                token_ids: part.iter().map(|token| *token as i32).collect(),
                positions: positions.clone().collect(),
                // The core is idle, so the sequence may lie in the first blocks.
                slots: positions.collect(),
                token_sequences: vec![0; part.len()],
                block_tables: (0..blocks as i32).collect(),
                blocks,
                logit_rows: (0..part.len() as i32).collect(),
            };
            into.extend_from_slice(self.executor.step(&self.inputs)?);
            Ok(())
        };
        for (index, part) in tokens.chunks(chunk).enumerate() {
            run(index * chunk, part, &mut prompt_logits)?;
        }
        let mut greedy = Sampler::new(&SamplingParams::greedy(), 0)?;
        let mut last = prompt_logits[prompt_logits.len() - vocabulary..].to_vec();
        for step in 0..new_tokens {
            step_logits.extend_from_slice(&last);
            let context = SamplingContext { seen: &TokenCounts::default(), output: &[], grammar: None };
            let token = greedy.sample(&last, &mut SamplingScratch::default(), context)?.token;
            picked.push(token);
            if step + 1 < new_tokens {
                last.clear();
                run(tokens.len() + step, &[token], &mut last)?;
            }
        }
        Ok(TokenLogits { prompt: prompt_logits, tokens: picked, steps: step_logits, vocabulary })
    }
}

impl Live {
    fn produced(&mut self, id: SequenceId, token: u32) -> Produced {
        let now = Instant::now();
        let first = *self.first_token.get_or_insert(now);
        let finish_reason = if self.request.end_tokens.contains(&token) {
            Some(FinishReason::Stop)
        } else if self.generated >= self.request.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        };
        let prefill = self.started.map_or(Duration::ZERO, |started| first - started);
        Produced { id, token, finish_reason, prefill, decode: now - first }
    }
}

fn books(error: BlockPoolError) -> EngineError {
    EngineError::Request(format!("the KV block pool's books are wrong: {error} (this is a bug in Allotrope)"))
}
