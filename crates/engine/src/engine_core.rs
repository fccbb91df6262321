//! The engine core: token ids in, token ids out. One step at a time, it schedules, runs the executor and samples.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use allotrope_graph::StepInputs;
use allotrope_runtime::{Device, Executor, RowSampling};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::block_pool::{BlockPool, BlockPoolError};
use crate::client::{RequestFailure, TokenEvent};
use crate::error::EngineError;
use crate::live::Live;
use crate::request::{TokenLogits, TokenRequest};
use crate::sampling::{Sampler, SamplingContext, SamplingParams, SamplingScratch, TokenCounts};
use crate::scheduler::{NewSequence, Scheduled, Scheduler, SchedulerLimits, SequenceId};

/// What happened to a sequence in a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Produced {
    pub(crate) id: SequenceId,
    /// Its next token, or why there will be none. The sequence is gone after the last.
    pub(crate) event: TokenEvent,
}

/// What a step did.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StepOutcome {
    /// Sequences whose first step it was.
    pub(crate) started: Vec<SequenceId>,
    pub(crate) produced: Vec<Produced>,
    /// Tokens that were run.
    pub(crate) tokens: usize,
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
    /// Steps of both kinds.
    pub steps: u64,
    /// Of the time of all steps, what it took to choose sequences, give them blocks, write the inputs and keep the books.
    pub scheduler_time: Duration,
    /// Of the time of all steps, what the host took to choose tokens from logits that it had.
    pub sampling_time: Duration,
    /// Kernels in the last step that only decoded.
    pub launches_per_decode_step: usize,
    /// Launches and replays that started them. One more chooses tokens, where the device does.
    pub submissions_per_decode_step: usize,
    /// Tokens that the device chose; the others the host did, from logits that it read.
    pub tokens_sampled_on_device: u64,
    /// How often a sequence gave its KV blocks back and was computed again.
    pub preemptions: u64,
    /// Tokens of prompts that were looked for in the prefix cache.
    pub prefix_cache_queries: u64,
    /// Those of them that were there.
    pub prefix_cache_hits: u64,
    /// Requests that ended because their logits were not finite.
    pub corrupted_requests: u64,
}

/// What a row of logits is for.
#[derive(Debug, Clone, Copy)]
struct Row {
    /// Place among the running sequences.
    place: usize,
    /// The token of the prompt whose probability it gives; the next token is chosen from it if `None`.
    prompt_position: Option<usize>,
}

/// Logits of a step from which on threads share the work of sampling: below, waking them takes longer. Tests always share.
const WORTH_SHARING: usize = if cfg!(test) { 1 } else { 1 << 18 };

/// What is to be done with a row of logits.
enum RowTask<'a> {
    /// The device has chosen this token.
    Chosen(u32),
    /// Choose a token, or take the probability of a token of the prompt, of which the position is given.
    Logits { logits: &'a [f32], token_of_prompt: Option<(u32, usize)> },
}

/// The rows of one sequence, in order. Sequences do not depend on each other, so threads share them.
struct SampleJob<'a> {
    place: usize,
    id: SequenceId,
    live: Box<Live>,
    rows: Vec<RowTask<'a>>,
}

/// A sequence after its rows: its next token, if one was to be chosen.
struct SampleDone {
    place: usize,
    id: SequenceId,
    live: Box<Live>,
    event: Option<TokenEvent>,
}

impl SampleJob<'_> {
    /// Does what is to be done, on any thread.
    fn run(self) -> SampleDone {
        thread_local! {
            static SCRATCH: RefCell<SamplingScratch> = RefCell::default();
        }
        let SampleJob { place, id, mut live, rows } = self;
        let mut event = None;
        for row in rows {
            match row {
                RowTask::Chosen(token) => event = Some(Ok(live.take(token, None))),
                RowTask::Logits { logits, token_of_prompt: Some((token, position)) } => {
                    live.take_prompt_row(logits, token, position);
                }
                RowTask::Logits { logits, token_of_prompt: None } => {
                    event = Some(SCRATCH.with_borrow_mut(|scratch| live.choose(logits, scratch)));
                }
            }
        }
        SampleDone { place, id, live, event }
    }
}

