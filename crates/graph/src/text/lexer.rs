//! From text to tokens, each with the place where it begins.

use std::iter::Peekable;
use std::str::CharIndices;

use super::is_name_character;

/// A place in a text: line and column, both from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A keyword, an operation, an attribute or a number: letters, digits, `_`, `.`, `+`, `-`.
    Word(String),
    /// A value's name, without `%` and quotes.
    Name(String),
    /// One of `{}()<>[],=:`.
    Mark(char),
    End,
}

impl Token {
    /// The token for a message.
    pub(super) fn shown(&self) -> String {
        match self {
            Token::Word(word) => format!("`{word}`"),
            Token::Name(name) => format!("`{}`", super::printer::Name(name)),
            Token::Mark(mark) => format!("`{mark}`"),
            Token::End => "the end of the text".to_owned(),
        }
    }
}

/// What can't be read, and where.
pub(super) type LexError = (Position, String);

pub(super) struct Lexer<'a> {
    characters: Peekable<CharIndices<'a>>,
    position: Position,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Lexer { characters: text.char_indices().peekable(), position: Position { line: 1, column: 1 } }
    }

    /// The next token and where it begins. After the end there is only the end.
    pub(super) fn next(&mut self) -> Result<(Token, Position), LexError> {
        self.skip_blanks();
        let position = self.position;
        let Some(character) = self.advance() else { return Ok((Token::End, position)) };
        let token = match character {
            '{' | '}' | '(' | ')' | '<' | '>' | '[' | ']' | ',' | '=' | ':' => Token::Mark(character),
            '%' => Token::Name(self.name(position)?),
            character if is_word_character(character) => {
                let mut word = String::from(character);
                while let Some(next) = self.take_if(is_word_character) {
                    word.push(next);
                }
                Token::Word(word)
            }
            other => return Err((position, format!("{other:?} begins nothing that can be read here"))),
        };
        Ok((token, position))
    }

    fn name(&mut self, position: Position) -> Result<String, LexError> {
        let mut name = String::new();
        if self.take_if(|character| character == '"').is_none() {
            while let Some(next) = self.take_if(is_name_character) {
                name.push(next);
            }
            return if name.is_empty() { Err((position, "a name must follow %".to_owned())) } else { Ok(name) };
        }
        loop {
            let at = self.position;
            match self.advance() {
                Some('"') => return Ok(name),
                Some('\\') => name.push(self.escaped(at)?),
                Some('\n') | None => return Err((position, "the quoted name has no end on its line".to_owned())),
                Some(character) => name.push(character),
            }
        }
    }

    fn escaped(&mut self, at: Position) -> Result<char, LexError> {
        let unknown = || (at, "a backslash in a name is followed by \\, \", n or u{HEX}".to_owned());
        match self.advance() {
            Some(character @ ('"' | '\\')) => Ok(character),
            Some('n') => Ok('\n'),
            Some('u') => {
                self.take_if(|character| character == '{').ok_or_else(unknown)?;
                let mut digits = String::new();
                while let Some(digit) = self.take_if(|character| character.is_ascii_hexdigit()) {
                    digits.push(digit);
                }
                self.take_if(|character| character == '}').ok_or_else(unknown)?;
                u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32).ok_or_else(unknown)
            }
            _ => Err(unknown()),
        }
    }

    fn skip_blanks(&mut self) {
        while self.take_if(char::is_whitespace).is_some() || self.skip_comment() {}
    }

    fn skip_comment(&mut self) -> bool {
        if self.take_if(|character| character == ';').is_none() {
            return false;
        }
        while self.take_if(|character| character != '\n').is_some() {}
        true
    }

    fn take_if(&mut self, wanted: impl Fn(char) -> bool) -> Option<char> {
        let next = self.characters.peek().is_some_and(|(_, character)| wanted(*character));
        if next { self.advance() } else { None }
    }

    fn advance(&mut self) -> Option<char> {
        let (_, character) = self.characters.next()?;
        self.position = match character {
            '\n' => Position { line: self.position.line + 1, column: 1 },
            _ => Position { column: self.position.column + 1, ..self.position },
        };
        Some(character)
    }
}

fn is_word_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '.' | '+' | '-')
}
