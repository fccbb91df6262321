//! Groups whose code is generated, each as a graph and the results that one launch makes.

use allotrope_cuda_runtime::CudaTarget;
use allotrope_graph::text::parse;
use allotrope_graph::{Graph, OpId, Target};

/// A group of a graph.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) graph: Graph,
    pub(crate) group: usize,
    /// The compute capability that the code is for.
    pub(crate) capability: (u32, u32),
    /// Tokens of a batch at most.
    pub(crate) tokens: usize,
    /// Whether the numbers of the tables have many magnitudes.
    pub(crate) spread: bool,
    /// Whether a row of `%y` ends with what is infinite.
    pub(crate) infinite: bool,
    /// Whether all numbers must be the reference's exactly: where no sum of many is among the operations.
    pub(crate) exact: bool,
}

impl Case {
    /// A graph of `body` on rows `%x` and `%y` of a type and width; the launch makes the named results.
    fn new(name: &str, dtype: &str, width: usize, body: &str, launch: &[&str], returned: &[&str]) -> Self {
        let declares = |line: &&str| line.trim().starts_with("weight") || line.trim().starts_with("state");
        let (declarations, ops): (Vec<&str>, Vec<&str>) = body.lines().partition(declares);
        let percent = |names: &[&str]| names.iter().map(|name| format!("%{name}")).collect::<Vec<_>>().join(", ");
        let text = format!(
            "graph {{
               input %token_ids: i32[T]
               input %positions: i32[T]
               input %slots: i32[T]
               input %token_sequences: i32[T]
               input %block_tables: i32[S, B]
               input %logit_rows: i32[R]
               weight %table: {dtype}[50, {width}]
               weight %other: {dtype}[50, {width}]
               {}
               %x: {dtype}[T, {width}] = embedding(%table, %token_ids)
               %y: {dtype}[T, {width}] = embedding(%other, %token_ids)
               {}
               return {}
             }}",
            declarations.join("\n"),
            ops.join("\n"),
            percent(returned)
        );
        let mut graph = parse(&text).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
        let named = |id: &OpId| launch.contains(&graph.value(graph.op(*id).output).name.as_str());
        let ops: Vec<OpId> = graph.op_ids().filter(named).collect();
        assert_eq!(ops.len(), launch.len(), "{name}: the launch makes what the graph has");
        CudaTarget.accepts(&graph, &ops).unwrap_or_else(|reason| panic!("{name}: {reason}"));
        graph.regroup(&ops).unwrap_or_else(|error| panic!("{name}: {error}"));
        let group = graph.group_of(ops[0]);
        let name = format!("{name} of {dtype}, {width} wide");
        Self { name, graph, group, capability: (9, 0), tokens: 7, spread: false, infinite: false, exact: false }
    }

    fn for_capability(self, capability: (u32, u32)) -> Self {
        Self { capability, ..self }
    }

    fn tokens(self, tokens: usize) -> Self {
        Self { tokens, ..self }
    }

    fn spread(self) -> Self {
        Self { spread: true, ..self }
    }

    fn infinite(self) -> Self {
        Self { infinite: true, ..self }
    }

    fn exact(self) -> Self {
        Self { exact: true, ..self }
    }
}

/// The operations whose result `%r` has the type of `%x`, each by itself.
fn of_one_type(dtype: &str, width: usize) -> Vec<Case> {
    let operations = [
        ("add", "add(%x, %y)"),
        ("sub", "sub(%x, %y)"),
        ("mul", "mul(%x, %y)"),
        ("mul_scalar", "mul_scalar<factor=-0.37>(%x)"),
        ("add_scalar", "add_scalar<term=1.7>(%x)"),
        ("add of a vector", "add(%x, %vector)"),
        ("embedding", "embedding(%other, %token_ids)"),
        ("silu", "silu(%x)"),
        ("rms_norm", "rms_norm<epsilon=1e-5>(%x, %vector)"),
    ];
    let case = |(name, op): &(&str, &str)| {
        let body = format!("weight %vector: {dtype}[{width}]\n%r: {dtype}[T, {width}] = {op}");
        let exact = !["silu", "rms_norm"].contains(name);
        Case { exact, ..Case::new(name, dtype, width, &body, &["r"], &["r"]) }
    };
    operations.iter().map(case).collect()
}

