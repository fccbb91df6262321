//! The tile registers of AMX: what they are configured to hold, and the one inner loop that multiplies with them.
//!
//! A weight tile is 16 rows of w by 32 bf16 numbers along K, as they lie in memory. A tile of x is 32 numbers along K by
//! up to 16 rows of x, in pairs along K: row p has the pair (2p, 2p+1) of every row of x. Their product is a tile of sums,
//! 16 rows of w by so many rows of x, in single precision. For each output, `tdpbf16ps` sums the even and the odd products
//! of a tile from zero, adds the two, and adds that to the sum so far (Intel's Instruction Set Reference): the order
//! depends on K alone.

use super::{TILE, TILE_BYTES, TILE_ROW_BYTES};
use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// The tile registers of this thread, configured until dropped.
pub(super) struct Registers;

/// The memory form of a configuration, palette 1: 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Registers {
    /// Configures sums (0 to 3), weights (4 and 5) and x (6 and 7) for tiles of `columns` rows of x, at most [`TILE`].
    ///
    /// # Safety
    /// [`super::available`] must have said yes.
    pub(super) unsafe fn configure(columns: usize) -> Self {
        let x = u16::try_from(columns.clamp(1, TILE) * size_of::<f32>()).unwrap_or(u16::MAX);
        let w = TILE_ROW_BYTES as u16;
        let mut configuration =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        configuration.row_bytes[..8].copy_from_slice(&[x, x, x, x, w, w, x, x]);
        configuration.rows[..8].fill(TILE as u8);
        // SAFETY: the caller's contract; the configuration is one that palette 1 allows.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, preserves_flags, readonly))
        };
        Self
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: there are tile registers, since they were configured. Released, they cost context switches nothing.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// Tiles in memory.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    /// The first row of the first tile.
    pub(super) begin: *const u8,
    /// Bytes from a row of a tile to the next.
    pub(super) row: usize,
    /// Bytes from a tile to the next along K.
    pub(super) depth: usize,
    /// Bytes from a tile to the one beside it: the next 16 rows of w, or of x.
    pub(super) beside: usize,
}

impl Tiles {
    /// From tile `depth` along K on.
    #[inline(always)]
    pub(super) fn after(self, depth: usize) -> Self {
        Self { begin: self.begin.wrapping_add(depth * self.depth), ..self }
    }
}

/// Where a block of sums is kept: `[beside x][beside w]` tiles of [`TILE_BYTES`], their rows as long as those of a tile of x.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) begin: *mut u8,
    pub(super) row: usize,
}

/// Sets all sums to zero.
///
/// # Safety
/// The registers must be configured.
#[inline(always)]
pub(super) unsafe fn zero() {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nostack, preserves_flags, nomem)
        );
    }
}

/// Moves the first `$count` tiles of sums, which are one, two or four, by an instruction around the register's name.
macro_rules! move_sums {
    ($sums:expr, $count:expr, $before:literal, $after:literal) => {
        move_sums!($sums, 0, concat!($before, "tmm0", $after));
        if $count > 1 {
            move_sums!($sums, 1, concat!($before, "tmm1", $after));
        }
        if $count > 2 {
            move_sums!($sums, 2, concat!($before, "tmm2", $after));
            move_sums!($sums, 3, concat!($before, "tmm3", $after));
        }
    };
    ($sums:expr, $index:literal, $instruction:expr) => {
        asm!(
            $instruction,
            begin = in(reg) $sums.begin.add($index * TILE_BYTES), row = in(reg) $sums.row,
            options(nostack, preserves_flags)
        )
    };
}

/// Reads `count` tiles of sums that [`store`] wrote: one, two or four.
///
/// # Safety
/// The registers must be configured, and the sums be readable.
#[inline(always)]
pub(super) unsafe fn load(sums: &Sums, count: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        move_sums!(sums, count, "tileloadd ", ", [{begin} + {row}]");
    }
}

/// Writes `count` tiles of sums: one, two or four.
///
/// # Safety
/// The registers must be configured, and the sums be writable.
#[inline(always)]
pub(super) unsafe fn store(sums: &Sums, count: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        move_sums!(sums, count, "tilestored [{begin} + {row}], ", "");
    }
}

