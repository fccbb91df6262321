//! Runs one group's generated code on the emulator's machine and compares it with the reference evaluator.

use std::sync::Arc;

use allotrope_cuda_emulator::machine::Random;
use allotrope_cuda_emulator::machine::memory::Region;
use allotrope_cuda_runtime::bundle::entry;
use allotrope_cuda_runtime::lower::{KernelCode, KernelPtx, LaunchPlan, PlannedLaunch, Templates, plan};
use allotrope_cuda_runtime::program::{BLOCK, Pointer};
use allotrope_graph::evaluate::{Evaluation, ReferenceCache, evaluate};
use allotrope_graph::{DType, Definition, Graph, OpId, OpKind, StepInputs, ValueId, WeightSource, numerics};
use allotrope_runtime::conformance::{ChaCha8Rng, Weights};
use rand::SeedableRng;

use super::cases::Case;
use super::common::{Bench, Format, Shape, bytes};

/// Tokens in a block of the KV cache, and its blocks.
const BLOCK_SIZE: usize = 4;
const BLOCKS: usize = 12;
/// Blocks that a sequence may have.
const TABLE: usize = 4;

/// A group with its code.
pub(crate) struct Code {
    pub(crate) plan: LaunchPlan,
    /// For each variant of the plan, the code of its launches.
    pub(crate) kernels: Vec<Vec<KernelPtx>>,
}

/// Plans a case and generates its code for a compute capability.
pub(crate) fn generate(case: &Case, templates: &Templates) -> Code {
    let ops = &case.graph.groups()[case.group].ops;
    let plan = plan(&case.graph, ops, templates.features()).unwrap();
    let code = |launch: &PlannedLaunch| match (&launch.code, templates.ptx(&case.graph, launch).unwrap()) {
        (KernelCode::Bundled { source, entry: name }, None) => {
            let file = templates.bundle().ptx(source, templates.capability()).unwrap();
            KernelPtx { text: entry(&file, name).unwrap(), entry: name.clone(), slots: None }
        }
        (_, generated) => generated.unwrap(),
    };
    let kernels = plan.variants.iter().map(|variant| variant.launches.iter().map(code).collect()).collect();
    Code { plan, kernels }
}

/// A batch, and what the reference makes of it.
pub(crate) struct Step<'a> {
    case: &'a Case,
    weights: Weights,
    inputs: StepInputs,
    evaluation: Evaluation,
}

impl<'a> Step<'a> {
    /// Fresh weights and a fresh batch: a part of one sequence, another one, and padding between them.
    pub(crate) fn new(case: &'a Case, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut weights = Weights::random(&mut ChaCha8Rng::seed_from_u64(seed), &case.graph);
        let width = case.graph.tensor_type(named(&case.graph, "x")).unwrap().width().unwrap();
        // The last element of a row weighs much, so that a sum which has it twice shows.
        if !case.spread {
            (1..=50).for_each(|row| weights.set("table", row * width - 1, 3.0));
        }
        if case.graph.values().iter().any(|value| value.name == "v") {
            weights.set("v", width - 1, 1.0);
        }
        if case.infinite {
            weights.set("other", 50 * width - 1, f32::INFINITY);
        }
        if case.spread {
            (0..50 * width).for_each(|index| weights.set("table", index, spread(&mut random)));
        }
        let attends = case.graph.groups()[case.group].ops.iter();
        let attends = attends.map(|op| &case.graph.op(*op).kind).any(|kind| matches!(kind, OpKind::Attention { .. }));
        let inputs = batch(&mut random, case.tokens, if attends { 0 } else { 8 });
        let mut caches: Vec<ReferenceCache> =
            caches(&case.graph).map(|cache| ReferenceCache::new(cache, BLOCKS * BLOCK_SIZE)).collect();
        let evaluation = evaluate(&case.graph, &weights, &inputs, &mut caches, BLOCK_SIZE).unwrap();
        Self { case, weights, inputs, evaluation }
    }

    fn graph(&self) -> &Graph {
        &self.case.graph
    }

