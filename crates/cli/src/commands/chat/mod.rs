//! `allotrope chat`: a conversation in the terminal, with a model in this process or with a server.

mod conversation;
mod line;
mod local;
mod remote;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use allotrope_config::environment::Environment;
use allotrope_engine::Message;
use clap::ArgMatches;

use self::conversation::Conversation;
use self::line::Line;
use self::local::Local;
use self::remote::Remote;
use crate::error::CliError;
use crate::reader::{Read, Reader};
use crate::sampling::SamplingFlags;
use crate::speed::Speed;
use crate::{arguments, output};

const HELP: &str = "\
/help         this list
/reset        begin a new conversation (the system message stays)
/system TEXT  set the system message and begin a new conversation; without TEXT, have none
/quit         end, as Ctrl-D does
Ctrl-C stops an answer. A space before the / sends a line that begins with one to the model.";

/// Who answers.
trait Partner {
    /// Who it is, for the first line.
    fn introduction(&self) -> String;

    /// Answers the last of the messages and shows the answer, without a line break at its end, until `interrupted` is set.
    fn answer(&mut self, messages: Vec<Message>, interrupted: &AtomicBool) -> Result<Turn, CliError>;
}

/// An answer that was shown.
struct Turn {
    text: String,
    /// What is to be said about how it ended.
    remark: Option<String>,
    speed: Speed,
}

pub(super) fn run(matches: &ArgMatches, started: Instant, environment: &Environment) -> Result<(), CliError> {
    let flags = SamplingFlags::from_matches(matches)?;
    let partner: Box<dyn Partner> = match matches.get_one::<String>(arguments::URL) {
        Some(url) => Box::new(Remote::connect(url, matches, &flags, environment)?),
        None => Box::new(Local::load(matches, &flags, started, environment)?),
    };
    let quick = matches.get_one::<String>(arguments::QUICK);
    let interactive = quick.is_none() && io::stdin().is_terminal() && io::stdout().is_terminal();
    let interrupted = Arc::new(AtomicBool::new(false));
    if interactive {
        // Elsewhere Ctrl-C ends the program, as it does for any program that reads lines.
        let flag = Arc::clone(&interrupted);
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
            .map_err(|error| CliError::Failure(format!("cannot take over Ctrl-C: {error}")))?;
    }
    let mut chat = Chat {
        conversation: Conversation::new(matches.get_one::<String>(arguments::SYSTEM).cloned()),
        partner,
        interrupted,
        interactive,
        quiet: matches.get_flag(arguments::QUIET),
        stats: matches.get_flag(arguments::STATS),
    };
    if let Some(text) = quick {
        return chat.turn(text);
    }
    chat.notice(format_args!("{}. /help lists the commands, Ctrl-D ends.", chat.partner.introduction()));
    chat.run(Reader::new(interactive)?)
}

struct Chat {
    partner: Box<dyn Partner>,
    conversation: Conversation,
    /// Set by Ctrl-C while an answer is made.
    interrupted: Arc<AtomicBool>,
    /// Whether a person sits at a terminal: then a failed turn is told and the conversation goes on.
    interactive: bool,
    quiet: bool,
    stats: bool,
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
        self.interrupted.store(false, Ordering::Relaxed);
        let turn = self.partner.answer(self.conversation.with_question(text), &self.interrupted)?;
        output::show("\n")?;
        if let Some(remark) = &turn.remark {
            self.notice(remark);
        }
        if self.stats {
            // Asked for, and so told even if it is to be quiet otherwise.
            let _ = output::notice(turn.speed.summary());
        }
        self.conversation.add(text, turn.text);
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
