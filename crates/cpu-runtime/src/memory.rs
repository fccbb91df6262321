//! Memory for kernels: page-aligned buffers backed by huge pages, and the measurement of what the memory can do.

use crate::isa::{Isa, Task};
use crate::simd::{LANES, Simd};
use crate::team::Team;
use memmap2::MmapMut;
use std::marker::PhantomData;
use std::time::Instant;

/// The size of a huge page on the processors that have them.
const HUGE_PAGE: usize = 2 << 20;

/// The operating system did not give memory.
#[derive(Debug, thiserror::Error)]
#[error("can't allocate {bytes} bytes: {source}; free memory or choose a smaller model, cache or batch")]
pub struct AllocationError {
    /// The size that was asked for.
    pub bytes: usize,
    /// The operating system's error.
    pub source: std::io::Error,
}

/// Zeroed anonymous memory. Large buffers begin at a huge page and ask for huge pages; pages are taken from the machine
/// when they are first touched.
#[derive(Debug, Default)]
pub struct Buffer {
    map: Option<MmapMut>,
    begin: usize,
    len: usize,
}

impl Buffer {
    /// Reserves `len` bytes.
    ///
    /// # Errors
    /// [`AllocationError`] if the operating system refuses.
    pub fn new(len: usize) -> Result<Self, AllocationError> {
        if len == 0 {
            return Ok(Self { map: None, begin: 0, len });
        }
        let failed = |source| AllocationError { bytes: len, source };
        let huge = len >= HUGE_PAGE;
        let slack = if huge { HUGE_PAGE } else { 0 };
        let bytes = len
            .checked_add(slack)
            .filter(|&bytes| isize::try_from(bytes).is_ok())
            .ok_or_else(|| failed(std::io::ErrorKind::OutOfMemory.into()))?;
        let map = MmapMut::map_anon(bytes).map_err(failed)?;
        #[cfg(target_os = "linux")]
        if huge {
            // Only a wish: without it the buffer works, more slowly.
            if let Err(error) = map.advise(memmap2::Advice::HugePage) {
                tracing::debug!(%error, "no huge pages");
            }
        }
        let begin = if huge { map.as_ptr().align_offset(HUGE_PAGE) } else { 0 };
        Ok(Self { map: Some(map), begin, len })
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the buffer has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.map {
            Some(map) => &map[self.begin..self.begin + self.len],
            None => &[],
        }
    }

    /// The bytes, writable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.map {
            Some(map) => &mut map[self.begin..self.begin + self.len],
            None => &mut [],
        }
    }
}

/// Scratch memory of the members of a team: one buffer each, on pages of its own, and one that all share.
#[derive(Debug, Default)]
pub struct Workspace {
    buffers: Vec<Buffer>,
    shared: Buffer,
    /// Begin and length of each buffer, for members to pick theirs.
    parts: Vec<(*mut u8, usize)>,
}

// SAFETY: the pointers are into the buffers that the workspace owns.
unsafe impl Send for Workspace {}
// SAFETY: shared references give no access to the memory but through `Scratch`, whose contract keeps members apart.
unsafe impl Sync for Workspace {}

impl Workspace {
    /// Makes sure that each of `threads` members has at least `need.own` bytes of scratch, and all together `need.shared`.
    ///
    /// # Errors
    /// [`AllocationError`] if the operating system refuses.
    pub(crate) fn reserve(&mut self, threads: usize, need: ScratchBytes) -> Result<(), AllocationError> {
        let ScratchBytes { own: bytes, shared } = need;
        if self.shared.len() < shared {
            self.shared = Buffer::new(shared)?;
        }
        for buffer in &mut self.buffers {
            if buffer.len() < bytes {
                *buffer = Buffer::new(bytes)?;
            }
        }
        while self.buffers.len() < threads {
            self.buffers.push(Buffer::new(bytes)?);
        }
        self.parts.clear();
        for buffer in &mut self.buffers {
            let bytes = buffer.bytes_mut();
            self.parts.push((bytes.as_mut_ptr(), bytes.len()));
        }
        Ok(())
    }

    /// The scratch of every member, to be handed out by member index.
    pub(crate) fn scratch(&mut self) -> Scratch<'_> {
        let shared = self.shared.bytes_mut();
        let shared = Shared { begin: shared.as_mut_ptr(), len: shared.len() };
        Scratch { parts: &self.parts, shared, exclusive: PhantomData }
    }
}

/// Bytes of scratch that a kernel needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ScratchBytes {
    /// For each member.
    pub(crate) own: usize,
    /// For all together.
    pub(crate) shared: usize,
}

impl ScratchBytes {
    /// Enough for either of two kernels.
    pub(crate) fn max(self, other: Self) -> Self {
        Self { own: self.own.max(other.own), shared: self.shared.max(other.shared) }
    }
}

/// The scratch that members share: who writes and reads what of it is a matter between two barriers of the kernel that
/// uses it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared {
    /// On a page boundary.
    pub(crate) begin: *mut u8,
    pub(crate) len: usize,
}

