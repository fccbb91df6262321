//! Graphs that the suite runs, and ways to group them.

use allotrope_graph::{DType, Dim, Graph, Input, KvCacheType, OpId, OpKind, Target, TensorType, ValueId};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::batches::VOCABULARY;

/// A graph under construction. Names of results begin with a prefix, so that parts may be built alike.
#[derive(Default)]
pub(crate) struct Builder {
    pub(crate) graph: Graph,
    pub(crate) prefix: String,
    /// The type that keys and values are stored in; where there is none, their own.
    pub(crate) kv_cache: Option<DType>,
}

impl Builder {
    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(crate) fn push(&mut self, name: &str, kind: OpKind, operands: &[ValueId]) -> ValueId {
        self.graph.push(self.name(name), kind, operands).unwrap()
    }

    pub(crate) fn dtype(&self, x: ValueId) -> DType {
        self.graph.tensor_type(x).unwrap().dtype
    }

    pub(crate) fn width(&self, x: ValueId) -> usize {
        self.graph.tensor_type(x).unwrap().width().unwrap()
    }

    /// Rows of a table, chosen by an input of the step.
    pub(crate) fn rows(&mut self, name: &str, dtype: DType, width: usize, by: Input) -> ValueId {
        let shape = [Dim::Static(VOCABULARY), Dim::Static(width)];
        let table = self.graph.weight(&format!("{}.table", self.name(name)), TensorType::new(dtype, shape));
        let ids = self.graph.input(by);
        self.push(name, OpKind::Embedding, &[table, ids])
    }

    /// A weight that is a vector.
    pub(crate) fn vector(&mut self, name: &str, dtype: DType, width: usize) -> ValueId {
        let name = self.name(name);
        self.graph.weight(&name, TensorType::vector(dtype, Dim::Static(width)))
    }

    pub(crate) fn norm(&mut self, name: &str, x: ValueId, epsilon: f32) -> ValueId {
        let weight = self.vector(&format!("{name}.weight"), self.dtype(x), self.width(x));
        self.push(name, OpKind::RmsNorm { epsilon }, &[x, weight])
    }

    pub(crate) fn head_norm(&mut self, name: &str, x: ValueId, heads: usize) -> ValueId {
        let weight = self.vector(&format!("{name}.weight"), self.dtype(x), self.width(x) / heads);
        self.push(name, OpKind::HeadRmsNorm { heads, epsilon: 1e-5 }, &[x, weight])
    }

    /// A product with a weight of its own; of quantized rows, times a scale.
    pub(crate) fn linear(&mut self, name: &str, x: ValueId, columns: usize, to: DType) -> ValueId {
        let (dtype, inner) = (self.dtype(x), self.width(x));
        let weight = format!("{}.weight", self.name(name));
        let weight = self.graph.weight(&weight, TensorType::new(dtype, [Dim::Static(columns), Dim::Static(inner)]));
        let scale = (dtype == DType::F8E4M3).then_some(0.002);
        self.push(name, OpKind::Linear { to, scale }, &[x, weight])
    }

    /// Angles of the positions, for heads of a size.
    pub(crate) fn angles(&mut self, name: &str, head_dim: usize) -> ValueId {
        let half = head_dim / 2;
        let frequencies: Vec<f32> = (0..half).map(|i| 100f32.powf(-(i as f32) / half as f32)).collect();
        let kind = OpKind::RopeAngles { inverse_frequencies: frequencies.into(), attention_scaling: 1.1 };
        let positions = self.graph.input(Input::Positions);
        self.push(name, kind, &[positions])
    }

    /// Heads of rows as rows of `rows`.
    pub(crate) fn shaped(&mut self, name: &str, x: ValueId, rows: usize) -> ValueId {
        let shape = vec![Dim::Tokens, Dim::Static(rows), Dim::Static(self.width(x) / rows)];
        self.push(name, OpKind::Reshape { shape }, &[x])
    }

    pub(crate) fn slice(&mut self, name: &str, x: ValueId, axis: usize, range: std::ops::Range<usize>) -> ValueId {
        self.push(name, OpKind::Slice { axis, start: range.start, end: range.end }, &[x])
    }

    /// Writes keys and values to a layer's cache and attends to it.
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        [q, k, v]: [ValueId; 3],
        heads: usize,
        head_dim: usize,
        scale: f32,
    ) -> ValueId {
        let kv_heads = self.width(k) / head_dim;
        let dtype = self.kv_cache.unwrap_or(self.dtype(k));
        let state = self.graph.state(layer, KvCacheType { dtype, kv_heads, head_dim });
        let slots = self.graph.input(Input::Slots);
        let written = self.push("cache", OpKind::KvWrite, &[state, k, v, slots]);
        let places = [Input::Positions, Input::TokenSequences, Input::BlockTables];
        let [positions, sequences, tables] = places.map(|input| self.graph.input(input));
        self.push("attention", OpKind::Attention { heads, scale }, &[q, written, positions, sequences, tables])
    }

    /// Makes a value an output of the step, as `f32`.
    pub(crate) fn output(&mut self, x: ValueId) {
        let name = format!("{}.output", self.graph.value(x).name);
        let output = self.graph.push(name, OpKind::Cast { to: DType::F32 }, &[x]).unwrap();
        self.graph.add_output(output);
    }
}

