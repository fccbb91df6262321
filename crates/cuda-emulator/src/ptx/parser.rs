//! Tokens to the syntax tree, without recursion but for the braces of initializers, whose depth is bounded.

use super::lexer::{Kind, Token, tokens};
use super::syntax::{Entry, Error, Instruction, Module, Operand, Position, Registers, Space, Statement, Variable};

/// The largest variable, so that no declaration asks for more memory than a device has.
const MOST_BYTES: u64 = 1 << 32;

/// The newest language version whose text is accepted.
const NEWEST_VERSION: (u32, u32) = (9, 0);

/// Parses a PTX text.
pub fn parse(text: &str) -> Result<Module<'_>, Error> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0 };
    let mut module = Module::default();
    while parser.peek() != Kind::End {
        parser.item(&mut module)?;
    }
    if module.version == (0, 0) {
        return Err(Error::new(Position { line: 1, column: 1 }, "no `.version` directive"));
    }
    Ok(module)
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Kind<'a> {
        self.ahead(0)
    }

    fn ahead(&self, count: usize) -> Kind<'a> {
        self.tokens.get(self.at + count).map_or(Kind::End, |token| token.kind)
    }

    fn position(&self) -> Position {
        self.tokens.get(self.at).or(self.tokens.last()).map(|token| token.position).unwrap_or_default()
    }

    fn next(&mut self) -> Kind<'a> {
        let kind = self.peek();
        self.at += 1;
        kind
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T, Error> {
        Err(Error::new(self.position(), message))
    }

    fn accept(&mut self, mark: char) -> bool {
        let found = self.peek() == Kind::Mark(mark);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: char) -> Result<(), Error> {
        if self.accept(mark) { Ok(()) } else { self.error(format!("expected `{mark}`, found {}", self.found())) }
    }

    fn found(&self) -> String {
        match self.peek() {
            Kind::Word(text) | Kind::Number(text) => format!("`{text}`"),
            Kind::Text => "a string".into(),
            Kind::Mark(mark) => format!("`{mark}`"),
            Kind::End => "the end of the text".into(),
        }
    }

    fn word(&mut self) -> Result<&'a str, Error> {
        match self.peek() {
            Kind::Word(word) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.error(format!("expected a name, found {}", self.found())),
        }
    }

    fn accept_word(&mut self, word: &str) -> bool {
        let found = self.peek() == Kind::Word(word);
        self.at += usize::from(found);
        found
    }

    /// An integer with an optional sign.
    fn integer(&mut self) -> Result<u64, Error> {
        let negative = self.accept('-');
        match self.peek() {
            Kind::Number(text) => match integer(text) {
                Some(value) => {
                    self.at += 1;
                    Ok(if negative { value.wrapping_neg() } else { value })
                }
                None => self.error(format!("`{text}` is not an integer")),
            },
            _ => self.error(format!("expected an integer, found {}", self.found())),
        }
    }

    fn small(&mut self) -> Result<u32, Error> {
        let position = self.position();
        u32::try_from(self.integer()?).map_err(|_| Error::new(position, "this number is too large"))
    }

    /// Skips the rest of the line that the token before stands on.
    fn skip_line(&mut self) {
        let line = self.tokens[self.at.saturating_sub(1)].position.line;
        while self.peek() != Kind::End && self.position().line == line {
            self.at += 1;
        }
    }

    fn skip_braces(&mut self) -> Result<(), Error> {
        self.expect('{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.next() {
                Kind::Mark('{') => depth += 1,
                Kind::Mark('}') => depth -= 1,
                Kind::End => return self.error("a brace without an end"),
                _ => {}
            }
        }
        Ok(())
    }

    /// One item at the top level.
    fn item(&mut self, module: &mut Module<'a>) -> Result<(), Error> {
        let begin = self.position();
        match self.peek() {
            Kind::Word(".version") => {
                self.at += 1;
                let Kind::Number(text) = self.next() else { return Err(Error::new(begin, "a version is a number")) };
                let parts = text.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                module.version = parts.ok_or_else(|| Error::new(begin, format!("`{text}` is no version")))?;
                if module.version > NEWEST_VERSION {
                    return Err(Error::new(begin, format!("PTX {text} is newer than this driver, which knows 9.0")));
                }
                Ok(())
            }
            Kind::Word(".target") => {
                self.at += 1;
                module.target = self.word()?;
                while self.accept(',') {
                    self.word()?;
                }
                Ok(())
            }
            Kind::Word(".address_size") => {
                self.at += 1;
                if self.integer()? != 64 {
                    return Err(Error::new(begin, "only 64-bit addresses are supported"));
                }
                Ok(())
            }
            Kind::Word(".file") => {
                self.at += 1;
                self.skip_line();
                Ok(())
            }
            Kind::Word(".section") => {
                self.at += 1;
                self.word()?;
                self.skip_braces()
            }
            Kind::Word(_) => self.declaration(module),
            _ => self.error(format!("expected a directive, found {}", self.found())),
        }
    }

    /// A variable or function with its linkage.
    fn declaration(&mut self, module: &mut Module<'a>) -> Result<(), Error> {
        let begin = self.position();
        let mut external = false;
        while let Kind::Word(linkage @ (".visible" | ".extern" | ".weak" | ".common")) = self.peek() {
            external |= linkage == ".extern";
            self.at += 1;
        }
        if self.accept_word(".entry") {
            let entry = self.entry(begin)?;
            if let Some(entry) = entry {
                module.entries.push(entry);
            }
            return Ok(());
        }
        if self.accept_word(".func") {
            return self.function();
        }
        for mut variable in self.variables()? {
            variable.external = external;
            module.variables.push(variable);
        }
        Ok(())
    }

    /// A `.func` is read over: a call of it is refused where it stands.
    fn function(&mut self) -> Result<(), Error> {
        loop {
            match self.peek() {
                Kind::Mark('{') => return self.skip_braces(),
                Kind::End => return self.error("a function without a body"),
                Kind::Mark(';') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => self.at += 1,
            }
        }
    }

    fn entry(&mut self, begin: Position) -> Result<Option<Entry<'a>>, Error> {
        let name = self.word()?;
        let mut parameters = Vec::new();
        if self.accept('(') && !self.accept(')') {
            loop {
                parameters.push(self.parameter()?);
                if !self.accept(',') {
                    break;
                }
            }
            self.expect(')')?;
        }
        let mut most_threads = None;
        loop {
            match self.peek() {
                Kind::Word(".maxntid" | ".reqntid") => {
                    self.at += 1;
                    let mut product = self.small()?;
                    while self.accept(',') {
                        product = product.saturating_mul(self.small()?);
                    }
                    most_threads = Some(product);
                }
                Kind::Word(".minnctapersm" | ".maxnreg" | ".maxnctapersm") => {
                    self.at += 1;
                    self.small()?;
                }
                Kind::Word(".pragma") => {
                    self.at += 2;
                    self.expect(';')?;
                }
                Kind::Mark(';') => {
                    self.at += 1;
                    return Ok(None);
                }
                Kind::Mark('{') => break,
                _ => return self.error(format!("expected the body of `{name}`, found {}", self.found())),
            }
        }
        let body = self.body()?;
        Ok(Some(Entry { name, parameters, most_threads, body, position: begin }))
    }

    fn parameter(&mut self) -> Result<Variable<'a>, Error> {
        let position = self.position();
        if !self.accept_word(".param") {
            return self.error(format!("expected `.param`, found {}", self.found()));
        }
        let mut shape = Shape::default();
        while let Kind::Word(word) = self.peek() {
            if !word.starts_with('.') {
                break;
            }
            self.at += 1;
            match word {
                ".ptr" | ".global" | ".shared" | ".local" | ".const" => {}
                // The alignment of what a pointer points to follows `.ptr`; that of the parameter comes before its
                // type.
                ".align" if shape.element == 0 => shape.alignment = self.integer()?,
                ".align" => {
                    self.integer()?;
                }
                _ => shape.of_type(word, position)?,
            }
        }
        let name = self.word()?;
        self.dimensions(&mut shape)?;
        shape.variable(Space::Parameter, name, position)
    }

    /// `.space [.align n] [.v4] .type name[…] [= …], name …;`
    fn variables(&mut self) -> Result<Vec<Variable<'a>>, Error> {
        let position = self.position();
        let space = match self.word()? {
            ".global" => Space::Global,
            ".const" => Space::Constant,
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            other => return Err(Error::new(position, format!("unknown directive `{other}`"))),
        };
        let mut shape = Shape::default();
        while let Kind::Word(word) = self.peek() {
            if !word.starts_with('.') {
                break;
            }
            self.at += 1;
            match word {
                ".align" => shape.alignment = self.integer()?,
                ".v2" => shape.lanes = 2,
                ".v4" => shape.lanes = 4,
                ".attribute" => return Err(Error::new(position, "attributes of variables are not supported")),
                _ => shape.of_type(word, position)?,
            }
        }
        let mut list = Vec::new();
        loop {
            let mut one = shape.clone();
            let name = self.word()?;
            self.dimensions(&mut one)?;
            let mut variable = one.variable(space, name, position)?;
            if self.accept('=') {
                self.initializer(one.element, &mut variable.initial, 0)?;
                if variable.bytes == 0 {
                    variable.bytes = variable.initial.len() as u64;
                }
                if variable.initial.len() as u64 > variable.bytes {
                    return Err(Error::new(position, format!("`{name}` has more initial values than elements")));
                }
            }
            list.push(variable);
            if !self.accept(',') {
                break;
            }
        }
        self.expect(';')?;
        Ok(list)
    }

    fn dimensions(&mut self, shape: &mut Shape) -> Result<(), Error> {
        while self.accept('[') {
            let length = if self.peek() == Kind::Mark(']') { 0 } else { self.integer()? };
            shape.length = shape.length.saturating_mul(length);
            self.expect(']')?;
        }
        Ok(())
    }

    fn initializer(&mut self, element: u64, bytes: &mut Vec<u8>, depth: u32) -> Result<(), Error> {
        if self.accept('{') {
            if depth > 8 {
                return self.error("initializers are nested too deeply");
            }
            while !self.accept('}') {
                self.initializer(element, bytes, depth + 1)?;
                if !self.accept(',') && self.peek() != Kind::Mark('}') {
                    return self.error(format!("expected `,` or `}}`, found {}", self.found()));
                }
            }
            return Ok(());
        }
        let value = match self.operand()? {
            Operand::Integer(value) | Operand::Double(value) => value,
            Operand::Single(bits) => u64::from(bits),
            _ => return self.error("only numbers may initialize a variable"),
        };
        bytes.extend_from_slice(&value.to_le_bytes()[..element as usize]);
        Ok(())
    }

    fn body(&mut self) -> Result<Vec<Statement<'a>>, Error> {
        let begin = self.position();
        self.expect('{')?;
        let mut depth = 0u32;
        let mut list = Vec::new();
        loop {
            match self.peek() {
                Kind::Mark('{') => {
                    depth += 1;
                    self.at += 1;
                    list.push(Statement::Open);
                }
                Kind::Mark('}') if depth == 0 => {
                    self.at += 1;
                    return Ok(list);
                }
                Kind::Mark('}') => {
                    depth -= 1;
                    self.at += 1;
                    list.push(Statement::Close);
                }
                Kind::Mark(';') => self.at += 1,
                Kind::End => return Err(Error::new(begin, "a body without an end")),
                _ => self.statement(&mut list)?,
            }
        }
    }

    fn statement(&mut self, list: &mut Vec<Statement<'a>>) -> Result<(), Error> {
        let position = self.position();
        match self.peek() {
            Kind::Word(".reg") => self.registers(list),
            Kind::Word(".shared" | ".local" | ".const" | ".global") => {
                list.extend(self.variables()?.into_iter().map(Statement::Variable));
                Ok(())
            }
            Kind::Word(".loc" | ".file") => {
                self.at += 1;
                self.skip_line();
                Ok(())
            }
            Kind::Word(".pragma") => {
                self.at += 2;
                self.expect(';')
            }
            Kind::Word(word) if !word.starts_with('.') && self.ahead(1) == Kind::Mark(':') => {
                self.at += 2;
                if self.accept_word(".branchtargets") {
                    let mut labels = vec![self.word()?];
                    while self.accept(',') {
                        labels.push(self.word()?);
                    }
                    self.expect(';')?;
                    list.push(Statement::Targets(word, labels));
                } else {
                    list.push(Statement::Label(word, position));
                }
                Ok(())
            }
            Kind::Word(word) if word.starts_with('.') => self.error(format!("unknown directive `{word}`")),
            Kind::Word(_) | Kind::Mark('@') => {
                let instruction = self.instruction(position)?;
                list.push(Statement::Instruction(instruction));
                Ok(())
            }
            _ => self.error(format!("expected a statement, found {}", self.found())),
        }
    }

    fn registers(&mut self, list: &mut Vec<Statement<'a>>) -> Result<(), Error> {
        self.at += 1;
        let position = self.position();
        let kind = self.word()?;
        let kind = kind.strip_prefix('.').unwrap_or(kind);
        loop {
            let name = self.word()?;
            let mut count = None;
            if self.accept('<') {
                count = Some(self.small()?);
                self.expect('>')?;
            }
            list.push(Statement::Registers(Registers { kind, name, count, position }));
            if !self.accept(',') {
                return self.expect(';');
            }
        }
    }

    fn instruction(&mut self, position: Position) -> Result<Instruction<'a>, Error> {
        let mut guard = None;
        if self.accept('@') {
            let negated = self.accept('!');
            guard = Some((self.word()?, negated));
        }
        let opcode = self.word()?;
        let mut operands = Vec::new();
        if self.peek() == Kind::Mark('(') {
            return Err(Error::new(position, format!("`{opcode}`: calls are not supported")));
        }
        while self.peek() != Kind::Mark(';') {
            let operand = self.operand();
            let named = |error: Error| Error::new(error.position, format!("`{opcode}`: {}", error.message));
            operands.push(operand.map_err(named)?);
            if !self.accept(',') && self.peek() != Kind::Mark(';') {
                return self.error(format!("`{opcode}`: expected `,` or `;`, found {}", self.found()));
            }
        }
        self.expect(';')?;
        Ok(Instruction { guard, opcode, operands, position })
    }

    fn offset(&mut self) -> Result<i64, Error> {
        if self.accept('+') || self.peek() == Kind::Mark('-') { Ok(self.integer()?.cast_signed()) } else { Ok(0) }
    }

    fn operand(&mut self) -> Result<Operand<'a>, Error> {
        match self.peek() {
            Kind::Mark('{') => {
                self.at += 1;
                let mut list = Vec::new();
                while !self.accept('}') {
                    if matches!(self.peek(), Kind::Mark('{' | '[') | Kind::End) {
                        return self.error(format!("{} inside a vector", self.found()));
                    }
                    list.push(self.operand()?);
                    if !self.accept(',') && self.peek() != Kind::Mark('}') {
                        return self.error(format!("expected `,` or `}}`, found {}", self.found()));
                    }
                }
                Ok(Operand::Vector(list))
            }
            Kind::Mark('[') => {
                self.at += 1;
                let base = if let Kind::Word(word) = self.peek() {
                    self.at += 1;
                    Some(word)
                } else {
                    None
                };
                let offset = if base.is_some() { self.offset()? } else { self.integer()?.cast_signed() };
                self.expect(']')?;
                Ok(Operand::Address(base, offset))
            }
            Kind::Mark('!') => {
                self.at += 1;
                Ok(Operand::Not(self.word()?))
            }
            Kind::Word(word) => {
                self.at += 1;
                if self.accept('|') {
                    return Ok(Operand::Pair(word, self.word()?));
                }
                Ok(Operand::Name(word, self.offset()?))
            }
            Kind::Number(text) if !text.starts_with("0x") && !text.starts_with("0X") => {
                let hexadecimal = |prefix: [&str; 2]| {
                    let digits = text.strip_prefix(prefix[0]).or_else(|| text.strip_prefix(prefix[1]))?;
                    u64::from_str_radix(digits, 16).ok()
                };
                if let Some(bits) = hexadecimal(["0f", "0F"]).and_then(|bits| u32::try_from(bits).ok()) {
                    self.at += 1;
                    return Ok(Operand::Single(bits));
                }
                if let Some(bits) = hexadecimal(["0d", "0D"]) {
                    self.at += 1;
                    return Ok(Operand::Double(bits));
                }
                Ok(Operand::Integer(self.integer()?))
            }
            _ => Ok(Operand::Integer(self.integer()?)),
        }
    }
}

