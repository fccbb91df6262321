//! PTX text under construction: registers, labels, lines.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

/// The kinds of registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// `.pred`
    Predicate,
    /// `.b16`
    Half,
    /// `.b32`
    Word,
    /// `.b64`
    Long,
    /// `.f32`
    Float,
    /// `.f64`
    Double,
}

impl Class {
    const ALL: [Class; 6] = [Class::Predicate, Class::Half, Class::Word, Class::Long, Class::Float, Class::Double];

    /// How registers of the class are called: unlike those of the compiler, whose code may stand around ours.
    const fn prefix(self) -> &'static str {
        match self {
            Class::Predicate => "%gp",
            Class::Half => "%gh",
            Class::Word => "%gw",
            Class::Long => "%gl",
            Class::Float => "%gf",
            Class::Double => "%gd",
        }
    }

    const fn ptx_type(self) -> &'static str {
        match self {
            Class::Predicate => ".pred",
            Class::Half => ".b16",
            Class::Word => ".b32",
            Class::Long => ".b64",
            Class::Float => ".f32",
            Class::Double => ".f64",
        }
    }
}

/// A virtual register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Register {
    class: Class,
    number: u32,
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.class.prefix(), self.number)
    }
}

/// A label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label {
    instance: u32,
    number: u32,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "$G{}_{}", self.instance, self.number)
    }
}

/// A body of instructions.
#[derive(Debug)]
pub(super) struct Code {
    body: String,
    counts: [u32; Class::ALL.len()],
    labels: u32,
    /// Tells the labels of several bodies in one kernel apart.
    instance: u32,
    /// Tables of constants at the level of the module, by name.
    tables: BTreeMap<String, String>,
}

impl Code {
    pub(super) fn new(instance: u32) -> Self {
        Self { body: String::new(), counts: [0; Class::ALL.len()], labels: 0, instance, tables: BTreeMap::new() }
    }

    pub(super) fn register(&mut self, class: Class) -> Register {
        let count = &mut self.counts[class as usize];
        *count += 1;
        Register { class, number: *count - 1 }
    }

    pub(super) fn label(&mut self) -> Label {
        self.labels += 1;
        Label { instance: self.instance, number: self.labels - 1 }
    }

    pub(super) fn line(&mut self, text: fmt::Arguments<'_>) {
        let _ = writeln!(self.body, "\t{text}");
    }

    pub(super) fn place(&mut self, label: Label) {
        let _ = writeln!(self.body, "{label}:");
    }

    /// A table of 32-bit words in global memory; the same words have the same table.
    pub(super) fn table(&mut self, words: &[u32]) -> String {
        let text: Vec<String> = words.iter().map(|word| format!("0x{word:08x}")).collect();
        let digest = words.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, word| {
            (hash ^ u64::from(*word)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let name = format!("table_{digest:016x}");
        let declaration = format!(".global .align 4 .b32 {name}[{}] = {{{}}};\n", words.len(), text.join(", "));
        self.tables.insert(name.clone(), declaration);
        name
    }

    /// The body as a block with its registers, and the tables that it needs outside of the kernel.
    pub(super) fn finish(self) -> Block {
        let mut text = String::from("\t{\n");
        for class in Class::ALL {
            let count = self.counts[class as usize];
            if count > 0 {
                let _ = writeln!(text, "\t.reg {} {}<{count}>;", class.ptx_type(), class.prefix());
            }
        }
        text += &self.body;
        text += "\t}\n";
        Block { text, tables: self.tables }
    }
}

/// A finished body.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// The instructions, in braces.
    pub(super) text: String,
    /// Declarations at the level of the module, by name.
    pub(super) tables: BTreeMap<String, String>,
}

/// Adds a line of PTX to the code of a generator.
macro_rules! emit {
    ($generator:expr, $($text:tt)*) => {
        $generator.code.line(format_args!($($text)*))
    };
}
pub(super) use emit;
