//! Matrix products with what comes before and after them: `kernels/linear.cuh`.

use allotrope_graph::memory::MemoryPlan;
use allotrope_graph::{DType, Dim, Graph, OpId, OpKind, ValueId};

use super::{Grid, KernelCode, MOST_SHARED_MEMORY, Parameter, SIZES, Slots, Variant, Word};
use crate::program::{Bundle, Filling, Pointer, place_of_size};

/// The most products of a launch, and the most bundles: the sizes of arrays in the kernel's parameter.
const MOST_PRODUCTS: usize = 8;

/// Columns that the kernel computes at once.
const COLUMN_STEP: usize = 64;

/// Where the parameter has its products and its array of pointers, and how long it is, in bytes.
const PRODUCTS_OFFSET: usize = 24 + 16 * MOST_PRODUCTS;
const POINTERS_OFFSET: usize = PRODUCTS_OFFSET + 40 * MOST_PRODUCTS;
const PARAMETER_BYTES: usize = POINTERS_OFFSET + 8 * crate::program::MOST_POINTERS;

/// Rows of the small and of the large tile.
const SMALL_ROWS: usize = 8;
const LARGE_ROWS: usize = 64;

/// Batches of up to so many rows run with the small tile: several of those read the weights once for each.
const MOST_SMALL_ROWS: usize = 32;

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

/// Bytes of the kernel's own shared memory.
const fn slab_bytes(tensor_cores: bool, rows: usize) -> usize {
    match (tensor_cores, rows) {
        (true, SMALL_ROWS) => 27_648,
        (true, _) => 32_768,
        (false, _) => 9_472,
    }
}

pub(super) fn variants(graph: &Graph, ops: &[OpId], rows: Dim) -> Result<Vec<Variant>, String> {
    let parts = parts(graph, ops)?;
    let tensor_cores = parts.products.iter().all(fits_tensor_cores);
    let small = variant(graph, &parts, rows, tensor_cores, SMALL_ROWS)?;
    if !tensor_cores {
        return Ok(vec![Variant { most_rows: usize::MAX, ..small }]);
    }
    Ok(match variant(graph, &parts, rows, tensor_cores, LARGE_ROWS) {
        Ok(large) => vec![Variant { most_rows: MOST_SMALL_ROWS, ..small }, Variant { most_rows: usize::MAX, ..large }],
        Err(_) => vec![Variant { most_rows: usize::MAX, ..small }],
    })
}

fn variant(graph: &Graph, parts: &Parts, rows: Dim, tensor_cores: bool, tile_rows: usize) -> Result<Variant, String> {
    let Parts { products, prologue, bundles } = parts;
    let element = type_name(products.first().ok_or("no products")?.dtype);
    // The plain kernel stores every product.
    let is_plain = prologue.is_empty()
        && bundles.iter().all(|bundle| bundle.epilogue.is_empty())
        && products.iter().all(|product| MemoryPlan::crosses_launches(graph, product.output));
    let name = if tensor_cores { format!("linear_{element}_{tile_rows}") } else { format!("linear_generic_{element}") };
    let slots = Slots {
        prologue: prologue.clone(),
        inputs: products.iter().map(|product| product.input).collect(),
        bundles: bundles.clone(),
        rows: tile_rows,
    };
    let scratch = slots.filling(graph).scratch_bytes();
    let code = match is_plain {
        true => KernelCode::Bundled { source: "linear", entry: name },
        false => KernelCode::Filled { source: "linear_slots", entry: format!("{name}_slots"), slots },
    };
    let tile_offset = slab_bytes(tensor_cores, tile_rows);
    let tile = bundles.iter().map(|bundle| 4 * bundle.values.len() * tile_rows * bundle.tile_columns).max();
    let scratch_offset = (tile_offset + tile.unwrap_or(0)).next_multiple_of(16);
    let shared_memory = scratch_offset + scratch;
    if shared_memory > MOST_SHARED_MEMORY {
        return Err(format!(
            "the launch needs {shared_memory} bytes of shared memory; {MOST_SHARED_MEMORY} can be had"
        ));
    }
    let mut parameter = Parameter::default();
    let counts = [place_of_size(rows), bundles.len(), tile_offset, scratch_offset];
    parameter.push(SIZES);
    parameter.extend(counts.map(number));
    let (mut tiles, mut first) = (0, 0);
    for bundle in bundles {
        parameter.extend([tiles, first, bundle.values.len(), bundle.tile_columns].map(number));
        tiles += bundle.columns.div_ceil(bundle.tile_columns.max(1));
        first += bundle.values.len();
    }
    parameter.pad(PRODUCTS_OFFSET);
    for product in products {
        parameter.extend(operand(graph, is_plain, product));
    }
    if !is_plain {
        parameter.pad(POINTERS_OFFSET);
    }
    parameter.pad(PARAMETER_BYTES);
    let blocks = u32::try_from(tiles).map_err(|_| "a product of too many columns")?;
    let grid = Grid { blocks, rows: tile_rows as u32, rows_second: true };
    Ok(Variant { most_rows: usize::MAX, code, grid, shared_memory, parameter })
}

fn number(value: usize) -> Word {
    Word::Number(u32::try_from(value).unwrap_or(u32::MAX))
}

/// The entry of a product. What the slots bring and take has no address.
fn operand(graph: &Graph, is_plain: bool, product: &Product) -> [Word; 7] {
    let null = Word::Pointer(Pointer::Nothing);
    let input = match is_plain {
        true => Word::Pointer(Pointer::Value(product.input)),
        false => null,
    };
    let output = match is_plain {
        true => Word::Pointer(Pointer::Value(product.output)),
        false => null,
    };
    let dtype = graph.tensor_type(product.output).map_or(DType::F32, |tensor| tensor.dtype);
    [
        Word::Pointer(Pointer::Value(product.weight)),
        input,
        output,
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
