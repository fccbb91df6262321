//! `ldmatrix` and `mma.sync`: a warp's lanes hold the pieces of small matrices.

use super::memory::operand_fault;
use super::number::{from_bfloat, from_e4m3, from_e5m2, from_half, to_half};
use super::{Form, form};
use crate::machine::shared::Accessor;
use crate::machine::{Block, Outcome, Place, Warp};
use crate::program::Instruction;
use crate::ptx::syntax::Space;

/// All lanes must take part: the pieces of the others would be missing.
fn whole_warp(mask: u32) -> Outcome {
    if mask == u32::MAX {
        return Ok(());
    }
    Err(operand_fault(
        (!mask).trailing_zeros() as usize % 32,
        format!("only the lanes {mask:#010x} take part, not all 32"),
    ))
}

/// Where the rows of a matrix are: eight lanes have an address for each.
fn row(
    warp: &Warp,
    block: &mut Block<'_>,
    i: &Instruction,
    lane: usize,
    does: &str,
) -> Result<Option<usize>, Box<crate::machine::Fault>> {
    let address = Block::address(warp, i.address, lane);
    let Place::Shared(at) = block.place(warp, i, Space::Shared, does, lane, (address, 16))? else { return Ok(None) };
    Ok(Some(at))
}

fn load_matrices(warp: &mut Warp, block: &mut Block<'_>, i: &Instruction, mask: u32, transposed: bool) -> Outcome {
    whole_warp(mask)?;
    for (number, register) in i.list.iter().enumerate() {
        let mut matrix = [[0u16; 8]; 8];
        for (index, values) in matrix.iter_mut().enumerate() {
            let lane = number * 8 + index;
            let Some(at) = row(warp, block, i, lane, "ldmatrix")? else { return Ok(()) };
            block.shared.read(at, 16, Accessor { warp: warp.index, lane: lane as u32, atomic: false })?;
            for (value, bytes) in values.iter_mut().zip(block.shared.bytes[at..at + 16].chunks_exact(2)) {
                *value = u16::from_le_bytes([bytes[0], bytes[1]]);
            }
        }
        let at =
            |row: usize, column: usize| u32::from(if transposed { matrix[column][row] } else { matrix[row][column] });
        warp.fill(*register, mask, |lane| {
            let (row, column) = (lane / 4, lane % 4 * 2);
            at(row, column) | at(row, column + 1) << 16
        });
    }
    Ok(())
}

fn store_matrices(warp: &mut Warp, block: &mut Block<'_>, i: &Instruction, mask: u32, transposed: bool) -> Outcome {
    whole_warp(mask)?;
    for (number, register) in i.list.iter().enumerate() {
        let piece = warp.words[*register as usize];
        let element = |row: usize, column: usize| (piece[row * 4 + column / 2] >> (16 * (column % 2))) as u16;
        for index in 0..8 {
            let lane = number * 8 + index;
            let Some(at) = row(warp, block, i, lane, "stmatrix")? else { return Ok(()) };
            block.shared.write(at, 16, Accessor { warp: warp.index, lane: lane as u32, atomic: false }, false)?;
            for column in 0..8 {
                let value = if transposed { element(column, index) } else { element(index, column) };
                block.shared.bytes[at + column * 2..][..2].copy_from_slice(&value.to_le_bytes());
            }
        }
    }
    Ok(())
}

