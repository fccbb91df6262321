//! Loads, stores and atomics.

use super::{Form, form};
use crate::machine::shared::Accessor;
use crate::machine::{Block, Fault, FaultKind, Outcome, Warp};
use crate::program::{Instruction, NONE};
use crate::ptx::syntax::Space;

fn by(warp: &Warp, i: &Instruction, lane: usize) -> Accessor {
    Accessor { warp: warp.index, lane: lane as u32, atomic: i.access.shared_by_right }
}

fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| mask >> lane & 1 == 1)
}

fn extended(value: u64, i: &Instruction) -> u64 {
    if !i.access.signed {
        return value;
    }
    match i.access.bytes {
        1 => i64::from(value as u8 as i8).cast_unsigned(),
        2 => i64::from(value as u16 as i16).cast_unsigned(),
        4 => i64::from(value as u32 as i32).cast_unsigned(),
        _ => value,
    }
}

fn load(warp: &mut Warp, block: &mut Block<'_>, i: &Instruction, mask: u32) -> Outcome {
    let element = i.access.bytes;
    let bytes = element as usize * i.list.len();
    for lane in lanes(mask) {
        let address = Block::address(warp, i.address, lane);
        let place = block.place(warp, i, i.access.space, "load", lane, (address, bytes))?;
        block.note_read(place, bytes, by(warp, i, lane))?;
        for (number, register) in i.list.iter().enumerate() {
            let value = extended(block.load(warp, place, number * element as usize, element), i);
            if i.access.wide {
                warp.quads[*register as usize][lane] = value;
            } else {
                // A 16-bit register has zeros above; one that is wider keeps the sign.
                warp.words[*register as usize][lane] = value as u32;
            }
        }
    }
    Ok(())
}

fn store(warp: &mut Warp, block: &mut Block<'_>, i: &Instruction, mask: u32) -> Outcome {
    let element = i.access.bytes;
    let bytes = element as usize * i.list.len();
    for lane in lanes(mask) {
        let address = Block::address(warp, i.address, lane);
        let place = block.place(warp, i, i.access.space, "store", lane, (address, bytes))?;
        block.note_write(place, bytes, by(warp, i, lane))?;
        for (number, register) in i.list.iter().enumerate() {
            let value = if i.access.wide {
                warp.quads[*register as usize][lane]
            } else {
                u64::from(warp.words[*register as usize][lane])
            };
            block.store(warp, place, number * element as usize, element, value);
        }
    }
    Ok(())
}

/// Replaces what is at each lane's address by a function of it and the operands; gives back what was there.
fn atomic(
    warp: &mut Warp,
    block: &mut Block<'_>,
    i: &Instruction,
    mask: u32,
    function: impl Fn(u64, u64, u64) -> u64,
) -> Outcome {
    use crate::machine::memory::Region;
    let bytes = i.access.bytes;
    let operand = |warp: &Warp, register: u32, lane: usize| {
        if register == NONE {
            0
        } else if bytes == 8 {
            warp.quads[register as usize][lane]
        } else {
            u64::from(warp.words[register as usize][lane])
        }
    };
    for lane in lanes(mask) {
        let address = Block::address(warp, i.address, lane);
        let place = block.place(warp, i, i.access.space, "atomic access", lane, (address, bytes as usize))?;
        block.note_read(place, bytes as usize, by(warp, i, lane))?;
        block.note_write(place, bytes as usize, by(warp, i, lane))?;
        // An operation of `red` has no destination, so its operands are one place further to the front.
        let (first, second) = if i.form.starts_with("red") { (i.a, NONE) } else { (i.b, i.c) };
        let (b, c) = (operand(warp, first, lane), operand(warp, second, lane));
        let old = if let crate::machine::Place::Global(region, address) = place {
            block
                .view
                .region(region)
                .map_or(0, |region: &Region| region.update(address, bytes, |old| function(old, b, c)))
        } else {
            let old = block.load(warp, place, 0, bytes);
            block.store(warp, place, 0, bytes, function(old, b, c));
            old
        };
        if i.d != NONE && bytes == 8 {
            warp.quads[i.d as usize][lane] = old;
        } else if i.d != NONE {
            warp.words[i.d as usize][lane] = old as u32;
        }
    }
    Ok(())
}

fn prefetch(warp: &mut Warp, _: &mut Block<'_>, i: &Instruction, _: u32) -> Outcome {
    debug_assert!(i.access.space != Space::Parameter && warp.index < 32);
    Ok(())
}

fn single(value: u64) -> f32 {
    f32::from_bits(value as u32)
}

fn add_single(old: u64, b: u64) -> u64 {
    u64::from(super::number::bits(single(old) + single(b)))
}

fn add_halves(old: u64, b: u64, of: fn(u32) -> f32, to: fn(f32) -> u32) -> u64 {
    let one = |shift: u32| to(of((old >> shift) as u32 & 0xffff) + of((b >> shift) as u32 & 0xffff));
    u64::from(one(0) | one(16) << 16)
}

/// Counts up to a limit and starts over.
fn increment(old: u64, b: u64) -> u64 {
    if old >= b { 0 } else { old + 1 }
}

fn decrement(old: u64, b: u64) -> u64 {
    if old == 0 || old > b { b } else { old - 1 }
}

