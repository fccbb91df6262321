//! Products of bf16 and FP8 by the matrix tiles of AMX: a tile of weights (16 rows of w by 32 numbers along K) times a tile
//! of x (32 by up to 16 rows of x). One row of x costs as much as sixteen, and far less than it takes to read the weights
//! from memory, so batches up to 32 rows run at the speed of one.
//!
//! There is one order of summation for every number of rows and both layouts (see [`registers`]).

#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(target_arch = "x86_64")]
mod plan;
#[cfg(target_arch = "x86_64")]
mod products;
#[cfg(target_arch = "x86_64")]
mod registers;
#[cfg(target_arch = "x86_64")]
mod store;

#[cfg(target_arch = "x86_64")]
pub(super) use plan::Plan;
#[cfg(target_arch = "x86_64")]
pub(super) use products::{Packed, run, run_tiles, scratch_bytes};

use crate::element::ElementType;
use crate::isa::Isa;

/// Rows of w, and of x, in a tile.
pub(super) const TILE: usize = 16;

/// Numbers along K in a tile.
#[cfg(target_arch = "x86_64")]
const TILE_DEPTH: usize = 32;
/// Bytes of a row of a weight tile.
#[cfg(target_arch = "x86_64")]
const TILE_ROW_BYTES: usize = 64;
/// Bytes of a whole tile.
#[cfg(target_arch = "x86_64")]
const TILE_BYTES: usize = TILE * TILE_ROW_BYTES;

/// Whether products of the element type run on tiles on this path.
pub(crate) fn multiplies(isa: Isa, element: ElementType) -> bool {
    isa == Isa::Amx && matches!(element, ElementType::Bf16 | ElementType::F8E4M3)
}

/// Whether processor and operating system let this process use tiles of bf16. The first call asks the operating system for
/// the permission, which holds for all threads of the process.
pub(crate) fn available() -> bool {
    static AVAILABLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *AVAILABLE.get_or_init(ask)
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn ask() -> bool {
    use std::arch::x86_64::__cpuid_count;
    /// `ARCH_REQ_XCOMP_PERM`, and the number of the state component that holds tile data.
    const REQUEST: [libc::c_long; 2] = [0x1023, 18];
    const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    let has_leaf = __cpuid_count(0, 0).eax >= 7;
    let has_tiles = has_leaf && __cpuid_count(7, 0).edx & AMX_BF16_AND_TILE == AMX_BF16_AND_TILE;
    // SAFETY: the call changes nothing but the permission. A kernel that does not know it says so, and one that grants it
    // has enabled the state.
    has_tiles && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST[0], REQUEST[1]) } == 0
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn ask() -> bool {
    false
}

/// Multiplies tiles that stay in registers, `steps` times, and gives the floating-point operations that this was: none where
/// there are no tiles.
pub(crate) fn multiply_in_registers(_steps: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if available() {
        // SAFETY: the permission was just found to be there.
        unsafe {
            let _registers = registers::Registers::configure(TILE);
            registers::multiply_in_registers(_steps);
        }
        return registers::OPERATIONS * _steps;
    }
    0
}
