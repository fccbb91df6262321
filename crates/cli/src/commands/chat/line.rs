//! What a line means: a message to the model, or a command to the program.

/// A line that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// White space alone.
    Empty,
    /// `/help`
    Help,
    /// `/reset`
    Reset,
    /// `/system TEXT`; without a text, there is to be no system message.
    System(Option<String>),
    /// `/quit`
    Quit,
    /// Another word after a slash.
    Unknown(String),
    /// Anything else.
    Message(String),
}

impl Line {
    pub(super) fn parse(line: &str) -> Self {
        let text = line.trim();
        if text.is_empty() {
            return Line::Empty;
        }
        if !line.starts_with('/') {
            return Line::Message(text.to_owned());
        }
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        match name {
            "/system" => Line::System((!rest.is_empty()).then(|| rest.to_owned())),
            "/help" if rest.is_empty() => Line::Help,
            "/reset" if rest.is_empty() => Line::Reset,
            "/quit" if rest.is_empty() => Line::Quit,
            "/help" | "/reset" | "/quit" => Line::Unknown(text.to_owned()),
            _ => Line::Unknown(name.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_begin_with_a_slash_in_the_first_column() {
        let cases = [
            ("", Line::Empty),
            (" \t\r\n", Line::Empty),
            ("/help", Line::Help),
            ("/reset \n", Line::Reset),
            ("/quit", Line::Quit),
            ("/system  Be brief. ", Line::System(Some("Be brief.".to_owned()))),
            ("/system", Line::System(None)),
            ("/systems", Line::Unknown("/systems".to_owned())),
            ("/reset now", Line::Unknown("/reset now".to_owned())),
            ("/", Line::Unknown("/".to_owned())),
            (" /help", Line::Message("/help".to_owned())),
            ("What is 7 + 8?\n", Line::Message("What is 7 + 8?".to_owned())),
        ];
        for (line, expected) in cases {
            assert_eq!(Line::parse(line), expected, "{line:?}");
        }
    }
}
