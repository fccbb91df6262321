//! Matrix products with what comes before and after them: `kernels/linear.cuh`.

use allotrope_graph::memory::MemoryPlan;
use allotrope_graph::{DType, Dim, Graph, OpId, OpKind, ValueId};

use super::{Grid, KernelCode, MOST_SHARED_MEMORY, Parameter, PlannedLaunch, SIZES, Slots, Variant, Word, row_program};
use crate::program::{Bundle, Features, Filling, Pointer, place_of_size};

/// The most products of a launch, and the most bundles: the sizes of arrays in the kernel's parameter.
const MOST_PRODUCTS: usize = 8;

/// Columns that the kernel computes at once.
const COLUMN_STEP: usize = 64;

/// Where the parameter has its bundles, its products and its array of pointers, and how long it is, in bytes.
const BUNDLES_OFFSET: usize = 28;
const PRODUCTS_OFFSET: usize = (BUNDLES_OFFSET + 16 * MOST_PRODUCTS).next_multiple_of(8);
const POINTERS_OFFSET: usize = PRODUCTS_OFFSET + 40 * MOST_PRODUCTS;
const PARAMETER_BYTES: usize = POINTERS_OFFSET + 8 * crate::program::MOST_POINTERS;

/// Bytes of k that the kernel multiplies at a time.
const SLAB_LINE: usize = 128;

/// Rows of the small and of the large tile.
const SMALL_ROWS: usize = 8;
const LARGE_ROWS: usize = 64;

/// Batches of up to so many rows run with the small tile: several of those read the weights once for each.
const MOST_SMALL_ROWS: usize = 32;

/// The same where the blocks of the small tile make their inputs themselves, each for all its rows.
const MOST_STAGED_ROWS: usize = 16;

/// The element types as the kernels count them.
pub(super) fn type_code(dtype: DType) -> u32 {
    match dtype {
        DType::F32 | DType::I32 => 0,
        DType::F16 => 1,
        DType::Bf16 => 2,
        DType::F8E4M3 => 3,
    }
}

/// How the kernels name an element type.
pub(super) fn type_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 | DType::I32 => "f32",
        DType::F16 => "f16",
        DType::Bf16 => "bf16",
        DType::F8E4M3 => "e4m3",
    }
}

/// A matrix product.
struct Product {
    op: OpId,
    input: ValueId,
    weight: ValueId,
    output: ValueId,
    columns: usize,
    inner: usize,
    dtype: DType,
    scale: f32,
}

fn product(graph: &Graph, op: OpId) -> Result<Product, String> {
    let node = graph.op(op);
    let OpKind::Linear { scale, .. } = node.kind else { return Err("no product".into()) };
    let &[input, weight] = node.inputs.as_slice() else { return Err("a product of other than two operands".into()) };
    let (x, w) = (graph.tensor_type(input), graph.tensor_type(weight));
    let (Some(x), Some(w)) = (x, w) else { return Err("a product of something else than tensors".into()) };
    let (Some(columns), Some(inner)) = (w.static_size(0), w.width()) else {
        return Err("a product with a weight whose size depends on the batch".into());
    };
    if x.dtype != w.dtype {
        return Err(format!("a product of {} with {} has no kernel; both must have one type", x.dtype, w.dtype));
    }
    Ok(Product { op, input, weight, output: node.output, columns, inner, dtype: w.dtype, scale: scale.unwrap_or(1.0) })
}

/// The products of a launch and what is around them.
struct Parts {
    products: Vec<Product>,
    prologue: Vec<OpId>,
    bundles: Vec<Bundle>,
}

/// For each operation the products that it needs, by their places.
fn sources(graph: &Graph, ops: &[OpId], products: &[Product]) -> Vec<Vec<usize>> {
    let mut needs: Vec<Vec<usize>> = Vec::with_capacity(ops.len());
    for op in ops {
        let mut own: Vec<usize> = Vec::new();
        for input in &graph.op(*op).inputs {
            own.extend(value_sources(graph, ops, products, &needs, *input));
        }
        own.sort_unstable();
        own.dedup();
        needs.push(own);
    }
    needs
}

/// The products that a value needs: of a product's result, itself.
fn value_sources(
    graph: &Graph,
    ops: &[OpId],
    products: &[Product],
    needs: &[Vec<usize>],
    value: ValueId,
) -> Vec<usize> {
    let Some(producer) = graph.producer(value) else { return Vec::new() };
    if let Some(product) = products.iter().position(|product| product.op == producer) {
        return vec![product];
    }
    let place = ops.iter().position(|op| *op == producer);
    place.and_then(|place| needs.get(place)).cloned().unwrap_or_default()
}

