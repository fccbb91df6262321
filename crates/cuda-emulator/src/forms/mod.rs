//! The table of instruction forms: what is in it runs, what is not is refused when a module is loaded.
//!
//! A form's name is a pattern, part by part of the opcode: `a|b` is one of several, and a part that ends in `?` may
//! be missing. `add.s32|u32` is two instructions with one meaning.

mod barrier;
mod compare;
mod control;
mod convert;
mod copy;
mod float;
mod half_precision;
mod integer;
mod matrix;
mod memory;
pub mod number;
mod warp;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;

use crate::program::{Access, Control, Execute};
use crate::ptx::syntax::{self, Operand, Space};

/// One line of the table.
pub struct Form {
    /// The pattern of its opcodes.
    pub names: &'static str,
    /// One letter per operand. `w`, `q`, `p`: a register of 32 bits, 64 bits, one bit; the first is written, unless
    /// the signature begins with `!`. `W`, `P`: the same with an optional `|p`. `m`: the mask of lanes. `A`, `S`: an
    /// address. `I`: a number. `D`, `V`: a vector of 32-bit registers that is written, read; `E`, `U` of 64-bit
    /// registers. `L`, `R`: what a load writes, a store reads. `T`: a label. `B`: a list of labels. After `?`, all is
    /// optional.
    pub operands: &'static str,
    /// The registers in vector operands together; what a load or store has is in its opcode.
    pub vectors: usize,
    /// How it moves lanes.
    pub control: Control,
    /// What it does.
    pub execute: Execute,
}

impl Form {
    /// How many registers the vector operands have together.
    #[must_use]
    pub fn registers_in_vectors(&self, opcode: &str) -> usize {
        if self.operands.contains(['L', 'R']) {
            return opcode.split('.').find_map(|part| part.strip_prefix('v')?.parse().ok()).unwrap_or(1);
        }
        self.vectors
    }
}

/// A form that computes lane by lane, with the method of [`crate::machine::Warp`] that its signature names.
macro_rules! alu {
    ($names:expr, $method:ident, $function:expr) => {
        crate::forms::Form {
            names: $names,
            operands: stringify!($method),
            vectors: 0,
            control: crate::program::Control::Plain,
            execute: |warp, _, instruction, mask| {
                warp.$method(instruction, mask, $function);
                Ok(())
            },
        }
    };
}
use alu;

/// A form with a function of its own.
macro_rules! form {
    ($names:expr, $operands:expr, $execute:expr) => {
        crate::forms::form!($names, $operands, 0, Plain, $execute)
    };
    ($names:expr, $operands:expr, $vectors:literal, $control:ident, $execute:expr) => {
        crate::forms::Form {
            names: $names,
            operands: $operands,
            vectors: $vectors,
            control: crate::program::Control::$control,
            execute: $execute,
        }
    };
}
use form;

/// Tables one after the other.
const fn join<const COUNT: usize>(parts: &[&[Form]]) -> [Form; COUNT] {
    const EMPTY: Form =
        Form { names: "", operands: "", vectors: 0, control: Control::Plain, execute: |_, _, _, _| Ok(()) };
    let mut joined = [EMPTY; COUNT];
    let (mut part, mut next) = (0, 0);
    while part < parts.len() {
        let mut index = 0;
        while index < parts[part].len() {
            let Form { names, operands, vectors, control, execute } = parts[part][index];
            joined[next] = Form { names, operands, vectors, control, execute };
            next += 1;
            index += 1;
        }
        part += 1;
    }
    joined
}

/// The whole table, family by family.
const TABLES: [&[Form]; 12] = [
    integer::FORMS,
    integer::WIDE_FORMS,
    float::FORMS,
    half_precision::FORMS,
    compare::FORMS,
    convert::FORMS,
    memory::FORMS,
    copy::FORMS,
    warp::FORMS,
    barrier::FORMS,
    matrix::FORMS,
    control::FORMS,
];

/// Every form.
pub fn all() -> impl Iterator<Item = &'static Form> {
    TABLES.iter().flat_map(|table| table.iter())
}

/// The form of an opcode.
#[must_use]
pub fn find(opcode: &str) -> Option<&'static Form> {
    static FAMILIES: OnceLock<HashMap<&'static str, Vec<&'static Form>>> = OnceLock::new();
    let families = FAMILIES.get_or_init(|| {
        let mut families: HashMap<&'static str, Vec<&'static Form>> = HashMap::new();
        for form in all() {
            let head = form.names.split('.').next().unwrap_or_default();
            for name in head.split('|') {
                families.entry(name).or_default().push(form);
            }
        }
        families
    });
    let family = families.get(opcode.split('.').next()?)?;
    family.iter().copied().find(|form| matches(form.names, opcode))
}

