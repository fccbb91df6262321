//! From text to a graph. Time and memory are linear in the length of the text: ranks and attributes are bounded, so that no
//! message repeats a long type.

use std::collections::HashMap;
use std::fmt;

use super::lexer::{LexError, Lexer, Position, Token};
use super::printer::{Name, Place};
use crate::graph::{Definition, Graph, Group, Op, OpId, Value, ValueId};
use crate::op::{AttributeText, Input, OpKind};
use crate::types::{DType, Dim, KvCacheType, TensorType, ValueType, read_count};
use crate::verify::verify;

/// The most characters of a line that are shown before a place.
const MOST_BEFORE: usize = 100;

/// More dimensions than any tensor has.
const MOST_DIMENSIONS: usize = 8;

/// More attributes than any operation has.
const MOST_ATTRIBUTES: usize = 8;

/// Something wrong with a text, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong and what would be right.
    pub message: String,
}

/// All that is wrong with a text, shown under its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// In the order of the text.
    pub diagnostics: Vec<Diagnostic>,
    shown: String,
}

impl ParseError {
    fn new(text: &str, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
        let mut shown = String::new();
        let lines: Vec<&str> = text.lines().collect();
        for diagnostic in &diagnostics {
            let Diagnostic { line, column, message } = diagnostic;
            let before = lines.get(line - 1).map_or("", |text| *text).chars();
            // Of a long line, what is around the place.
            let skipped = (column - 1).saturating_sub(MOST_BEFORE);
            let source: String = before.skip(skipped).take(2 * MOST_BEFORE).collect();
            let blank = |character: char| if character == '\t' { '\t' } else { ' ' };
            let mark: String = source.chars().map(blank).take(column - 1 - skipped).collect();
            let number = line.to_string();
            let margin = " ".repeat(number.len());
            shown.push_str(&format!("\nline {line}, column {column}: {message}\n"));
            shown.push_str(&format!(" {number} | {source}\n {margin} | {mark}^"));
        }
        ParseError { diagnostics, shown }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the text is no graph:{}", self.shown)
    }
}

impl std::error::Error for ParseError {}

/// Reads a graph and verifies it.
///
/// # Errors
/// If the text can't be read, the first place where; if what it says is no sound graph, all that is wrong
/// ([`crate::verify`]), each at the line that says so.
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    let (graph, places) = read(text)?;
    let error = match verify(&graph) {
        Ok(()) => return Ok(graph),
        Err(error) => error,
    };
    let diagnostics = error.problems.iter().map(|problem| {
        let Position { line, column } = places.get(&problem.place).copied().unwrap_or(Position { line: 1, column: 1 });
        Diagnostic { line, column, message: problem.message.clone() }
    });
    Err(ParseError::new(text, diagnostics.collect()))
}

/// Reads a graph that need not be sound: for the tests and tools of those who look for what is wrong with one.
///
/// # Errors
/// If the text can't be read, the first place where.
pub fn parse_unverified(text: &str) -> Result<Graph, ParseError> {
    Ok(read(text)?.0)
}

type Places = HashMap<Place, Position>;

fn read(text: &str) -> Result<(Graph, Places), ParseError> {
    let parsed = Parser::new(text).and_then(|mut parser| {
        parser.graph()?;
        Ok(parser)
    });
    let finished = parsed.and_then(|parser| parser.finish());
    finished.map_err(|(Position { line, column }, message)| {
        ParseError::new(text, vec![Diagnostic { line, column, message }])
    })
}

/// An operation whose operands have not been looked up yet: they may be defined further down, which is for the verifier
/// to complain of.
struct Pending {
    kind: OpKind,
    operands: Vec<(String, Position)>,
    output: ValueId,
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token,
    position: Position,
    values: Vec<Value>,
    by_name: HashMap<String, ValueId>,
    ops: Vec<Pending>,
    groups: Vec<Group>,
    outputs: Vec<(String, Position)>,
    places: Places,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, LexError> {
        let mut lexer = Lexer::new(text);
        let (token, position) = lexer.next()?;
        Ok(Parser {
            lexer,
            token,
            position,
            values: Vec::new(),
            by_name: HashMap::new(),
            ops: Vec::new(),
            groups: Vec::new(),
            outputs: Vec::new(),
            places: HashMap::new(),
        })
    }

