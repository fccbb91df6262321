//! Device memory: regions with addresses of their own, and for each byte whether it was written.
//!
//! Addresses lie where no pointer of the host can be, and no address is given out twice, so a pointer that is used
//! after its memory was freed never finds other memory there. Kernels on several host threads access the same bytes,
//! so every access is atomic.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::fault::{Fault, FaultKind};

/// The first address of device memory: not a canonical address of the host.
pub const FIRST_ADDRESS: u64 = 1 << 48;

/// Where shared memory begins in the generic address space.
pub const SHARED_WINDOW: u64 = 1 << 56;

/// Where local memory begins in the generic address space.
pub const LOCAL_WINDOW: u64 = SHARED_WINDOW + (1 << 32);

/// The alignment of regions.
const ALIGNMENT: usize = 1024;

/// Bytes of unused addresses between regions.
const GAP: u64 = 4096;

/// How many freed regions are remembered for messages.
const REMEMBERED: usize = 4096;

/// Bytes from the host's allocator.
struct Bytes {
    pointer: *mut u8,
    layout: Layout,
}

impl Bytes {
    fn zeroed(size: usize) -> Option<Self> {
        let layout = Layout::from_size_align(size.max(1).checked_next_multiple_of(16)?, ALIGNMENT).ok()?;
        // SAFETY: the layout's size is not zero.
        let pointer = unsafe { alloc_zeroed(layout) };
        (!pointer.is_null()).then_some(Self { pointer, layout })
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: `pointer` came from `alloc_zeroed` with this layout and is freed once, here.
        unsafe { dealloc(self.pointer, self.layout) };
    }
}

// SAFETY: the bytes are plain memory that any thread may free.
unsafe impl Send for Bytes {}
// SAFETY: the bytes are accessed through atomics alone while a region is shared; see `Region::cell`.
unsafe impl Sync for Bytes {}

/// A piece of device memory, or host memory that the device can see.
pub struct Region {
    /// Its first address.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Whether the address is also one of the host.
    pub host: bool,
    bytes: Bytes,
    written: Option<Bytes>,
    complete: AtomicBool,
}

impl Region {
    /// Whether all of an access lies inside.
    #[inline]
    #[must_use]
    pub fn holds(&self, address: u64, bytes: u64) -> bool {
        let offset = address.wrapping_sub(self.address);
        offset < self.size && bytes <= self.size - offset
    }

    fn pointer(&self, address: u64, bytes: u64) -> *mut u8 {
        assert!(self.holds(address, bytes), "the caller has looked up the region");
        self.bytes.pointer.wrapping_add((address - self.address) as usize)
    }

    /// Loads a little-endian element of 1, 2, 4 or 8 bytes at an address that is a multiple of them.
    #[inline]
    #[must_use]
    pub fn load(&self, address: u64, bytes: u8) -> u64 {
        let pointer = self.pointer(address, u64::from(bytes));
        // SAFETY: `pointer` checks the bounds; callers check the alignment, which the region's own keeps; all
        // accesses to the bytes while others may run are atomic.
        unsafe {
            match bytes {
                1 => u64::from(AtomicU8::from_ptr(pointer).load(Relaxed)),
                2 => u64::from(AtomicU16::from_ptr(pointer.cast()).load(Relaxed)),
                4 => u64::from(AtomicU32::from_ptr(pointer.cast()).load(Relaxed)),
                _ => AtomicU64::from_ptr(pointer.cast()).load(Relaxed),
            }
        }
    }

    /// Stores an element likewise.
    #[inline]
    pub fn store(&self, address: u64, bytes: u8, value: u64) {
        let pointer = self.pointer(address, u64::from(bytes));
        // SAFETY: as in `load`.
        unsafe {
            match bytes {
                1 => AtomicU8::from_ptr(pointer).store(value as u8, Relaxed),
                2 => AtomicU16::from_ptr(pointer.cast()).store(value as u16, Relaxed),
                4 => AtomicU32::from_ptr(pointer.cast()).store(value as u32, Relaxed),
                _ => AtomicU64::from_ptr(pointer.cast()).store(value, Relaxed),
            }
        }
    }

    /// Replaces an element of 2, 4 or 8 bytes by a function of it, at once; returns what was there.
    pub fn update(&self, address: u64, bytes: u8, function: impl Fn(u64) -> u64) -> u64 {
        let pointer = self.pointer(address, u64::from(bytes));
        // SAFETY: as in `load`.
        unsafe {
            match bytes {
                2 => {
                    let cell = AtomicU16::from_ptr(pointer.cast());
                    u64::from(
                        cell.fetch_update(Relaxed, Relaxed, |old| Some(function(u64::from(old)) as u16))
                            .unwrap_or_else(|old| old),
                    )
                }
                4 => {
                    let cell = AtomicU32::from_ptr(pointer.cast());
                    u64::from(
                        cell.fetch_update(Relaxed, Relaxed, |old| Some(function(u64::from(old)) as u32))
                            .unwrap_or_else(|old| old),
                    )
                }
                _ => {
                    let cell = AtomicU64::from_ptr(pointer.cast());
                    cell.fetch_update(Relaxed, Relaxed, |old| Some(function(old))).unwrap_or_else(|old| old)
                }
            }
        }
    }