pub(crate) struct EngineCore<D: Device> {
    executor: Executor<D>,
    scheduler: Scheduler,
    live: HashMap<SequenceId, Box<Live>>,
    inputs: StepInputs,
    rows: Vec<Row>,
    vocabulary: usize,
    block_size: usize,
    next_id: u64,
    throughput: Throughput,
    /// When the first token of all was there.
    first_token: Option<Instant>,
}

impl<D: Device> EngineCore<D> {
    /// A core that runs steps of `executor` under the `limits`.
    pub(crate) fn new(executor: Executor<D>, limits: SchedulerLimits) -> Self {
        let options = executor.options();
        let blocks = u32::try_from(options.cache.blocks).unwrap_or(u32::MAX);
        EngineCore {
            scheduler: Scheduler::new(limits, BlockPool::new(blocks)),
            live: HashMap::new(),
            inputs: StepInputs::default(),
            rows: Vec::new(),
            vocabulary: options.vocabulary,
            block_size: options.cache.block_size,
            next_id: 0,
            throughput: Throughput::default(),
            first_token: None,
            executor,
        }
    }

    pub(crate) fn executor(&self) -> &Executor<D> {
        &self.executor
    }

    pub(crate) fn throughput(&self) -> Throughput {
        let counts = self.scheduler.counts();
        Throughput {
            preemptions: counts.preemptions,
            prefix_cache_queries: counts.cache_queries,
            prefix_cache_hits: counts.cache_hits,
            ..self.throughput
        }
    }

    /// When the first token of all was there; `None` before.
    pub(crate) fn first_token(&self) -> Option<Instant> {
        self.first_token
    }

    /// Sequences that hold blocks.
    pub(crate) fn running(&self) -> usize {
        self.scheduler.running().len()
    }

    /// Blocks that sequences hold, and all that there are.
    pub(crate) fn blocks(&self) -> (usize, usize) {
        self.scheduler.blocks()
    }

    /// Sequences that gave their blocks back and wait to be computed again.
    pub(crate) fn preempted(&self) -> usize {
        self.scheduler.preempted()
    }

    /// Forgets what the prefix cache holds.
    pub(crate) fn forget_cache(&mut self) {
        self.scheduler.forget_cache();
    }

    /// Queues a request that was checked against the vocabulary, the context and the KV cache, and came at some moment.
    pub(crate) fn add(&mut self, request: TokenRequest, arrived: Instant) -> SequenceId {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let new = NewSequence {
            prompt: request.prompt.to_vec(),
            priority: request.priority,
            salt: request.cache_salt.clone(),
            wants_prompt_rows: request.params.prompt_logprobs.is_some(),
        };
        self.live.insert(id, Box::new(Live::new(request, arrived)));
        self.scheduler.add(id, new);
        id
    }

    /// Drops a request, wherever it is.
    pub(crate) fn abort(&mut self, id: SequenceId) -> Result<(), EngineError> {
        let Some(live) = self.live.remove(&id) else { return Ok(()) };
        self.scheduler.remove(id, live.priority()).map_err(books)
    }

    /// Runs one step and gives the tokens it produced; `None` when nothing is left to run.
    pub(crate) fn step(&mut self) -> Result<Option<StepOutcome>, EngineError> {
        let started = Instant::now();
        let step = self.scheduler.schedule().map_err(books)?;
        if step.is_empty() {
            return Ok(None);
        }
        let mut new = Vec::new();
        for scheduled in &step {
            let sequence = &self.scheduler.running()[scheduled.place];
            if self.live.get_mut(&sequence.id).is_some_and(|live| live.start(started, sequence.cached)) {
                new.push(sequence.id);
            }
        }
        self.fill_inputs(&step);
        let decode_only = self.inputs.is_uniform_decode();
        self.scheduler.advance(&step);
        let scheduled = started.elapsed();
        let produced = match self.run_inputs() {
            Ok(produced) => produced,
            Err(error) => {
                // Blocks have names already for what was not computed.
                self.scheduler.forget_cache();
                return Err(error);
            }
        };
        let sampled = Instant::now();
        if self.first_token.is_none() && !produced.is_empty() {
            self.first_token = Some(sampled);
        }
        let produced = self.keep_books(produced)?;
        self.throughput.scheduler_time += scheduled + sampled.elapsed();
        self.account(&step, decode_only, started.elapsed());
        let tokens = step.iter().map(|scheduled| scheduled.tokens).sum();
        Ok(Some(StepOutcome { started: new, produced, tokens }))
    }

