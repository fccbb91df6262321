//! A block's shared memory, and for each of its bytes who accessed it last.
//!
//! Accesses carry a stamp: the number of barriers that the block has completed. `seen[x][r]` is the last stamp of
//! warp `r` whose accesses come before what warp `x` does now; a barrier raises it for the warps that wait there. Two
//! accesses of different warps, one of them a write, that are not ordered so are a race.

use super::fault::{Fault, FaultKind, Outcome};

/// The most warps of a block.
const WARPS: usize = 32;

/// The stamps end here; a block that gets so far starts over and forgets its readers.
const LAST_STAMP: u32 = (1 << 25) - 1;

/// A warp and a stamp. The lowest five bits are the warp, then a bit for an atomic access and one for a copy on its
/// way.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Entry(u32);

impl Entry {
    fn new(warp: u32, stamp: u32, atomic: bool, flying: bool) -> Self {
        Self(warp | u32::from(atomic) << 5 | u32::from(flying) << 6 | stamp << 7)
    }

    fn warp(self) -> u32 {
        self.0 & 31
    }

    fn atomic(self) -> bool {
        self.0 & 32 != 0
    }

    fn flying(self) -> bool {
        self.0 & 64 != 0
    }

    fn stamp(self) -> u32 {
        self.0 >> 7
    }
}

#[derive(Clone, Copy, Default)]
struct Shadow {
    writer: Entry,
    readers: [Entry; 3],
}

/// Who accesses, and how.
#[derive(Clone, Copy, Debug)]
pub struct Accessor {
    /// The warp.
    pub warp: u32,
    /// The lane.
    pub lane: u32,
    /// Whether others may access at the same time by right.
    pub atomic: bool,
}

/// Shared memory with its history.
#[derive(Default)]
pub struct Shared {
    /// The bytes.
    pub bytes: Vec<u8>,
    shadow: Vec<Shadow>,
    seen: Vec<[u32; WARPS]>,
    now: u32,
    start: u32,
    check_uninitialized: bool,
}

impl Shared {
    /// Makes it ready for the next block. What the last one left counts as never written.
    pub fn begin(&mut self, bytes: usize, warps: usize, check_uninitialized: bool) {
        self.check_uninitialized = check_uninitialized;
        self.bytes.clear();
        // A value that no kernel takes for its own: what is read too early must not look right.
        self.bytes.resize(bytes, 0xcd);
        if self.now >= LAST_STAMP / 2 {
            self.shadow.clear();
            self.now = 0;
        }
        if self.shadow.len() < bytes {
            self.shadow.resize(bytes, Shadow::default());
        }
        self.now += 1;
        self.start = self.now;
        self.seen.clear();
        self.seen.resize(warps, [self.now - 1; WARPS]);
    }

    /// The warps of `from` have reached a barrier at which those of `waiting` waited.
    pub fn barrier(&mut self, from: &[u32], waiting: &[u32]) {
        let mut joined = [0u32; WARPS];
        for warp in from {
            for (other, stamp) in joined.iter_mut().zip(self.seen[*warp as usize]) {
                *other = (*other).max(stamp);
            }
        }
        for warp in from {
            joined[*warp as usize] = self.now;
        }
        for warp in waiting {
            self.seen[*warp as usize] = joined;
        }
        self.now += 1;
        if self.now >= LAST_STAMP {
            self.rebase();
        }
    }

    #[cold]
    fn rebase(&mut self) {
        for shadow in &mut self.shadow {
            let known = shadow.writer.stamp() >= self.start;
            let writer = Entry::new(shadow.writer.warp(), 1, false, shadow.writer.flying());
            *shadow = Shadow { writer: if known { writer } else { Entry::default() }, ..Shadow::default() };
        }
        (self.start, self.now) = (1, 2);
        self.seen.fill([1; WARPS]);
    }

    fn ordered(&self, warp: u32, entry: Entry) -> bool {
        entry.warp() == warp || self.seen[warp as usize][entry.warp() as usize] >= entry.stamp()
    }

    /// Whether an access must not meet another one.
    fn clashes(&self, by: Accessor, other: Entry) -> bool {
        other.flying() || !(self.ordered(by.warp, other) || by.atomic && other.atomic())
    }

    /// The bytes of an access, if they are there and aligned.
    pub fn range(&self, at: u64, bytes: usize, lane: u32) -> Result<usize, Box<Fault>> {
        let size = self.bytes.len();
        if at.checked_add(bytes as u64).is_none_or(|end| end > size as u64) {
            let message =
                format!("access of {bytes} bytes at {at:#x} of shared memory, of which there are {size} bytes");
            return Err(Fault::new(FaultKind::Address, lane, message));
        }
        if !at.is_multiple_of(bytes as u64) {
            let message =
                format!("access of {bytes} bytes at {at:#x} of shared memory, which is not a multiple of {bytes}");
            return Err(Fault::new(FaultKind::Alignment, lane, message));
        }
        Ok(at as usize)
    }

