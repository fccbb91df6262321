//! The library's front: a model that is loaded once and answers prompts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use allotrope_config::{OptimizationLevel, Options, Settings, Source};
use allotrope_graph::history::PassReport;
use allotrope_model::{ChatTemplate, Checkpoint, ModelError, Tokenizer};
use allotrope_runtime::{
    DeviceError, DispatchCounts, Executor, ExecutorError, StartupLedger, StartupReport, WeightUpload,
};

use crate::answer::Answer;
use crate::device::AnyDevice;
use crate::dump;
use crate::engine_core::{EngineCore, Throughput};
use crate::error::EngineError;
use crate::plan::{Plan, executor_options, weight_bytes_per_step};
use crate::request::{Completion, Prompt, Request, TokenLogits};
use crate::sampling::SamplingParams;
use crate::stream::CompletionStream;

/// Says what to load and how. What is said here has the strength of the command line.
#[derive(Debug, Clone)]
pub struct LlmBuilder {
    folder: PathBuf,
    options: Options,
    started: Instant,
}

impl LlmBuilder {
    /// Sets the optimization level.
    #[must_use]
    pub fn optimization_level(mut self, level: OptimizationLevel) -> Self {
        self.options.set_optimization_level(level, Source::Builder);
        self
    }

    /// Sets one setting by its path, such as `compilation.pass_config.fuse_add_norm`.
    ///
    /// # Errors
    /// If there is no such setting, or it can't have that value.
    pub fn set(mut self, path: &str, value: &str) -> Result<Self, EngineError> {
        self.options.set(path, value, Source::Builder)?;
        Ok(self)
    }

    /// Takes options that were gathered elsewhere, such as from a command line; what was said to this builder is stronger.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = self.options.over(options);
        self
    }

    /// Counts the start from an earlier moment, such as the first line of `main`.
    #[must_use]
    pub fn started(mut self, started: Instant) -> Self {
        self.started = started;
        self
    }

    /// Decides everything and loads nothing: for `explain`.
    ///
    /// # Errors
    /// As [`LlmBuilder::build`], as far as no weight is touched.
    pub fn plan(self) -> Result<Plan, EngineError> {
        Plan::new(&self.folder, &self.options, &mut StartupLedger::since(self.started))
    }

    /// Loads the model. When this returns, nothing is left to compile, load or capture, unless
    /// `compilation.cudagraph_capture` says that recordings are made later.
    ///
    /// # Errors
    /// If the checkpoint is missing, broken or not supported, a setting can't be had, or memory does not suffice.
    pub fn build(self) -> Result<Llm, EngineError> {
        let mut ledger = StartupLedger::since(self.started);
        ledger.claim("read options", self.started.elapsed());
        let folder = self.folder;
        let tokenizer = ledger.phase("start tokenizer thread", || load_tokenizer(&folder))?;
        let plan = Plan::new(&folder, &self.options, &mut ledger)?;
        let options = ledger.phase("resolve settings", || executor_options(&plan))?;
        let parts = plan.into_parts();
        let weight_bytes = weight_bytes_per_step(&parts.graph);
        let checkpoint = Arc::new(parts.checkpoint);
        let is_gpu = parts.device.is_gpu();
        let executor = Executor::build(parts.device, parts.graph, checkpoint.clone(), options, &mut ledger);
        let executor = executor.map_err(|error| match error {
            ExecutorError::Device(error @ DeviceError::Environment { .. }) if is_gpu => EngineError::Loading { error },
            error => error.into(),
        })?;
        if let Some(folder) = &*parts.settings.compilation.debug_dump_path {
            ledger.phase("write dump", || dump::write_recordings(&executor.recordings_text(), folder))?;
        }
        let core = EngineCore::new(executor);
        let (tokenizer, template) = ledger.phase("wait for tokenizer", || join(tokenizer, &folder))?;
        tokenizer.check_vocabulary(checkpoint.config())?;
        Ok(Llm {
            core,
            checkpoint,
            tokenizer,
            template,
            settings: parts.settings,
            device_name: parts.device_name,
            weight_bytes,
            startup: ledger.finish(),
        })
    }
}

type TextParts = (Tokenizer, Result<ChatTemplate, ModelError>);

fn load_tokenizer(folder: &Path) -> Result<JoinHandle<Result<TextParts, ModelError>>, EngineError> {
    let path = folder.to_path_buf();
    let load = move || {
        let tokenizer = Tokenizer::open(&path)?;
        Ok((tokenizer, ChatTemplate::open(&path)))
    };
    let thread = std::thread::Builder::new().name("tokenizer".into()).spawn(load);
    thread.map_err(|error| EngineError::TokenizerThread(folder.to_path_buf(), error.to_string()))
}

fn join(thread: JoinHandle<Result<TextParts, ModelError>>, folder: &Path) -> Result<TextParts, EngineError> {
    let died = |_| EngineError::TokenizerThread(folder.to_path_buf(), "the thread panicked (a bug)".into());
    Ok(thread.join().map_err(died)??)
}

