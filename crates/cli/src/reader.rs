//! Where lines come from: a person at a terminal, or any other standard input.

use std::io::{self, BufRead, Read as _};

use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor};

use crate::error::CliError;

/// The longest line that is read from what is no terminal, in bytes.
const LONGEST_LINE: u64 = 1 << 24;

/// What reading a line gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// A line.
    Line(String),
    /// Ctrl-C while a line was typed.
    Interrupted,
    /// Ctrl-D, or the end of the input.
    End,
}

/// A source of lines.
pub(crate) enum Reader {
    /// A terminal, with line editing and a history that lives as long as the program.
    Terminal(Box<Editor<(), MemHistory>>),
    /// Lines as they come.
    Lines(io::StdinLock<'static>),
}

impl Reader {
    pub(crate) fn new(interactive: bool) -> Result<Self, CliError> {
        if !interactive {
            return Ok(Reader::Lines(io::stdin().lock()));
        }
        let config = Config::builder().auto_add_history(true).build();
        let editor = Editor::with_history(config, MemHistory::new());
        Ok(Reader::Terminal(Box::new(editor.map_err(|error| failed(&error))?)))
    }

    pub(crate) fn read(&mut self) -> Result<Read, CliError> {
        match self {
            Reader::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => Ok(Read::Line(line)),
                Err(ReadlineError::Interrupted) => Ok(Read::Interrupted),
                Err(ReadlineError::Eof) => Ok(Read::End),
                Err(error) => Err(failed(&error)),
            },
            Reader::Lines(lines) => next_line(lines, LONGEST_LINE),
        }
    }
}

/// Reads a line of at most `longest` bytes.
fn next_line(source: &mut impl BufRead, longest: u64) -> Result<Read, CliError> {
    let mut line = String::new();
    source.by_ref().take(longest.saturating_add(1)).read_line(&mut line).map_err(|error| failed(&error))?;
    if line.is_empty() {
        return Ok(Read::End);
    }
    if line.len() as u64 > longest {
        return Err(CliError::Failure(format!("a line of standard input is longer than {longest} bytes; split it")));
    }
    Ok(Read::Line(line))
}

fn failed(error: &dyn std::error::Error) -> CliError {
    CliError::Failure(format!("cannot read a line: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn lines_are_read_until_the_input_ends() {
        let mut source = "one\n\ntwo".as_bytes();
        let mut read = || next_line(&mut source, 10).unwrap();
        assert_eq!(read(), Read::Line("one\n".to_owned()));
        assert_eq!(read(), Read::Line("\n".to_owned()));
        assert_eq!(read(), Read::Line("two".to_owned()));
        assert_eq!(read(), Read::End);
    }

    #[test]
    fn a_line_that_is_too_long_or_no_text_is_an_error() {
        assert!(next_line(&mut io::BufReader::new(io::repeat(b'x')), 10).is_err());
        assert!(next_line(&mut &b"\xff\n"[..], 10).is_err());
    }
}