/// The scratch of a member.
pub(crate) struct Part<'a> {
    /// Its own, on a page boundary.
    pub(crate) own: &'a mut [u8],
    pub(crate) shared: Shared,
}

/// The scratch of every member of a team during a dispatch.
pub(crate) struct Scratch<'a> {
    parts: &'a [(*mut u8, usize)],
    shared: Shared,
    exclusive: PhantomData<&'a mut Workspace>,
}

// SAFETY: the pointers are to disjoint buffers that are exclusively borrowed; `part` hands each member's to that member,
// and the shared one as an address only.
unsafe impl Sync for Scratch<'_> {}

impl Scratch<'_> {
    /// The scratch of one member: none of its own if the workspace has none for it.
    ///
    /// # Safety
    /// During the life of the result, nobody else may ask for the same index.
    pub(crate) unsafe fn part(&self, index: usize) -> Part<'_> {
        let own = match self.parts.get(index) {
            // SAFETY: the buffer is exclusively borrowed for the life of `self`, and the caller promises to be alone.
            Some(&(begin, len)) => unsafe { std::slice::from_raw_parts_mut(begin, len) },
            None => &mut [],
        };
        Part { own, shared: self.shared }
    }
}

/// Reads `bytes` bytes of memory in huge pages with all threads of `team`, one contiguous run each, and returns the
/// bytes per second: the ceiling of everything that streams weights. Choose `bytes` well above the caches.
///
/// # Errors
/// [`AllocationError`] if the memory can't be had.
pub fn measure_read_bandwidth(team: &Team, bytes: usize) -> Result<f64, AllocationError> {
    let mut probe = BandwidthProbe::new(team, bytes)?;
    Ok(probe.measure(team))
}

/// Memory to measure the read bandwidth with, several times.
#[derive(Debug)]
pub struct BandwidthProbe {
    buffer: Buffer,
}

impl BandwidthProbe {
    /// Allocates and fills `bytes` bytes.
    ///
    /// # Errors
    /// [`AllocationError`] if the memory can't be had.
    pub fn new(team: &Team, bytes: usize) -> Result<Self, AllocationError> {
        let mut buffer = Buffer::new(bytes.next_multiple_of(LINE))?;
        let begin = buffer.bytes_mut().as_mut_ptr() as usize;
        let lines = buffer.len() / LINE;
        // Written, since untouched pages are all the same page of zeros, by those who read it, as pages are near the first
        // thread that touches them.
        team.run(|worker| {
            let share = worker.partition(lines);
            let own = (begin + share.start * LINE) as *mut u8;
            // SAFETY: the buffer is exclusively borrowed, and members have different shares of it.
            unsafe { own.write_bytes(1, share.len() * LINE) };
        });
        Ok(Self { buffer })
    }

    /// Reads the memory once with all threads and returns the bytes per second.
    pub fn measure(&mut self, team: &Team) -> f64 {
        let bytes = self.buffer.bytes();
        let lines = bytes.len() / LINE;
        let begin = Instant::now();
        team.run(|worker| {
            let share = worker.partition(lines);
            let part = bytes.get(share.start * LINE..share.end * LINE);
            std::hint::black_box(Isa::detect().dispatch(Read(part.unwrap_or(&[]))));
        });
        bytes.len() as f64 / begin.elapsed().as_secs_f64()
    }
}

const LINE: usize = 64;

/// Bytes that are read together, in so many streams.
const STRETCH: usize = 256 << 10;
const STREAMS: usize = 4;
/// Bytes before their use at which a stream is asked for.
const AHEAD: usize = 1024;

/// Sums bytes as if they were single-precision numbers, so that they must be read: a line of each of four streams in turn,
/// which was the fastest of all ways that were tried (one to sixteen streams, one to sixteen lines at a time).
struct Read<'a>(&'a [u8]);

impl Task for Read<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let mut total = [0.0f32; LANES];
        // SAFETY: the path's features are present inside `dispatch`; a line has LANES numbers, and all lines are inside.
        unsafe {
            let mut sums = [S::splat(0.0); STREAMS];
            let zero = S::splat(0.0);
            for stretch in self.0.chunks(STRETCH) {
                let lines = stretch.len() / LINE / STREAMS;
                for line in 0..lines {
                    for (stream, sum) in sums.iter_mut().enumerate() {
                        let from = stretch.as_ptr().add((stream * lines + line) * LINE);
                        S::prefetch(from.wrapping_add(AHEAD));
                        *sum = S::multiply_add(*sum, S::load_f32(from.cast()), zero);
                    }
                }
            }
            for sum in sums {
                let mut lanes = [0.0f32; LANES];
                S::store_f32(lanes.as_mut_ptr(), sum);
                total.iter_mut().zip(lanes).for_each(|(total, lane)| *total += lane);
            }
        }
        total.iter().sum()
    }
}