    fn ops(&self) -> &[OpId] {
        &self.graph().groups()[self.case.group].ops
    }

    /// Runs a variant, with a text in the place of that of its first launch, and says what is wrong with what it writes.
    pub(crate) fn check(&self, code: &Code, variant: usize, text: &str) -> Result<(), String> {
        let mut bench = Bench::new(text).map_err(|error| error.to_string())?;
        let mut regions: Vec<(Pointer, Arc<Region>)> = Vec::new();
        let launches = code.plan.variants[variant].launches.iter().zip(&code.kernels[variant]);
        for (number, (launch, kernel)) in launches.enumerate() {
            if number > 0 {
                bench.load(&kernel.text).map_err(|error| error.to_string())?;
            }
            self.run(&mut bench, &mut regions, &code.plan, (launch, kernel))?;
        }
        for (pointer, region) in &regions {
            self.compare(pointer, region).map_err(|problem| format!("{pointer:?}: {problem}"))?;
        }
        Ok(())
    }

    fn run(
        &self,
        bench: &mut Bench,
        regions: &mut Vec<(Pointer, Arc<Region>)>,
        plan: &LaunchPlan,
        (launch, kernel): (&PlannedLaunch, &KernelPtx),
    ) -> Result<(), String> {
        let mut parameter = launch.parameter.clone();
        if let Some((offset, pointers)) = &kernel.slots {
            parameter.place(*offset, pointers.entries());
        }
        parameter.set_block_size(BLOCK_SIZE);
        let parameters = parameter.resolved(|pointer| {
            if *pointer == Pointer::Nothing {
                return Ok(0);
            }
            if let Some((_, region)) = regions.iter().find(|(known, _)| known == pointer) {
                return Ok(region.address);
            }
            let region = self.region(bench, pointer)?;
            regions.push((*pointer, Arc::clone(&region)));
            Ok::<_, String>(region.address)
        })?;
        let rows = self.inputs.sizes().of(plan.rows);
        let shape = Shape {
            // As in a recording of more rows than there are.
            grid: launch.grid.dimensions(rows + 9),
            threads: BLOCK,
            dynamic_shared: launch.shared_memory as u32,
            cooperative: false,
        };
        bench.launch_laid_out(&kernel.entry, shape, parameters).map(drop).map_err(|report| report.to_string())
    }