    fn graph(&mut self) -> Result<(), LexError> {
        self.word("graph")?;
        self.mark('{')?;
        loop {
            let position = self.position;
            match self.take()? {
                Token::Word(word) => match word.as_str() {
                    "input" | "weight" => self.leaf(&word, None)?,
                    "state" => {
                        self.mark('<')?;
                        self.word("layer")?;
                        self.mark('=')?;
                        let layer = self.count("the number of a layer")?;
                        self.mark('>')?;
                        self.leaf(&word, Some(layer))?;
                    }
                    "group" => self.group(position)?,
                    "return" => break self.results(position)?,
                    _ => {
                        let expected = "input, weight, state, group, return or the name of a value";
                        return Err((position, format!("expected {expected}, found `{word}`")));
                    }
                },
                Token::Name(name) => {
                    let op = self.operation(name, position)?;
                    self.groups.push(Group { ops: vec![op] });
                }
                other => {
                    let expected = "a value, a group or `return`";
                    return Err((position, format!("expected {expected}, found {}", other.shown())));
                }
            }
        }
        self.mark('}')?;
        match &self.token {
            Token::End => Ok(()),
            other => Err((self.position, format!("expected the end after the graph, found {}", other.shown()))),
        }
    }

    fn leaf(&mut self, keyword: &str, layer: Option<usize>) -> Result<(), LexError> {
        let (name, position) = self.name()?;
        self.mark(':')?;
        let ty = self.value_type()?;
        let definition = match (keyword, layer) {
            (_, Some(layer)) => Definition::State { layer },
            ("input", None) => match Input::ALL.into_iter().find(|input| input.name() == name) {
                Some(input) => Definition::Input(input),
                None => {
                    let names = Input::ALL.map(Input::name).join(", ");
                    return Err((position, format!("a step has no input `{name}`; it has {names}")));
                }
            },
            _ => Definition::Weight(name.clone()),
        };
        self.define(name, ty, definition, position);
        Ok(())
    }

