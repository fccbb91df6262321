//! The syntax tree to kernels. Whatever the table of forms does not have is refused here, before anything runs.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Access, Address, Control, Global, Instruction, Kernel, NONE, Parameter, Program, Register};
use crate::forms::{self, Form};
use crate::ptx::syntax::{self, Entry, Error, Operand, Position, Space, Statement, Variable};

/// The most shared memory that a kernel may declare, and the most local memory of a thread.
const MOST_BLOCK_BYTES: u64 = 1 << 18;

/// The most bytes of parameters.
const MOST_PARAMETER_BYTES: u64 = 32764;

/// The deepest nesting of braces in a body.
const MOST_SCOPES: usize = 64;

/// The most threads of a block.
const MOST_THREADS: u32 = 1024;

/// Gives a variable in device memory an address.
pub type Place<'p> = dyn FnMut(&Variable<'_>) -> Option<u64> + 'p;

/// Makes a program of a PTX text; `place` puts its variables into device memory.
pub fn load(text: &str, place: &mut Place<'_>) -> Result<Program, Error> {
    let module = crate::ptx::parse(text)?;
    let mut symbols = HashMap::new();
    let mut globals = Vec::new();
    let mut shared = Layout::default();
    let mut dynamic = Vec::new();
    for variable in &module.variables {
        match variable.space {
            Space::Shared if variable.external || variable.bytes == 0 => dynamic.push(variable),
            Space::Shared => {
                symbols.insert(variable.name, shared.add(variable)?);
            }
            _ if variable.external => {
                let message = format!("`{}` is external: linking of modules is not supported", variable.name);
                return Err(Error::new(variable.position, message));
            }
            _ => place_global(variable, place, &mut symbols, &mut globals)?,
        }
    }
    let lines: Vec<&str> = text.lines().collect();
    let mut kernels = Vec::new();
    for entry in &module.entries {
        let mut builder = Builder::new(entry, &symbols, shared);
        builder.variables(entry, &dynamic, place, &mut globals)?;
        builder.statements(entry)?;
        let mut kernel = builder.finish(entry)?;
        let line =
            |instruction: &Instruction| lines.get(instruction.position.line as usize - 1).map(|line| line.trim());
        kernel.lines = kernel.code.iter().map(|instruction| line(instruction).unwrap_or_default().to_owned()).collect();
        kernels.push(Arc::new(kernel));
    }
    Ok(Program { target: module.target.to_owned(), kernels, globals })
}

fn place_global<'a>(
    variable: &Variable<'a>,
    place: &mut Place<'_>,
    symbols: &mut HashMap<&'a str, u64>,
    globals: &mut Vec<Global>,
) -> Result<(), Error> {
    let Some(address) = place(variable) else {
        return Err(Error::new(variable.position, format!("no memory for `{}`", variable.name)));
    };
    symbols.insert(variable.name, address);
    globals.push(Global { name: variable.name.into(), address, bytes: variable.bytes });
    Ok(())
}

/// Variables one after the other.
#[derive(Clone, Copy, Debug, Default)]
struct Layout {
    bytes: u64,
}

impl Layout {
    fn add(&mut self, variable: &Variable<'_>) -> Result<u64, Error> {
        let offset = self.bytes.next_multiple_of(variable.alignment);
        self.bytes = offset.saturating_add(variable.bytes);
        if self.bytes > MOST_BLOCK_BYTES {
            return Err(Error::new(variable.position, format!("`{}` does not fit", variable.name)));
        }
        Ok(offset)
    }
}

/// A declaration of many registers, which come into being when they are first named.
struct Range<'a> {
    prefix: &'a str,
    count: u32,
    class: char,
}

#[derive(Default)]
struct Scope<'a> {
    names: HashMap<&'a str, Register>,
    ranges: Vec<Range<'a>>,
}