/// Modifiers of an atomic: order, scope and space.
macro_rules! atomics {
    ($(($operation:literal, $bits:ident, |$old:ident, $b:ident, $c:ident| $body:expr)),+ $(,)?) => {
        &[
            $(
                form!(
                    concat!("atom.relaxed|acquire|release|acq_rel?.cta|gpu|sys?.global|shared|shared::cta?.", $operation),
                    atomics!(@atom $bits), 0, Plain,
                    |warp, block, i, mask| atomic(warp, block, i, mask, |$old, $b, $c| $body)
                ),
                form!(
                    concat!("red.relaxed|release?.cta|gpu|sys?.global|shared|shared::cta?.", $operation),
                    atomics!(@red $bits), 0, Plain,
                    |warp, block, i, mask| atomic(warp, block, i, mask, |$old, $b, $c| $body)
                ),
            )+
        ]
    };
    (@atom word) => { "wAw" };
    (@atom quad) => { "qAq" };
    (@red word) => { "!Aw" };
    (@red quad) => { "!Aq" };
}

const ATOMICS: &[Form] = atomics![
    ("add.u32|s32", word, |old, b, _c| old.wrapping_add(b) & 0xffff_ffff),
    ("add.u64", quad, |old, b, _c| old.wrapping_add(b)),
    ("add.f32", word, |old, b, _c| add_single(old, b)),
    ("add.f64", quad, |old, b, _c| (f64::from_bits(old) + f64::from_bits(b)).to_bits()),
    ("add.noftz.f16x2", word, |old, b, _c| add_halves(old, b, super::number::from_half, super::number::to_half)),
    ("add.noftz.bf16x2", word, |old, b, _c| add_halves(old, b, super::number::from_bfloat, super::number::to_bfloat)),
    ("min.u32", word, |old, b, _c| old.min(b)),
    ("max.u32", word, |old, b, _c| old.max(b)),
    ("min.s32", word, |old, b, _c| u64::from((old as i32).min(b as i32).cast_unsigned())),
    ("max.s32", word, |old, b, _c| u64::from((old as i32).max(b as i32).cast_unsigned())),
    ("min.u64", quad, |old, b, _c| old.min(b)),
    ("max.u64", quad, |old, b, _c| old.max(b)),
    ("min.s64", quad, |old, b, _c| old.cast_signed().min(b.cast_signed()).cast_unsigned()),
    ("max.s64", quad, |old, b, _c| old.cast_signed().max(b.cast_signed()).cast_unsigned()),
    ("and.b32", word, |old, b, _c| old & b),
    ("or.b32", word, |old, b, _c| old | b),
    ("xor.b32", word, |old, b, _c| old ^ b),
    ("and.b64", quad, |old, b, _c| old & b),
    ("or.b64", quad, |old, b, _c| old | b),
    ("exch.b32", word, |_old, b, _c| b),
    ("exch.b64", quad, |_old, b, _c| b),
    ("inc.u32", word, |old, b, _c| increment(old, b)),
    ("dec.u32", word, |old, b, _c| decrement(old, b)),
];

const PLAIN: &[Form] = &[
    form!(
        concat!(
            "ld.weak|volatile|relaxed|acquire?.cta|gpu|sys?.global|shared|shared::cta|local|const|param?.",
            "ca|cg|cs|cv|lu?.nc?.",
            "L1::evict_normal|L1::evict_first|L1::evict_last|L1::evict_unchanged|L1::no_allocate?.",
            "L2::64B|L2::128B|L2::256B?.v2|v4?.b8|u8|s8|b16|u16|s16|b32|u32|s32|f32|b64|u64|s64|f64"
        ),
        "LA",
        load
    ),
    form!("ldu.global.v2|v4?.b32|u32|f32|b64|u64", "LA", load),
    form!(
        concat!(
            "st.weak|volatile|relaxed|release?.cta|gpu|sys?.global|shared|shared::cta|local?.wb|cg|cs|wt?.",
            "L1::evict_normal|L1::evict_first|L1::evict_last|L1::evict_unchanged|L1::no_allocate?.v2|v4?.",
            "b8|u8|s8|b16|u16|s16|b32|u32|s32|f32|b64|u64|s64|f64"
        ),
        "!AR",
        store
    ),
    form!(
        "atom.relaxed|acquire|release|acq_rel?.cta|gpu|sys?.global|shared|shared::cta?.cas.b16|b32",
        "wAww",
        |warp, block, i, mask| atomic(warp, block, i, mask, |old, b, c| if old == b { c } else { old })
    ),
    form!(
        "atom.relaxed|acquire|release|acq_rel?.cta|gpu|sys?.global|shared|shared::cta?.cas.b64",
        "qAqq",
        |warp, block, i, mask| atomic(warp, block, i, mask, |old, b, c| if old == b { c } else { old })
    ),
    form!("prefetch.global?.L1|L2", "!A", prefetch),
    form!("fence.acq_rel|sc?.cta|gpu|sys|cluster", "", |_, _, _, _| Ok(())),
    form!("fence.proxy.async|alias", "", |_, _, _, _| Ok(())),
    form!("membar.cta|gl|sys", "", |_, _, _, _| Ok(())),
];

/// Loads, stores and atomics.
pub(super) const FORMS: &[Form] = &super::join::<{ PLAIN.len() + ATOMICS.len() }>(&[PLAIN, ATOMICS]);

/// A fault of an operand that must be a certain number.
pub(super) fn operand_fault(lane: usize, message: String) -> Box<Fault> {
    Fault::new(FaultKind::Operand, lane as u32, message)
}