/// Whether a pattern has an opcode.
fn matches(pattern: &str, opcode: &str) -> bool {
    let mut parts = opcode.split('.').peekable();
    for wanted in pattern.split('.') {
        let (alternatives, optional) = match wanted.strip_suffix('?') {
            Some(alternatives) => (alternatives, true),
            None => (wanted, false),
        };
        let found = parts.peek().is_some_and(|part| alternatives.split('|').any(|name| name == *part));
        if found {
            parts.next();
        } else if !optional {
            return false;
        }
    }
    parts.next().is_none()
}

/// The opcode to look up: what `mov` does depends on its operands, so it has other names for them.
pub(crate) fn canonical<'a>(written: &syntax::Instruction<'a>) -> Cow<'a, str> {
    let opcode = written.opcode;
    if opcode.starts_with("atom.") || opcode.starts_with("red.") {
        return Cow::Owned(atomic_order(opcode));
    }
    let Some(kind) = opcode.strip_prefix("mov.") else { return Cow::Borrowed(opcode) };
    match written.operands.as_slice() {
        [Operand::Vector(list), _] => Cow::Owned(format!("mov_unpack.{kind}.{}", list.len())),
        [_, Operand::Vector(list)] => Cow::Owned(format!("mov_pack.{kind}.{}", list.len())),
        [_, Operand::Name("%clock" | "%clock_hi" | "%clock64" | "%globaltimer" | "%globaltimer_lo", 0)] => {
            Cow::Owned(format!("mov_clock.{kind}"))
        }
        _ => Cow::Borrowed(opcode),
    }
}

/// The modifiers of an atomic in the order of the table: headers of libraries have others, which assemblers take as
/// well.
fn atomic_order(opcode: &str) -> String {
    let mut parts: Vec<&str> = opcode.split('.').collect();
    parts[1..].sort_by_key(|part| match *part {
        "relaxed" | "acquire" | "release" | "acq_rel" => 0,
        "cta" | "gpu" | "sys" => 1,
        "global" | "shared" | "shared::cta" => 2,
        _ => 3,
    });
    parts.join(".")
}

/// `setp.lt.and.s32` as a comparison and an operation on predicates.
pub(crate) fn combined_comparison(opcode: &str) -> Option<(String, String)> {
    let rest = opcode.strip_prefix("setp.")?;
    let parts: Vec<&str> = rest.split('.').collect();
    let at = parts.iter().position(|part| ["and", "or", "xor"].contains(part))?;
    let comparison: Vec<&str> =
        parts.iter().enumerate().filter(|(index, _)| *index != at).map(|(_, part)| *part).collect();
    Some((format!("setp.{}", comparison.join(".")), format!("{}.pred", parts[at])))
}

/// What an opcode says of the memory that it accesses.
pub(crate) fn access(opcode: &str) -> Access {
    let mut access = Access { space: Space::Generic, bytes: 4, signed: false, wide: false, shared_by_right: false };
    for part in opcode.split('.') {
        match part {
            "global" => access.space = Space::Global,
            "shared" | "shared::cta" => access.space = Space::Shared,
            "local" => access.space = Space::Local,
            "const" => access.space = Space::Constant,
            "param" => access.space = Space::Parameter,
            "volatile" | "relaxed" | "acquire" | "release" | "acq_rel" | "atom" | "red" => {
                access.shared_by_right = true
            }
            "b8" | "u8" | "s8" => access.bytes = 1,
            "b16" | "u16" | "s16" | "f16" | "bf16" => access.bytes = 2,
            "b64" | "u64" | "s64" | "f64" => access.bytes = 8,
            _ => {}
        }
        access.signed |= ["s8", "s16", "s32"].contains(&part);
    }
    access
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn patterns_match_part_by_part() {
        assert!(matches("add.rn?.ftz?.f32", "add.f32") && matches("add.rn?.ftz?.f32", "add.rn.ftz.f32"));
        assert!(!matches("add.rn?.f32", "add.f32.f32") && !matches("add.rn?.f32", "add.rz.f32"));
        assert!(matches("ld.global|shared?.v2|v4?.u32", "ld.v4.u32"));
    }

    /// Two forms for one opcode would make the table's order matter.
    #[test]
    fn no_opcode_has_two_forms() {
        let mut seen = std::collections::HashSet::new();
        for form in all() {
            let mut names = vec![String::new()];
            let full = form.names.split('.').all(|part| !part.ends_with('?'));
            for part in form.names.split('.') {
                let part = part.trim_end_matches('?');
                names = names.iter().flat_map(|name| part.split('|').map(move |one| format!("{name}.{one}"))).collect();
            }
            for name in names {
                let name = name.trim_start_matches('.');
                assert_eq!(find(name).unwrap().names, form.names, "{name}");
                assert!(!full || seen.insert(name.to_owned()), "`{name}` is there twice");
            }
        }
        assert!(seen.len() > 200);
    }

    #[test]
    fn signatures_are_made_of_known_letters() {
        for form in all() {
            assert!(form.operands.chars().all(|letter| "wqpWPmASIDVEULRTB?!".contains(letter)), "{}", form.names);
        }
    }
}
