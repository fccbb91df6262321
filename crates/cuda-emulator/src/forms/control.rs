//! Branches and ends, which the schedule carries out, and hints, which do nothing.

use super::{Form, form};

/// Branches, ends, hints.
pub(super) const FORMS: &[Form] = &[
    form!("bra.uni?", "!T", 0, Branch, |_, _, _, _| Ok(())),
    form!("brx.idx.uni?", "!wB", 0, BranchIndexed, |_, _, _, _| Ok(())),
    form!("ret.uni?", "", 0, Exit, |_, _, _, _| Ok(())),
    form!("exit", "", 0, Exit, |_, _, _, _| Ok(())),
    form!("trap", "", 0, Trap, |_, _, _, _| Ok(())),
    form!("brkpt", "", 0, Trap, |_, _, _, _| Ok(())),
    form!("nanosleep.u32", "!w", |_, _, _, _| Ok(())),
    form!("griddepcontrol.wait|launch_dependents", "", |_, _, _, _| Ok(())),
    form!("setmaxnreg.inc|dec.sync.aligned.u32", "!I", |_, _, _, _| Ok(())),
    form!("discard.global.L2", "!AI", |_, _, _, _| Ok(())),
    form!("pmevent", "!I", |_, _, _, _| Ok(())),
];
