//! What the warps of a block share.

use super::fault::{Fault, FaultKind, Outcome};
use super::memory::{LOCAL_WINDOW, SHARED_WINDOW, View};
use super::shared::{Accessor, Shared};
use super::warp::{Copy, Warp};
use crate::program::{Address, Base, Instruction};
use crate::ptx::syntax::Space;

/// The sizes of a launch, and which block this is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dimensions {
    /// Blocks of the grid.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: [u32; 3],
    /// This block.
    pub block: [u32; 3],
    /// Bytes of shared memory that the launch adds.
    pub dynamic_shared: u32,
    /// Bytes of shared memory together.
    pub total_shared: u32,
    /// Where the blocks of a cooperative grid wait for each other.
    pub workspace: u64,
}

impl Dimensions {
    /// Threads of a block.
    #[must_use]
    pub fn threads_of_block(&self) -> u32 {
        self.threads.iter().product()
    }

    /// The coordinates of a thread.
    #[must_use]
    pub fn thread(&self, index: u32) -> [u32; 3] {
        let [x, y, _] = self.threads;
        [index % x, index / x % y, index / x / y]
    }

    /// The number of this block.
    #[must_use]
    pub fn block_index(&self) -> u32 {
        let [x, y, z] = self.block;
        x.wrapping_add(self.grid[0].wrapping_mul(y.wrapping_add(self.grid[1].wrapping_mul(z))))
    }
}

/// Lanes that wait at a barrier.
#[derive(Clone, Copy, Debug)]
pub struct Waiter {
    /// The warp.
    pub warp: u32,
    /// The lanes.
    pub mask: u32,
    /// The instruction.
    pub place: u32,
}

/// One of the 16 barriers.
#[derive(Clone, Debug, Default)]
pub struct Barrier {
    /// Who waits.
    pub waiting: Vec<Waiter>,
    /// Warps that arrived without waiting.
    pub passed: Vec<u32>,
    /// Threads that have arrived.
    pub arrived: u32,
    /// Threads that must arrive; zero for all of the block.
    pub wanted: u32,
    /// What the arrivals say: how many predicates are true.
    pub count: u32,
    /// Whether the predicates of all are true.
    pub all: bool,
    /// The value of the reduction that the last round gave.
    pub result: (u32, bool, bool),
}

/// A block's state beside its warps.
pub struct Block<'l> {
    /// Sizes.
    pub dimensions: Dimensions,
    /// Shared memory.
    pub shared: Shared,
    /// Parameters.
    pub parameters: &'l [u8],
    /// Device memory.
    pub view: &'l View,
    /// For each instruction, the region that it accessed last.
    pub hits: Vec<u32>,
    /// Barriers.
    pub barriers: [Barrier; 16],
    /// Whether reads of unwritten bytes are faults.
    pub check_uninitialized: bool,
}

/// Where an access leads.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// A region of the view, and an address in it.
    Global(usize, u64),
    /// An offset in shared memory.
    Shared(usize),
    /// An offset in the warp's local memory.
    Local(usize),
    /// An offset in the parameters.
    Parameter(usize),
}