    /// Runs the inputs and chooses the next tokens; with places.
    fn run_inputs(&mut self) -> Result<Vec<(usize, Produced)>, EngineError> {
        self.executor.run(&self.inputs)?;
        self.sample()
    }

    /// Appends the tokens that were chosen, and drops the sequences that end with them.
    fn keep_books(&mut self, produced: Vec<(usize, Produced)>) -> Result<Vec<Produced>, EngineError> {
        for (place, produced) in &produced {
            if let Ok(output) = &produced.event {
                self.scheduler.append(*place, output.token);
            }
        }
        let produced: Vec<Produced> = produced.into_iter().map(|(_, produced)| produced).collect();
        for one in &produced {
            match &one.event {
                Ok(output) if output.finish.is_none() => {}
                Ok(_) => self.abort(one.id)?,
                Err(failure) => {
                    self.throughput.corrupted_requests += u64::from(matches!(failure, RequestFailure::Sampling(_)));
                    self.abort(one.id)?;
                }
            }
        }
        Ok(produced)
    }

    /// Chooses the next tokens from the logits of the step, and takes the probabilities of prompts; with places.
    fn sample(&mut self) -> Result<Vec<(usize, Produced)>, EngineError> {
        let chosen = self.sample_on_device()?;
        // One read, of all rows from the first to the last that the host is to sample.
        let is_open = |token: &Option<u32>| token.is_none();
        let first = chosen.iter().position(is_open).unwrap_or(0);
        let end = chosen.iter().rposition(is_open).map_or(first, |last| last + 1);
        let logits = if first < end { self.executor.logits(first..end)? } else { &[] };
        let started = Instant::now();
        let running = self.scheduler.running();
        let mut jobs: Vec<SampleJob<'_>> = Vec::with_capacity(self.rows.len());
        for (index, (row, chosen)) in self.rows.iter().zip(chosen).enumerate() {
            let sequence = &running[row.place];
            if jobs.last().is_none_or(|job| job.place != row.place) {
                // Taken out while threads work on it.
                let Some(live) = self.live.remove(&sequence.id) else { continue };
                jobs.push(SampleJob { place: row.place, id: sequence.id, live, rows: Vec::new() });
            }
            let token_of_prompt = row.prompt_position.map(|position| (sequence.tokens[position], position));
            let row = match (chosen, token_of_prompt) {
                (Some(token), _) => {
                    self.throughput.tokens_sampled_on_device += 1;
                    RowTask::Chosen(token)
                }
                (None, token_of_prompt) => {
                    let logits = &logits[(index - first) * self.vocabulary..][..self.vocabulary];
                    RowTask::Logits { logits, token_of_prompt }
                }
            };
            if let Some(job) = jobs.last_mut() {
                job.rows.push(row);
            }
        }
        let done: Vec<SampleDone> = if jobs.len() > 1 && (end - first) * self.vocabulary >= WORTH_SHARING {
            jobs.into_par_iter().map(SampleJob::run).collect()
        } else {
            jobs.into_iter().map(SampleJob::run).collect()
        };
        let mut produced = Vec::with_capacity(done.len());
        for SampleDone { place, id, live, event } in done {
            self.live.insert(id, live);
            produced.extend(event.map(|event| (place, Produced { id, event })));
        }
        self.throughput.sampling_time += started.elapsed();
        Ok(produced)
    }

    /// The tokens that the device chooses for the rows of the step; none where the host is to: because of the request's parameters,
    /// because this device never does, or because there is nothing to choose from, which the host's sampler explains.
    fn sample_on_device(&mut self) -> Result<Vec<Option<u32>>, EngineError> {
        let running = self.scheduler.running();
        let sampling = |row: &Row| match (row.prompt_position, self.live.get(&running[row.place].id)) {
            (None, Some(live)) => live.on_device(),
            _ => RowSampling::Read,
        };
        let rows: Vec<RowSampling> = self.rows.iter().map(sampling).collect();
        let chosen = match rows.iter().all(|row| *row == RowSampling::Read) {
            true => None,
            false => self.executor.sample(&rows)?,
        };
        Ok(chosen.unwrap_or_else(|| vec![None; rows.len()]))
    }

