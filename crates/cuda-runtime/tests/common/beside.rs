//! Every launch that the emulator's machine runs, on the driver's device as well: memory is compared element by element.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use allotrope_cuda_emulator::testing::tell;
use allotrope_cuda_runtime::driver::{Buffer, Context, Function, Image, Launch, Stream};
use allotrope_graph::numerics::e4m3_to_f32;
use half::{bf16, f16};

use super::common::{Format, LAID_OUT_WITNESS, Seen};

/// How results compare.
pub(crate) struct Rules {
    /// Whether numbers are rounded on the way to a result, which may then be some steps of its type away.
    pub(crate) rounds_within: bool,
    /// Whether two integers of an element are equally good.
    pub(crate) tie: fn(&Seen<'_>, usize, [u32; 2]) -> bool,
}

/// How the results of a kernel in one format compare.
#[derive(Default)]
struct Row {
    /// Elements that the machine has written.
    elements: usize,
    /// Those that are other bits on the device.
    different: usize,
    /// The largest difference, against the number and what numbers there mostly are.
    largest: f32,
}

/// A device beside the machine.
pub(crate) struct Beside {
    context: Context,
    stream: Stream,
    rules: Rules,
    functions: RefCell<HashMap<String, Function>>,
    rows: RefCell<BTreeMap<(String, String), Row>>,
}

/// Sums come in another order, functions are approximated in another way, and tensor cores add with fewer digits.
const SUMS: f32 = 1e-4;

impl Beside {
    pub(crate) fn open(rules: Rules) -> Rc<Self> {
        let context = Context::open().unwrap();
        let stream = context.stream().unwrap();
        Rc::new(Self { context, stream, rules, functions: RefCell::default(), rows: RefCell::default() })
    }

    /// Whether the device runs what was compiled for a compute capability: features of 9.0 are for 9.0 alone.
    pub(crate) fn runs(&self, capability: (u32, u32)) -> bool {
        let own = self.context.info().capability;
        if capability == (9, 0) { own == capability } else { own >= capability }
    }

    /// Lets every launch with laid out parameters that benches do meanwhile be compared.
    pub(crate) fn during(self: &Rc<Self>, title: &str, run: impl FnOnce()) {
        let (beside, title) = (Rc::clone(self), title.to_owned());
        LAID_OUT_WITNESS.set(Some(Box::new(move |seen| beside.see(&title, seen))));
        run();
        LAID_OUT_WITNESS.set(None);
    }

    /// The kernel of a text, which is loaded once.
    fn function(&self, text: &str, kernel: &str) -> Function {
        let load = || self.context.load_module(Image::Ptx(text), kernel).unwrap().function(kernel).unwrap();
        self.functions.borrow_mut().entry(text.to_owned()).or_insert_with(load).clone()
    }

    fn put(&self, bytes: &[u8]) -> Buffer {
        let mut pinned = self.context.allocate_pinned(bytes.len()).unwrap();
        pinned.as_mut_slice().unwrap().copy_from_slice(bytes);
        let buffer = self.context.allocate(bytes.len()).unwrap();
        self.stream.copy_to_device(&buffer, 0, &pinned, 0..bytes.len()).unwrap();
        buffer
    }

    fn get(&self, buffer: &Buffer) -> Vec<u8> {
        let mut pinned = self.context.allocate_pinned(buffer.bytes()).unwrap();
        self.stream.copy_to_host(&mut pinned, 0, buffer, 0..buffer.bytes()).unwrap();
        pinned.as_slice().unwrap().to_vec()
    }

    /// Runs a launch on copies of what its memory held, and compares.
    fn see(&self, title: &str, seen: &Seen<'_>) {
        assert!(!seen.shape.cooperative, "{title}: the driver's layer launches nothing cooperative");
        let copies: Vec<Buffer> = seen.memory.iter().map(|(_, [before, _])| self.put(before)).collect();
        let mut parameters = seen.parameters.to_vec();
        for eight in parameters.as_chunks_mut::<8>().0 {
            let word = u64::from_le_bytes(*eight);
            if let Some(place) = seen.memory.iter().position(|(address, _)| *address == word) {
                *eight = copies[place].address().to_le_bytes();
            }
        }
        let function = self.function(seen.text, seen.kernel);
        function.allow_shared_memory(seen.shape.dynamic_shared).unwrap();
        let launch = Launch {
            function,
            grid: seen.shape.grid,
            block: seen.shape.threads,
            shared_memory: seen.shape.dynamic_shared,
            parameters: parameters.into(),
            dependent: false,
            label: title.into(),
        };
        self.stream.launch(&launch).unwrap();
        self.stream.synchronize().unwrap_or_else(|error| panic!("{title}: {error}"));
        for ((address, [before, after]), copy) in seen.memory.iter().zip(&copies) {
            let found = self.get(copy);
            match seen.formats.get(address) {
                Some(format) => self.compare(title, seen, *format, [before, after, &found]),
                None => assert!(before == after && *before == found, "{title}: what is only read was written"),
            }
        }
    }