impl Block<'_> {
    /// The address of a lane.
    #[inline(always)]
    #[must_use]
    pub fn address(warp: &Warp, address: Address, lane: usize) -> u64 {
        let base = match address.base {
            Base::Quad(register) => warp.quads[register as usize][lane],
            Base::Word(register) => u64::from(warp.words[register as usize][lane]),
            Base::Absolute => 0,
        };
        base.wrapping_add(address.offset.cast_unsigned())
    }

    /// Where an access goes, if it may.
    #[inline]
    pub fn place(
        &mut self,
        warp: &Warp,
        i: &Instruction,
        space: Space,
        does: &str,
        lane: usize,
        (address, bytes): (u64, usize),
    ) -> Result<Place, Box<Fault>> {
        match space {
            Space::Shared => Ok(Place::Shared(self.shared.range(address, bytes, lane as u32)?)),
            Space::Parameter => self.parameter(address, bytes, lane),
            Space::Local => local(warp, address, bytes, lane),
            Space::Generic if address >= LOCAL_WINDOW => local(warp, address - LOCAL_WINDOW, bytes, lane),
            Space::Generic if address >= SHARED_WINDOW => {
                Ok(Place::Shared(self.shared.range(address - SHARED_WINDOW, bytes, lane as u32)?))
            }
            Space::Generic | Space::Global | Space::Constant => self.global(i, does, lane, address, bytes),
        }
    }

    #[inline]
    fn global(
        &mut self,
        i: &Instruction,
        does: &str,
        lane: usize,
        address: u64,
        bytes: usize,
    ) -> Result<Place, Box<Fault>> {
        let hit = &mut self.hits[i.index as usize];
        let mut index = *hit as usize;
        if !self.view.region(index).is_some_and(|region| region.holds(address, bytes as u64)) {
            let found = self.view.find(address);
            let held = found.and_then(|index| self.view.region(index));
            if !held.is_some_and(|region| region.holds(address, bytes as u64)) {
                return Err(self.view.fault(does, address, bytes as u64, lane as u32));
            }
            index = found.unwrap_or_default();
            *hit = index as u32;
        }
        if !address.is_multiple_of(bytes as u64) {
            let message = format!("{does} of {bytes} bytes at {address:#x}, which is not a multiple of {bytes}");
            return Err(Fault::new(FaultKind::Alignment, lane as u32, message));
        }
        Ok(Place::Global(index, address))
    }

    fn parameter(&self, address: u64, bytes: usize, lane: usize) -> Result<Place, Box<Fault>> {
        let size = self.parameters.len() as u64;
        if address.checked_add(bytes as u64).is_none_or(|end| end > size) {
            let message = format!("access of {bytes} bytes at {address:#x} of {size} bytes of parameters");
            return Err(Fault::new(FaultKind::Address, lane as u32, message));
        }
        Ok(Place::Parameter(address as usize))
    }

    /// Loads an element whose access was allowed and noted.
    #[inline]
    #[must_use]
    pub fn load(&self, warp: &Warp, place: Place, offset: usize, bytes: u8) -> u64 {
        match place {
            Place::Global(region, address) => {
                self.view.region(region).map_or(0, |region| region.load(address + offset as u64, bytes))
            }
            Place::Shared(at) => element(&self.shared.bytes[at + offset..], bytes),
            Place::Local(at) => element(&warp.local[at + offset..], bytes),
            Place::Parameter(at) => element(&self.parameters[at + offset..], bytes),
        }
    }

    /// Stores an element likewise.
    #[inline]
    pub fn store(&mut self, warp: &mut Warp, place: Place, offset: usize, bytes: u8, value: u64) {
        let value_bytes = value.to_le_bytes();
        let from = &value_bytes[..bytes as usize];
        match place {
            Place::Global(region, address) => {
                if let Some(region) = self.view.region(region) {
                    region.store(address + offset as u64, bytes, value);
                }
            }
            Place::Shared(at) => self.shared.bytes[at + offset..][..bytes as usize].copy_from_slice(from),
            Place::Local(at) => warp.local[at + offset..][..bytes as usize].copy_from_slice(from),
            // The table has no form that stores to parameters.
            Place::Parameter(_) => {}
        }
    }

    /// Checks and notes a read.
    #[inline]
    pub fn note_read(&mut self, place: Place, bytes: usize, by: Accessor) -> Outcome {
        match place {
            Place::Global(region, address) if self.check_uninitialized => {
                let region = self.view.region(region);
                if region.is_some_and(|region| !region.is_written(address, bytes as u64)) {
                    let message = format!("read of {bytes} bytes at {address:#x} that nobody has written");
                    return Err(Fault::new(FaultKind::Uninitialized, by.lane, message));
                }
                Ok(())
            }
            Place::Shared(at) => self.shared.read(at, bytes, by),
            _ => Ok(()),
        }
    }

    /// Checks and notes a write.
    #[inline]
    pub fn note_write(&mut self, place: Place, bytes: usize, by: Accessor) -> Outcome {
        match place {
            Place::Global(region, address) => {
                if let Some(region) = self.view.region(region) {
                    region.mark_written(address, bytes as u64);
                }
                Ok(())
            }
            Place::Shared(at) => self.shared.write(at, bytes, by, false),
            Place::Local(_) => Ok(()),
            Place::Parameter(_) => Err(Fault::new(FaultKind::Address, by.lane, "store to the parameters")),
        }
    }

    /// Lets copies land whose group is at least `behind` groups old, for the lanes of a mask.
    pub fn land(&mut self, warp: &mut Warp, mask: u32, behind: u32, uncommitted: bool) {
        let groups = warp.groups;
        let done = |copy: &Copy| {
            let group = groups[copy.lane as usize];
            mask >> copy.lane & 1 == 1 && (uncommitted || copy.group.saturating_add(behind) < group)
        };
        let landing: Vec<Copy> = warp.copies.iter().filter(|copy| done(copy)).copied().collect();
        warp.copies.retain(|copy| !done(copy));
        for copy in landing {
            // The source was checked when the copy was issued, and memory is not freed under a running kernel.
            let place = &mut self.shared.bytes[copy.destination..copy.destination + copy.bytes];
            place.fill(0);
            if let Some(region) = self.view.find(copy.source).and_then(|index| self.view.region(index)) {
                region.read(copy.source, &mut place[..copy.read]);
            }
            self.shared.land(copy.destination, copy.bytes, warp.index);
        }
    }
}

#[inline]
fn element(bytes: &[u8], size: u8) -> u64 {
    let mut value = [0; 8];
    value[..size as usize].copy_from_slice(&bytes[..size as usize]);
    u64::from_le_bytes(value)
}

fn local(warp: &Warp, address: u64, bytes: usize, lane: usize) -> Result<Place, Box<Fault>> {
    let size = warp.local.len() / 32;
    if address.checked_add(bytes as u64).is_none_or(|end| end > size as u64) {
        let message = format!("access of {bytes} bytes at {address:#x} of {size} bytes of local memory");
        return Err(Fault::new(FaultKind::Address, lane as u32, message));
    }
    if !address.is_multiple_of(bytes as u64) {
        let message =
            format!("access of {bytes} bytes at {address:#x} of local memory, which is not a multiple of {bytes}");
        return Err(Fault::new(FaultKind::Alignment, lane as u32, message));
    }
    Ok(Place::Local(lane * size + address as usize))
}
