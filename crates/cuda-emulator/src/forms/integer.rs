//! Integers and bits.

use super::{Form, alu, form};

/// Sign-extends the low 16 bits.
fn short(value: u32) -> i32 {
    i32::from(value as u16 as i16)
}

/// What a division by zero gives, as the hardware has it: all ones.
fn divide(a: u32, b: u32) -> u32 {
    a.checked_div(b).unwrap_or(u32::MAX)
}

fn divide_signed(a: u32, b: u32) -> u32 {
    if b == 0 { u32::MAX } else { a.cast_signed().wrapping_div(b.cast_signed()).cast_unsigned() }
}

fn remainder_signed(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { a.cast_signed().wrapping_rem(b.cast_signed()).cast_unsigned() }
}

fn divide_signed_wide(a: u64, b: u64) -> u64 {
    if b == 0 { u64::MAX } else { a.cast_signed().wrapping_div(b.cast_signed()).cast_unsigned() }
}

fn remainder_signed_wide(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { a.cast_signed().wrapping_rem(b.cast_signed()).cast_unsigned() }
}

fn product_signed(a: u32, b: u32) -> i64 {
    i64::from(a.cast_signed()) * i64::from(b.cast_signed())
}

fn high(product: i64) -> u32 {
    (product >> 32) as u32
}

fn high_signed_wide(a: u64, b: u64) -> u64 {
    ((i128::from(a.cast_signed()) * i128::from(b.cast_signed())) >> 64) as u64
}

/// A shift by the register width or more leaves nothing.
fn left(a: u32, b: u32) -> u32 {
    a.checked_shl(b).unwrap_or(0)
}

fn extract(a: u32, position: u32, length: u32) -> u32 {
    let shifted = u64::from(a).checked_shr(position & 255).unwrap_or(0);
    let mask = 1u64.checked_shl(length & 255).map_or(u64::MAX, |bit| bit - 1);
    (shifted & mask) as u32
}

fn extract_signed(a: u32, position: u32, length: u32) -> u32 {
    let (position, length) = (position & 255, (length & 255).min(32));
    if length == 0 {
        return 0;
    }
    let extended = i64::from(a.cast_signed()) >> position.min(63);
    let shift = 64 - length;
    let field = (extended << shift) >> shift;
    // Beyond the top, the field is filled with the sign of the whole.
    if position + length > 32 { extended as u32 } else { field as u32 }
}

fn insert(a: u64, b: u64, position: u32, length: u32, width: u32) -> u64 {
    let (position, length) = (position & 255, (length & 255).min(width));
    if position >= width || length == 0 {
        return b;
    }
    let mask = (u64::MAX >> (64 - length)) << position;
    (b & !mask) | ((a << position) & mask)
}

/// `prmt`: each nibble of the selector picks a byte of the pair, or its sign eight times.
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(a) | (u64::from(b) << 32);
    let mut result = 0;
    for index in 0..4 {
        let choice = (selector >> (4 * index)) & 15;
        let byte = (bytes >> (8 * (choice & 7))) as u32 & 255;
        let byte = if choice & 8 == 0 {
            byte
        } else if byte & 128 == 0 {
            0
        } else {
            255
        };
        result |= byte << (8 * index);
    }
    result
}

/// `lop3`: bit by bit, the three inputs index the table.
fn lookup(a: u32, b: u32, c: u32, table: u32) -> u32 {
    let mut result = 0;
    for index in 0..8u32 {
        if table >> index & 1 == 1 {
            let pick = |value: u32, bit: u32| if index & bit == 0 { !value } else { value };
            result |= pick(a, 4) & pick(b, 2) & pick(c, 1);
        }
    }
    result
}

/// The place of the highest bit that differs from the sign.
fn find_bit(a: u32) -> u32 {
    if a == 0 { u32::MAX } else { 31 - a.leading_zeros() }
}

fn find_bit_signed(a: u32) -> u32 {
    find_bit(if a.cast_signed() < 0 { !a } else { a })
}

