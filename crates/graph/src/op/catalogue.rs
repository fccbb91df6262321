//! What there is to know of every operation, as data: its name, operands and meaning. The parser looks names up here, and
//! `docs/ir.md` is written from it.

/// An operation as the documentation shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpInfo {
    /// The name in the text form.
    pub name: &'static str,
    /// The names of the operands, in order. For `concat`, which takes any number, the one name stands for all.
    pub operands: &'static [&'static str],
    /// The names of the attributes, in the order of the text form, and what each is.
    pub attributes: &'static [(&'static str, &'static str)],
    /// The types of operands and result.
    pub types: &'static str,
    /// What it computes.
    pub semantics: &'static str,
    /// Where it rounds to a storage type.
    pub rounding: &'static str,
    /// What it sums over, and the parts of that order that hold on every device; empty where it sums nothing.
    pub reduction: &'static str,
}

const ONCE: &str = "computed in f32, rounded once to the type of the result";
const NEVER: &str = "moves elements, rounds nothing";

/// Every operation.
pub const OPS: &[OpInfo] = &[
    OpInfo {
        name: "embedding",
        operands: &["table", "ids"],
        attributes: &[],
        types: "(t[V, H], i32[N]) → t[N, H], t any float type",
        semantics: "row `ids[n]` of the table for each n",
        rounding: NEVER,
        reduction: "",
    },
    OpInfo {
        name: "select_rows",
        operands: &["x", "rows"],
        attributes: &[],
        types: "(t[T, H], i32[R]) → t[R, H]",
        semantics: "row `rows[r]` of x for each r",
        rounding: NEVER,
        reduction: "",
    },
    OpInfo {
        name: "cast",
        operands: &["x"],
        attributes: &[("to", "the element type of the result")],
        types: "(t[…]) → to[…], both float types",
        semantics: "x in another element type",
        rounding: "to nearest, ties to even; to f8e4m3 clamped to ±448",
        reduction: "",
    },
    OpInfo {
        name: "rms_norm",
        operands: &["x", "weight"],
        attributes: &[("epsilon", "added to the mean of squares")],
        types: "(t[N, H], u[H]) → t[N, H], t and u of f32, f16, bf16",
        semantics: "`x · rsqrt(mean(x²) + epsilon) · weight` for each row (Zhang and Sennrich, 2019)",
        rounding: "twice, as Hugging Face's Llama does: after the normalization, and after the product with the weight",
        reduction: "the squares of one row, in f32; a device has one order, which depends on H alone",
    },
    OpInfo {
        name: "head_rms_norm",
        operands: &["x", "weight"],
        attributes: &[("heads", "heads in a row of x"), ("epsilon", "added to the mean of squares")],
        types: "(t[N, heads · D], u[D]) → t[N, heads · D], t and u of f32, f16, bf16",
        semantics: "`rms_norm` of each head of a row by itself, all with one weight (Qwen3's q and k norms)",
        rounding: "twice, as `rms_norm`",
        reduction: "the squares of one head, in the order that `rms_norm` has for rows of D",
    },
    OpInfo {
        name: "linear",
        operands: &["x", "weight"],
        attributes: &[
            ("to", "the element type of the result"),
            ("scale", "input scale × weight scale, if the operands are quantized"),
        ],
        types: "(t[N, K], t[M, K]) → to[N, M]; `scale` is given if and only if t is f8e4m3; `to` of f32, f16, bf16",
        semantics: "`x · weightᵀ`, times `scale` (input scale × weight scale) where the operands are quantized",
        rounding: "once, after the sum and its product with the scale",
        reduction: "over K, in f32; a device has one order, which depends on K alone: not on N, tiles, threads or layout",
    },
    OpInfo {
        name: "quantize",
        operands: &["x"],
        attributes: &[("scale", "the static scale of the tensor")],
        types: "(t[…]) → f8e4m3[…], t of f32, f16, bf16",
        semantics: "`x / scale`, clamped to ±448",
        rounding: "to nearest, ties to even",
        reduction: "",
    },
    OpInfo {
        name: "rope_angles",
        operands: &["positions"],
        attributes: &[
            ("attention_scaling", "a factor on every cosine and sine; 1 for all kinds of RoPE but YaRN"),
            ("inverse_frequencies", "D / 2 of them"),
        ],
        types: "(i32[N]) → f32[N, D], D = 2 × the number of frequencies",
        semantics: "the cosines, then the sines, of `position · frequency`, all times `attention_scaling`",
        rounding: "the product is rounded to f32, its cosine and sine are those of f64 rounded to f32, and so is their product with \
                   `attention_scaling`",
        reduction: "",
    },
    OpInfo {
        name: "rope",
        operands: &["x", "angles"],
        attributes: &[("heads", "heads in a row of x")],
        types: "(t[N, heads · D], f32[N, D]) → t[N, heads · D], D even",
        semantics: "`[x₁·cos − x₂·sin, x₂·cos + x₁·sin]` of each head's halves (Su et al., 2021)",
        rounding: ONCE,
        reduction: "",
    },
    OpInfo {
        name: "kv_write",
        operands: &["cache", "k", "v", "slots"],
        attributes: &[],
        types: "(kv_cache<t>, t[T, kv width], t[T, kv width], i32[T]) → kv_cache<t>; into kv_cache<f8e4m3> from f32, f16 or bf16",
        semantics: "the cache with each token's key and value in its slot; a slot of −1 writes nothing",
        rounding: "moves elements, rounds nothing; into a cache of f8e4m3 each is clamped to ±448 and rounded",
        reduction: "",
    },
    OpInfo {
        name: "attention",
        operands: &["q", "cache", "positions", "token_sequences", "block_tables"],
        attributes: &[("heads", "query heads"), ("scale", "multiplies each score before the softmax, usually 1/√D")],
        types: "(t[T, heads · D], kv_cache<t> or kv_cache<f8e4m3>, i32[T], i32[T], i32[S, B]) → t[T, heads · D]",
        semantics: "causal attention of each token over positions 0..=position of its sequence, grouped-query where \
                    the cache has fewer heads; `scale` multiplies the scores; padding yields zeros",
        rounding: "scores, softmax and sums are f32; the result is rounded once",
        reduction: "over D for a score and over positions for the result, in f32; a device has one order, which \
                    depends on the position alone",
    },
    OpInfo {
        name: "silu",
        operands: &["x"],
        attributes: &[],
        types: "(t[…]) → t[…], t of f32, f16, bf16",
        semantics: "`x / (1 + exp(−x))`",
        rounding: ONCE,
        reduction: "",
    },
    OpInfo {
        name: "add",
        operands: &["a", "b"],
        attributes: &[],
        types: "(t[…], t[…]) → t[…], or (t[N, H], t[H]) → t[N, H]; t of f32, f16, bf16",
        semantics: "`a + b`; a vector b is added to every row",
        rounding: ONCE,
        reduction: "",
    },
    OpInfo {
        name: "sub",
        operands: &["a", "b"],
        attributes: &[],
        types: "(t[…], t[…]) → t[…], t of f32, f16, bf16",
        semantics: "`a − b`",
        rounding: ONCE,
        reduction: "",
    },
    OpInfo {
        name: "mul",
        operands: &["a", "b"],
        attributes: &[],
        types: "(t[…], t[…]) → t[…], t of f32, f16, bf16",
        semantics: "`a · b`",
        rounding: ONCE,
        reduction: "",
    },
    OpInfo {
        name: "mul_scalar",
        operands: &["x"],
        attributes: &[("factor", "a finite number")],
        types: "(t[…]) → t[…], t of f32, f16, bf16",
        semantics: "`x · factor`",
        rounding: ONCE,
        reduction: "",
    },
    OpInfo {
        name: "add_scalar",
        operands: &["x"],
        attributes: &[("term", "a finite number")],
        types: "(t[…]) → t[…], t of f32, f16, bf16",
        semantics: "`x + term`",
        rounding: ONCE,
        reduction: "",
    },
    OpInfo {
        name: "reshape",
        operands: &["x"],
        attributes: &[("shape", "the shape of the result")],
        types: "(t[…]) → t[shape], with the same symbols and as many elements",
        semantics: "the same elements in row-major order under another shape",
        rounding: NEVER,
        reduction: "",
    },
    OpInfo {
        name: "slice",
        operands: &["x"],
        attributes: &[
            ("axis", "the axis, whose size is static"),
            ("start", "the first index that is kept"),
            ("end", "one past the last"),
        ],
        types: "(t[…]) → t[…] with `end − start` in place of the static size of `axis`",
        semantics: "the elements whose index along `axis` is in start..end",
        rounding: NEVER,
        reduction: "",
    },
    OpInfo {
        name: "concat",
        operands: &["x…"],
        attributes: &[("axis", "the axis, whose sizes are static")],
        types: "(t[…], …) → t[…], equal but for the static size of `axis`, which adds up",
        semantics: "the operands one after the other along `axis`",
        rounding: NEVER,
        reduction: "",
    },
    OpInfo {
        name: "transpose",
        operands: &["x"],
        attributes: &[("permutation", "for each axis of the result the axis of x that it is")],
        types: "(t[…]) → t[…] with the axes permuted",
        semantics: "x with its axes in another order: axis i of the result is axis `permutation[i]` of x",
        rounding: NEVER,
        reduction: "",
    },
];

/// The operation of that name.
pub fn find(name: &str) -> Option<&'static OpInfo> {
    OPS.iter().find(|info| info.name == name)
}

/// "; did you mean …?" for a name that no operation has, or nothing where none is near.
pub(crate) fn did_you_mean(name: &str) -> String {
    let near = OPS.iter().map(|info| (strsim::damerau_levenshtein(name, info.name), info.name)).min();
    match near {
        Some((distance, nearest)) if distance <= 1 + name.len() / 4 => format!("; did you mean `{nearest}`?"),
        _ => String::new(),
    }
}