fn parts(graph: &Graph, ops: &[OpId]) -> Result<Parts, String> {
    let is_linear = |op: &&OpId| matches!(graph.op(**op).kind, OpKind::Linear { .. });
    let products: Vec<Product> =
        ops.iter().filter(is_linear).map(|op| product(graph, *op)).collect::<Result<_, _>>()?;
    if products.len() > MOST_PRODUCTS {
        return Err(format!("one launch runs at most {MOST_PRODUCTS} matrix products"));
    }
    if products.iter().any(|product| product.dtype != products[0].dtype) {
        return Err("matrix products of one launch have one element type".into());
    }
    let needs = sources(graph, ops, &products);
    let mut bundle_of: Vec<usize> = (0..products.len()).collect();
    for (op, needs) in ops.iter().zip(&needs) {
        // A cache write stores keys and values each by itself.
        if matches!(graph.op(*op).kind, OpKind::KvWrite | OpKind::Linear { .. }) {
            continue;
        }
        for other in needs.iter().skip(1) {
            let (kept, gone) = (bundle_of[needs[0]], bundle_of[*other]);
            bundle_of.iter_mut().filter(|bundle| **bundle == gone).for_each(|bundle| *bundle = kept);
        }
    }
    let mut order: Vec<usize> = (0..products.len()).collect();
    order.sort_by_key(|product| (bundle_of[*product], *product));
    let mut bundles: Vec<(usize, Bundle)> = Vec::new();
    for product in &order {
        let Product { output, columns, .. } = products[*product];
        match bundles.last_mut() {
            Some((number, bundle)) if *number == bundle_of[*product] => bundle.values.push(output),
            _ => {
                let bundle = Bundle { values: vec![output], columns, tile_columns: 0, epilogue: Vec::new() };
                bundles.push((bundle_of[*product], bundle));
            }
        }
    }
    let after = ops.iter().zip(&needs).filter(|(op, needs)| !needs.is_empty() && !is_linear(op));
    for (op, needs) in after {
        for (number, bundle) in &mut bundles {
            if needs.iter().any(|product| bundle_of[*product] == *number) {
                bundle.epilogue.push(*op);
            }
        }
    }
    let mut bundles: Vec<Bundle> = bundles.into_iter().map(|(_, bundle)| bundle).collect();
    for bundle in &mut bundles {
        bundle.tile_columns = tile_columns(graph, bundle)?;
    }
    let prologue = ops.iter().zip(&needs).filter(|(op, needs)| needs.is_empty() && !is_linear(op));
    let prologue = prologue.map(|(op, _)| *op).collect();
    let mut in_order: Vec<Option<Product>> = products.into_iter().map(Some).collect();
    let products = order.iter().filter_map(|product| in_order[*product].take()).collect();
    Ok(Parts { products, prologue, bundles })
}

/// Columns of a block: whole heads, and as many as the kernel computes at once or more.
fn tile_columns(graph: &Graph, bundle: &Bundle) -> Result<usize, String> {
    let width = |value: ValueId| graph.tensor_type(value).and_then(|tensor| tensor.width());
    let mut head = 1;
    for op in &bundle.epilogue {
        let node = graph.op(*op);
        let own = match &node.kind {
            OpKind::Rope { heads } | OpKind::HeadRmsNorm { heads, .. } => {
                width(node.output).and_then(|width| width.checked_div(*heads))
            }
            OpKind::KvWrite => continue,
            _ => Some(1),
        };
        let own = own.filter(|own| *own > 0).ok_or("heads of no size")?;
        if width(node.output) != Some(bundle.columns) {
            return Err(format!("{} changes the width of a product's tile", node.kind.name()));
        }
        head = if head % own == 0 {
            head
        } else if own % head == 0 {
            own
        } else {
            head * own
        };
    }
    if bundle.values.iter().any(|value| width(*value) != Some(bundle.columns)) {
        return Err("results of different widths meet after matrix products".into());
    }
    Ok((COLUMN_STEP / head).max(1).saturating_mul(head).min(bundle.columns))
}

/// Whether the tensor cores can run the product.
fn fits_tensor_cores(product: &Product) -> bool {
    let multiple = match product.dtype {
        DType::F32 | DType::I32 => return false,
        DType::F16 | DType::Bf16 => 8,
        DType::F8E4M3 => 16,
    };
    product.inner.is_multiple_of(multiple) && product.inner > 0
}

/// How a launch of products is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Inputs and results in memory: a kernel as it is.
    Plain,
    /// Inputs in memory, results taken by a slot.
    Epilogue,
    /// Inputs made by slots too.
    Slots,
}

