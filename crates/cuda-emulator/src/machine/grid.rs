//! A launch: all blocks of a grid, in a random order, on several host threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::block::{Block, Dimensions};
use super::fault::Report;
use super::memory::View;
use super::random::Random;
use super::schedule::{self, Located, Progress};
use super::shared::Shared;
use super::warp::Warp;
use crate::program::Kernel;

/// A launch, with all that it needs.
#[derive(Clone)]
pub struct Launch {
    /// The kernel.
    pub kernel: Arc<Kernel>,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: [u32; 3],
    /// Bytes of shared memory beside those that the kernel declares.
    pub dynamic_shared: u32,
    /// The parameters, laid out.
    pub parameters: Vec<u8>,
    /// Whether blocks may wait for each other.
    pub cooperative: bool,
    /// Where they do so; zero if they may not. See [`super::memory::Memory::workspace`].
    pub workspace: u64,
    /// The seed of the order.
    pub seed: u64,
    /// Whether reads of unwritten bytes are faults.
    pub check_uninitialized: bool,
    /// The most host threads.
    pub host_threads: usize,
}

/// How much ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Instructions of warps.
    pub instructions: u64,
    /// Instructions of threads.
    pub thread_instructions: u64,
}

/// Runs a launch to its end.
pub fn run(launch: &Launch, view: &View) -> Result<Counts, Box<Report>> {
    let blocks: u64 = launch.grid.iter().map(|side| u64::from(*side)).product();
    if blocks == 0 || launch.threads.contains(&0) {
        return Ok(Counts::default());
    }
    let order = Order::new(blocks, launch.seed);
    let shared = Progressing { next: AtomicUsize::new(0), stop: AtomicBool::new(false), first: Mutex::new(None) };
    let counts = (AtomicU64::new(0), AtomicU64::new(0));
    let work = |resident: u64| {
        let mut crew = Crew { launch, view, spare: Vec::new(), counts: Counts::default() };
        if let Err(report) = crew.work(&order, &shared, resident) {
            shared.stop.store(true, Relaxed);
            shared.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(report);
        }
        counts.0.fetch_add(crew.counts.instructions, Relaxed);
        counts.1.fetch_add(crew.counts.thread_instructions, Relaxed);
    };
    if launch.cooperative {
        // Blocks that wait for each other take turns on one host thread.
        work(blocks);
    } else {
        let helpers = (launch.host_threads as u64).min(blocks).saturating_sub(1);
        std::thread::scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|| work(1));
            }
            work(1);
        });
    }
    match shared.first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(report) => Err(report),
        None => Ok(Counts { instructions: counts.0.load(Relaxed), thread_instructions: counts.1.load(Relaxed) }),
    }
}

struct Progressing {
    next: AtomicUsize,
    stop: AtomicBool,
    first: Mutex<Option<Box<Report>>>,
}

/// A random order of any number of blocks without a list of them: an affine map modulo their number, then a rotation.
struct Order {
    blocks: u64,
    step: u64,
    first: u64,
}

impl Order {
    fn new(blocks: u64, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut step = 1 + random.bits() % blocks.max(1);
        while greatest_divisor(step, blocks) != 1 {
            step = step % blocks + 1;
        }
        Self { blocks, step, first: random.bits() % blocks.max(1) }
    }

    fn block(&self, number: u64) -> Option<u64> {
        let scaled = u128::from(number) * u128::from(self.step) + u128::from(self.first);
        (number < self.blocks).then(|| (scaled % u128::from(self.blocks)) as u64)
    }
}

fn greatest_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}

/// A host thread's blocks.
struct Crew<'l> {
    launch: &'l Launch,
    view: &'l View,
    spare: Vec<(Vec<Warp>, Shared)>,
    counts: Counts,
}

/// A block that runs.
struct Resident<'l> {
    warps: Vec<Warp>,
    block: Block<'l>,
    random: Random,
}