    /// Names may be given twice: the verifier says so. Operands mean the first.
    fn define(&mut self, name: String, ty: ValueType, definition: Definition, position: Position) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.by_name.entry(name.clone()).or_insert(id);
        self.values.push(Value { name, ty, definition });
        self.places.insert(Place::Value(id), position);
        id
    }

    fn group(&mut self, position: Position) -> Result<(), LexError> {
        self.places.insert(Place::Group(self.groups.len()), position);
        self.mark('{')?;
        let mut ops = Vec::new();
        loop {
            let position = self.position;
            match self.take()? {
                Token::Name(name) => ops.push(self.operation(name, position)?),
                Token::Mark('}') if ops.is_empty() => return Err((position, "the group is empty".to_owned())),
                Token::Mark('}') => break,
                other => return Err((position, format!("expected a value or `}}`, found {}", other.shown()))),
            }
        }
        self.groups.push(Group { ops });
        Ok(())
    }

    fn operation(&mut self, name: String, position: Position) -> Result<OpId, LexError> {
        self.mark(':')?;
        let ty = self.value_type()?;
        self.mark('=')?;
        let at = self.position;
        let operation = self.any_word("an operation")?;
        let attributes = if self.is_mark('<') { self.attributes()? } else { Vec::new() };
        let kind = OpKind::from_text(&operation, attributes).map_err(|message| (at, message))?;
        self.mark('(')?;
        let operands = self.names_until(')')?;
        let id = OpId(self.ops.len() as u32);
        let output = self.define(name, ty, Definition::Op(id), position);
        self.ops.push(Pending { kind, operands, output });
        Ok(id)
    }

    fn attributes(&mut self) -> Result<Vec<(String, AttributeText)>, LexError> {
        let mut attributes: Vec<(String, AttributeText)> = Vec::new();
        self.mark('<')?;
        loop {
            let position = self.position;
            let name = self.any_word("an attribute")?;
            if attributes.len() == MOST_ATTRIBUTES {
                return Err((position, format!("no operation has more than {MOST_ATTRIBUTES} attributes")));
            }
            if attributes.iter().any(|(known, _)| *known == name) {
                return Err((position, format!("the attribute {name} is given twice")));
            }
            self.mark('=')?;
            let value = if self.is_mark('[') {
                AttributeText::List(self.words_in_brackets()?)
            } else {
                AttributeText::Word(self.any_word("a value")?)
            };
            attributes.push((name, value));
            if self.is_mark('>') {
                self.take()?;
                return Ok(attributes);
            }
            self.mark(',')?;
        }
    }

    fn words_in_brackets(&mut self) -> Result<Vec<String>, LexError> {
        self.mark('[')?;
        let mut words = Vec::new();
        while !self.is_mark(']') {
            if !words.is_empty() {
                self.mark(',')?;
            }
            words.push(self.any_word("a number or a size")?);
        }
        self.take()?;
        Ok(words)
    }

    fn value_type(&mut self) -> Result<ValueType, LexError> {
        let position = self.position;
        let word = self.any_word("a type such as bf16[T, 64]")?;
        if word == "kv_cache" {
            return self.kv_cache_type().map(ValueType::KvCache);
        }
        let dtype: DType = word
            .parse()
            .map_err(|()| (position, format!("`{word}` is no type: f32, f16, bf16, f8e4m3, i32 or kv_cache are")))?;
        let position = self.position;
        let words = self.words_in_brackets()?;
        if words.len() > MOST_DIMENSIONS {
            return Err((position, format!("no tensor has more than {MOST_DIMENSIONS} dimensions")));
        }
        let dims = words.iter().map(|word| {
            word.parse::<Dim>().map_err(|()| (position, format!("`{word}` is no size: a number, T, S, R or B is")))
        });
        Ok(ValueType::Tensor(TensorType::new(dtype, dims.collect::<Result<Vec<_>, _>>()?)))
    }

    fn kv_cache_type(&mut self) -> Result<KvCacheType, LexError> {
        self.mark('<')?;
        let position = self.position;
        let word = self.any_word("an element type")?;
        let dtype = word.parse().map_err(|()| (position, format!("`{word}` is no element type")))?;
        let mut size = |name: &str| {
            self.mark(',')?;
            self.word(name)?;
            self.mark('=')?;
            self.count("a whole number")
        };
        let (kv_heads, head_dim) = (size("kv_heads")?, size("head_dim")?);
        self.mark('>')?;
        Ok(KvCacheType { dtype, kv_heads, head_dim })
    }

    fn results(&mut self, position: Position) -> Result<(), LexError> {
        self.places.insert(Place::Outputs, position);
        if let Token::Name(_) = &self.token {
            let output = self.name()?;
            self.outputs.push(output);
        }
        while self.is_mark(',') {
            self.take()?;
            let output = self.name()?;
            self.outputs.push(output);
        }
        Ok(())
    }

    fn finish(self) -> Result<(Graph, Places), LexError> {
        let look_up = |(name, position): &(String, Position)| {
            let found = self.by_name.get(name).copied();
            found.ok_or_else(|| (*position, format!("nothing defines {}", Name(name))))
        };
        let outputs = self.outputs.iter().map(look_up).collect::<Result<Vec<_>, _>>()?;
        let mut ops = Vec::with_capacity(self.ops.len());
        for op in &self.ops {
            let inputs = op.operands.iter().map(look_up).collect::<Result<Vec<_>, _>>()?;
            ops.push(Op { kind: op.kind.clone(), inputs, output: op.output });
        }
        Ok((Graph::from_parts(self.values, ops, self.groups, outputs, Vec::new()), self.places))
    }

    fn names_until(&mut self, end: char) -> Result<Vec<(String, Position)>, LexError> {
        let mut names = Vec::new();
        while !self.is_mark(end) {
            if !names.is_empty() {
                self.mark(',')?;
            }
            names.push(self.name()?);
        }
        self.take()?;
        Ok(names)
    }

    fn take(&mut self) -> Result<Token, LexError> {
        let (next, position) = self.lexer.next()?;
        self.position = position;
        Ok(std::mem::replace(&mut self.token, next))
    }

    fn is_mark(&self, mark: char) -> bool {
        self.token == Token::Mark(mark)
    }

    fn mark(&mut self, mark: char) -> Result<(), LexError> {
        if self.is_mark(mark) {
            self.take().map(|_| ())
        } else {
            Err((self.position, format!("expected `{mark}`, found {}", self.token.shown())))
        }
    }

    fn word(&mut self, word: &str) -> Result<(), LexError> {
        match &self.token {
            Token::Word(found) if found == word => self.take().map(|_| ()),
            other => Err((self.position, format!("expected `{word}`, found {}", other.shown()))),
        }
    }

    fn any_word(&mut self, what: &str) -> Result<String, LexError> {
        match self.token {
            Token::Word(_) => {}
            _ => return Err((self.position, format!("expected {what}, found {}", self.token.shown()))),
        }
        match self.take()? {
            Token::Word(word) => Ok(word),
            _ => Ok(String::new()),
        }
    }

    fn count(&mut self, what: &str) -> Result<usize, LexError> {
        let position = self.position;
        let word = self.any_word(what)?;
        read_count(&word).ok_or_else(|| (position, format!("expected {what}, found `{word}`")))
    }

    fn name(&mut self) -> Result<(String, Position), LexError> {
        let position = self.position;
        match &self.token {
            Token::Name(_) => {}
            other => return Err((position, format!("expected the name of a value, found {}", other.shown()))),
        }
        match self.take()? {
            Token::Name(name) => Ok((name, position)),
            _ => Ok((String::new(), position)),
        }
    }
}