/// The sum of products of four bytes.
fn dot_signed(a: u32, b: u32, c: u32) -> u32 {
    let mut sum = c.cast_signed();
    for (x, y) in a.to_le_bytes().into_iter().zip(b.to_le_bytes()) {
        sum = sum.wrapping_add(i32::from(x.cast_signed()) * i32::from(y.cast_signed()));
    }
    sum.cast_unsigned()
}

fn dot_unsigned(a: u32, b: u32, c: u32) -> u32 {
    let pairs = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
    pairs.fold(c, |sum, (x, y)| sum.wrapping_add(u32::from(x) * u32::from(y)))
}

/// Registers of up to 32 bits. A 16-bit register has zeros above.
pub(super) const FORMS: &[Form] = &[
    alu!("add.s32|u32", www, |a, b| a.wrapping_add(b)),
    alu!("sub.s32|u32", www, |a, b| a.wrapping_sub(b)),
    alu!("add.s16|u16", www, |a, b| a.wrapping_add(b) & 0xffff),
    alu!("sub.s16|u16", www, |a, b| a.wrapping_sub(b) & 0xffff),
    alu!("add.sat.s32", www, |a, b| a.cast_signed().saturating_add(b.cast_signed()).cast_unsigned()),
    alu!("sub.sat.s32", www, |a, b| a.cast_signed().saturating_sub(b.cast_signed()).cast_unsigned()),
    alu!("mul.lo.s32|u32", www, |a, b| a.wrapping_mul(b)),
    alu!("mul.lo.s16|u16", www, |a, b| a.wrapping_mul(b) & 0xffff),
    alu!("mul.wide.u16", www, |a, b| (a & 0xffff) * (b & 0xffff)),
    alu!("mul.wide.s16", www, |a, b| (short(a) * short(b)).cast_unsigned()),
    alu!("mul.hi.u32", www, |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
    alu!("mul.hi.s32", www, |a, b| high(product_signed(a, b))),
    alu!("mul24.lo.u32", www, |a, b| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff)),
    alu!("mad.lo.s32|u32", wwww, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
    alu!("mad.lo.s16|u16", wwww, |a, b, c| a.wrapping_mul(b).wrapping_add(c) & 0xffff),
    alu!("mad.hi.u32", wwww, |a, b, c| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c)),
    alu!("mad.hi.s32", wwww, |a, b, c| high(product_signed(a, b)).wrapping_add(c)),
    alu!("sad.u32", wwww, |a, b, c| a.abs_diff(b).wrapping_add(c)),
    alu!("sad.s32", wwww, |a, b, c| a.cast_signed().abs_diff(b.cast_signed()).wrapping_add(c)),
    alu!("div.u32", www, divide),
    alu!("div.s32", www, divide_signed),
    alu!("div.u16", www, |a, b| divide(a & 0xffff, b & 0xffff) & 0xffff),
    alu!("div.s16", www, |a, b| divide_signed(short(a).cast_unsigned(), short(b).cast_unsigned()) & 0xffff),
    alu!("rem.u32", www, |a, b| if b == 0 { a } else { a % b }),
    alu!("rem.s32", www, remainder_signed),
    alu!("rem.u16", www, |a, b| if b & 0xffff == 0 { a } else { (a & 0xffff) % (b & 0xffff) }),
    alu!("rem.s16", www, |a, b| remainder_signed(short(a).cast_unsigned(), short(b).cast_unsigned()) & 0xffff),
    alu!("neg.s32", ww, |a| a.wrapping_neg()),
    alu!("neg.s16", ww, |a| a.wrapping_neg() & 0xffff),
    alu!("abs.s32", ww, |a| a.cast_signed().wrapping_abs().cast_unsigned()),
    alu!("abs.s16", ww, |a| short(a).cast_unsigned().min(short(a).wrapping_neg().cast_unsigned()) & 0xffff),
    alu!("min.s32", www, |a, b| a.cast_signed().min(b.cast_signed()).cast_unsigned()),
    alu!("max.s32", www, |a, b| a.cast_signed().max(b.cast_signed()).cast_unsigned()),
    alu!("min.u32", www, |a, b| a.min(b)),
    alu!("max.u32", www, |a, b| a.max(b)),
    alu!("min.s16", www, |a, b| short(a).min(short(b)).cast_unsigned() & 0xffff),
    alu!("max.s16", www, |a, b| short(a).max(short(b)).cast_unsigned() & 0xffff),
    alu!("min.u16", www, |a, b| (a & 0xffff).min(b & 0xffff)),
    alu!("max.u16", www, |a, b| (a & 0xffff).max(b & 0xffff)),
    alu!("and.b32|b16", www, |a, b| a & b),
    alu!("or.b32|b16", www, |a, b| a | b),
    alu!("xor.b32|b16", www, |a, b| a ^ b),
    alu!("not.b32", ww, |a| !a),
    alu!("not.b16", ww, |a| !a & 0xffff),
    alu!("cnot.b32", ww, |a| u32::from(a == 0)),
    alu!("shl.b32", www, left),
    alu!("shl.b16", www, |a, b| left(a, b) & 0xffff),
    alu!("shr.u32|b32", www, |a, b| a.checked_shr(b).unwrap_or(0)),
    alu!("shr.u16|b16", www, |a, b| (a & 0xffff).checked_shr(b).unwrap_or(0)),
    alu!("shr.s32", www, |a, b| (a.cast_signed() >> b.min(31)).cast_unsigned()),
    alu!("shr.s16", www, |a, b| (short(a) >> b.min(31)).cast_unsigned() & 0xffff),
    alu!("shf.l.wrap.b32", wwww, |a, b, c| (((u64::from(b) << 32 | u64::from(a)) << (c & 31)) >> 32) as u32),
    alu!("shf.r.wrap.b32", wwww, |a, b, c| ((u64::from(b) << 32 | u64::from(a)) >> (c & 31)) as u32),
    alu!("shf.l.clamp.b32", wwww, |a, b, c| (((u64::from(b) << 32 | u64::from(a)) << c.min(32)) >> 32) as u32),
    alu!("shf.r.clamp.b32", wwww, |a, b, c| ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32),
    alu!("bfe.u32", wwww, extract),
    alu!("bfe.s32", wwww, extract_signed),
    alu!("bfi.b32", wwwww, |a, b, c, d| insert(u64::from(a), u64::from(b), c, d, 32) as u32),
    alu!("prmt.b32", wwww, permute),
    alu!("lop3.b32", wwwww, lookup),
    alu!("popc.b32", ww, |a| a.count_ones()),
    alu!("clz.b32", ww, |a| a.leading_zeros()),
    alu!("brev.b32", ww, |a| a.reverse_bits()),
    alu!("bfind.u32", ww, find_bit),
    alu!("bfind.s32", ww, find_bit_signed),
    alu!("bfind.shiftamt.u32", ww, |a| if a == 0 { u32::MAX } else { a.leading_zeros() }),
    alu!("dp4a.s32.s32", wwww, dot_signed),
    alu!("dp4a.u32.u32", wwww, dot_unsigned),
    alu!("mov.b32|u32|s32|f32|b16|u16|s16|f16|b8|u8|s8", ww, |a| a),
    alu!("selp.b32|u32|s32|f32|b16|u16|s16", wwwp, |a, b, c| if c { a } else { b }),
    alu!("slct.s32|u32|b32|f32.s32", wwww, |a, b, c| if c.cast_signed() >= 0 { a } else { b }),
    alu!("szext.wrap.u32", www, |a, b| extract(a, 0, b & 31)),
];

