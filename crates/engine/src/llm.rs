//! The library's front: a model that is loaded once and answers prompts.

use std::path::PathBuf;
use std::time::Instant;

use allotrope_config::{OptimizationLevel, Options, Settings, Source};
use allotrope_graph::history::PassReport;
use allotrope_model::Tokenizer;
use allotrope_runtime::{PhaseObserver, StartupLedger, StartupReport};

use crate::answer::{Answer, Collected};
use crate::async_llm::AsyncLlm;
use crate::error::EngineError;
use crate::loaded::{Loaded, Statistics};
use crate::plan::Plan;
use crate::request::{Completion, Prompt, TokenLogits};
use crate::sampling::SamplingParams;
use crate::scheduler::SequenceId;
use crate::stream::CompletionStream;
use crate::text::TextModel;

/// Says what to load and how. What is said here has the strength of the command line.
#[derive(Debug, Clone)]
pub struct LlmBuilder {
    folder: PathBuf,
    options: Options,
    started: Instant,
    observer: Option<PhaseObserver>,
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

    /// Tells `observe` the name of each phase of the start as it begins, on the thread that loads.
    #[must_use]
    pub fn on_phase(mut self, observe: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.observer = Some(PhaseObserver::new(observe));
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
        Ok(Llm { loaded: self.load()? })
    }

    /// Loads the model on a thread of its own, for programs that serve many at once. `scheduler.max_num_queued_reqs` and
    /// `scheduler.max_num_queued_tokens` bound what waits.
    ///
    /// # Errors
    /// As [`LlmBuilder::build`].
    pub fn build_async(self) -> Result<AsyncLlm, EngineError> {
        AsyncLlm::start(self)
    }

    pub(crate) fn load(self) -> Result<Loaded, EngineError> {
        let mut ledger = StartupLedger::since(self.started).observed(self.observer);
        ledger.claim("read options", self.started.elapsed());
        Loaded::new(&self.folder, |ledger| Plan::new(&self.folder, &self.options, ledger), ledger)
    }
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
    loaded: Loaded,
}

impl Llm {
    /// Starts to say how the checkpoint in a folder is loaded.
    pub fn builder(folder: impl Into<PathBuf>) -> LlmBuilder {
        LlmBuilder { folder: folder.into(), options: Options::default(), started: Instant::now(), observer: None }
    }

    /// Answers several prompts together. Answers come in the order of the prompts, `params.n` to each, and each is the same as
    /// alone.
    ///
    /// # Errors
    /// If a prompt does not fit into the context, a parameter is out of range, or the device fails.
    pub fn generate(&mut self, prompts: &[Prompt], params: &SamplingParams) -> Result<Vec<Completion>, EngineError> {
        self.answer(prompts.iter().map(|prompt| (prompt, params)))
    }

    /// As [`Llm::generate`], with parameters of its own for each prompt.
    ///
    /// # Errors
    /// As [`Llm::generate`].
    pub fn generate_each(&mut self, requests: &[(Prompt, SamplingParams)]) -> Result<Vec<Completion>, EngineError> {
        self.answer(requests.iter().map(|(prompt, params)| (prompt, params)))
    }

