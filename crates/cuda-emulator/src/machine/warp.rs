//! A warp: the registers of 32 lanes, and where each lane is.

use crate::program::{Instruction, Kernel, Register, Special};

use super::block::Dimensions;

/// A 32-bit register of every lane.
pub type Words = [u32; 32];
/// A 64-bit register of every lane.
pub type Quads = [u64; 32];

/// What lanes that are together are doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// They can go on.
    Running,
    /// They wait for lanes of their own warp.
    Converging,
    /// They wait at a barrier.
    Waiting,
}

/// Lanes that are at the same instruction.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    /// The instruction.
    pub place: u32,
    /// The lanes.
    pub mask: u32,
    /// What they are doing.
    pub state: State,
}

/// A `cp.async` that has not landed.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    /// The lane that issued it.
    pub lane: u32,
    /// The group of that lane.
    pub group: u32,
    /// Where in shared memory.
    pub destination: usize,
    /// Where in device memory.
    pub source: u64,
    /// How many bytes are written.
    pub bytes: usize,
    /// How many of them are read; the rest is zero.
    pub read: usize,
}

/// A warp.
#[derive(Default)]
pub struct Warp {
    /// 32-bit registers.
    pub words: Vec<Words>,
    /// 64-bit registers.
    pub quads: Vec<Quads>,
    /// Predicates, a bit per lane.
    pub predicates: Vec<u32>,
    /// Its place in the block.
    pub index: u32,
    /// The lanes that have not exited.
    pub alive: u32,
    /// Where the lanes are.
    pub fragments: Vec<Fragment>,
    /// Instructions run so far.
    pub executed: u64,
    /// The same, times lanes.
    pub thread_instructions: u64,
    /// Copies that have not landed.
    pub copies: Vec<Copy>,
    /// The group that each lane's next copy belongs to.
    pub groups: Words,
    /// Local memory, lane after lane.
    pub local: Vec<u8>,
}

impl Warp {
    /// Makes the warp ready to run a kernel.
    pub fn begin(&mut self, kernel: &Kernel, index: u32, dimensions: &Dimensions) {
        // Registers hold junk at first, as on a device: no kernel may count on zeros.
        self.words.clear();
        self.words.resize(kernel.words as usize, [0xdead_beef; 32]);
        self.quads.clear();
        self.quads.resize(kernel.quads as usize, [0xdead_beef_dead_beef; 32]);
        self.predicates.clear();
        self.predicates.resize(kernel.predicates as usize, 0x5555_5555);
        self.index = index;
        let threads = dimensions.threads_of_block() - index * 32;
        self.alive = if threads >= 32 { u32::MAX } else { (1 << threads) - 1 };
        self.fragments.clear();
        self.fragments.push(Fragment { place: 0, mask: self.alive, state: State::Running });
        (self.executed, self.thread_instructions) = (0, 0);
        self.copies.clear();
        self.groups = [0; 32];
        self.local.clear();
        self.local.resize(kernel.local_bytes * 32, 0xcd);
        for (register, value) in &kernel.word_constants {
            self.words[*register as usize] = [*value; 32];
        }
        for (register, value) in &kernel.quad_constants {
            self.quads[*register as usize] = [*value; 32];
        }
        for (register, value) in &kernel.predicate_constants {
            self.predicates[*register as usize] = if *value { u32::MAX } else { 0 };
        }
        for (register, special) in &kernel.specials {
            self.words[*register as usize] =
                std::array::from_fn(|lane| special_value(*special, index, lane as u32, dimensions));
        }
    }

    /// Sets a 32-bit register.
    #[inline(always)]
    pub fn fill(&mut self, register: u32, mask: u32, value: impl Fn(usize) -> u32) {
        let place = &mut self.words[register as usize];
        each(mask, |lane| place[lane] = value(lane));
    }

    /// Sets a 64-bit register.
    #[inline(always)]
    pub fn fill_wide(&mut self, register: u32, mask: u32, value: impl Fn(usize) -> u64) {
        let place = &mut self.quads[register as usize];
        each(mask, |lane| place[lane] = value(lane));
    }

    /// Sets a predicate.
    #[inline(always)]
    pub fn set(&mut self, register: u32, mask: u32, bits: u32) {
        let place = &mut self.predicates[register as usize];
        *place = (*place & !mask) | (bits & mask);
    }

    /// A register as 32 bits of a lane.
    #[must_use]
    pub fn register(&self, register: Register, lane: usize) -> u64 {
        match register {
            Register::Word(index) => u64::from(self.words[index as usize][lane]),
            Register::Quad(index) => self.quads[index as usize][lane],
            Register::Predicate(index) => u64::from(self.predicates[index as usize] >> lane & 1),
        }
    }
}

/// Calls a function for each lane of a mask. All lanes together are a plain loop, which the compiler vectorizes.
#[inline(always)]
pub(crate) fn each(mask: u32, mut function: impl FnMut(usize)) {
    if mask == u32::MAX {
        for lane in 0..32 {
            function(lane);
        }
    } else {
        let mut rest = mask;
        while rest != 0 {
            function(rest.trailing_zeros() as usize);
            rest &= rest - 1;
        }
    }
}