/// Those that move elements, or have a result of another kind.
fn of_other_types() -> Vec<Case> {
    let mut cases = Vec::new();
    for (width, head) in [(48, 16), (90, 18)] {
        let heads = width / head;
        let body = format!(
            "weight %vector: bf16[{head}]
             %n: bf16[T, {width}] = head_rms_norm<heads={heads}, epsilon=1e-5>(%x, %vector)"
        );
        cases.push(Case::new("head_rms_norm", "bf16", width, &body, &["n"], &["n"]));
        let angles = angles(head);
        let body = format!("{angles}\n%r: bf16[T, {width}] = rope<heads={heads}>(%x, %angles)");
        cases.push(Case::new("rope", "bf16", width, &body, &["r"], &["r"]).exact());
        cases.push(Case::new("rope_angles", "bf16", width, &body, &["angles"], &["angles", "r"]).exact());
        let body = format!(
            "state<layer=0> %cache: kv_cache<bf16, kv_heads={heads}, head_dim={head}>
             {angles}
             %r: bf16[T, {width}] = rope<heads={heads}>(%x, %angles)
             %w: kv_cache<bf16, kv_heads={heads}, head_dim={head}> = kv_write(%cache, %r, %y, %slots)
             %z: bf16[T, {width}] = attention<heads={heads}, scale=0.3>(%y, %w, %positions, %token_sequences, %block_tables)"
        );
        cases.push(Case::new("kv_write", "bf16", width, &body, &["w"], &["z"]).exact());
        cases.push(Case::new("rope and kv_write", "bf16", width, &body, &["r", "w"], &["z"]).exact());
    }
    for width in [40, 17] {
        for dtype in ["f16", "bf16"] {
            let body = format!("%r: {dtype}[T, {width}] = cast<to={dtype}>(%x)");
            cases.push(Case::new(&format!("cast to {dtype}"), "f32", width, &body, &["r"], &["r"]).exact());
        }
        let body = format!("%r: bf16[R, {width}] = select_rows(%x, %logit_rows)");
        cases.push(Case::new("select_rows", "bf16", width, &body, &["r"], &["r"]).exact());
        for capability in [(9, 0), (8, 0)] {
            let body = format!("%r: f8e4m3[T, {width}] = quantize<scale=0.001953125>(%x)");
            let case = Case::new("quantize", "bf16", width, &body, &["r"], &["r"]).spread().exact();
            cases.push(case.for_capability(capability));
        }
    }
    // Parts that begin and end at multiples of eight, and others.
    for (width, parts, cut) in [(48, 2, 8), (51, 3, 5)] {
        let (part, kept) = (width / parts, width - 2 * cut);
        let both = kept + width;
        let body = format!(
            "%a: bf16[T, {parts}, {part}] = reshape<shape=[T, {parts}, {part}]>(%x)
             %b: bf16[T, {part}, {parts}] = transpose<permutation=[0, 2, 1]>(%a)
             %c: bf16[T, {width}] = reshape<shape=[T, {width}]>(%b)
             %d: bf16[T, {kept}] = slice<axis=1, start={cut}, end={end}>(%c)
             %r: bf16[T, {both}] = concat<axis=1>(%d, %y)
             %s: bf16[T, {both}] = concat<axis=1>(%x, %d)",
            end = width - cut
        );
        cases.push(Case::new("moves", "bf16", width, &body, &["a", "b", "c", "d", "r", "s"], &["r", "s"]).exact());
    }
    cases
}

fn angles(head: usize) -> String {
    let half = head / 2;
    let frequencies: Vec<String> = (0..half).map(|i| format!("{:?}", 100f32.powf(-(i as f32) / half as f32))).collect();
    let frequencies = frequencies.join(", ");
    format!(
        "%angles: f32[T, {head}] = rope_angles<attention_scaling=1.1, inverse_frequencies=[{frequencies}]>(%positions)"
    )
}