/// Adds the products of `W` tiles of w and `X` of x over `depth` tiles along K; sum `w + W · x` is of tiles w and x.
/// Weights are asked for `ahead` bytes before they are used; zero leaves that to the processor.
///
/// # Safety
/// The registers must be configured, and all tiles be readable.
#[inline(always)]
pub(super) unsafe fn multiply<const W: usize, const X: usize>(w: &Tiles, x: &Tiles, depth: usize, ahead: usize) {
    for tile in 0..depth {
        let at_w = w.begin.wrapping_add(tile * w.depth);
        let at_x = x.begin.wrapping_add(tile * x.depth);
        // SAFETY: the caller's contract; a prefetch of any address is harmless.
        unsafe {
            if ahead > 0 {
                // A line of each stream in turn: the memory is read faster so than tile after tile.
                for row in 0..TILE {
                    for tile in 0..W {
                        let line = at_w.wrapping_add(tile * w.beside + row * w.row + ahead);
                        _mm_prefetch::<_MM_HINT_T0>(line.cast());
                    }
                }
            }
            step::<W, X>([at_w, at_x], w, x);
        }
    }
}

/// One tile along K.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn step<const W: usize, const X: usize>(at: [*const u8; 2], w: &Tiles, x: &Tiles) {
    let beside = |tile: usize| at[0].wrapping_add(tile * w.beside);
    let beside_x = at[1].wrapping_add(x.beside);
    const { assert!(matches!((W, X), (1 | 2, 1 | 2) | (4, 1))) };
    macro_rules! tiles {
        ([$($line:literal),+] $(, $name:ident = $value:expr)*) => {
            asm!(
                $($line,)+
                w = in(reg) at[0], w_row = in(reg) w.row, x = in(reg) at[1], x_row = in(reg) x.row,
                $($name = in(reg) $value,)*
                options(nostack, preserves_flags, readonly)
            )
        };
    }
    // SAFETY: the caller's contract.
    unsafe {
        match (W, X) {
            (1, 1) => tiles!([
                "tileloadd tmm6, [{x} + {x_row}]",
                "tileloadd tmm4, [{w} + {w_row}]",
                "tdpbf16ps tmm0, tmm4, tmm6"
            ]),
            (2, 1) => tiles!(
                [
                    "tileloadd tmm6, [{x} + {x_row}]",
                    "tileloadd tmm4, [{w} + {w_row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{w1} + {w_row}]",
                    "tdpbf16ps tmm1, tmm5, tmm6"
                ],
                w1 = beside(1)
            ),
            (1, 2) => tiles!(
                [
                    "tileloadd tmm4, [{w} + {w_row}]",
                    "tileloadd tmm6, [{x} + {x_row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{x1} + {x_row}]",
                    "tdpbf16ps tmm1, tmm4, tmm7"
                ],
                x1 = beside_x
            ),
            (4, _) => tiles!(
                [
                    "tileloadd tmm6, [{x} + {x_row}]",
                    "tileloadd tmm4, [{w} + {w_row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{w1} + {w_row}]",
                    "tdpbf16ps tmm1, tmm5, tmm6",
                    "tileloadd tmm4, [{w2} + {w_row}]",
                    "tdpbf16ps tmm2, tmm4, tmm6",
                    "tileloadd tmm5, [{w3} + {w_row}]",
                    "tdpbf16ps tmm3, tmm5, tmm6"
                ],
                w1 = beside(1),
                w2 = beside(2),
                w3 = beside(3)
            ),
            _ => tiles!(
                [
                    "tileloadd tmm4, [{w} + {w_row}]",
                    "tileloadd tmm6, [{x} + {x_row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{w1} + {w_row}]",
                    "tdpbf16ps tmm1, tmm5, tmm6",
                    "tileloadd tmm7, [{x1} + {x_row}]",
                    "tdpbf16ps tmm2, tmm4, tmm7",
                    "tdpbf16ps tmm3, tmm5, tmm7"
                ],
                w1 = beside(1),
                x1 = beside_x
            ),
        }
    }
}

/// Floating-point operations of one step of [`multiply_in_registers`].
pub(super) const OPERATIONS: usize = 2 * 4 * TILE * TILE * super::TILE_DEPTH;

/// Adds `steps` products of tiles that stay in registers to each of four sums, which is as fast as the processor multiplies.
///
/// # Safety
/// The registers must be configured.
pub(super) unsafe fn multiply_in_registers(steps: usize) {
    for _ in 0..steps {
        // SAFETY: the caller's contract.
        unsafe {
            asm!(
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm5, tmm6",
                "tdpbf16ps tmm2, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                options(nostack, preserves_flags, nomem)
            );
        }
    }
}