/// A kernel in the making.
pub(super) struct Builder<'a> {
    pub(super) kernel: Kernel,
    scopes: Vec<Scope<'a>>,
    symbols: HashMap<&'a str, u64>,
    shared: Layout,
    labels: HashMap<&'a str, u32>,
    jumps: Vec<(usize, &'a str)>,
    tables: HashMap<&'a str, &'a [&'a str]>,
    indexed: Vec<(usize, &'a str)>,
    words: HashMap<u32, u32>,
    quads: HashMap<u64, u32>,
    /// Whether the instruction takes the low half of a register that is wider than its type, as conversions do.
    pub(super) narrows: bool,
}

impl<'a> Builder<'a> {
    fn new(entry: &Entry<'a>, symbols: &HashMap<&'a str, u64>, shared: Layout) -> Self {
        let kernel = Kernel {
            name: entry.name.into(),
            parameters: Vec::new(),
            parameter_bytes: 0,
            code: Vec::new(),
            words: 0,
            quads: 0,
            predicates: 0,
            word_constants: Vec::new(),
            quad_constants: Vec::new(),
            predicate_constants: Vec::new(),
            specials: Vec::new(),
            static_shared: 0,
            local_bytes: 0,
            most_threads: entry.most_threads.unwrap_or(MOST_THREADS).min(MOST_THREADS),
            lines: Vec::new(),
        };
        Self {
            kernel,
            scopes: vec![Scope::default()],
            symbols: symbols.clone(),
            shared,
            labels: HashMap::new(),
            jumps: Vec::new(),
            tables: HashMap::new(),
            indexed: Vec::new(),
            words: HashMap::new(),
            quads: HashMap::new(),
            narrows: false,
        }
    }

    /// Gives every variable and parameter its place, wherever in the body it stands.
    fn variables(
        &mut self,
        entry: &'a Entry<'a>,
        dynamic: &[&Variable<'a>],
        place: &mut Place<'_>,
        globals: &mut Vec<Global>,
    ) -> Result<(), Error> {
        let mut parameters = Layout::default();
        for parameter in &entry.parameters {
            let offset = parameters.add(parameter)?;
            if parameters.bytes > MOST_PARAMETER_BYTES {
                return Err(Error::new(parameter.position, "too many parameters"));
            }
            self.symbols.insert(parameter.name, offset);
            self.kernel.parameters.push(Parameter { offset: offset as usize, bytes: parameter.bytes as usize });
        }
        self.kernel.parameter_bytes = parameters.bytes as usize;
        let mut local = Layout::default();
        for statement in &entry.body {
            let Statement::Variable(variable) = statement else { continue };
            match variable.space {
                Space::Shared => {
                    let offset = self.shared.add(variable)?;
                    self.symbols.insert(variable.name, offset);
                }
                Space::Local => {
                    let offset = local.add(variable)?;
                    self.symbols.insert(variable.name, offset);
                }
                _ => place_global(variable, place, &mut self.symbols, globals)?,
            }
        }
        self.kernel.local_bytes = local.bytes as usize;
        let alignment = dynamic.iter().map(|variable| variable.alignment).max().unwrap_or(1);
        let end = if dynamic.is_empty() { self.shared.bytes } else { self.shared.bytes.next_multiple_of(alignment) };
        self.kernel.static_shared = end as usize;
        for variable in dynamic {
            self.symbols.insert(variable.name, end);
        }
        Ok(())
    }

    fn statements(&mut self, entry: &'a Entry<'a>) -> Result<(), Error> {
        for statement in &entry.body {
            match statement {
                Statement::Open if self.scopes.len() > MOST_SCOPES => {
                    return Err(Error::new(entry.position, "braces are nested too deeply"));
                }
                Statement::Open => self.scopes.push(Scope::default()),
                Statement::Close => {
                    self.scopes.pop();
                }
                Statement::Registers(registers) => self.declare(registers)?,
                Statement::Variable(_) => {}
                Statement::Label(name, position) => {
                    let here = self.here();
                    if self.labels.insert(name, here).is_some() {
                        return Err(Error::new(*position, format!("`{name}` is there twice")));
                    }
                }
                Statement::Targets(name, labels) => {
                    self.tables.insert(name, labels);
                }
                Statement::Instruction(instruction) => self.instruction(instruction)?,
            }
        }
        Ok(())
    }

    fn here(&self) -> u32 {
        self.kernel.code.len() as u32
    }

    fn declare(&mut self, registers: &syntax::Registers<'a>) -> Result<(), Error> {
        let class = match registers.kind {
            "pred" => 'p',
            "b64" | "u64" | "s64" | "f64" => 'q',
            "b8" | "u8" | "s8" | "b16" | "u16" | "s16" | "f16" | "b32" | "u32" | "s32" | "f32" | "f16x2" => 'w',
            other => return Err(Error::new(registers.position, format!("registers of type `.{other}`"))),
        };
        let register = registers.count.is_none().then(|| self.new_register(class));
        if let Some(scope) = self.scopes.last_mut() {
            match (register, registers.count) {
                (Some(register), _) => {
                    scope.names.insert(registers.name, register);
                }
                (None, count) => {
                    scope.ranges.push(Range { prefix: registers.name, count: count.unwrap_or(0), class });
                }
            }
        }
        Ok(())
    }

    fn new_register(&mut self, class: char) -> Register {
        match class {
            'p' => Register::Predicate(self.new_predicate()),
            'q' => Register::Quad(self.new_quad()),
            _ => Register::Word(self.new_word()),
        }
    }

    pub(super) fn new_word(&mut self) -> u32 {
        self.kernel.words += 1;
        self.kernel.words - 1
    }

    pub(super) fn new_quad(&mut self) -> u32 {
        self.kernel.quads += 1;
        self.kernel.quads - 1
    }

    pub(super) fn new_predicate(&mut self) -> u32 {
        self.kernel.predicates += 1;
        self.kernel.predicates - 1
    }

    pub(super) fn word_constant(&mut self, value: u32) -> u32 {
        if let Some(register) = self.words.get(&value) {
            return *register;
        }
        let register = self.new_word();
        self.kernel.word_constants.push((register, value));
        self.words.insert(value, register);
        register
    }

    pub(super) fn quad_constant(&mut self, value: u64) -> u32 {
        if let Some(register) = self.quads.get(&value) {
            return *register;
        }
        let register = self.new_quad();
        self.kernel.quad_constants.push((register, value));
        self.quads.insert(value, register);
        register
    }

    pub(super) fn predicate_constant(&mut self, value: bool) -> u32 {
        let register = self.new_predicate();
        self.kernel.predicate_constants.push((register, value));
        register
    }

    /// The declared register of a name, innermost scope first.
    pub(super) fn declared(&mut self, name: &'a str) -> Result<Option<Register>, Error> {
        for depth in (0..self.scopes.len()).rev() {
            let scope = &self.scopes[depth];
            if let Some(register) = scope.names.get(name) {
                return Ok(Some(*register));
            }
            let class = scope.ranges.iter().find_map(|range| {
                let digits = name.strip_prefix(range.prefix)?;
                let number: u32 = digits.parse().ok().filter(|_| digits == "0" || !digits.starts_with('0'))?;
                (number < range.count).then_some(range.class)
            });
            if let Some(class) = class {
                let register = self.new_register(class);
                self.scopes[depth].names.insert(name, register);
                return Ok(Some(register));
            }
        }
        Ok(None)
    }

    pub(super) fn symbol(&self, name: &str) -> Option<u64> {
        if name == "WARP_SZ" {
            return Some(32);
        }
        self.symbols.get(name).copied()
    }

    /// A predicate with the opposite of another, computed where the instruction being lowered stands.
    pub(super) fn negated(&mut self, register: u32, at: Position) -> Result<u32, Error> {
        let negated = self.new_predicate();
        let form = forms::find("not.pred").ok_or_else(|| Error::new(at, "no negation of predicates"))?;
        let mut instruction = self.blank(form, at);
        (instruction.d, instruction.a) = (negated, register);
        self.kernel.code.push(instruction);
        Ok(negated)
    }

    /// The low half of a wide register, likewise.
    pub(super) fn narrowed(&mut self, register: u32, at: Position) -> Result<u32, Error> {
        let narrowed = self.new_word();
        let form = forms::find("cvt.u32.u64").ok_or_else(|| Error::new(at, "no narrowing conversion"))?;
        let mut instruction = self.blank(form, at);
        (instruction.d, instruction.a) = (narrowed, register);
        self.kernel.code.push(instruction);
        Ok(narrowed)
    }

    fn blank(&self, form: &'static Form, position: Position) -> Instruction {
        Instruction {
            execute: form.execute,
            control: form.control,
            guard: NONE,
            guard_negated: false,
            d: NONE,
            d2: NONE,
            a: NONE,
            b: NONE,
            c: NONE,
            e: NONE,
            member: NONE,
            immediate: 0,
            address: Address::default(),
            source: Address::default(),
            list: Box::default(),
            access: Access { space: Space::Generic, bytes: 4, signed: false, wide: false, shared_by_right: false },
            target: 0,
            targets: Box::default(),
            form: form.names,
            index: 0,
            position,
        }
    }

    fn instruction(&mut self, written: &'a syntax::Instruction<'a>) -> Result<(), Error> {
        let at = written.position;
        let named = |error: Error| Error::new(error.position, format!("`{}`: {}", written.opcode, error.message));
        let guard = match written.guard {
            None => (NONE, false),
            Some((name, negated)) => match self.declared(name)? {
                Some(Register::Predicate(register)) => (register, negated),
                _ => return Err(named(Error::new(at, format!("the guard `{name}` is not a declared predicate")))),
            },
        };
        if let Some(combined) = forms::combined_comparison(written.opcode) {
            return self.combined(written, &combined, guard).map_err(named);
        }
        let opcode = forms::canonical(written);
        let Some(form) = forms::find(&opcode) else {
            return Err(Error::new(at, format!("unsupported instruction `{}`", written.opcode)));
        };
        let mut instruction = self.blank(form, at);
        (instruction.guard, instruction.guard_negated) = guard;
        instruction.access = forms::access(&opcode);
        self.narrows = opcode.starts_with("cvt.");
        self.operands(form, &opcode, written, &mut instruction).map_err(named)?;
        self.kernel.code.push(instruction);
        Ok(())
    }

    /// `setp.lt.and.s32 p, a, b, c` is a comparison and an operation on predicates.
    fn combined(
        &mut self,
        written: &'a syntax::Instruction<'a>,
        (comparison, operation): &(String, String),
        guard: (u32, bool),
    ) -> Result<(), Error> {
        let at = written.position;
        let [destination, a, b, c] = written.operands.as_slice() else {
            return Err(Error::new(at, "expected four operands"));
        };
        let (Some(compare), Some(combine)) = (forms::find(comparison), forms::find(operation)) else {
            return Err(Error::new(at, "unsupported comparison"));
        };
        let classes: Vec<char> = compare.operands.chars().collect();
        let mut first = self.blank(compare, at);
        (first.guard, first.guard_negated) = guard;
        first.d = self.new_predicate();
        first.a = self.value(classes[1], a, at)?;
        first.b = self.value(classes[2], b, at)?;
        let mut second = self.blank(combine, at);
        (second.guard, second.guard_negated) = guard;
        second.a = first.d;
        second.b = self.value('p', c, at)?;
        second.d = self.destination('p', destination, at)?;
        self.kernel.code.push(first);
        self.kernel.code.push(second);
        Ok(())
    }

    /// Reads the operands as the form's signature says; see [`Form::operands`].
    fn operands(
        &mut self,
        form: &'static Form,
        opcode: &str,
        written: &'a syntax::Instruction<'a>,
        instruction: &mut Instruction,
    ) -> Result<(), Error> {
        let at = written.position;
        let mut given = written.operands.iter();
        let mut optional = false;
        let mut slot = 0;
        let mut list = Vec::new();
        for class in form.operands.chars() {
            if class == '?' || class == '!' {
                optional |= class == '?';
                continue;
            }
            let Some(operand) = given.next() else {
                if optional {
                    break;
                }
                return Err(Error::new(at, "an operand is missing"));
            };
            let mut register = None;
            match class {
                'w' | 'q' | 'p' if slot == 0 && !form.operands.starts_with('!') => {
                    register = Some(self.destination(class, operand, at)?);
                }
                'w' | 'q' | 'p' => register = Some(self.value(class, operand, at)?),
                'W' | 'P' => {
                    let (first, second) = self.pair(class.to_ascii_lowercase(), operand, at)?;
                    instruction.d2 = second;
                    register = Some(first);
                }
                'm' => instruction.member = self.value('w', operand, at)?,
                'A' => instruction.address = self.address(operand, at)?,
                'S' => instruction.source = self.address(operand, at)?,
                'I' => match operand {
                    Operand::Integer(value) => instruction.immediate = *value,
                    _ => return Err(Error::new(at, "this operand must be a number")),
                },
                'D' | 'V' => list.extend(self.vector('w', operand, class == 'D', at)?),
                'E' | 'U' => list.extend(self.vector('q', operand, class == 'E', at)?),
                'L' | 'R' => {
                    let wide = instruction.access.bytes == 8 || self.is_wide(operand, at)?;
                    instruction.access.wide = wide;
                    list.extend(self.vector(if wide { 'q' } else { 'w' }, operand, class == 'L', at)?);
                }
                'T' => match operand {
                    Operand::Name(name, 0) => self.jumps.push((self.kernel.code.len(), name)),
                    _ => return Err(Error::new(at, "this operand must be a label")),
                },
                'B' => match operand {
                    Operand::Name(name, 0) => self.indexed.push((self.kernel.code.len(), name)),
                    _ => return Err(Error::new(at, "this operand must be a list of labels")),
                },
                _ => {}
            }
            if let Some(register) = register {
                let places = [
                    &mut instruction.d,
                    &mut instruction.a,
                    &mut instruction.b,
                    &mut instruction.c,
                    &mut instruction.e,
                ];
                if let Some(place) = places.into_iter().nth(slot) {
                    *place = register;
                }
            }
            slot += 1;
        }
        if given.next().is_some() {
            return Err(Error::new(at, "too many operands"));
        }
        let count = form.registers_in_vectors(opcode);
        if list.len() != count {
            return Err(Error::new(at, format!("expected {count} registers in vectors, found {}", list.len())));
        }
        instruction.list = list.into_boxed_slice();
        Ok(())
    }

    fn finish(mut self, entry: &Entry<'a>) -> Result<Kernel, Error> {
        let exit = forms::find("ret").ok_or_else(|| Error::new(entry.position, "no return"))?;
        let last = self.blank(exit, entry.position);
        self.kernel.code.push(last);
        let label = |labels: &HashMap<&str, u32>, name: &str, at: Position| {
            labels.get(name).copied().ok_or_else(|| Error::new(at, format!("unknown label `{name}`")))
        };
        for (index, name) in &self.jumps {
            let at = self.kernel.code[*index].position;
            self.kernel.code[*index].target = label(&self.labels, name, at)?;
        }
        for (index, name) in &self.indexed {
            let at = self.kernel.code[*index].position;
            let Some(names) = self.tables.get(name) else {
                return Err(Error::new(at, format!("unknown list of labels `{name}`")));
            };
            let targets: Result<Vec<u32>, Error> = names.iter().map(|name| label(&self.labels, name, at)).collect();
            self.kernel.code[*index].targets = targets?.into_boxed_slice();
        }
        for (index, instruction) in self.kernel.code.iter_mut().enumerate() {
            instruction.index = index as u32;
        }
        debug_assert!(self.kernel.code.last().is_some_and(|last| last.control == Control::Exit));
        Ok(self.kernel)
    }
}
