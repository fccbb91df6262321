//! Operands to registers.

use super::lower::Builder;
use super::{Address, Base, NONE, Register, Special};
use crate::ptx::syntax::{Error, Operand, Position};

/// The special register of a name, if it is one that stays the same.
fn special(name: &str) -> Option<Special> {
    const AXES: [&str; 3] = ["x", "y", "z"];
    if let Some((head, axis)) = name.split_once('.') {
        let axis = AXES.iter().position(|known| *known == axis)?;
        return match head {
            "%tid" => Some(Special::Thread(axis)),
            "%ntid" => Some(Special::Threads(axis)),
            "%ctaid" | "%clusterid" => Some(Special::Block(axis)),
            "%nctaid" | "%nclusterid" => Some(Special::Blocks(axis)),
            "%cluster_ctaid" => Some(Special::Zero),
            "%cluster_nctaid" => Some(Special::One),
            _ => None,
        };
    }
    match name {
        "%laneid" => Some(Special::Lane),
        "%warpid" => Some(Special::Warp),
        "%nwarpid" => Some(Special::Warps),
        "%smid" => Some(Special::Processor),
        "%nsmid" => Some(Special::Processors),
        "%lanemask_eq" => Some(Special::MaskEqual),
        "%lanemask_lt" => Some(Special::MaskLess),
        "%lanemask_le" => Some(Special::MaskLessEqual),
        "%lanemask_gt" => Some(Special::MaskGreater),
        "%lanemask_ge" => Some(Special::MaskGreaterEqual),
        "%dynamic_smem_size" => Some(Special::DynamicShared),
        "%total_smem_size" => Some(Special::TotalShared),
        "%envreg1" => Some(Special::WorkspaceHigh),
        "%envreg2" => Some(Special::WorkspaceLow),
        "%cluster_ctarank" => Some(Special::Zero),
        "%cluster_nctarank" => Some(Special::One),
        _ => None,
    }
}

impl<'a> Builder<'a> {
    /// The register of a name: declared, or special.
    pub(super) fn register(&mut self, name: &'a str, position: Position) -> Result<Option<Register>, Error> {
        if let Some(register) = self.declared(name)? {
            return Ok(Some(register));
        }
        if !name.starts_with('%') {
            return Ok(None);
        }
        let Some(special) = special(name) else {
            return Err(Error::new(position, format!("unknown register `{name}`")));
        };
        if let Some((register, _)) = self.kernel.specials.iter().find(|(_, known)| *known == special) {
            return Ok(Some(Register::Word(*register)));
        }
        let register = self.new_word();
        self.kernel.specials.push((register, special));
        Ok(Some(Register::Word(register)))
    }

    /// A register to write to.
    pub(super) fn destination(&mut self, class: char, operand: &Operand<'a>, at: Position) -> Result<u32, Error> {
        let Operand::Name(name, 0) = operand else {
            return Err(Error::new(at, "the destination is not a register"));
        };
        if *name == "_" {
            return Ok(self.sink(class));
        }
        match (class, self.declared(name)?) {
            ('w', Some(Register::Word(register)))
            | ('q', Some(Register::Quad(register)))
            | ('p', Some(Register::Predicate(register))) => Ok(register),
            (_, Some(_)) => Err(Error::new(at, format!("`{name}` has the wrong width for this instruction"))),
            (_, None) => Err(Error::new(at, format!("`{name}` is not a declared register"))),
        }
    }

    /// A register that nobody reads.
    pub(super) fn sink(&mut self, class: char) -> u32 {
        match class {
            'w' => self.new_word(),
            'q' => self.new_quad(),
            _ => self.new_predicate(),
        }
    }