    /// Memory for a pointer: what is read has its numbers and nothing behind them, what is written is poisoned and has
    /// room.
    fn region(&self, bench: &mut Bench, pointer: &Pointer) -> Result<Arc<Region>, String> {
        let words = |values: &[i32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let sizes = self.inputs.sizes();
        let content = match pointer {
            Pointer::Sizes => {
                let sizes = [sizes.tokens, sizes.sequences, sizes.logit_rows, sizes.blocks];
                words(&sizes.map(|size| size as i32))
            }
            Pointer::Input(input) => words(self.inputs.get(*input)),
            Pointer::Keys { layer } | Pointer::Values { layer } => {
                let operand = if matches!(pointer, Pointer::Keys { .. }) { 1 } else { 2 };
                self.cache(*layer, operand, !self.writes_cache())
            }
            Pointer::Value(value) => match &self.graph().value(*value).definition {
                Definition::Weight(name) => self.weights.weight(name).unwrap().bytes.to_vec(),
                Definition::Input(input) => words(self.inputs.get(*input)),
                Definition::Op(op) if self.ops().contains(op) => {
                    let (dtype, count) = self.size(*value);
                    vec![0xff; (count + count / 2 + 64) * dtype.size_in_bytes()]
                }
                _ => encode(self.size(*value).0, self.evaluation.tensor(*value).unwrap()),
            },
            Pointer::Nothing | Pointer::Constant(_) => return Err(format!("{pointer:?} has no memory")),
        };
        let region = bench.put(&content);
        if let Some(dtype) = self.written(pointer) {
            bench.holds(&region, format(dtype));
        }
        Ok(region)
    }

    /// The type of what a launch writes.
    fn written(&self, pointer: &Pointer) -> Option<DType> {
        match pointer {
            Pointer::Keys { layer } | Pointer::Values { layer } if self.writes_cache() => {
                caches(self.graph()).nth(*layer).map(|cache| cache.dtype)
            }
            Pointer::Value(value) => match &self.graph().value(*value).definition {
                Definition::Op(op) if self.ops().contains(op) => Some(self.size(*value).0),
                _ => None,
            },
            _ => None,
        }
    }

    fn size(&self, value: ValueId) -> (DType, usize) {
        let tensor = self.graph().tensor_type(value).unwrap();
        (tensor.dtype, tensor.elements(&self.inputs.sizes()).unwrap())
    }

    fn writes_cache(&self) -> bool {
        self.ops().iter().any(|op| matches!(self.graph().op(*op).kind, OpKind::KvWrite))
    }

    /// The bytes of a cache: those of the tokens that have slots where it is written, and poison.
    fn cache(&self, layer: usize, operand: usize, is_written: bool) -> Vec<u8> {
        let cache = caches(self.graph()).nth(layer).unwrap();
        let row = cache.width() * cache.dtype.size_in_bytes();
        let mut bytes = vec![0xff; BLOCKS * BLOCK_SIZE * row];
        let writes = self.graph().ops().iter().find(|op| matches!(op.kind, OpKind::KvWrite)).unwrap();
        let rows = encode(cache.dtype, self.evaluation.tensor(writes.inputs[operand]).unwrap());
        for (token, slot) in self.inputs.slots.iter().enumerate().filter(|(_, slot)| is_written && **slot >= 0) {
            bytes[*slot as usize * row..][..row].copy_from_slice(&rows[token * row..][..row]);
        }
        bytes
    }

    /// Compares what a launch wrote with the reference, and looks whether everything else is as it was.
    fn compare(&self, pointer: &Pointer, region: &Region) -> Result<(), String> {
        let found = bytes(region);
        let (dtype, expected) = match pointer {
            Pointer::Keys { layer } | Pointer::Values { layer } => {
                let operand = if matches!(pointer, Pointer::Keys { .. }) { 1 } else { 2 };
                let dtype = caches(self.graph()).nth(*layer).unwrap().dtype;
                (dtype, numerics::decode(dtype, &self.cache(*layer, operand, true)))
            }
            Pointer::Value(value) => match self.graph().value(*value).definition {
                Definition::Op(op) if self.ops().contains(&op) => {
                    (self.size(*value).0, self.evaluation.tensor(*value).unwrap().to_vec())
                }
                _ => return Ok(()),
            },
            _ => return Ok(()),
        };
        let (live, rest) = found.split_at(expected.len() * dtype.size_in_bytes());
        if let Some(at) = rest.iter().position(|byte| *byte != 0xff) {
            return Err(format!("byte {at} behind the {} live ones was written", live.len()));
        }
        near(dtype, &numerics::decode(dtype, live), &expected, self.case.exact)
    }
}

fn format(dtype: DType) -> Format {
    match dtype {
        DType::F32 => Format::F32,
        DType::F16 => Format::F16,
        DType::Bf16 => Format::Bf16,
        DType::F8E4M3 => Format::E4m3,
        DType::I32 => Format::Word,
    }
}

/// The types of a graph's caches, by layer.
fn caches(graph: &Graph) -> impl Iterator<Item = &allotrope_graph::KvCacheType> {
    let states = graph.values().iter().filter(|value| matches!(value.definition, Definition::State { .. }));
    states.filter_map(|value| value.ty.kv_cache())
}

pub(crate) fn named(graph: &Graph, name: &str) -> ValueId {
    graph.value_ids().find(|id| graph.value(*id).name == name).unwrap()
}

/// A number that some storage type rounds in a way of its own once it is divided by 2^-9: too large for e4m3, halfway between
/// two neighbours, below the normal numbers, or any.
fn spread(random: &mut Random) -> f32 {
    let value = match random.below(4) {
        0 => 465.0 + random.below(40) as f32,
        1 => (1.0 + (2 * random.below(8) + 1) as f32 / 16.0) * 2f32.powi(random.below(14) as i32 - 6),
        2 => random.below(33) as f32 * 2f32.powi(-11),
        _ => (1.0 + random.below(128) as f32 / 128.0) * 2f32.powi(random.below(16) as i32 - 8),
    };
    let sign = if random.below(2) == 0 { 1.0 } else { -1.0 };
    sign * value / 512.0
}

/// Two sequences that begin at a position up to `latest`, with padding between them.
fn batch(random: &mut Random, most: usize, latest: usize) -> StepInputs {
    let tokens = most - random.below(most.div_ceil(3));
    let padding = (tokens > 2).then_some(tokens / 2);
    let first = padding.unwrap_or(1);
    let blocks: Vec<i32> = shuffled(random, BLOCKS);
    let mut inputs = StepInputs { blocks: TABLE, block_tables: blocks[..2 * TABLE].to_vec(), ..StepInputs::default() };
    let begin = random.below(latest + 1);
    for token in 0..tokens {
        // The last row of the tables is always among those that are asked for.
        inputs.token_ids.push(if token == 0 { 49 } else { random.below(50) as i32 });
        if Some(token) == padding {
            inputs.positions.push(-1);
            inputs.slots.push(-1);
            inputs.token_sequences.push(0);
            continue;
        }
        let (sequence, position) =
            if token < first { (0, token) } else { (1, token - first - usize::from(padding.is_some())) };
        let position = position + begin;
        let block = inputs.block_tables[sequence * TABLE + position / BLOCK_SIZE] as usize;
        inputs.positions.push(position as i32);
        inputs.slots.push((block * BLOCK_SIZE + position % BLOCK_SIZE) as i32);
        inputs.token_sequences.push(sequence as i32);
    }
    inputs.logit_rows = shuffled(random, tokens).into_iter().take(3).collect();
    inputs
}

fn shuffled(random: &mut Random, count: usize) -> Vec<i32> {
    let mut list: Vec<i32> = (0..count as i32).collect();
    (1..count).rev().for_each(|index| list.swap(index, random.below(index + 1)));
    list
}

pub(crate) fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    let one = |value: &f32| match dtype {
        DType::F32 => value.to_le_bytes().to_vec(),
        DType::I32 => (*value as i32).to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f32(*value).to_le_bytes().to_vec(),
        DType::Bf16 => half::bf16::from_f32(*value).to_le_bytes().to_vec(),
        DType::F8E4M3 => vec![numerics::f32_to_e4m3(*value)],
    };
    values.iter().flat_map(one).collect()
}