/// What the type of a variable adds up to.
#[derive(Clone, Debug)]
struct Shape {
    alignment: u64,
    element: u64,
    lanes: u64,
    length: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { alignment: 1, element: 0, lanes: 1, length: 1 }
    }
}

impl Shape {
    fn of_type(&mut self, word: &str, position: Position) -> Result<(), Error> {
        self.element = match word {
            ".b8" | ".u8" | ".s8" => 1,
            ".b16" | ".u16" | ".s16" | ".f16" => 2,
            ".b32" | ".u32" | ".s32" | ".f32" => 4,
            ".b64" | ".u64" | ".s64" | ".f64" => 8,
            _ => return Err(Error::new(position, format!("unknown type `{word}`"))),
        };
        Ok(())
    }

    fn variable<'a>(&self, space: Space, name: &'a str, position: Position) -> Result<Variable<'a>, Error> {
        if self.element == 0 {
            return Err(Error::new(position, format!("`{name}` has no type")));
        }
        let alignment = self.alignment.max(self.element * self.lanes);
        if !alignment.is_power_of_two() || alignment > 1024 {
            return Err(Error::new(position, format!("`{name}` has an impossible alignment")));
        }
        let bytes = (self.element * self.lanes).saturating_mul(self.length);
        if bytes > MOST_BYTES {
            return Err(Error::new(position, format!("`{name}` is too large")));
        }
        Ok(Variable { space, name, alignment, bytes, initial: Vec::new(), external: false, position })
    }
}