    /// A register to read: declared, special, or a constant.
    pub(super) fn value(&mut self, class: char, operand: &Operand<'a>, at: Position) -> Result<u32, Error> {
        let bits = match operand {
            Operand::Name(name, offset) => {
                if let Some(register) = self.register(name, at)? {
                    return match (class, register) {
                        _ if *offset != 0 => Err(Error::new(at, "an offset on a register")),
                        ('w', Register::Word(register))
                        | ('q', Register::Quad(register))
                        | ('p', Register::Predicate(register)) => Ok(register),
                        ('w', Register::Quad(register)) if self.narrows => self.narrowed(register, at),
                        _ => Err(Error::new(at, format!("`{name}` has the wrong width for this instruction"))),
                    };
                }
                let Some(address) = self.symbol(name) else {
                    return Err(Error::new(at, format!("unknown name `{name}`")));
                };
                address.wrapping_add(offset.cast_unsigned())
            }
            Operand::Not(name) => {
                let Some(Register::Predicate(register)) = self.register(name, at)? else {
                    return Err(Error::new(at, format!("`{name}` is not a predicate")));
                };
                if class != 'p' {
                    return Err(Error::new(at, "a predicate where none belongs"));
                }
                return self.negated(register, at);
            }
            Operand::Integer(bits) | Operand::Double(bits) => *bits,
            Operand::Single(bits) => u64::from(*bits),
            Operand::Vector(_) | Operand::Pair(..) | Operand::Address(..) => {
                return Err(Error::new(at, "this operand must be a register or a number"));
            }
        };
        Ok(match class {
            // A negative number comes as 64 bits; its low half is what a 32-bit register holds.
            'w' => self.word_constant(bits as u32),
            'q' => self.quad_constant(bits),
            _ => self.predicate_constant(bits != 0),
        })
    }

    /// A word destination with an optional predicate beside it.
    pub(super) fn pair(&mut self, class: char, operand: &Operand<'a>, at: Position) -> Result<(u32, u32), Error> {
        if let Operand::Pair(first, second) = operand {
            let first = self.destination(class, &Operand::Name(first, 0), at)?;
            return Ok((first, self.destination('p', &Operand::Name(second, 0), at)?));
        }
        Ok((self.destination(class, operand, at)?, NONE))
    }

    /// An address.
    pub(super) fn address(&mut self, operand: &Operand<'a>, at: Position) -> Result<Address, Error> {
        let Operand::Address(base, offset) = operand else {
            return Err(Error::new(at, "this operand must be an address in brackets"));
        };
        let Some(name) = base else { return Ok(Address { base: Base::Absolute, offset: *offset }) };
        match self.register(name, at)? {
            Some(Register::Word(register)) => Ok(Address { base: Base::Word(register), offset: *offset }),
            Some(Register::Quad(register)) => Ok(Address { base: Base::Quad(register), offset: *offset }),
            Some(Register::Predicate(_)) => Err(Error::new(at, format!("`{name}` is a predicate, not an address"))),
            None => match self.symbol(name) {
                Some(address) => {
                    Ok(Address { base: Base::Absolute, offset: address.cast_signed().wrapping_add(*offset) })
                }
                None => Err(Error::new(at, format!("unknown name `{name}`"))),
            },
        }
    }

    /// The registers of a vector, or of a single operand as a vector of one.
    pub(super) fn vector(
        &mut self,
        class: char,
        operand: &Operand<'a>,
        written: bool,
        at: Position,
    ) -> Result<Vec<u32>, Error> {
        let one = std::slice::from_ref(operand);
        let list = if let Operand::Vector(list) = operand { list.as_slice() } else { one };
        list.iter()
            .map(|item| if written { self.destination(class, item, at) } else { self.value(class, item, at) })
            .collect()
    }

    /// Whether the first register of an operand is 64 bits wide.
    pub(super) fn is_wide(&mut self, operand: &Operand<'a>, at: Position) -> Result<bool, Error> {
        match operand {
            Operand::Vector(list) => {
                for item in list {
                    if self.is_wide(item, at)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Operand::Name(name, _) if *name != "_" => Ok(matches!(self.register(name, at)?, Some(Register::Quad(_)))),
            _ => Ok(false),
        }
    }
}