/// The relative distance of neighbours of a type, at most.
fn unit(dtype: DType) -> f32 {
    match dtype {
        DType::F32 | DType::I32 => 2f32.powi(-23),
        DType::F16 => 2f32.powi(-10),
        DType::Bf16 => 2f32.powi(-7),
        DType::F8E4M3 => 2f32.powi(-3),
    }
}

/// Whether numbers are the reference's within steps of rounding, and nearly all of them exactly: sums in another order or
/// precision cross the border between two numbers of a type seldom, and a wrong rounding every other time.
fn near(dtype: DType, found: &[f32], expected: &[f32], exact: bool) -> Result<(), String> {
    let live: Vec<f32> = expected.iter().copied().filter(|value| value.is_finite()).collect();
    let scale = (live.iter().map(|value| value * value).sum::<f32>() / live.len().max(1) as f32).sqrt();
    let steps = if dtype == DType::F32 { 16.0 } else { 2.0 };
    let mut different = 0;
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        if found == expected || found.is_nan() && expected.is_nan() {
            continue;
        }
        let error = (found - expected).abs();
        if !(error <= steps * unit(dtype) * (expected.abs() + scale)) {
            return Err(format!("element {index}: {found}, expected {expected}"));
        }
        different += 1;
    }
    let most = if exact { 0 } else { 1 + live.len() / 128 };
    match different > most && (exact || dtype != DType::F32) {
        true => {
            Err(format!("{different} of {} elements are not the reference's; at most {most} may differ", live.len()))
        }
        false => Ok(()),
    }
}