/// An integer as PTX writes it: decimal, hexadecimal, octal or binary, with an optional `U`.
fn integer(text: &str) -> Option<u64> {
    let text = text.strip_suffix('U').unwrap_or(text);
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(digits, 16).ok();
    }
    if let Some(digits) = text.strip_prefix("0b").or_else(|| text.strip_prefix("0B")) {
        return u64::from_str_radix(digits, 2).ok();
    }
    if text.len() > 1 && text.starts_with('0') {
        return u64::from_str_radix(&text[1..], 8).ok();
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const HEAD: &str = ".version 9.0\n.target sm_80\n.address_size 64\n";

    #[test]
    fn a_kernel_is_read() {
        let text = format!(
            "{HEAD}.extern .shared .align 16 .b8 dynamic[];\n.global .align 4 .u32 table[3] = {{1, 0x2, 03}};\n\
             .visible .entry k(.param .u64 .ptr .global .align 16 k_0, .param .align 8 .b8 k_1[24])\n.maxntid 32, 4, 1\n{{\n\
             .reg .b32 %r<5>;\n.reg .pred p, q;\n$L__BB0_1:\n@!p ld.shared::cta.v2.u32 {{%r1, _}}, [%r2+-8];\n\
             mov.b32 %r3, 0f3F800000;\nsetp.lt.s32 p|q, %r1, -4;\n}}"
        );
        let module = parse(&text).unwrap();
        assert_eq!((module.version, module.target), ((9, 0), "sm_80"));
        assert_eq!(module.variables[1].initial, [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
        let entry = &module.entries[0];
        assert_eq!((entry.parameters[1].bytes, entry.parameters[1].alignment, entry.most_threads), (24, 8, Some(128)));
        let Statement::Instruction(load) = &entry.body[4] else { panic!("{:?}", entry.body) };
        assert_eq!((load.guard, load.opcode), (Some(("p", true)), "ld.shared::cta.v2.u32"));
        assert_eq!(load.operands[1], Operand::Address(Some("%r2"), -8));
        let Statement::Instruction(compare) = &entry.body[6] else { panic!("{:?}", entry.body) };
        assert_eq!(compare.operands[0], Operand::Pair("p", "q"));
        assert_eq!(compare.operands[2], Operand::Integer((-4i64).cast_unsigned()));
    }

    #[test]
    fn errors_name_their_place() {
        let at = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(at(".version 9.5\n"), "PTX line 1, column 1: PTX 9.5 is newer than this driver, which knows 9.0");
        assert_eq!(at(".target sm_80"), "PTX line 1, column 1: no `.version` directive");
        assert!(
            at(&format!("{HEAD}.entry k() {{ add.s32 %r1 %r2; }}"))
                .starts_with("PTX line 4, column 26: `add.s32`: expected")
        );
        assert!(at(&format!("{HEAD}.entry k() {{")).contains("without an end"));
        assert!(at(&format!("{HEAD}.global .b64 a[99999999999999999];")).contains("too large"));
        assert!(at(&format!("{HEAD}é")).contains("unexpected character"));
    }
}