    fn answer<'a>(
        &mut self,
        asked: impl Iterator<Item = (&'a Prompt, &'a SamplingParams)>,
    ) -> Result<Vec<Completion>, EngineError> {
        let mut requests = Vec::new();
        for (prompt, params) in asked {
            let tokens = self.tokenize(prompt)?;
            requests.extend(self.loaded.text.requests(&tokens, params)?);
        }
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            let answer = Answer::new(self.loaded.text.tokenizer(), &request, 0);
            let collected = Collected::new(request.prompt.len());
            let id = self.loaded.core.add(request, Instant::now());
            answers.push((id, answer, collected));
        }
        let result = self.run(&mut answers);
        for (id, answer, _) in &answers {
            // After an error the rest is dropped, so that the next call finds an idle core.
            if !answer.is_finished() {
                self.loaded.core.abort(*id)?;
            }
        }
        result?;
        Ok(answers.into_iter().map(|(_, _, collected)| collected.into_completion()).collect())
    }

    fn run(&mut self, answers: &mut [(SequenceId, Answer, Collected)]) -> Result<(), EngineError> {
        let core = &mut self.loaded.core;
        while let Some(outcome) = core.step()? {
            for one in outcome.produced {
                // Sequences were added one after the other, so their ids ascend.
                let Ok(place) = answers.binary_search_by_key(&one.id, |(id, ..)| *id) else { continue };
                let (_, answer, collected) = &mut answers[place];
                let output = one.event?;
                let is_last = output.finish.is_some();
                collected.push(&answer.push(output)?);
                if answer.is_finished() && !is_last {
                    core.abort(one.id)?;
                }
            }
        }
        Ok(())
    }

    /// Answers one prompt token by token. Dropping the stream stops the answer. Of `params.n` answers it is the first.
    ///
    /// # Errors
    /// If the prompt does not fit into the context, or a parameter is out of range.
    pub fn stream(&mut self, prompt: &Prompt, params: &SamplingParams) -> Result<CompletionStream<'_>, EngineError> {
        let requests = self.loaded.text.requests(&self.tokenize(prompt)?, params)?;
        let Some(request) = requests.into_iter().next() else {
            return Err(EngineError::Request("no answer was asked for".into()));
        };
        let answer = Answer::new(self.loaded.text.tokenizer(), &request, 0);
        let prompt_tokens = request.prompt.len();
        let id = self.loaded.core.add(request, Instant::now());
        Ok(CompletionStream::new(&mut self.loaded.core, id, answer, prompt_tokens))
    }

    /// The logits at every position of a prompt, and of a greedy continuation that does not stop at the end of a text.
    ///
    /// # Errors
    /// If the tokens do not fit into the context or the vocabulary, or the device fails.
    pub fn logits(&mut self, tokens: &[u32], new_tokens: usize) -> Result<TokenLogits, EngineError> {
        self.loaded.text.check_prompt(tokens, new_tokens)?;
        self.loaded.core.logits(tokens, new_tokens)
    }

    /// Checks a prompt and parameters as [`Llm::generate`] would, and runs nothing.
    ///
    /// # Errors
    /// If the prompt does not fit into the context, or a parameter is out of range.
    pub fn check(&self, prompt: &Prompt, params: &SamplingParams) -> Result<(), EngineError> {
        self.loaded.text.requests(&self.tokenize(prompt)?, params).map(|_| ())
    }

    /// The token ids of a prompt.
    ///
    /// # Errors
    /// If the text can't be tokenized, or the checkpoint has no usable chat template for a conversation.
    pub fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, EngineError> {
        self.loaded.text.tokenize(prompt)
    }

    /// The sampling parameters that the checkpoint's `generation_config.json` asks for. Without `do_sample`, answers
    /// are greedy.
    pub fn default_sampling_params(&self) -> SamplingParams {
        self.loaded.text.default_sampling_params()
    }

    /// Whether the checkpoint has a chat template that can be used.
    pub fn has_chat_template(&self) -> bool {
        self.loaded.text.has_chat_template()
    }

    /// Forgets what the prefix cache holds.
    pub fn reset_prefix_cache(&mut self) {
        // Nothing runs between calls.
        self.loaded.core.forget_cache();
    }

    /// The text side of the model.
    pub fn text(&self) -> &TextModel {
        &self.loaded.text
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.loaded.text.tokenizer()
    }

    /// The resolved settings, each with its source and reason.
    pub fn settings(&self) -> &Settings {
        &self.loaded.settings
    }

    /// The name of the device that runs it.
    pub fn device_name(&self) -> &str {
        &self.loaded.device_name
    }

    /// What every pass did.
    pub fn passes(&self) -> &[PassReport] {
        self.loaded.core.executor().graph().history()
    }

    /// The phases of the start and their times.
    pub fn startup(&self) -> &StartupReport {
        &self.loaded.startup
    }

    /// What has happened since the start.
    pub fn statistics(&self) -> Statistics {
        self.loaded.statistics()
    }
}
