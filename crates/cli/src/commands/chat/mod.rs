//! `allotrope chat`: a conversation in the terminal.

mod conversation;
mod line;
mod reader;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use allotrope_config::environment::Environment;
use allotrope_engine::{FinishReason, Llm, Prompt, SamplingParams};
use clap::ArgMatches;

use self::conversation::Conversation;
use self::line::Line;
use self::reader::{Read, Reader};
use crate::error::CliError;
use crate::sampling::SamplingFlags;
use crate::{arguments, model, output, prompts};

const HELP: &str = "\
/help         this list
/reset        begin a new conversation (the system message stays)
/system TEXT  set the system message and begin a new conversation; without TEXT, have none
/quit         end, as Ctrl-D does
Ctrl-C stops an answer. A space before the / sends a line that begins with one to the model.";

pub(super) fn run(matches: &ArgMatches, started: Instant, environment: &Environment) -> Result<(), CliError> {
    let flags = SamplingFlags::from_matches(matches)?;
    let llm = model::load(matches, started, environment)?;
    if let Some(reason) = prompts::missing_template(&llm) {
        return Err(CliError::Failure(format!(
            "chat needs a chat template: {reason}; `allotrope generate --raw` completes text without one"
        )));
    }
    let params = flags.over(llm.default_sampling_params())?;
    let interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
    let interrupted = Arc::new(AtomicBool::new(false));
    if interactive {
        // Elsewhere Ctrl-C ends the program, as it does for any program that reads lines.
        let flag = Arc::clone(&interrupted);
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
            .map_err(|error| CliError::Failure(format!("cannot take over Ctrl-C: {error}")))?;
    }
    let mut chat = Chat {
        conversation: Conversation::new(matches.get_one::<String>(arguments::SYSTEM).cloned()),
        llm,
        params,
        interrupted,
        interactive,
        quiet: matches.get_flag(arguments::QUIET),
    };
    chat.notice(format_args!(
        "{} at {}, ready after {:.2} s. /help lists the commands, Ctrl-D ends.",
        model::folder(matches).display(),
        chat.llm.settings().optimization_level.get(),
        chat.llm.startup().total.as_secs_f64()
    ));
    chat.run(Reader::new(interactive)?)
}

struct Chat {
    llm: Llm,
    params: SamplingParams,
    conversation: Conversation,
    /// Set by Ctrl-C while an answer is made.
    interrupted: Arc<AtomicBool>,
    /// Whether a person sits at a terminal: then a failed turn is told and the conversation goes on.
    interactive: bool,
    quiet: bool,
}

impl Chat {
    fn run(&mut self, mut reader: Reader) -> Result<(), CliError> {
        loop {
            let line = match reader.read()? {
                Read::Line(line) => line,
                Read::Interrupted => {
                    self.notice("Ctrl-D or /quit ends the conversation.");
                    continue;
                }
                Read::End => return Ok(()),
            };
            match Line::parse(&line) {
                Line::Empty => {}
                Line::Help => self.notice(HELP),
                Line::Quit => return Ok(()),
                Line::Reset => {
                    self.conversation.reset();
                    self.notice("A new conversation.");
                }
                Line::System(text) => {
                    let told = if text.is_some() { "with this system message" } else { "without a system message" };
                    self.conversation = Conversation::new(text);
                    self.notice(format_args!("A new conversation, {told}."));
                }
                Line::Unknown(name) => self.unknown(&name)?,
                Line::Message(text) => match self.turn(&text) {
                    Err(error @ CliError::Failure(_)) if self.interactive => self.tell(&error),
                    result => result?,
                },
            }
        }
    }

    /// One message of the user, and the answer to it.
    fn turn(&mut self, text: &str) -> Result<(), CliError> {
        let tokens = self.llm.tokenize(&Prompt::Chat(self.conversation.with_question(text)))?;
        let context = *self.llm.settings().model.max_model_len;
        if tokens.len() >= context {
            return Err(CliError::Failure(format!(
                "with this message the conversation has {} tokens, but the context holds {context} (model.max_model_len) and \
                 the answer needs room too; /reset begins a new conversation",
                tokens.len()
            )));
        }
        let room = context - tokens.len();
        self.interrupted.store(false, Ordering::Relaxed);
        let mut answer = String::new();
        let mut finished = None;
        for part in self.llm.stream(&Prompt::Tokens(tokens), &self.params)? {
            let part = part?;
            output::show(&part.text)?;
            answer.push_str(&part.text);
            finished = part.finish_reason;
            if self.interrupted.swap(false, Ordering::Relaxed) {
                break;
            }
        }
        output::show("\n")?;
        if finished == Some(FinishReason::Length) {
            let limit = self.params.max_tokens.filter(|&limit| limit < room);
            match limit {
                Some(limit) => self.notice(format_args!("(The answer was cut off after {limit} tokens: --max-tokens.)")),
                None => self.notice(format_args!(
                    "(The answer was cut off: the context of {context} tokens is full. /reset begins a new conversation.)"
                )),
            }
        } else if finished.is_none() {
            self.notice("(Stopped.)");
        }
        self.conversation.add(text, answer);
        Ok(())
    }

    /// A command that there is not: told to a person, an error in a script.
    fn unknown(&self, name: &str) -> Result<(), CliError> {
        let error = CliError::Failure(format!("there is no command {name}; /help lists the commands"));
        if !self.interactive {
            return Err(error);
        }
        self.tell(&error);
        Ok(())
    }

    /// Says something beside the conversation, unless it was asked to be quiet.
    fn notice(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            // The conversation itself goes on, whether or not this is read.
            let _ = output::notice(text);
        }
    }

    /// Tells of a turn that failed; quiet or not.
    fn tell(&self, error: &CliError) {
        let _ = output::notice(format_args!("error: {error}"));
    }
}