    fn flags(&self, address: u64, bytes: u64) -> Option<&[AtomicU8]> {
        let written = self.written.as_ref()?;
        assert!(self.holds(address, bytes), "the caller has looked up the region");
        let offset = (address - self.address) as usize;
        // SAFETY: there is a flag for each byte of the region, and flags are accessed as atomics alone.
        Some(unsafe { std::slice::from_raw_parts(written.pointer.add(offset).cast(), bytes as usize) })
    }

    /// Whether all bytes were written.
    #[inline]
    #[must_use]
    pub fn is_written(&self, address: u64, bytes: u64) -> bool {
        self.complete.load(Relaxed)
            || self.flags(address, bytes).is_none_or(|flags| flags.iter().all(|flag| flag.load(Relaxed) != 0))
    }

    /// Notes that bytes are written.
    #[inline]
    pub fn mark_written(&self, address: u64, bytes: u64) {
        if self.complete.load(Relaxed) {
            return;
        }
        if bytes == self.size {
            self.complete.store(true, Relaxed);
            return;
        }
        if let Some(flags) = self.flags(address, bytes) {
            for flag in flags {
                flag.store(1, Relaxed);
            }
        }
    }

    /// Copies bytes out.
    pub fn read(&self, address: u64, into: &mut [u8]) {
        let mut place = address;
        let mut rest = into;
        while !rest.is_empty() {
            let length = if place.is_multiple_of(8) && rest.len() >= 8 { 8 } else { 1 };
            let (now, tail) = rest.split_at_mut(length);
            now.copy_from_slice(&self.load(place, length as u8).to_le_bytes()[..length]);
            place += length as u64;
            rest = tail;
        }
    }

    /// Copies bytes in, eight at a time where they are aligned, and notes them as written.
    pub fn write(&self, address: u64, from: &[u8]) {
        let mut place = address;
        let mut rest = from;
        while !rest.is_empty() {
            if let Some((eight, tail)) = rest.split_first_chunk::<8>().filter(|_| place.is_multiple_of(8)) {
                self.store(place, 8, u64::from_le_bytes(*eight));
                (place, rest) = (place + 8, tail);
            } else {
                self.store(place, 1, u64::from(rest[0]));
                (place, rest) = (place + 1, &rest[1..]);
            }
        }
        if !from.is_empty() {
            self.mark_written(address, from.len() as u64);
        }
    }

    /// Copies between regions, with the knowledge of what was written. Ranges may overlap.
    pub fn copy_from(&self, address: u64, source: &Region, source_address: u64, bytes: u64) {
        let mut buffer = vec![0; bytes as usize];
        source.read(source_address, &mut buffer);
        let all = bytes == 0 || source.is_written(source_address, bytes);
        let known: Option<Vec<bool>> = (!all).then(|| {
            let flags = source.flags(source_address, bytes).unwrap_or_default();
            flags.iter().map(|flag| flag.load(Relaxed) != 0).collect()
        });
        match known {
            None => self.write(address, &buffer),
            Some(known) => {
                for ((place, byte), known) in (address..).zip(buffer).zip(known) {
                    self.store(place, 1, u64::from(byte));
                    if known {
                        self.mark_written(place, 1);
                    }
                }
            }
        }
    }

    /// Forgets that anything was written, as if newly allocated.
    pub fn forget(&self) {
        self.complete.store(false, Relaxed);
        if let Some(flags) = self.flags(self.address, self.size) {
            for flag in flags {
                flag.store(0, Relaxed);
            }
        }
    }
}

/// What a kernel sees of memory: the regions that live when it starts.
#[derive(Clone, Default)]
pub struct View {
    regions: Arc<Vec<Arc<Region>>>,
    freed: Arc<Vec<(u64, u64)>>,
}

