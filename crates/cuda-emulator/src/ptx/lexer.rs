//! Text to tokens. A word holds the dots and double colons of an opcode: `ld.shared::cta.u32` is one token.

use super::syntax::{Error, Position};

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// A name, directive or opcode.
    Word(&'a str),
    /// A number as written, without sign.
    Number(&'a str),
    /// A string, with quotes.
    Text,
    /// A punctuation mark.
    Mark(char),
    /// The end of the text.
    End,
}

/// A token and its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind<'a>,
    pub(super) position: Position,
}

/// Splits a text into tokens, the last of which is [`Kind::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, Error> {
    let mut lexer = Lexer { text, at: 0, line: 1, line_start: 0 };
    let mut list = Vec::new();
    loop {
        lexer.skip_blank()?;
        let position = lexer.position();
        let kind = lexer.next(position)?;
        list.push(Token { kind, position });
        if kind == Kind::End {
            return Ok(list);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
    line_start: usize,
}

impl<'a> Lexer<'a> {
    fn position(&self) -> Position {
        Position { line: self.line, column: u32::try_from(self.at - self.line_start + 1).unwrap_or(u32::MAX) }
    }

    fn byte(&self, ahead: usize) -> u8 {
        self.text.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    fn advance(&mut self) {
        if self.byte(0) == b'\n' {
            self.line = self.line.saturating_add(1);
            self.line_start = self.at + 1;
        }
        self.at += 1;
    }

    fn skip_blank(&mut self) -> Result<(), Error> {
        while self.at < self.text.len() {
            if self.byte(0).is_ascii_whitespace() {
                self.advance();
            } else if self.byte(0) == b'/' && self.byte(1) == b'/' {
                while self.at < self.text.len() && self.byte(0) != b'\n' {
                    self.advance();
                }
            } else if self.byte(0) == b'/' && self.byte(1) == b'*' {
                let begin = self.position();
                while self.byte(0) != b'*' || self.byte(1) != b'/' {
                    if self.at >= self.text.len() {
                        return Err(Error::new(begin, "a comment without an end"));
                    }
                    self.advance();
                }
                self.at += 2;
            } else {
                break;
            }
        }
        Ok(())
    }

    fn next(&mut self, position: Position) -> Result<Kind<'a>, Error> {
        let begin = self.at;
        let first = self.byte(0);
        let name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$';
        match first {
            _ if begin >= self.text.len() => Ok(Kind::End),
            b'0'..=b'9' => {
                while self.byte(0).is_ascii_alphanumeric() || self.byte(0) == b'.' {
                    self.at += 1;
                }
                Ok(Kind::Number(&self.text[begin..self.at]))
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'$' | b'%' | b'.' => {
                self.at += 1;
                loop {
                    if name(self.byte(0)) || self.byte(0) == b'.' {
                        self.at += 1;
                    } else if self.byte(0) == b':' && self.byte(1) == b':' && name(self.byte(2)) {
                        self.at += 2;
                    } else {
                        break;
                    }
                }
                Ok(Kind::Word(&self.text[begin..self.at]))
            }
            b'"' => {
                self.at += 1;
                while self.byte(0) != b'"' {
                    if self.at >= self.text.len() || self.byte(0) == b'\n' {
                        return Err(Error::new(position, "a string without an end"));
                    }
                    self.at += 1;
                }
                self.at += 1;
                Ok(Kind::Text)
            }
            b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'<' | b'>' | b',' | b';' | b':' | b'=' | b'+' | b'-' | b'@'
            | b'!' | b'|' => {
                self.at += 1;
                Ok(Kind::Mark(char::from(first)))
            }
            _ => {
                let character = self.text[begin..].chars().next().unwrap_or(' ');
                Err(Error::new(position, format!("unexpected character {character:?}")))
            }
        }
    }
}