    /// Compares what the machine and the device have made of the same memory.
    fn compare(&self, title: &str, seen: &Seen<'_>, format: Format, [before, after, found]: [&[u8]; 3]) {
        let size = size(format);
        let written = before.chunks(size).zip(after.chunks(size)).filter(|(before, after)| before != after);
        let mut sizes: Vec<f32> = written.map(|(_, after)| number(format, after).abs()).collect();
        sizes.retain(|size| size.is_finite());
        sizes.sort_by(f32::total_cmp);
        let usual = sizes.get(sizes.len() / 2).copied().unwrap_or(0.0);
        let mut rows = self.rows.borrow_mut();
        let row = rows.entry((title.to_owned(), format!("{format:?}").to_lowercase())).or_default();
        let elements = before.chunks(size).zip(after.chunks(size)).zip(found.chunks(size)).enumerate();
        for (index, ((before, after), found)) in elements {
            row.elements += usize::from(before != after);
            if after == found {
                continue;
            }
            assert!(before != after, "{title}: element {index} was written, and not by the machine");
            let [expected, got] = [after, found].map(|bytes| number(format, bytes));
            let what = format!("{title}, element {index} of {format:?}: {got}, and {expected} on the machine");
            row.different += 1;
            if format == Format::Word {
                let tokens = [after, found].map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()));
                assert!((self.rules.tie)(seen, index, tokens), "{what}: {tokens:?}");
                continue;
            }
            if expected.is_nan() && got.is_nan() {
                row.different -= 1;
                continue;
            }
            let (error, scale) = ((got - expected).abs(), expected.abs() + usual);
            let steps =
                if self.rules.rounds_within { 2.0 * unit(format) * scale } else { unit(format) * expected.abs() };
            // Said this way round, so that a NaN is too far off.
            let near = error <= SUMS * scale + steps.max(least(format));
            assert!(near, "{what}; most are about {usual}");
            row.largest = row.largest.max(error / scale);
        }
    }

    /// Prints how all compares. Where results are rounded, only those near the border between two numbers may differ.
    pub(crate) fn print(&self) {
        println!("{}", self.context.info().name);
        println!("{:<56} {:>6} {:>9} {:>9}  largest difference", "kernel", "type", "elements", "different");
        for ((kernel, format), Row { elements, different, largest }) in self.rows.borrow().iter() {
            println!("{kernel:<56} {format:>6} {elements:>9} {different:>9}  {largest:.1e}");
        }
        for ((kernel, format), Row { elements, different, .. }) in self.rows.borrow().iter() {
            // One rounding that falls the other way within may change a whole row; a wrong one would change half of all.
            let share = if self.rules.rounds_within { 4 } else { 16 };
            let most = if format == "f32" { *elements } else { 1 + elements / share };
            assert!(*different <= most, "{kernel}: {different} of {elements} elements of {format} differ");
        }
        let elements: usize = self.rows.borrow().values().map(|row| row.elements).sum();
        assert!(elements > 0, "nothing was compared");
        let (name, texts) = (&self.context.info().name, self.functions.borrow().len());
        tell(format_args!("{elements} elements, written by the kernels of {texts} texts, compared with {name}"));
    }
}

fn size(format: Format) -> usize {
    match format {
        Format::F32 | Format::Word => 4,
        Format::F16 | Format::Bf16 => 2,
        Format::E4m3 => 1,
    }
}

/// An element as a number.
fn number(format: Format, bytes: &[u8]) -> f32 {
    match format {
        Format::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
        Format::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
        Format::Bf16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
        Format::E4m3 => e4m3_to_f32(bytes[0]),
        Format::Word => u32::from_le_bytes(bytes.try_into().unwrap()) as f32,
    }
}

/// The relative distance of neighbours, at most. Steps of `f32` are covered by the tolerance of sums.
fn unit(format: Format) -> f32 {
    match format {
        Format::F32 | Format::Word => 0.0,
        Format::F16 => 2f32.powi(-10),
        Format::Bf16 => 2f32.powi(-7),
        Format::E4m3 => 2f32.powi(-3),
    }
}

/// The least distance of neighbours.
fn least(format: Format) -> f32 {
    match format {
        Format::F32 | Format::Word | Format::Bf16 => 0.0,
        Format::F16 => 2f32.powi(-24),
        Format::E4m3 => 2f32.powi(-9),
    }
}