    /// Writes the step's inputs and says what each row of its logits is for.
    fn fill_inputs(&mut self, step: &[Scheduled]) {
        let inputs = &mut self.inputs;
        inputs.token_ids.clear();
        inputs.positions.clear();
        inputs.slots.clear();
        inputs.token_sequences.clear();
        inputs.block_tables.clear();
        inputs.logit_rows.clear();
        self.rows.clear();
        let running = self.scheduler.running();
        inputs.blocks = step.iter().map(|scheduled| running[scheduled.place].blocks.len()).max().unwrap_or(0);
        for (row, scheduled) in step.iter().enumerate() {
            let place = scheduled.place;
            let sequence = &running[place];
            let end = sequence.computed + scheduled.tokens;
            for position in sequence.computed..end {
                let slot =
                    sequence.blocks[position / self.block_size] as usize * self.block_size + position % self.block_size;
                inputs.token_ids.push(sequence.tokens[position] as i32);
                inputs.positions.push(position as i32);
                inputs.slots.push(slot as i32);
                inputs.token_sequences.push(row as i32);
                let is_last = position + 1 == sequence.tokens.len();
                if is_last || sequence.wants_prompt_rows() {
                    inputs.logit_rows.push(inputs.token_ids.len() as i32 - 1);
                    self.rows.push(Row { place, prompt_position: (!is_last).then_some(position + 1) });
                }
            }
            let table = sequence.blocks.iter().map(|block| *block as i32);
            inputs.block_tables.extend(table.chain(std::iter::repeat(0)).take(inputs.blocks));
        }
    }

    fn account(&mut self, step: &[Scheduled], decode_only: bool, time: Duration) {
        let tokens = step.iter().map(|scheduled| scheduled.tokens as u64).sum::<u64>();
        self.throughput.steps += 1;
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
        // What the cache held in the blocks that are used here is overwritten.
        self.scheduler.forget_cache();
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
        let mut scratch = SamplingScratch::default();
        let mut last = prompt_logits[prompt_logits.len() - vocabulary..].to_vec();
        for step in 0..new_tokens {
            step_logits.extend_from_slice(&last);
            let context = SamplingContext { seen: &TokenCounts::default(), output: &[], grammar: None };
            let token = greedy.sample(&last, &mut scratch, context)?.token;
            picked.push(token);
            if step + 1 < new_tokens {
                last.clear();
                run(tokens.len() + step, &[token], &mut last)?;
            }
        }
        Ok(TokenLogits { prompt: prompt_logits, tokens: picked, steps: step_logits, vocabulary })
    }
}

fn books(error: BlockPoolError) -> EngineError {
    EngineError::Request(format!("the KV block pool's books are wrong: {error} (this is a bug in Allotrope)"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use std::path::Path;

    use crate::llm::Llm;
    use crate::request::Prompt;
    use crate::sampling::{LogprobCount, SamplingParams};

    #[test]
    fn threads_that_share_the_sampling_choose_what_one_chooses() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/tiny-chat");
        let mut llm = Llm::builder(folder).set("device", "cpu").unwrap().build().unwrap();
        let request = |number: u32| {
            let params = SamplingParams {
                temperature: 1.5,
                top_p: 0.95,
                seed: Some(u64::from(number)),
                max_tokens: Some(12),
                ignore_eos: true,
                logprobs: Some(LogprobCount::Top(2)),
                prompt_logprobs: number.is_multiple_of(3).then_some(LogprobCount::Top(1)),
                ..SamplingParams::default()
            };
            (Prompt::Tokens((number..number + 9).collect()), params)
        };
        let requests: Vec<_> = (5..25).map(request).collect();
        let together = llm.generate_each(&requests).unwrap();
        for (request, together) in requests.into_iter().zip(together) {
            let alone = llm.generate_each(&[request]).unwrap().remove(0);
            assert_eq!((alone.tokens, alone.logprobs), (together.tokens, together.logprobs));
            assert_eq!(alone.prompt_logprobs, together.prompt_logprobs);
        }
    }
}