    /// Notes a read.
    pub fn read(&mut self, at: usize, bytes: usize, by: Accessor) -> Outcome {
        for place in at..at + bytes {
            let Shadow { writer, readers } = self.shadow[place];
            if writer.stamp() < self.start {
                if self.check_uninitialized {
                    let message = format!("read of {bytes} bytes at {at:#x} of shared memory that nobody has written");
                    return Err(Fault::new(FaultKind::Uninitialized, by.lane, message));
                }
            } else if self.clashes(by, writer) {
                return Err(self.race("read", "written", place, writer, by));
            }
            let entry = Entry::new(by.warp, self.now, by.atomic, false);
            if readers[0] == entry {
                continue;
            }
            let free = readers.iter().position(|reader| {
                reader.stamp() < self.start || reader.warp() == by.warp || self.ordered(by.warp, *reader)
            });
            let slot = free.unwrap_or((by.warp + self.now) as usize % 3);
            self.shadow[place].readers[slot] = entry;
        }
        Ok(())
    }

    /// Notes a write; `flying` if its bytes come later.
    pub fn write(&mut self, at: usize, bytes: usize, by: Accessor, flying: bool) -> Outcome {
        for place in at..at + bytes {
            let Shadow { writer, readers } = self.shadow[place];
            let live = writer.stamp() >= self.start;
            if live && self.clashes(by, writer) {
                return Err(self.race("write", "written", place, writer, by));
            }
            for reader in readers {
                if reader.stamp() >= self.start && self.clashes(by, reader) {
                    return Err(self.race("write", "read", place, reader, by));
                }
            }
            let writer = Entry::new(by.warp, self.now, by.atomic, flying);
            self.shadow[place] = Shadow { writer, readers: [Entry::default(); 3] };
        }
        Ok(())
    }

    /// The bytes of a copy have arrived.
    pub fn land(&mut self, at: usize, bytes: usize, warp: u32) {
        let writer = Entry::new(warp, self.now, false, false);
        self.shadow[at..at + bytes].fill(Shadow { writer, readers: [Entry::default(); 3] });
    }

    #[cold]
    fn race(&self, does: &str, was: &str, place: usize, other: Entry, by: Accessor) -> Box<Fault> {
        let message = if other.flying() {
            format!(
                "{does} at {place:#x} of shared memory, where a cp.async of warp {} is on its way: a wait is missing",
                other.warp()
            )
        } else {
            format!(
                "race: {does} at {place:#x} of shared memory by warp {}, {was} by warp {} with no barrier in between",
                by.warp,
                other.warp()
            )
        };
        Fault::new(FaultKind::Race, by.lane, message)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn by(warp: u32) -> Accessor {
        Accessor { warp, lane: 0, atomic: false }
    }

    fn shared() -> Shared {
        let mut shared = Shared::default();
        shared.begin(64, 4, true);
        shared
    }

    #[test]
    fn races_are_found_and_barriers_order() {
        let mut shared = shared();
        shared.write(0, 4, by(0), false).unwrap();
        shared.read(0, 4, by(0)).unwrap();
        assert_eq!(shared.read(0, 4, by(1)).unwrap_err().kind, FaultKind::Race);
        shared.barrier(&[0, 1, 2, 3], &[0, 1, 2, 3]);
        shared.read(0, 4, by(1)).unwrap();
        shared.read(0, 4, by(2)).unwrap();
        assert_eq!(shared.write(0, 1, by(3), false).unwrap_err().kind, FaultKind::Race);
        assert_eq!(shared.read(8, 1, by(3)).unwrap_err().kind, FaultKind::Uninitialized);
    }

    #[test]
    fn a_barrier_orders_those_who_wait_there() {
        let mut shared = shared();
        shared.write(0, 4, by(0), false).unwrap();
        // Warp 0 arrives, warp 1 waits.
        shared.barrier(&[0, 1], &[1]);
        shared.read(0, 4, by(1)).unwrap();
        assert!(shared.read(0, 4, by(2)).is_err());
        assert!(shared.write(0, 4, by(0), false).is_err(), "warp 0 has not waited for the reader");
    }

    #[test]
    fn atomics_and_copies() {
        let mut shared = shared();
        let atomic = |warp| Accessor { warp, lane: 0, atomic: true };
        shared.write(0, 4, by(0), false).unwrap();
        shared.barrier(&[0, 1, 2, 3], &[0, 1, 2, 3]);
        for warp in 0..4 {
            shared.read(0, 4, atomic(warp)).unwrap();
            shared.write(0, 4, atomic(warp), false).unwrap();
        }
        assert!(shared.read(0, 4, by(0)).is_err());
        shared.write(16, 16, by(2), true).unwrap();
        assert!(shared.read(16, 4, by(2)).is_err(), "the copy is on its way");
        shared.land(16, 16, 2);
        shared.read(16, 4, by(2)).unwrap();
    }

    #[test]
    fn stamps_start_over() {
        let mut shared = shared();
        shared.write(0, 4, by(0), false).unwrap();
        shared.now = LAST_STAMP - 1;
        shared.barrier(&[0, 1], &[0, 1]);
        shared.read(0, 4, by(1)).unwrap();
        assert_eq!(shared.range(61, 4, 0).unwrap_err().kind, FaultKind::Address);
        assert_eq!(shared.range(u64::MAX, 4, 0).unwrap_err().kind, FaultKind::Address);
        assert_eq!(shared.range(2, 4, 0).unwrap_err().kind, FaultKind::Alignment);
    }
}