/// A loaded model.
///
/// ```no_run
/// use allotrope_engine::{Llm, OptimizationLevel, Prompt, SamplingParams};
///
/// let mut llm = Llm::builder("tests/models/tiny-chat").optimization_level(OptimizationLevel::O1).build()?;
/// let answers = llm.generate(&[Prompt::from("Once upon a time")], &SamplingParams::greedy())?;
/// println!("{}", answers[0].text);
/// # Ok::<(), allotrope_engine::EngineError>(())
/// ```
pub struct Llm {
    core: EngineCore<AnyDevice>,
    checkpoint: Arc<Checkpoint>,
    tokenizer: Tokenizer,
    /// Kept as it was found: a broken template hurts only those who use it.
    template: Result<ChatTemplate, ModelError>,
    settings: Settings,
    device_name: String,
    weight_bytes: u64,
    startup: StartupReport,
}

impl Llm {
    /// Starts to say how the checkpoint in a folder is loaded.
    pub fn builder(folder: impl Into<PathBuf>) -> LlmBuilder {
        LlmBuilder { folder: folder.into(), options: Options::default(), started: Instant::now() }
    }

    /// Answers several prompts together. Answers come in the order of the prompts, and each is the same as alone.
    ///
    /// # Errors
    /// If a prompt does not fit into the context, a parameter is out of range, or the device fails.
    pub fn generate(&mut self, prompts: &[Prompt], params: &SamplingParams) -> Result<Vec<Completion>, EngineError> {
        let requests = prompts.iter().map(|prompt| self.request(prompt, params)).collect::<Result<_, _>>()?;
        self.answer(requests)
    }

    /// As [`Llm::generate`], with parameters of its own for each prompt.
    ///
    /// # Errors
    /// As [`Llm::generate`].
    pub fn generate_each(&mut self, requests: &[(Prompt, SamplingParams)]) -> Result<Vec<Completion>, EngineError> {
        let requests =
            requests.iter().map(|(prompt, params)| self.request(prompt, params)).collect::<Result<_, _>>()?;
        self.answer(requests)
    }

    fn answer(&mut self, requests: Vec<Request>) -> Result<Vec<Completion>, EngineError> {
        let mut answers = Vec::with_capacity(requests.len());
        for (index, request) in requests.into_iter().enumerate() {
            let answer = Answer::new(&self.tokenizer, &request);
            let seed = seed(&request.params, index);
            let id = self.core.add(request, seed)?;
            answers.push((id, answer));
        }
        let result = self.run(&mut answers);
        for (id, answer) in &answers {
            // After an error the rest is dropped, so that the next call finds an idle core.
            if !answer.is_finished() {
                self.core.abort(*id)?;
            }
        }
        result?;
        Ok(answers.into_iter().map(|(_, answer)| answer.into_completion()).collect())
    }

    fn run(&mut self, answers: &mut [(crate::scheduler::SequenceId, Answer)]) -> Result<(), EngineError> {
        while let Some(produced) = self.core.step()? {
            for token in produced {
                let Some((_, answer)) = answers.iter_mut().find(|(id, _)| *id == token.id) else { continue };
                answer.push(&token)?;
                if answer.is_finished() && token.finish_reason.is_none() {
                    self.core.abort(token.id)?;
                }
            }
        }
        Ok(())
    }