/// The sizes of a small decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderSizes {
    /// Layers.
    pub layers: usize,
    /// Elements of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements between the projections of the feed-forward part.
    pub inner: usize,
    /// Rows of the embedding table, at least [`VOCABULARY`].
    pub vocabulary: usize,
}

impl DecoderSizes {
    /// Two layers of sizes that are no multiple of anything.
    pub const ODD: Self =
        DecoderSizes { layers: 2, hidden: 44, heads: 6, kv_heads: 2, head_dim: 10, inner: 102, vocabulary: VOCABULARY };
}

/// A decoder with tied embeddings and biases on the queries; with `quantized`, FP8 projections.
pub fn decoder(sizes: DecoderSizes, dtype: DType, quantized: bool) -> Graph {
    let DecoderSizes { layers, hidden, heads, kv_heads, head_dim, inner, vocabulary } = sizes;
    let mut b = Builder::default();
    let ids = b.graph.input(Input::TokenIds);
    let table = TensorType::new(dtype, [Dim::Static(vocabulary), Dim::Static(hidden)]);
    let table = b.graph.weight("embedding", table);
    let mut x = b.push("embedded", OpKind::Embedding, &[table, ids]);
    let linear = |b: &mut Builder, name: &str, x: ValueId, columns: usize| {
        let quantize = OpKind::Quantize { scale: 0.01 };
        let x = if quantized { b.push(&format!("{name}.quantized"), quantize, &[x]) } else { x };
        b.linear(name, x, columns, dtype)
    };
    for layer in 0..layers {
        b.prefix = format!("layers.{layer}.");
        let normed = b.norm("norm1", x, 1e-5);
        let q = linear(&mut b, "q_proj", normed, heads * head_dim);
        let k = linear(&mut b, "k_proj", normed, kv_heads * head_dim);
        let v = linear(&mut b, "v_proj", normed, kv_heads * head_dim);
        let bias = b.vector("q_bias", dtype, heads * head_dim);
        let q = b.push("q_biased", OpKind::Add, &[q, bias]);
        let angles = b.angles("angles", head_dim);
        let q = b.push("q_rotated", OpKind::Rope { heads }, &[q, angles]);
        let k = b.push("k_rotated", OpKind::Rope { heads: kv_heads }, &[k, angles]);
        let attention = b.attend(layer, [q, k, v], heads, head_dim, 0.3);
        let projected = linear(&mut b, "o_proj", attention, hidden);
        x = b.push("sum1", OpKind::Add, &[x, projected]);
        let normed = b.norm("norm2", x, 1e-5);
        let gate = linear(&mut b, "gate_proj", normed, inner);
        let up = linear(&mut b, "up_proj", normed, inner);
        let gate = b.push("silu", OpKind::Silu, &[gate]);
        let product = b.push("product", OpKind::Mul, &[gate, up]);
        let down = linear(&mut b, "down_proj", product, hidden);
        x = b.push("sum2", OpKind::Add, &[x, down]);
    }
    b.prefix.clear();
    let rows = b.graph.input(Input::LogitRows);
    let selected = b.push("selected", OpKind::SelectRows, &[x, rows]);
    let normed = b.norm("norm", selected, 1e-5);
    let logits = b.push("logits", OpKind::Linear { to: DType::F32, scale: None }, &[normed, table]);
    b.graph.add_output(logits);
    b.graph
}

/// The graph with every operation by itself, and with random groups that the target takes.
pub fn groupings(random: &mut ChaCha8Rng, graph: &Graph, target: &dyn Target) -> Vec<(String, Graph)> {
    let mut all = vec![("flat".to_string(), graph.clone())];
    for number in 0..3 {
        let mut grouped = graph.clone();
        for _ in 0..60 {
            let count = grouped.groups().len();
            let first = random.random_range(0..count);
            let second = (first + random.random_range(1..4)).min(count - 1);
            let mut ops: Vec<OpId> =
                [first, second].iter().flat_map(|place| grouped.groups()[*place].ops.clone()).collect();
            ops.sort_unstable();
            ops.dedup();
            if target.accepts(&grouped, &ops).is_ok() {
                // What would make a cycle stays as it is.
                let _ = grouped.regroup(&ops);
            }
        }
        assert!(grouped.groups().len() < graph.groups().len(), "the target takes no group of\n{graph}");
        all.push((format!("random {number}, {} groups", grouped.groups().len()), grouped));
    }
    all
}

/// The graph with one more group, if the target takes that and what is left of the groups that it is taken from.
pub(crate) fn grouped(graph: &Graph, ops: &[OpId], target: &dyn Target) -> Option<Graph> {
    let mut ops = ops.to_vec();
    ops.sort_unstable();
    ops.dedup();
    let mut grouped = graph.clone();
    grouped.regroup(&ops).ok()?;
    let taken = grouped.groups().iter().all(|group| target.accepts(&grouped, &group.ops).is_ok());
    taken.then_some(grouped)
}