impl View {
    /// The region of an address, as an index.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<usize> {
        let after = self.regions.partition_point(|region| region.address <= address);
        let index = after.checked_sub(1)?;
        self.regions[index].holds(address, 1).then_some(index)
    }

    /// A region.
    #[must_use]
    pub fn region(&self, index: usize) -> Option<&Region> {
        self.regions.get(index).map(|region| &**region)
    }

    /// What is wrong with an access that no region holds.
    #[cold]
    #[must_use]
    pub fn fault(&self, does: &str, address: u64, bytes: u64, lane: u32) -> Box<Fault> {
        let inside = |(first, size): &&(u64, u64)| address >= *first && address < first + size;
        let after = self.regions.partition_point(|region| region.address <= address);
        let before = after.checked_sub(1).and_then(|index| self.region(index));
        let why = if let Some((first, size)) = self.freed.iter().rev().find(inside) {
            format!("use after free: {} bytes into an allocation of {size} bytes that was freed", address - first)
        } else if let Some(region) = before.filter(|region| address - region.address < region.size + GAP) {
            let (first, size) = (region.address, region.size);
            format!("out of bounds: {} bytes into the allocation of {size} bytes at {first:#x}", address - first)
        } else {
            "out of bounds: no allocation is near".to_owned()
        };
        Fault::new(FaultKind::Address, lane, format!("{does} of {bytes} bytes at {address:#x}: {why}"))
    }
}

/// All of device memory.
#[derive(Default)]
pub struct Memory {
    regions: Vec<Arc<Region>>,
    freed: Vec<(u64, u64)>,
    next: u64,
    used: u64,
    view: Option<View>,
    workspace: Option<Arc<Region>>,
}

impl Memory {
    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Allocates bytes that nobody has written. Nothing if the host has no memory for them.
    pub fn allocate(&mut self, size: u64) -> Option<Arc<Region>> {
        let length = usize::try_from(size).ok()?;
        let address = FIRST_ADDRESS.max(self.next);
        let end = address.checked_add(size)?.checked_add(GAP)?.checked_next_multiple_of(ALIGNMENT as u64)?;
        if end >= SHARED_WINDOW {
            return None;
        }
        let written = Some(Bytes::zeroed(length)?);
        let bytes = Bytes::zeroed(length)?;
        self.next = end;
        Some(self.insert(Region { address, size, host: false, bytes, written, complete: AtomicBool::new(false) }))
    }

    /// Allocates host memory that kernels can access by the same address.
    pub fn allocate_host(&mut self, size: u64) -> Option<Arc<Region>> {
        let bytes = Bytes::zeroed(usize::try_from(size).ok()?)?;
        let address = bytes.pointer as u64;
        Some(self.insert(Region { address, size, host: true, bytes, written: None, complete: AtomicBool::new(true) }))
    }

    fn insert(&mut self, region: Region) -> Arc<Region> {
        let region = Arc::new(region);
        let place = self.regions.partition_point(|other| other.address < region.address);
        self.regions.insert(place, Arc::clone(&region));
        self.used += if region.host { 0 } else { region.size };
        self.view = None;
        region
    }

    /// The region that holds an access.
    #[must_use]
    pub fn find(&self, address: u64, bytes: u64) -> Option<Arc<Region>> {
        let after = self.regions.partition_point(|region| region.address <= address);
        let region = self.regions.get(after.checked_sub(1)?)?;
        (region.address == address && bytes == 0 || region.holds(address, bytes.max(1))).then(|| Arc::clone(region))
    }

    /// Frees the region that begins at an address; nothing if none does.
    pub fn free(&mut self, address: u64) -> Option<Arc<Region>> {
        let place = self.regions.binary_search_by_key(&address, |region| region.address).ok()?;
        let region = self.regions.remove(place);
        if !region.host {
            self.used -= region.size;
            if self.freed.len() == REMEMBERED {
                self.freed.remove(0);
            }
            self.freed.push((region.address, region.size));
        }
        self.view = None;
        Some(region)
    }

    /// Puts a region back that was freed, at its address, with nothing written.
    pub fn revive(&mut self, region: &Arc<Region>) {
        let Err(place) = self.regions.binary_search_by_key(&region.address, |other| other.address) else { return };
        region.forget();
        self.regions.insert(place, Arc::clone(region));
        self.freed.retain(|(address, _)| *address != region.address);
        self.used += region.size;
        self.view = None;
    }

    /// The address of the words through which the blocks of a cooperative grid wait for each other, all zero. There
    /// is one such place, since one grid runs at a time.
    pub fn workspace(&mut self) -> Option<u64> {
        const BYTES: u64 = 64;
        if self.workspace.is_none() {
            self.workspace = self.allocate(BYTES);
        }
        let region = self.workspace.as_ref()?;
        region.write(region.address, &[0; BYTES as usize]);
        Some(region.address)
    }

    /// Frees everything.
    pub fn clear(&mut self) {
        self.workspace = None;
        let addresses: Vec<u64> = self.regions.iter().map(|region| region.address).collect();
        for address in addresses {
            self.free(address);
        }
    }

    /// What a kernel that starts now sees.
    pub fn view(&mut self) -> View {
        let make = || View { regions: Arc::new(self.regions.clone()), freed: Arc::new(self.freed.clone()) };
        self.view.get_or_insert_with(make).clone()
    }
}
