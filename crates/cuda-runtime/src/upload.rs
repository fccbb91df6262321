//! Weights to the device, through a small ring of pinned memory.
//!
//! Weights lie in mapped files. The device can only copy from pinned memory at full speed, and pinning all of them would take
//! as long as copying them and as much memory. So several threads copy pieces into a few pinned slots, which is where
//! pages are read from disk, while the device empties the others.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::driver::{Buffer, Context, DriverError, PinnedBuffer, Stream};

/// Bytes of a slot: so many that the commands cost little beside the bytes, so few that all slots together are pinned and
/// faulted in quickly, and that the first copy begins early.
const SLOT: usize = 4 << 20;

/// Slots of a thread: it fills one while the device empties the other.
const SLOTS: usize = 2;

/// The most threads. One cannot read pages as fast as the bus takes them; with a few, memory and disks are the limit.
const THREADS: usize = 4;

/// Where parts begin in a slot, so that copies are of aligned words where their targets are.
const ALIGNMENT: usize = 16;

/// Some bytes and where they go.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// What is copied.
    pub bytes: &'a [u8],
    /// Into which buffer.
    pub to: &'a Buffer,
    /// From which byte of it on.
    pub offset: usize,
}

/// What an upload came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadReport {
    /// All bytes.
    pub bytes: u64,
    /// From the first to the last of them.
    pub time: Duration,
}

/// A ring of pinned memory with the streams that empty it. It may be used for several uploads.
pub struct Uploader {
    context: Context,
    lanes: Vec<Lane>,
    slot: usize,
}

/// What one thread has.
struct Lane {
    stream: Stream,
    slots: Vec<PinnedBuffer>,
}

impl fmt::Debug for Uploader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uploader({} threads, {} slots of {} bytes each)", self.lanes.len(), SLOTS, self.slot)
    }
}

/// A part of a piece.
#[derive(Clone, Copy)]
struct Part<'a> {
    bytes: &'a [u8],
    to: &'a Buffer,
    offset: usize,
    /// Where in the slot it is.
    at: usize,
}

impl Uploader {
    /// A ring for as many threads as the machine has, up to four.
    ///
    /// # Errors
    /// If the host has no memory that can be pinned.
    pub fn new(context: &Context) -> Result<Self, DriverError> {
        let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS);
        Self::with_slots(context, threads, SLOT)
    }

    /// The same, for so many threads with slots of so many bytes, at least one and sixteen.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_slots(context: &Context, threads: usize, bytes: usize) -> Result<Self, DriverError> {
        let slot = bytes.max(ALIGNMENT);
        let lane = || {
            let slots = (0..SLOTS).map(|_| context.allocate_pinned(slot)).collect::<Result<_, _>>()?;
            Ok(Lane { stream: context.stream()?, slots })
        };
        let lanes = (0..threads.max(1)).map(|_| lane()).collect::<Result<_, DriverError>>()?;
        Ok(Self { context: context.clone(), lanes, slot })
    }

    /// Copies pieces, in any order, and returns when all of them are on the device.
    ///
    /// # Errors
    /// If a piece does not fit into its buffer, or the device fails; then the others are given up.
    pub fn upload(&mut self, pieces: &[Piece<'_>]) -> Result<UploadReport, DriverError> {
        self.upload_unless(pieces, &AtomicBool::new(false))
    }

    /// The same, but gives up soon after `stop` is set: the device then has some of the pieces.
    ///
    /// # Errors
    /// As [`Self::upload`], which also sets `stop`.
    pub fn upload_unless(&mut self, pieces: &[Piece<'_>], stop: &AtomicBool) -> Result<UploadReport, DriverError> {
        let start = Instant::now();
        self.context.check()?;
        let loads = packed(pieces, self.slot);
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        thread::scope(|scope| {
            for lane in &mut self.lanes {
                let (loads, next, failure) = (&loads, &next, &failure);
                scope.spawn(move || {
                    if let Err(error) = lane.work(loads, next, stop) {
                        stop.store(true, Ordering::Relaxed);
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                });
            }
        });
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let bytes = pieces.iter().map(|piece| piece.bytes.len() as u64).sum();
        Ok(UploadReport { bytes, time: start.elapsed() })
    }
}

impl Lane {
    /// Takes one load after the other until none is left.
    fn work(&mut self, loads: &[Vec<Part<'_>>], next: &AtomicUsize, stop: &AtomicBool) -> Result<(), DriverError> {
        let Self { stream, slots } = self;
        for turn in 0.. {
            let slot = &mut slots[turn % SLOTS];
            let load = loads.get(next.fetch_add(1, Ordering::Relaxed)).filter(|_| !stop.load(Ordering::Relaxed));
            let Some(load) = load else { break };
            // Waits until the device has emptied the slot.
            let bytes = slot.as_mut_slice::<u8>()?;
            for part in load {
                bytes[part.at..part.at + part.bytes.len()].copy_from_slice(part.bytes);
            }
            for part in load {
                stream.copy_to_device(part.to, part.offset, slot, part.at..part.at + part.bytes.len())?;
            }
        }
        stream.synchronize()
    }
}

/// Packs pieces into loads of one slot each: large ones are cut, small ones share.
fn packed<'a>(pieces: &[Piece<'a>], slot: usize) -> Vec<Vec<Part<'a>>> {
    let mut loads: Vec<Vec<Part<'a>>> = Vec::new();
    // No slot yet, so none has room.
    let mut used = slot;
    for piece in pieces {
        let (mut bytes, mut offset) = (piece.bytes, piece.offset);
        while !bytes.is_empty() {
            if used >= slot {
                loads.push(Vec::new());
                used = 0;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(slot - used));
            if let Some(load) = loads.last_mut() {
                load.push(Part { bytes: now, to: piece.to, offset, at: used });
            }
            used = (used + now.len()).next_multiple_of(ALIGNMENT);
            (bytes, offset) = (rest, offset.saturating_add(now.len()));
        }
    }
    loads
}