/// 64-bit registers and predicates.
pub(super) const WIDE_FORMS: &[Form] = &[
    alu!("add.s64|u64", qqq, |a, b| a.wrapping_add(b)),
    alu!("sub.s64|u64", qqq, |a, b| a.wrapping_sub(b)),
    alu!("mul.lo.s64|u64", qqq, |a, b| a.wrapping_mul(b)),
    alu!("mul.hi.u64", qqq, |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
    alu!("mul.hi.s64", qqq, high_signed_wide),
    alu!("mul.wide.u32", qww, |a, b| u64::from(a) * u64::from(b)),
    alu!("mul.wide.s32", qww, |a, b| product_signed(a, b).cast_unsigned()),
    alu!("mad.lo.s64|u64", qqqq, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
    alu!("mad.wide.u32", qwwq, |a, b, c| (u64::from(a) * u64::from(b)).wrapping_add(c)),
    alu!("mad.wide.s32", qwwq, |a, b, c| product_signed(a, b).cast_unsigned().wrapping_add(c)),
    alu!("div.u64", qqq, |a, b| a.checked_div(b).unwrap_or(u64::MAX)),
    alu!("div.s64", qqq, divide_signed_wide),
    alu!("rem.u64", qqq, |a, b| if b == 0 { a } else { a % b }),
    alu!("rem.s64", qqq, remainder_signed_wide),
    alu!("neg.s64", qq, |a| a.wrapping_neg()),
    alu!("abs.s64", qq, |a| a.cast_signed().wrapping_abs().cast_unsigned()),
    alu!("min.s64", qqq, |a, b| a.cast_signed().min(b.cast_signed()).cast_unsigned()),
    alu!("max.s64", qqq, |a, b| a.cast_signed().max(b.cast_signed()).cast_unsigned()),
    alu!("min.u64", qqq, |a, b| a.min(b)),
    alu!("max.u64", qqq, |a, b| a.max(b)),
    alu!("and.b64", qqq, |a, b| a & b),
    alu!("or.b64", qqq, |a, b| a | b),
    alu!("xor.b64", qqq, |a, b| a ^ b),
    alu!("not.b64", qq, |a| !a),
    alu!("shl.b64", qqw, |a, b| a.checked_shl(b).unwrap_or(0)),
    alu!("shr.u64|b64", qqw, |a, b| a.checked_shr(b).unwrap_or(0)),
    alu!("shr.s64", qqw, |a, b| (a.cast_signed() >> b.min(63)).cast_unsigned()),
    alu!("bfi.b64", qqqww, |a, b, c, d| insert(a, b, c, d, 64)),
    alu!("popc.b64", wq, |a| a.count_ones()),
    alu!("clz.b64", wq, |a| a.leading_zeros()),
    alu!("brev.b64", qq, |a| a.reverse_bits()),
    alu!("mov.b64|u64|s64|f64", qq, |a| a),
    alu!("cvta.to?.global|const.u64", qq, |a| a),
    alu!("cvta.shared.u64", qq, |a| a.wrapping_add(crate::machine::SHARED_WINDOW)),
    alu!("cvta.to.shared.u64", qq, |a| a.wrapping_sub(crate::machine::SHARED_WINDOW)),
    alu!("cvta.local.u64", qq, |a| a.wrapping_add(crate::machine::LOCAL_WINDOW)),
    alu!("cvta.to.local.u64", qq, |a| a.wrapping_sub(crate::machine::LOCAL_WINDOW)),
    alu!("selp.b64|u64|s64|f64", qqqp, |a, b, c| if c { a } else { b }),
    alu!("and.pred", ppp, |a, b| a & b),
    alu!("or.pred", ppp, |a, b| a | b),
    alu!("xor.pred", ppp, |a, b| a ^ b),
    alu!("not.pred", pp, |a| !a),
    alu!("mov.pred", pp, |a| a),
    form!("isspacep.shared", "pq", |warp, _, i, mask| {
        use crate::machine::{LOCAL_WINDOW, SHARED_WINDOW};
        warp.pq(i, mask, |a| (SHARED_WINDOW..LOCAL_WINDOW).contains(&a));
        Ok(())
    }),
    form!("isspacep.global", "pq", |warp, _, i, mask| {
        warp.pq(i, mask, |a| a < crate::machine::SHARED_WINDOW);
        Ok(())
    }),
    form!("mov_unpack.b64.2", "Dq", 2, Plain, |warp, _, i, mask| {
        let value = warp.quads[i.a as usize];
        warp.fill(i.list[0], mask, |lane| value[lane] as u32);
        warp.fill(i.list[1], mask, |lane| (value[lane] >> 32) as u32);
        Ok(())
    }),
    form!("mov_unpack.b64.4", "Dq", 4, Plain, |warp, _, i, mask| {
        let value = warp.quads[i.a as usize];
        for (part, register) in i.list.iter().enumerate() {
            warp.fill(*register, mask, |lane| (value[lane] >> (16 * part)) as u32 & 0xffff);
        }
        Ok(())
    }),
    form!("mov_unpack.b32.2", "Dw", 2, Plain, |warp, _, i, mask| {
        let value = warp.words[i.a as usize];
        warp.fill(i.list[0], mask, |lane| value[lane] & 0xffff);
        warp.fill(i.list[1], mask, |lane| value[lane] >> 16);
        Ok(())
    }),
    form!("mov_unpack.b32.4", "Dw", 4, Plain, |warp, _, i, mask| {
        let value = warp.words[i.a as usize];
        for (part, register) in i.list.iter().enumerate() {
            warp.fill(*register, mask, |lane| (value[lane] >> (8 * part)) & 255);
        }
        Ok(())
    }),
    form!("mov_unpack.b16.2", "Dw", 2, Plain, |warp, _, i, mask| {
        let value = warp.words[i.a as usize];
        warp.fill(i.list[0], mask, |lane| value[lane] & 255);
        warp.fill(i.list[1], mask, |lane| (value[lane] >> 8) & 255);
        Ok(())
    }),
    form!("mov_pack.b64.2", "qV", 2, Plain, |warp, _, i, mask| {
        let (low, high) = (warp.words[i.list[0] as usize], warp.words[i.list[1] as usize]);
        warp.fill_wide(i.d, mask, |lane| u64::from(low[lane]) | u64::from(high[lane]) << 32);
        Ok(())
    }),
    form!("mov_pack.b64.4", "qV", 4, Plain, |warp, _, i, mask| {
        let parts: [[u32; 32]; 4] = std::array::from_fn(|part| warp.words[i.list[part] as usize]);
        let join = |lane: usize| (0..4).fold(0, |sum, part| sum | u64::from(parts[part][lane] & 0xffff) << (16 * part));
        warp.fill_wide(i.d, mask, join);
        Ok(())
    }),
    form!("mov_pack.b32.2", "wV", 2, Plain, |warp, _, i, mask| {
        let (low, high) = (warp.words[i.list[0] as usize], warp.words[i.list[1] as usize]);
        warp.fill(i.d, mask, |lane| (low[lane] & 0xffff) | high[lane] << 16);
        Ok(())
    }),
    form!("mov_pack.b32.4", "wV", 4, Plain, |warp, _, i, mask| {
        let parts: [[u32; 32]; 4] = std::array::from_fn(|part| warp.words[i.list[part] as usize]);
        warp.fill(i.d, mask, |lane| (0..4).fold(0, |sum, part| sum | (parts[part][lane] & 255) << (8 * part)));
        Ok(())
    }),
    form!("mov_pack.b16.2", "wV", 2, Plain, |warp, _, i, mask| {
        let (low, high) = (warp.words[i.list[0] as usize], warp.words[i.list[1] as usize]);
        warp.fill(i.d, mask, |lane| (low[lane] & 255) | (high[lane] & 255) << 8);
        Ok(())
    }),
    form!("mov_clock.u32|b32", "w", |warp, _, i, mask| {
        let clock = warp.executed as u32;
        warp.fill(i.d, mask, |_| clock);
        Ok(())
    }),
    form!("mov_clock.u64|b64", "q", |warp, _, i, mask| {
        let clock = warp.executed;
        warp.fill_wide(i.d, mask, |_| clock);
        Ok(())
    }),
];