/// A kernel: its form, whether it runs on the tensor cores, and the rows of its tile.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    form: Form,
    tensor_cores: bool,
    rows: usize,
}

impl Kernel {
    /// Bytes of the kernel's own shared memory, as its header says.
    const fn slab_bytes(self) -> usize {
        match self {
            Kernel { tensor_cores: false, .. } => 9_472,
            Kernel { form: Form::Slots, .. } => 24_576,
            Kernel { rows: SMALL_ROWS, .. } => 27_648,
            _ => 32_768,
        }
    }

    /// Bytes of inputs that are brought to shared memory as a whole.
    fn staged_bytes(self, products: &[Product]) -> usize {
        if self.form != Form::Slots || !self.tensor_cores {
            return 0;
        }
        let line = |product: &Product| {
            let bytes = product.inner.saturating_mul(product.dtype.size_in_bytes());
            (bytes.div_ceil(SLAB_LINE) * SLAB_LINE).saturating_add(16)
        };
        products.iter().map(line).max().unwrap_or(0).saturating_mul(self.rows)
    }

    fn source_and_entry(self, dtype: DType) -> (&'static str, String) {
        let element = type_name(dtype);
        let name = match self.tensor_cores {
            true => format!("linear_{element}_{}", self.rows),
            false => format!("linear_generic_{element}"),
        };
        match self.form {
            Form::Plain => ("linear", name),
            Form::Epilogue => ("linear_slots", format!("{name}_epilogue")),
            Form::Slots => ("linear_slots", format!("{name}_slots")),
        }
    }
}

/// The ways to run a group of products. Where the tensor cores run them and inputs are made in the launch, a small batch makes
/// them in shared memory, in each block for itself; a large one, or inputs that do not fit there, by a row program of its own in
/// front: blocks would make the same rows too often. Without `features` nothing is generated, which is enough for a check.
pub(super) fn variants(
    graph: &Graph,
    ops: &[OpId],
    rows: Dim,
    features: Option<Features>,
) -> Result<Vec<Variant>, String> {
    let parts = parts(graph, ops)?;
    let tensor_cores = parts.products.iter().all(fits_tensor_cores);
    // The plain kernel stores every product.
    let is_plain = parts.bundles.iter().all(|bundle| bundle.epilogue.is_empty())
        && parts.products.iter().all(|product| MemoryPlan::crosses_launches(graph, product.output));
    let of_memory = if is_plain { Form::Plain } else { Form::Epilogue };
    let one = |most_rows: usize, launch: PlannedLaunch| Variant { most_rows, launches: vec![launch] };
    if !tensor_cores {
        let form = if is_plain && parts.prologue.is_empty() { Form::Plain } else { Form::Slots };
        let kernel = Kernel { form, tensor_cores, rows: SMALL_ROWS };
        return Ok(vec![one(usize::MAX, launch(graph, &parts, rows, kernel)?)]);
    }
    let before = || match features {
        Some(features) if !parts.prologue.is_empty() => {
            vec![row_program(graph, &parts.prologue, &handed_over(graph, &parts), features)]
        }
        _ => Vec::new(),
    };
    let of_memory = |tile_rows: usize| {
        let products = launch(graph, &parts, rows, Kernel { form: of_memory, tensor_cores, rows: tile_rows })?;
        Ok::<_, String>(before().into_iter().chain([products]).collect::<Vec<_>>())
    };
    let staged = || launch(graph, &parts, rows, Kernel { form: Form::Slots, tensor_cores, rows: SMALL_ROWS });
    let small = match parts.prologue.is_empty() {
        true => Variant { most_rows: MOST_SMALL_ROWS, launches: of_memory(SMALL_ROWS)? },
        false => match staged() {
            Ok(staged) => one(MOST_STAGED_ROWS, staged),
            Err(_) => Variant { most_rows: MOST_SMALL_ROWS, launches: of_memory(SMALL_ROWS)? },
        },
    };
    Ok(match of_memory(LARGE_ROWS) {
        Ok(launches) => vec![small, Variant { most_rows: usize::MAX, launches }],
        Err(_) => vec![Variant { most_rows: usize::MAX, ..small }],
    })
}

/// The results of a group's prologue that its products and its epilogue need: they take memory while the group runs, where the
/// prologue is a launch of its own.
pub(super) fn workspace(graph: &Graph, ops: &[OpId]) -> Vec<ValueId> {
    match parts(graph, ops) {
        Ok(parts) if parts.products.iter().all(fits_tensor_cores) => handed_over(graph, &parts),
        _ => Vec::new(),
    }
}