/// `D = A B + C` with a shape of 16×8×K, where a register holds `P` elements. `A` and `B` are at most 32 deep.
fn multiply<const K: usize, const P: usize>(
    warp: &mut Warp,
    i: &Instruction,
    mask: u32,
    element: impl Fn(u32, usize) -> f32,
    half_sums: bool,
) -> Outcome {
    whole_warp(mask)?;
    let mut a = [[0f32; 32]; 16];
    // `B` by depth, so that the eight columns of a row lie together.
    let mut b = [[0f32; 8]; 32];
    let sums = if half_sums { 2 } else { 4 };
    let halves = K / (4 * P);
    for lane in 0..32 {
        let (group, member) = (lane / 4, lane % 4);
        for part in 0..2 * halves {
            let word = warp.words[i.list[sums + part] as usize][lane];
            for place in 0..P {
                a[group + part % 2 * 8][member * P + place + part / 2 * 4 * P] = element(word, place);
            }
        }
        for part in 0..halves {
            let word = warp.words[i.list[sums + 2 * halves + part] as usize][lane];
            for place in 0..P {
                b[member * P + place + part * 4 * P][group] = element(word, place);
            }
        }
    }
    let c = &i.list[sums + 3 * halves..];
    let mut product = [[0f32; 8]; 16];
    for (row, sums) in a.iter().zip(product.iter_mut()) {
        for (x, column) in row.iter().zip(&b).take(K) {
            for (sum, y) in sums.iter_mut().zip(column) {
                *sum += x * y;
            }
        }
    }
    let result: Vec<[u32; 32]> = (0..sums)
        .map(|part| {
            let before = warp.words[c[part] as usize];
            std::array::from_fn(|lane| {
                let (group, column) = (lane / 4, lane % 4 * 2);
                if half_sums {
                    let row = &product[group + part * 8];
                    let one =
                        |shift: u32, value: f32| to_half(from_half(before[lane] >> shift & 0xffff) + value) << shift;
                    one(0, row[column]) | one(16, row[column + 1])
                } else {
                    let value = product[group + part / 2 * 8][column + part % 2];
                    super::number::bits(f32::from_bits(before[lane]) + value)
                }
            })
        })
        .collect();
    for (register, values) in i.list.iter().zip(result) {
        warp.words[*register as usize] = values;
    }
    Ok(())
}

/// The same of bytes into 32-bit integers, 16×8×32.
fn multiply_bytes(warp: &mut Warp, i: &Instruction, mask: u32, byte: impl Fn(u32) -> i32) -> Outcome {
    whole_warp(mask)?;
    let (mut a, mut b) = ([[0i32; 32]; 16], [[0i32; 32]; 8]);
    for lane in 0..32 {
        let (group, member) = (lane / 4, lane % 4);
        for part in 0..4 {
            let word = warp.words[i.list[4 + part] as usize][lane];
            for place in 0..4 {
                a[group + part % 2 * 8][member * 4 + place + part / 2 * 16] = byte(word >> (8 * place) & 255);
            }
        }
        for part in 0..2 {
            let word = warp.words[i.list[8 + part] as usize][lane];
            for place in 0..4 {
                b[group][member * 4 + place + part * 16] = byte(word >> (8 * place) & 255);
            }
        }
    }
    let result: [[u32; 32]; 4] = std::array::from_fn(|part| {
        let before = warp.words[i.list[10 + part] as usize];
        std::array::from_fn(|lane| {
            let (row, column) = (lane / 4 + part / 2 * 8, lane % 4 * 2 + part % 2);
            let sum: i32 = a[row].iter().zip(&b[column]).map(|(x, y)| x * y).sum();
            before[lane].wrapping_add(sum.cast_unsigned())
        })
    });
    for (register, values) in i.list.iter().zip(result) {
        warp.words[*register as usize] = values;
    }
    Ok(())
}

fn bfloat(word: u32, place: usize) -> f32 {
    from_bfloat(word >> (16 * place) & 0xffff)
}

fn half(word: u32, place: usize) -> f32 {
    from_half(word >> (16 * place) & 0xffff)
}

fn e4m3(word: u32, place: usize) -> f32 {
    from_e4m3(word >> (8 * place) & 255)
}

fn e5m2(word: u32, place: usize) -> f32 {
    from_e5m2(word >> (8 * place) & 255)
}

/// The hardware reads 19 bits of a tf32.
fn tensor_float(word: u32, _: usize) -> f32 {
    f32::from_bits(word & !0x1fff)
}

