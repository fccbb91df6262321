//! `cp.async`. Bytes arrive only when the thread waits for them, and until then nobody may touch their place.

use super::memory::operand_fault;
use super::{Form, form};
use crate::machine::shared::Accessor;
use crate::machine::{Block, Copy, Outcome, Place, Warp};
use crate::program::{Instruction, NONE};
use crate::ptx::syntax::Space;

fn issue(warp: &mut Warp, block: &mut Block<'_>, i: &Instruction, mask: u32) -> Outcome {
    let bytes = i.immediate as usize;
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        if ![4, 8, 16].contains(&bytes) {
            return Err(operand_fault(lane, format!("cp.async of {bytes} bytes; only 4, 8 and 16 are possible")));
        }
        let read = if i.c == NONE { bytes } else { warp.words[i.c as usize][lane] as usize };
        if read > bytes {
            return Err(operand_fault(lane, format!("cp.async reads {read} bytes to write {bytes}")));
        }
        let to = Block::address(warp, i.address, lane);
        let Place::Shared(destination) = block.place(warp, i, Space::Shared, "cp.async", lane, (to, bytes))? else {
            return Ok(());
        };
        let source = Block::address(warp, i.source, lane);
        if read > 0 {
            // The address is that of the whole copy, so its alignment counts even if less is read.
            if !source.is_multiple_of(bytes as u64) {
                let message = format!("cp.async of {bytes} bytes from {source:#x}, which is not a multiple of {bytes}");
                return Err(crate::machine::Fault::new(crate::machine::FaultKind::Alignment, lane as u32, message));
            }
            // Bounds are those of the bytes that are read, in pieces that a place can have.
            for at in (0..read).step_by(1.max(read & read.wrapping_neg())) {
                let piece = read & read.wrapping_neg();
                let from = block.place(warp, i, Space::Global, "cp.async", lane, (source + at as u64, piece))?;
                block.note_read(from, piece, Accessor { warp: warp.index, lane: lane as u32, atomic: false })?;
            }
        }
        let by = Accessor { warp: warp.index, lane: lane as u32, atomic: false };
        block.shared.write(destination, bytes, by, true)?;
        let group = warp.groups[lane];
        warp.copies.push(Copy { lane: lane as u32, group, destination, source, bytes, read });
    }
    Ok(())
}

/// `cp.async`.
pub(super) const FORMS: &[Form] = &[
    form!("cp.async.ca|cg.shared|shared::cta.global.L2::64B|L2::128B|L2::256B?", "!ASI?w", 0, Plain, issue),
    form!("cp.async.commit_group", "", |warp, _, _, mask| {
        for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
            warp.groups[lane] += 1;
        }
        Ok(())
    }),
    form!("cp.async.wait_group", "!I", |warp, block, i, mask| {
        let behind = u32::try_from(i.immediate).unwrap_or(u32::MAX);
        block.land(warp, mask, behind, false);
        Ok(())
    }),
    form!("cp.async.wait_all", "", |warp, block, _, mask| {
        block.land(warp, mask, 0, true);
        Ok(())
    }),
];