fn handed_over(graph: &Graph, parts: &Parts) -> Vec<ValueId> {
    let after = parts.bundles.iter().flat_map(|bundle| &bundle.epilogue);
    let read = after.flat_map(|op| graph.op(*op).inputs.iter().copied());
    let read: Vec<ValueId> = read.chain(parts.products.iter().map(|product| product.input)).collect();
    let results = parts.prologue.iter().map(|op| graph.op(*op).output);
    results.filter(|value| graph.tensor_type(*value).is_some() && read.contains(value)).collect()
}

fn launch(graph: &Graph, parts: &Parts, rows: Dim, kernel: Kernel) -> Result<PlannedLaunch, String> {
    let Parts { products, prologue, bundles } = parts;
    let (source, entry) = kernel.source_and_entry(products.first().ok_or("no products")?.dtype);
    let slots = Slots {
        prologue: if kernel.form == Form::Slots { prologue.clone() } else { Vec::new() },
        inputs: products.iter().map(|product| product.input).collect(),
        bundles: bundles.clone(),
        rows: kernel.rows,
    };
    let scratch = slots.filling(graph).scratch_bytes();
    let code = match kernel.form {
        Form::Plain => KernelCode::Bundled { source, entry },
        Form::Epilogue | Form::Slots => KernelCode::Filled { source, entry, slots },
    };
    let tile_offset = kernel.slab_bytes();
    let tile = bundles.iter().map(|bundle| 4 * bundle.values.len() * kernel.rows * bundle.tile_columns).max();
    let scratch_offset = (tile_offset + tile.unwrap_or(0)).next_multiple_of(16);
    let staged_offset = (scratch_offset + scratch).next_multiple_of(16);
    let shared_memory = staged_offset.saturating_add(kernel.staged_bytes(products));
    if shared_memory > MOST_SHARED_MEMORY {
        return Err(format!(
            "the launch needs {shared_memory} bytes of shared memory; {MOST_SHARED_MEMORY} can be had"
        ));
    }
    let mut parameter = Parameter::default();
    let counts = [place_of_size(rows), bundles.len(), tile_offset, scratch_offset, staged_offset];
    parameter.push(SIZES);
    parameter.extend(counts.map(number));
    parameter.pad(BUNDLES_OFFSET);
    let (mut tiles, mut first) = (0, 0);
    for bundle in bundles {
        parameter.extend([tiles, first, bundle.values.len(), bundle.tile_columns].map(number));
        tiles += bundle.columns.div_ceil(bundle.tile_columns.max(1));
        first += bundle.values.len();
    }
    parameter.pad(PRODUCTS_OFFSET);
    let mut made: Vec<ValueId> = Vec::new();
    for product in products {
        if !made.contains(&product.input) {
            made.push(product.input);
        }
        // Products of one input have one number, from 1 on.
        let number = made.iter().position(|input| *input == product.input).map_or(0, |place| place as u64 + 1);
        parameter.extend(operand(graph, kernel.form, product, number));
    }
    parameter.pad(PARAMETER_BYTES);
    let blocks = u32::try_from(tiles).map_err(|_| "a product of too many columns")?;
    let grid = Grid { blocks, rows: kernel.rows as u32, rows_second: true };
    Ok(PlannedLaunch { code, grid, shared_memory, parameter })
}

fn number(value: usize) -> Word {
    Word::Number(u32::try_from(value).unwrap_or(u32::MAX))
}

/// The entry of a product. What the slots take has no address, and what they make has a number instead.
fn operand(graph: &Graph, form: Form, product: &Product, made: u64) -> [Word; 7] {
    let input = match form {
        Form::Slots => Word::Long(made),
        Form::Plain | Form::Epilogue => Word::Pointer(Pointer::Value(product.input)),
    };
    let output = match form {
        Form::Plain => Pointer::Value(product.output),
        Form::Epilogue | Form::Slots => Pointer::Nothing,
    };
    let dtype = graph.tensor_type(product.output).map_or(DType::F32, |tensor| tensor.dtype);
    [
        Word::Pointer(Pointer::Value(product.weight)),
        input,
        Word::Pointer(output),
        number(product.columns),
        number(product.inner),
        Word::Number(product.scale.to_bits()),
        Word::Number(type_code(dtype)),
    ]
}

impl Slots {
    /// The filling of the template.
    pub fn filling<'g>(&self, graph: &'g Graph) -> Filling<'g> {
        Filling {
            graph,
            prologue: self.prologue.clone(),
            inputs: self.inputs.clone(),
            bundles: self.bundles.clone(),
            rows: self.rows,
            pointers_offset: if self.inputs.is_empty() { super::attention::POINTERS_OFFSET } else { POINTERS_OFFSET },
        }
    }
}