fn special_value(special: Special, warp: u32, lane: u32, dimensions: &Dimensions) -> u32 {
    let below = (1u32 << lane) - 1;
    match special {
        Special::Thread(axis) => dimensions.thread(warp * 32 + lane)[axis],
        Special::Threads(axis) => dimensions.threads[axis],
        Special::Block(axis) => dimensions.block[axis],
        Special::Blocks(axis) => dimensions.grid[axis],
        Special::Lane => lane,
        Special::Warp => warp,
        Special::Warps => 64,
        Special::Processor => dimensions.block_index() % 132,
        Special::Processors => 132,
        Special::MaskEqual => 1 << lane,
        Special::MaskLess => below,
        Special::MaskLessEqual => below | 1 << lane,
        Special::MaskGreater => !(below | 1 << lane),
        Special::MaskGreaterEqual => !below,
        Special::DynamicShared => dimensions.dynamic_shared,
        Special::TotalShared => dimensions.total_shared,
        Special::WorkspaceHigh => (dimensions.workspace >> 32) as u32,
        Special::WorkspaceLow => dimensions.workspace as u32,
        Special::Zero => 0,
        Special::One => 1,
    }
}

/// A method that computes lane by lane: the files of its operands, destination first, as its name says.
macro_rules! lanes {
    ($($name:ident: $file:ident $result:ty = $($argument:ident $source:ident $type:ty),+;)+) => {
        $(
            #[inline(always)]
            pub(crate) fn $name(&mut self, i: &Instruction, mask: u32, function: impl Fn($($type),+) -> $result) {
                $(let $argument = self.$source[i.$argument as usize];)+
                let place = &mut self.$file[i.d as usize];
                each(mask, |lane| place[lane] = function($(lanes!(@read $argument lane $source)),+));
            }
        )+
    };
    (@read $argument:ident $lane:ident words) => { $argument[$lane] };
    (@read $argument:ident $lane:ident quads) => { $argument[$lane] };
    (@read $argument:ident $lane:ident predicates) => { $argument >> $lane & 1 == 1 };
}

/// Named as their signatures in the table of forms.
impl Warp {
    lanes! {
        ww: words u32 = a words u32;
        www: words u32 = a words u32, b words u32;
        wwww: words u32 = a words u32, b words u32, c words u32;
        wwwww: words u32 = a words u32, b words u32, c words u32, e words u32;
        wwwp: words u32 = a words u32, b words u32, c predicates bool;
        wq: words u32 = a quads u64;
        qq: quads u64 = a quads u64;
        qw: quads u64 = a words u32;
        qqq: quads u64 = a quads u64, b quads u64;
        qqqq: quads u64 = a quads u64, b quads u64, c quads u64;
        qww: quads u64 = a words u32, b words u32;
        qwwq: quads u64 = a words u32, b words u32, c quads u64;
        qqw: quads u64 = a quads u64, b words u32;
        qqqww: quads u64 = a quads u64, b quads u64, c words u32, e words u32;
        qqqp: quads u64 = a quads u64, b quads u64, c predicates bool;
    }

    /// Two words compared, with the opposite in the second destination.
    #[inline(always)]
    #[allow(non_snake_case, reason = "methods are named as the signatures of the forms that use them")]
    pub(crate) fn Pww(&mut self, i: &Instruction, mask: u32, function: impl Fn(u32, u32) -> bool) {
        let (a, b) = (self.words[i.a as usize], self.words[i.b as usize]);
        let bits = (0..32).fold(0, |bits, lane| bits | u32::from(function(a[lane], b[lane])) << lane);
        self.set_pair(i, mask, bits);
    }

    /// Two quads likewise.
    #[inline(always)]
    #[allow(non_snake_case, reason = "methods are named as the signatures of the forms that use them")]
    pub(crate) fn Pqq(&mut self, i: &Instruction, mask: u32, function: impl Fn(u64, u64) -> bool) {
        let (a, b) = (self.quads[i.a as usize], self.quads[i.b as usize]);
        let bits = (0..32).fold(0, |bits, lane| bits | u32::from(function(a[lane], b[lane])) << lane);
        self.set_pair(i, mask, bits);
    }

    /// A quad tested.
    pub(crate) fn pq(&mut self, i: &Instruction, mask: u32, function: impl Fn(u64) -> bool) {
        let a = self.quads[i.a as usize];
        let bits = (0..32).fold(0, |bits, lane| bits | u32::from(function(a[lane])) << lane);
        self.set(i.d, mask, bits);
    }

    /// A predicate, all lanes at once.
    pub(crate) fn pp(&mut self, i: &Instruction, mask: u32, function: impl Fn(u32) -> u32) {
        let bits = function(self.predicates[i.a as usize]);
        self.set(i.d, mask, bits);
    }

    /// Two predicates.
    pub(crate) fn ppp(&mut self, i: &Instruction, mask: u32, function: impl Fn(u32, u32) -> u32) {
        let bits = function(self.predicates[i.a as usize], self.predicates[i.b as usize]);
        self.set(i.d, mask, bits);
    }

    fn set_pair(&mut self, i: &Instruction, mask: u32, bits: u32) {
        self.set(i.d, mask, bits);
        if i.d2 != crate::program::NONE {
            self.set(i.d2, mask, !bits);
        }
    }
}