impl<'l> Crew<'l> {
    fn work(&mut self, order: &Order, shared: &Progressing, resident: u64) -> Result<(), Box<Report>> {
        let mut running: Vec<Resident<'l>> = Vec::new();
        let mut turn = Random::new(self.launch.seed ^ 0x5eed);
        loop {
            while (running.len() as u64) < resident {
                let Some(number) = order.block(shared.next.fetch_add(1, Relaxed) as u64) else { break };
                let block = self.begin(number);
                running.push(block);
            }
            if running.is_empty() || shared.stop.load(Relaxed) {
                return Ok(());
            }
            let index = turn.below(running.len());
            let block = &mut running[index];
            let done = block.advance(&self.launch.kernel, resident > 1, &shared.stop);
            let done = done.map_err(|located| self.report(&running[index], located))?;
            if done {
                let finished = running.swap_remove(index);
                for warp in &finished.warps {
                    self.counts.instructions += warp.executed;
                    self.counts.thread_instructions += warp.thread_instructions;
                }
                self.spare.push((finished.warps, finished.block.shared));
            }
        }
    }

    fn begin(&mut self, number: u64) -> Resident<'l> {
        let launch = self.launch;
        let [width, height, _] = launch.grid.map(u64::from);
        let place = [number % width, number / width % height, number / width / height];
        let total = launch.kernel.static_shared as u32 + launch.dynamic_shared;
        let dimensions = Dimensions {
            grid: launch.grid,
            threads: launch.threads,
            block: place.map(|side| side as u32),
            dynamic_shared: launch.dynamic_shared,
            total_shared: total,
            workspace: launch.workspace,
        };
        let (mut warps, mut shared) = self.spare.pop().unwrap_or_default();
        let count = dimensions.threads_of_block().div_ceil(32);
        warps.resize_with(count as usize, Warp::default);
        for (index, warp) in (0..).zip(&mut warps) {
            warp.begin(&launch.kernel, index, &dimensions);
        }
        shared.begin(total as usize, count as usize, launch.check_uninitialized);
        let block = Block {
            dimensions,
            shared,
            parameters: &launch.parameters,
            view: self.view,
            hits: vec![0; launch.kernel.code.len()],
            barriers: Default::default(),
            check_uninitialized: launch.check_uninitialized,
        };
        Resident { warps, block, random: Random::new(launch.seed.wrapping_add(number.wrapping_mul(0x9e37_79b9))) }
    }

    fn report(&self, resident: &Resident<'_>, located: Located) -> Box<Report> {
        let kernel = &self.launch.kernel;
        let dimensions = &resident.block.dimensions;
        let line = kernel.code.get(located.place as usize).map_or(0, |instruction| instruction.position.line);
        Box::new(Report {
            kind: located.fault.kind,
            kernel: kernel.name.clone(),
            block: dimensions.block,
            thread: dimensions.thread(located.warp * 32 + located.fault.lane),
            message: located.fault.message,
            line,
            text: kernel.lines.get(located.place as usize).cloned().unwrap_or_default(),
            seed: self.launch.seed,
        })
    }
}

impl Resident<'_> {
    /// Runs the block: one slice if others must have their turn, else to its end. Returns whether it is done.
    fn advance(&mut self, kernel: &Kernel, share: bool, stop: &AtomicBool) -> Result<bool, Located> {
        let mut ready: Vec<usize> = (0..self.warps.len()).collect();
        let can_run = |warp: &Warp| warp.fragments.iter().any(|f| f.state == super::warp::State::Running);
        while !ready.is_empty() {
            let chosen = self.random.below(ready.len());
            let warp = &mut self.warps[ready[chosen]];
            if schedule::slice(warp, &mut self.block, kernel, &mut self.random)? == Progress::Blocked {
                ready.swap_remove(chosen);
                // At once, since others may wait in a loop for those that a barrier lets go.
                if schedule::open_barriers(&mut self.warps, &mut self.block, kernel)? {
                    ready = (0..self.warps.len()).filter(|index| can_run(&self.warps[*index])).collect();
                }
            } else if share || stop.load(Relaxed) {
                return Ok(false);
            }
        }
        if self.warps.iter().all(|warp| warp.fragments.is_empty()) {
            return Ok(true);
        }
        Err(schedule::deadlock(&self.warps))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_block_has_its_turn() {
        for blocks in [1u64, 2, 7, 12, 100, 1024] {
            for seed in 0..5 {
                let order = Order::new(blocks, seed);
                let mut all: Vec<u64> = (0..blocks).map(|number| order.block(number).unwrap()).collect();
                assert_eq!(order.block(blocks), None);
                all.sort_unstable();
                assert_eq!(all, (0..blocks).collect::<Vec<_>>());
            }
        }
    }
}