/// Matrix loads and products.
pub(super) const FORMS: &[Form] = &[
    form!("ldmatrix.sync.aligned.m8n8.x1.shared|shared::cta?.b16", "DA", 1, Plain, |w, b, i, m| load_matrices(
        w, b, i, m, false
    )),
    form!("ldmatrix.sync.aligned.m8n8.x2.shared|shared::cta?.b16", "DA", 2, Plain, |w, b, i, m| load_matrices(
        w, b, i, m, false
    )),
    form!("ldmatrix.sync.aligned.m8n8.x4.shared|shared::cta?.b16", "DA", 4, Plain, |w, b, i, m| load_matrices(
        w, b, i, m, false
    )),
    form!("ldmatrix.sync.aligned.m8n8.x1.trans.shared|shared::cta?.b16", "DA", 1, Plain, |w, b, i, m| load_matrices(
        w, b, i, m, true
    )),
    form!("ldmatrix.sync.aligned.m8n8.x2.trans.shared|shared::cta?.b16", "DA", 2, Plain, |w, b, i, m| load_matrices(
        w, b, i, m, true
    )),
    form!("ldmatrix.sync.aligned.m8n8.x4.trans.shared|shared::cta?.b16", "DA", 4, Plain, |w, b, i, m| load_matrices(
        w, b, i, m, true
    )),
    form!("stmatrix.sync.aligned.m8n8.x1.shared|shared::cta?.b16", "!AV", 1, Plain, |w, b, i, m| store_matrices(
        w, b, i, m, false
    )),
    form!("stmatrix.sync.aligned.m8n8.x2.shared|shared::cta?.b16", "!AV", 2, Plain, |w, b, i, m| store_matrices(
        w, b, i, m, false
    )),
    form!("stmatrix.sync.aligned.m8n8.x4.shared|shared::cta?.b16", "!AV", 4, Plain, |w, b, i, m| store_matrices(
        w, b, i, m, false
    )),
    form!("stmatrix.sync.aligned.m8n8.x4.trans.shared|shared::cta?.b16", "!AV", 4, Plain, |w, b, i, m| store_matrices(
        w, b, i, m, true
    )),
    form!("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "DVVV", 14, Plain, |w, _, i, m| multiply::<16, 2>(
        w, i, m, bfloat, false
    )),
    form!("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "DVVV", 14, Plain, |w, _, i, m| multiply::<16, 2>(
        w, i, m, half, false
    )),
    form!("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", "DVVV", 10, Plain, |w, _, i, m| multiply::<16, 2>(
        w, i, m, half, true
    )),
    form!("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32", "DVVV", 11, Plain, |w, _, i, m| multiply::<8, 2>(
        w, i, m, bfloat, false
    )),
    form!("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", "DVVV", 11, Plain, |w, _, i, m| multiply::<8, 2>(
        w, i, m, half, false
    )),
    form!("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "DVVV", 14, Plain, |w, _, i, m| multiply::<8, 1>(
        w,
        i,
        m,
        tensor_float,
        false
    )),
    form!("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32", "DVVV", 11, Plain, |w, _, i, m| multiply::<4, 1>(
        w,
        i,
        m,
        tensor_float,
        false
    )),
    form!("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", "DVVV", 14, Plain, |w, _, i, m| multiply::<32, 4>(
        w, i, m, e4m3, false
    )),
    form!("mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e5m2.f32", "DVVV", 14, Plain, |w, _, i, m| multiply::<32, 4>(
        w, i, m, e5m2, false
    )),
    form!("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", "DVVV", 14, Plain, |w, _, i, m| multiply_bytes(
        w,
        i,
        m,
        |b| i32::from(b as u8 as i8)
    )),
    form!("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32", "DVVV", 14, Plain, |w, _, i, m| multiply_bytes(
        w,
        i,
        m,
        |b| b as i32
    )),
];
