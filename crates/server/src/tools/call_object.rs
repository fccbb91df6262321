//! Reading one call, `{"name": …, "parameters": …}`, a character at a time.
//!
//! The call is certain once its name is known to be a tool's and its arguments have begun; from then on they are passed
//! on as they come. They may stand before the name, and they may be called `arguments` too. Nothing is evaluated, and the
//! arguments are only followed as far as needed to find their end.

use std::collections::HashSet;

/// Most bytes of a name, or of arguments that are kept back because they stand before the name.
const MAX_KEPT: usize = 64 << 10;

/// What a character did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It belongs to the object, of which it is not certain yet that it is a call; or it adds nothing to a certain one.
    Kept,
    /// It makes the call certain; the arguments so far.
    Started { name: String, arguments: String },
    /// It belongs to the arguments.
    Argument,
    /// It ends the object, which is a call that has started.
    Ended,
    /// It ends the object and makes the call certain at once.
    StartedAndEnded { name: String, arguments: String },
    /// It cannot stand here, so this is no call, or a broken one; it is not used up.
    Failed,
}

/// Reads one object whose opening brace has been seen.
#[derive(Debug, Default)]
pub(super) struct CallReader {
    state: State,
    /// The key of the value that is read, or is to be read, with quotes and escapes.
    key: String,
    role: Role,
    /// The value, as long as it matters and is not passed on.
    value: String,
    name: Option<String>,
    /// Arguments that ended before the call was certain.
    arguments: Option<String>,
    is_started: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    BeforeFirstKey,
    BeforeKey,
    Key {
        is_escaped: bool,
    },
    BeforeColon,
    BeforeValue,
    Value(Scan),
    AfterValue,
}

/// What a value is to the call.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Role {
    Name,
    /// Arguments that are kept back.
    Arguments,
    /// Arguments that are passed on.
    PassedOn,
    #[default]
    Other,
}

/// How the end of a value is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scan {
    Text {
        is_escaped: bool,
    },
    Nested {
        depth: u64,
        in_text: bool,
        is_escaped: bool,
    },
    /// A number or a word: it ends before the first character that does not belong to it.
    Plain,
}

/// Where a value stands after a character.
enum Scanned {
    Inside(Scan),
    EndsHere,
    EndedBefore,
    Broken,
}

impl Scan {
    fn begin(first: char) -> Option<Scan> {
        match first {
            '"' => Some(Scan::Text { is_escaped: false }),
            '{' | '[' => Some(Scan::Nested { depth: 1, in_text: false, is_escaped: false }),
            '-' | '0'..='9' | 'a'..='z' => Some(Scan::Plain),
            _ => None,
        }
    }

    fn next(self, character: char) -> Scanned {
        match self {
            Scan::Text { is_escaped: true } => Scanned::Inside(Scan::Text { is_escaped: false }),
            Scan::Text { is_escaped: false } if character == '"' => Scanned::EndsHere,
            Scan::Text { is_escaped: false } => Scanned::Inside(Scan::Text { is_escaped: character == '\\' }),
            Scan::Plain => match character {
                '-' | '+' | '.' | '0'..='9' | 'a'..='z' | 'E' => Scanned::Inside(Scan::Plain),
                ',' | '}' | ' ' | '\t' | '\n' | '\r' => Scanned::EndedBefore,
                _ => Scanned::Broken,
            },
            Scan::Nested { depth, in_text: true, is_escaped } => {
                let ends = !is_escaped && character == '"';
                let is_escaped = !is_escaped && character == '\\';
                Scanned::Inside(Scan::Nested { depth, in_text: !ends, is_escaped })
            }
            Scan::Nested { depth, in_text: false, is_escaped } => match character {
                '}' | ']' if depth == 1 => Scanned::EndsHere,
                '}' | ']' => Scanned::Inside(Scan::Nested { depth: depth - 1, in_text: false, is_escaped }),
                '{' | '[' => Scanned::Inside(Scan::Nested { depth: depth + 1, in_text: false, is_escaped }),
                _ => Scanned::Inside(Scan::Nested { depth, in_text: character == '"', is_escaped }),
            },
        }
    }
}

impl CallReader {
    /// Whether the call is certain.
    pub(super) fn is_started(&self) -> bool {
        self.is_started
    }