/// Norms with what passes put before and after them.
fn norms() -> Vec<Case> {
    let mut cases = Vec::new();
    for (dtype, width, tokens) in
        [("bf16", 40, 7), ("bf16", 401, 5), ("f16", 1160, 5), ("bf16", 1353, 4), ("bf16", 8200, 2)]
    {
        let body = format!(
            "weight %v: {dtype}[{width}]
             weight %w: {dtype}[{width}]
             %s: {dtype}[T, {width}] = add(%x, %y)
             %n: {dtype}[T, {width}] = rms_norm<epsilon=1e-5>(%s, %v)
             %m: {dtype}[T, {width}] = rms_norm<epsilon=1e-6>(%n, %w)"
        );
        cases.push(Case::new("add and norm", dtype, width, &body, &["s", "n"], &["s", "m"]).tokens(tokens));
        if width < 8000 {
            cases.push(Case::new("norm of a norm", dtype, width, &body, &["n", "m"], &["s", "m"]).tokens(tokens));
        }
    }
    let body = "weight %v: bf16[40]
             %n: bf16[T, 40] = rms_norm<epsilon=1e-5>(%x, %v)
             %q: f8e4m3[T, 40] = quantize<scale=0.01>(%n)";
    cases.push(Case::new("norm and quantize", "bf16", 40, body, &["n", "q"], &["q"]));
    let body = "weight %v: bf16[40]
         %n: bf16[T, 40] = rms_norm<epsilon=1e-5>(%x, %v)
         %w: bf16[R, 40] = select_rows(%x, %logit_rows)
         %m: bf16[R, 40] = rms_norm<epsilon=1e-5>(%w, %v)
         %c: f32[R, 40] = cast<to=f32>(%m)";
    cases.push(Case::new("embedding and norm", "bf16", 40, body, &["x", "n"], &["n", "c"]));
    cases.push(Case::new("select_rows, norm and cast", "bf16", 40, body, &["w", "m", "c"], &["n", "c"]));
    cases
}

/// Products with what is before and after them.
fn products() -> Vec<Case> {
    let mut cases = Vec::new();
    for (inner, columns) in [(40, 72), (17, 25)] {
        let body = |x: &str| {
            format!(
                "weight %v: bf16[{inner}]
                 weight %g: bf16[{columns}, {inner}]
                 weight %u: bf16[{columns}, {inner}]
                 %n: bf16[T, {inner}] = rms_norm<epsilon=1e-5>(%x, %v)
                 %gate: bf16[T, {columns}] = linear<to=bf16>({x}, %g)
                 %up: bf16[T, {columns}] = linear<to=bf16>({x}, %u)
                 %s: bf16[T, {columns}] = silu(%gate)
                 %p: bf16[T, {columns}] = mul(%s, %up)
                 %q: f8e4m3[T, {columns}] = quantize<scale=0.1>(%p)"
            )
        };
        let launch = ["gate", "up", "s", "p"];
        cases.push(Case::new("gate and up", "bf16", inner, &body("%y"), &launch, &["p"]).infinite());
        let launch = ["n", "gate", "up", "s", "p", "q"];
        cases.push(Case::new("norm, gate, up and quantize", "bf16", inner, &body("%n"), &launch, &["q"]));
        let body = format!(
            "weight %d: bf16[{inner}, {inner}]
             %o: bf16[T, {inner}] = linear<to=bf16>(%y, %d)
             %r: bf16[T, {inner}] = add(%x, %o)"
        );
        cases.push(Case::new("product and residual", "bf16", inner, &body, &["o", "r"], &["r"]).infinite());
    }
    let body = "weight %v: bf16[1160]
         weight %w: bf16[72, 1160]
         %n: bf16[T, 1160] = rms_norm<epsilon=1e-5>(%x, %v)
         %r: bf16[T, 72] = linear<to=bf16>(%n, %w)";
    cases.push(Case::new("wide norm and product", "bf16", 1160, body, &["n", "r"], &["r"]).tokens(5));
    cases
}