    /// Answers one prompt token by token. Dropping the stream stops the answer.
    ///
    /// # Errors
    /// If the prompt does not fit into the context, or a parameter is out of range.
    pub fn stream(&mut self, prompt: &Prompt, params: &SamplingParams) -> Result<CompletionStream<'_>, EngineError> {
        let request = self.request(prompt, params)?;
        let answer = Answer::new(&self.tokenizer, &request);
        let id = self.core.add(request, seed(params, 0))?;
        Ok(CompletionStream::new(&mut self.core, id, answer))
    }

    /// The logits at every position of a prompt, and of a greedy continuation that does not stop at the end of a text.
    ///
    /// # Errors
    /// If the tokens do not fit into the context or the vocabulary, or the device fails.
    pub fn logits(&mut self, tokens: &[u32], new_tokens: usize) -> Result<TokenLogits, EngineError> {
        let length = tokens.len().saturating_add(new_tokens);
        self.check_prompt(tokens, length)?;
        self.core.logits(tokens, new_tokens)
    }

    /// Checks a prompt and parameters as [`Llm::generate`] would, and runs nothing.
    ///
    /// # Errors
    /// If the prompt does not fit into the context, or a parameter is out of range.
    pub fn check(&self, prompt: &Prompt, params: &SamplingParams) -> Result<(), EngineError> {
        self.request(prompt, params).map(|_| ())
    }

    /// The token ids of a prompt.
    ///
    /// # Errors
    /// If the text can't be tokenized, or the checkpoint has no usable chat template for a conversation.
    pub fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, EngineError> {
        Ok(match prompt {
            Prompt::Text(text) => self.tokenizer.encode(text, true)?,
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Chat(messages) => {
                let template = self.template.as_ref().map_err(|error| EngineError::Request(error.to_string()))?;
                self.tokenizer.encode(&template.render(messages, true)?, false)?
            }
        })
    }

    fn request(&self, prompt: &Prompt, params: &SamplingParams) -> Result<Request, EngineError> {
        params.validate()?;
        let prompt = self.tokenize(prompt)?;
        self.check_prompt(&prompt, prompt.len().saturating_add(1))?;
        let room = *self.settings.model.max_model_len - prompt.len();
        let max_tokens = params.max_tokens.unwrap_or(room).min(room);
        let end_tokens = if params.ignore_eos { Vec::new() } else { self.checkpoint.eos_token_ids().to_vec() };
        Ok(Request { prompt, params: params.clone(), max_tokens, end_tokens })
    }

    fn check_prompt(&self, tokens: &[u32], length: usize) -> Result<(), EngineError> {
        let context = *self.settings.model.max_model_len;
        let vocabulary = self.checkpoint.config().vocab_size;
        if tokens.is_empty() {
            return Err(EngineError::Request("the prompt has no tokens; give at least one".into()));
        }
        if length > context {
            return Err(EngineError::Request(format!(
                "the prompt has {} tokens and at least {} more are wanted, but the context holds {context} \
                 (model.max_model_len); shorten the prompt",
                tokens.len(),
                length - tokens.len(),
            )));
        }
        match tokens.iter().find(|token| **token as usize >= vocabulary) {
            Some(token) => Err(EngineError::Request(format!(
                "token id {token} is not in the vocabulary of {vocabulary} entries (vocab_size in config.json)"
            ))),
            None => Ok(()),
        }
    }

    /// The sampling parameters that the checkpoint's `generation_config.json` asks for. Without `do_sample`, answers
    /// are greedy.
    pub fn default_sampling_params(&self) -> SamplingParams {
        let said = self.checkpoint.generation();
        if said.do_sample != Some(true) {
            return SamplingParams {
                repetition_penalty: said.repetition_penalty.unwrap_or(1.0),
                max_tokens: said.max_new_tokens,
                ..SamplingParams::greedy()
            };
        }
        let defaults = SamplingParams::default();
        SamplingParams {
            temperature: said.temperature.unwrap_or(defaults.temperature),
            top_p: said.top_p.unwrap_or(defaults.top_p),
            top_k: said.top_k.and_then(|k| u32::try_from(k).ok()).unwrap_or(defaults.top_k),
            min_p: said.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: said.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            max_tokens: said.max_new_tokens,
            ..defaults
        }
    }

    /// Whether the checkpoint has a chat template that can be used.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_ok()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The resolved settings, each with its source and reason.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The name of the device that runs it.
    pub fn device_name(&self) -> &str {
        &self.device_name
    }

    /// What every pass did.
    pub fn passes(&self) -> &[PassReport] {
        self.core.executor().graph().history()
    }

    /// The phases of the start and their times.
    pub fn startup(&self) -> &StartupReport {
        &self.startup
    }

    /// What has happened since the start.
    pub fn statistics(&self) -> Statistics {
        let executor = self.core.executor();
        Statistics {
            throughput: self.core.throughput(),
            recordings: executor.recordings(),
            failed_captures: executor.failed_captures(),
            late_captures: executor.late_captures(),
            capture_memory: executor.capture_memory(),
            weight_upload: executor.weight_upload(),
            dispatch: executor.dispatch_counts().clone(),
            arena_bytes: executor.memory().bytes,
            weight_bytes_per_step: self.weight_bytes,
            kv_cache_tokens: executor.options().cache.blocks * executor.options().cache.block_size,
        }
    }
}

/// Counters of a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistics {
    /// Tokens, times and launches by the kind of step.
    pub throughput: Throughput,
    /// Recordings that exist.
    pub recordings: usize,
    /// Recordings that could not be made, and that steps run without.
    pub failed_captures: usize,
    /// Recordings made after the model was ready.
    pub late_captures: u64,
    /// Bytes of the device's memory that recordings took; `None` for a device without memory of its own.
    pub capture_memory: Option<u64>,
    /// What copying the weights to the device came to; `None` for a device that uses them where they are.
    pub weight_upload: Option<WeightUpload>,
    /// How steps ran, with reasons.
    pub dispatch: DispatchCounts,
    /// Bytes of the arena that activations share.
    pub arena_bytes: usize,
    /// Bytes of weights that one decode step reads.
    pub weight_bytes_per_step: u64,
    /// Tokens that the KV cache holds.
    pub kv_cache_tokens: usize,
}

/// The seed of one request: its own, or one that differs from run to run. Prompts of one call draw differently.
fn seed(params: &SamplingParams, index: usize) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    params.seed.unwrap_or_else(|| RandomState::new().hash_one(index))
}
