//! Why a server could not be asked, or did not answer.

use crate::error::CliError;

/// The longest message of a server that is repeated, in characters.
const LONGEST_MESSAGE: usize = 1000;

/// Why a request to a server has no whole answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClientError {
    /// What was typed can't be asked anywhere.
    #[error("{0}")]
    Usage(String),
    /// Nobody was reached.
    #[error("cannot reach {url}: {reason}")]
    Unreachable { url: String, reason: String },
    /// The server refused the request before its answer began.
    #[error("{url} answered with status {status}: {message}{hint}")]
    Status { url: String, status: u16, message: String, hint: &'static str },
    /// The server ended an answer that had begun.
    #[error("the server ended the answer with an error: {0}")]
    Server(String),
    /// What the server sent is not what an OpenAI-compatible server sends.
    #[error("the server's answer cannot be read: {0}")]
    Protocol(String),
    /// The answer was not whole when it ended.
    #[error("the connection was lost in the middle of the answer: {0}")]
    Disconnected(String),
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Usage(message) => CliError::Usage(message),
            other => CliError::Failure(other.to_string()),
        }
    }
}

/// A text of a server as part of a message: on one line, not endless, and without what a terminal would obey.
pub(super) fn clean(text: &str) -> String {
    let mut characters = text.trim().chars();
    let kept = characters.by_ref().take(LONGEST_MESSAGE);
    let mut clean: String = kept.map(|character| if character.is_control() { ' ' } else { character }).collect();
    if characters.next().is_some() {
        clean.push('…');
    }
    if clean.is_empty() { "(no message)".to_owned() } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_a_server_does_not_reach_the_terminal_as_it_is() {
        assert_eq!(clean(" a\x1b[31m\nb "), "a [31m b");
        assert_eq!(clean(""), "(no message)");
        let long = clean(&"é".repeat(5000));
        assert_eq!((long.chars().count(), long.ends_with('…')), (LONGEST_MESSAGE + 1, true));
    }
}
