//! `allotrope complete`: text that a server continues.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use allotrope_config::environment::Environment;
use clap::ArgMatches;
use serde_json::{Map, Value};

use crate::client::Session;
use crate::error::CliError;
use crate::input::without_line_break;
use crate::reader::{Read, Reader};
use crate::sampling::SamplingFlags;
use crate::{arguments, output};

pub(super) fn run(matches: &ArgMatches, environment: &Environment) -> Result<(), CliError> {
    let members = SamplingFlags::from_matches(matches)?.members();
    // The flag has a default.
    let url = matches.get_one::<String>(arguments::URL).map_or("", String::as_str);
    let quick = matches.get_one::<String>(arguments::QUICK);
    let interactive = quick.is_none() && io::stdin().is_terminal() && io::stdout().is_terminal();
    let interrupted = Arc::new(AtomicBool::new(false));
    let completer = Completer {
        session: Session::new(url, matches, environment)?,
        members,
        stats: matches.get_flag(arguments::STATS),
        interrupted: Arc::clone(&interrupted),
    };
    if let Some(text) = quick {
        return completer.complete(text);
    }
    if interactive {
        ctrlc::set_handler(move || interrupted.store(true, Ordering::Relaxed))
            .map_err(|error| CliError::Failure(format!("cannot take over Ctrl-C: {error}")))?;
        let model = completer.session.model().escape_debug();
        // Whoever does not see this line can complete text all the same.
        let _ = output::notice(format_args!("{model} at {url}. Each line is completed by itself; Ctrl-D ends."));
    }
    completer.run(Reader::new(interactive)?, interactive)
}

struct Completer {
    session: Session,
    members: Map<String, Value>,
    stats: bool,
    /// Set by Ctrl-C while an answer is made.
    interrupted: Arc<AtomicBool>,
}

impl Completer {
    fn run(&self, mut reader: Reader, interactive: bool) -> Result<(), CliError> {
        loop {
            let line = match reader.read()? {
                Read::Line(line) => line,
                Read::Interrupted => continue,
                Read::End => return Ok(()),
            };
            let text = without_line_break(&line);
            if text.trim().is_empty() {
                continue;
            }
            match self.complete(text) {
                Err(error @ CliError::Failure(_)) if interactive => {
                    let _ = output::notice(format_args!("error: {error}"));
                }
                result => result?,
            }
        }
    }

    fn complete(&self, text: &str) -> Result<(), CliError> {
        let mut members = self.members.clone();
        members.insert("prompt".to_owned(), text.into());
        self.interrupted.store(false, Ordering::Relaxed);
        let shown = self.session.ask("/completions", members, &self.interrupted)?;
        output::show("\n")?;
        if self.stats {
            // The text is there, whether or not this is read.
            let _ = output::notice(shown.speed.summary());
        }
        Ok(())
    }
}