/// Queries, keys and values: norm, quantization or not, products, bias or norm of heads, RoPE, the cache.
fn attention_inputs(quantized: bool, inner: usize, head: usize) -> Case {
    // Query heads that do not fill the last tile of columns.
    let heads = if head == 16 { 6 } else { 8 };
    let (queries, keys) = (heads * head, 2 * head);
    // Of odd heads each element is normalized by itself, which `head_rms_norm` alone shows.
    let norms = head.is_multiple_of(16);
    let (head_norm, k) = match norms {
        true => (format!("%kn: bf16[T, {keys}] = head_rms_norm<heads=2, epsilon=1e-5>(%k, %vk)"), "%kn"),
        false => (String::new(), "%k"),
    };
    let (stored, scale) = if quantized { ("f8e4m3", ", scale=0.0001") } else { ("bf16", "") };
    let quantize = match quantized {
        true => format!(
            "%a: f8e4m3[T, {inner}] = quantize<scale=0.01>(%n)
             %b: f8e4m3[T, {inner}] = quantize<scale=0.02>(%n)"
        ),
        false => String::new(),
    };
    let (a, b) = if quantized { ("%a", "%b") } else { ("%n", "%n") };
    let body = format!(
        "weight %v: bf16[{inner}]
         weight %wq: {stored}[{queries}, {inner}]
         weight %wk: {stored}[{keys}, {inner}]
         weight %wv: {stored}[{keys}, {inner}]
         weight %bias: bf16[{queries}]
         weight %vk: bf16[{head}]
         state<layer=0> %cache: kv_cache<bf16, kv_heads=2, head_dim={head}>
         {angles}
         %n: bf16[T, {inner}] = rms_norm<epsilon=1e-5>(%x, %v)
         {quantize}
         %q: bf16[T, {queries}] = linear<to=bf16{scale}>({a}, %wq)
         %k: bf16[T, {keys}] = linear<to=bf16{scale}>({b}, %wk)
         %val: bf16[T, {keys}] = linear<to=bf16{scale}>({b}, %wv)
         %qb: bf16[T, {queries}] = add(%q, %bias)
         {head_norm}
         %qr: bf16[T, {queries}] = rope<heads={heads}>(%qb, %angles)
         %kr: bf16[T, {keys}] = rope<heads=2>({k}, %angles)
         %w: kv_cache<bf16, kv_heads=2, head_dim={head}> = kv_write(%cache, %kr, %val, %slots)
         %z: bf16[T, {queries}] = attention<heads={heads}, scale=0.3>(%qr, %w, %positions, %token_sequences, %block_tables)",
        angles = angles(head)
    );
    let quantizes: &[&str] = if quantized { &["a", "b"] } else { &[] };
    let norms: &[&str] = if norms { &["kn"] } else { &[] };
    let launch = [&["n", "q", "k", "val", "qb", "qr", "kr", "w"], quantizes, norms].concat();
    let name = if quantized { "quantized queries, keys and values" } else { "queries, keys and values" };
    Case::new(name, "bf16", inner, &body, &launch, &["z"])
}

fn attention_epilogue(head: usize) -> Case {
    let width = 2 * head;
    let body = format!(
        "state<layer=0> %cache: kv_cache<bf16, kv_heads=1, head_dim={head}>
         weight %more: bf16[50, {head}]
         %k: bf16[T, {head}] = embedding(%more, %token_ids)
         %w: kv_cache<bf16, kv_heads=1, head_dim={head}> = kv_write(%cache, %k, %k, %slots)
         %z: bf16[T, {width}] = attention<heads=2, scale=0.3>(%x, %w, %positions, %token_sequences, %block_tables)
         %q: f8e4m3[T, {width}] = quantize<scale=0.01>(%z)"
    );
    Case::new("attention and quantize", "bf16", width, &body, &["z", "q"], &["q"]).tokens(16)
}

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = of_one_type("bf16", 40);
    cases.extend(of_one_type("f16", 17));
    cases.extend(of_other_types());
    cases.extend(norms());
    cases.extend(products());
    // Heads whose columns do not fill the last tile, and heads and rows of odd sizes.
    cases.extend([attention_inputs(false, 40, 16), attention_inputs(true, 48, 16), attention_inputs(false, 17, 10)]);
    cases.extend([attention_epilogue(16), attention_epilogue(10)]);
    cases
}
