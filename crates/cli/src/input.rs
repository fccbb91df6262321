//! Reading what a person names: files and standard input, up to a limit.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::error::CliError;

/// The most that is read of a file of prompts or of standard input, in bytes. A device that never ends, given as a
/// file by mistake, must not fill the memory.
const LARGEST: u64 = 1 << 30;

/// Reads a file of text.
pub(crate) fn file(path: &Path) -> Result<String, CliError> {
    let file = File::open(path).map_err(|error| CliError::file("read", path, &error))?;
    text(file, LARGEST).map_err(|error| CliError::file("read", path, &error))
}

/// Reads standard input to its end. One line break at the end is not part of the text: `echo` adds it.
pub(crate) fn standard_input() -> Result<String, CliError> {
    let failed = |error| CliError::Failure(format!("cannot read standard input: {error}"));
    let mut text = text(io::stdin().lock(), LARGEST).map_err(failed)?;
    let length = without_line_break(&text).len();
    text.truncate(length);
    Ok(text)
}

/// A line without the line break at its end, of either convention.
pub(crate) fn without_line_break(line: &str) -> &str {
    let line = line.strip_suffix('\n').unwrap_or(line);
    line.strip_suffix('\r').unwrap_or(line)
}

fn text(source: impl Read, largest: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    source.take(largest.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > largest {
        return Err(io::Error::other(format!("it is longer than {largest} bytes; split it")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        io::Error::new(io::ErrorKind::InvalidData, format!("it is not UTF-8 text: byte {place} is wrong"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_or_not_text_is_refused() {
        assert_eq!(text("abc".as_bytes(), 3).ok().as_deref(), Some("abc"));
        let message = |result: io::Result<String>| result.map_err(|error| error.to_string());
        assert_eq!(message(text("abcd".as_bytes(), 3)), Err("it is longer than 3 bytes; split it".to_owned()));
        let endless = io::repeat(b'x');
        assert!(message(text(endless, 1000)).is_err(), "an endless source ends at the limit");
        assert_eq!(
            message(text(&[b'a', b'b', 0xff, b'c'][..], 10)),
            Err("it is not UTF-8 text: byte 2 is wrong".to_owned())
        );
    }

    #[test]
    fn one_line_break_is_dropped() {
        for (line, expected) in [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a"), ("", "")] {
            assert_eq!(without_line_break(line), expected);
        }
    }
}