    /// Takes the next character; `names` are those of the tools.
    pub(super) fn push(&mut self, character: char, names: &HashSet<String>) -> Step {
        match self.state {
            State::Key { is_escaped } => self.push_key(character, is_escaped),
            State::Value(scan) => self.push_value(character, scan, names),
            _ if is_space(character) => Step::Kept,
            State::BeforeFirstKey if character == '}' => self.end(),
            State::BeforeFirstKey | State::BeforeKey if character == '"' => {
                self.key.clear();
                self.key.push(character);
                self.go(State::Key { is_escaped: false })
            }
            State::BeforeColon if character == ':' => self.go(State::BeforeValue),
            State::BeforeValue => self.begin_value(character),
            State::AfterValue if character == ',' => self.go(State::BeforeKey),
            State::AfterValue if character == '}' => self.end(),
            _ => Step::Failed,
        }
    }

    fn go(&mut self, state: State) -> Step {
        self.state = state;
        Step::Kept
    }

    fn end(&mut self) -> Step {
        if self.is_started {
            return Step::Ended;
        }
        // A function without parameters may be called without arguments.
        match self.name.take() {
            Some(name) => Step::StartedAndEnded { name, arguments: "{}".to_owned() },
            None => Step::Failed,
        }
    }

    fn push_key(&mut self, character: char, is_escaped: bool) -> Step {
        self.key.push(character);
        if self.key.len() > MAX_KEPT {
            return Step::Failed;
        }
        if is_escaped || character != '"' {
            return self.go(State::Key { is_escaped: !is_escaped && character == '\\' });
        }
        let Ok(key) = serde_json::from_str::<String>(&self.key) else { return Step::Failed };
        self.role = match key.as_str() {
            // What follows the arguments does not matter any more.
            _ if self.is_started => Role::Other,
            "name" => Role::Name,
            "parameters" | "arguments" => Role::Arguments,
            _ => Role::Other,
        };
        self.go(State::BeforeColon)
    }

    fn begin_value(&mut self, first: char) -> Step {
        let Some(scan) = Scan::begin(first) else { return Step::Failed };
        self.state = State::Value(scan);
        self.value.clear();
        if self.role == Role::Arguments
            && first == '{'
            && let Some(name) = self.name.take()
        {
            self.role = Role::PassedOn;
            self.is_started = true;
            return Step::Started { name, arguments: first.to_string() };
        }
        self.keep(first)
    }

    fn push_value(&mut self, character: char, scan: Scan, names: &HashSet<String>) -> Step {
        match scan.next(character) {
            Scanned::Broken => Step::Failed,
            Scanned::Inside(scan) => {
                self.state = State::Value(scan);
                self.keep(character)
            }
            Scanned::EndsHere => {
                self.state = State::AfterValue;
                match self.keep(character) {
                    Step::Kept => self.end_value(names),
                    step => step,
                }
            }
            Scanned::EndedBefore => {
                self.state = State::AfterValue;
                match self.end_value(names) {
                    Step::Kept => self.push(character, names),
                    // A number or a word is no name, and as arguments only null is one.
                    Step::Started { name, arguments } if character == '}' => Step::StartedAndEnded { name, arguments },
                    Step::Started { name, arguments } => {
                        if character == ',' {
                            self.state = State::BeforeKey;
                        }
                        Step::Started { name, arguments }
                    }
                    step => step,
                }
            }
        }
    }

    fn keep(&mut self, character: char) -> Step {
        match self.role {
            Role::PassedOn => return Step::Argument,
            Role::Other => {}
            Role::Name | Role::Arguments => self.value.push(character),
        }
        if self.value.len() > MAX_KEPT { Step::Failed } else { Step::Kept }
    }

    fn end_value(&mut self, names: &HashSet<String>) -> Step {
        let value = std::mem::take(&mut self.value);
        match self.role {
            Role::PassedOn | Role::Other => return Step::Kept,
            Role::Name => match serde_json::from_str::<String>(&value) {
                Ok(name) if names.contains(&name) => self.name = Some(name),
                _ => return Step::Failed,
            },
            Role::Arguments => match kept_arguments(value) {
                Some(arguments) => self.arguments = Some(arguments),
                None => return Step::Failed,
            },
        }
        match (self.name.take(), self.arguments.take()) {
            (Some(name), Some(arguments)) => {
                self.is_started = true;
                Step::Started { name, arguments }
            }
            (name, arguments) => {
                (self.name, self.arguments) = (name, arguments);
                Step::Kept
            }
        }
    }
}

/// Arguments that were kept back. Some models write them as text that holds the object, or null for none.
fn kept_arguments(value: String) -> Option<String> {
    if value.starts_with('{') {
        return Some(value);
    }
    if value == "null" {
        return Some("{}".to_owned());
    }
    let text = serde_json::from_str::<String>(&value).ok()?;
    let is_object = serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|value| value.is_object());
    is_object.then_some(text)
}

/// Whether JSON ignores the character between values.
pub(super) fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r')
}
