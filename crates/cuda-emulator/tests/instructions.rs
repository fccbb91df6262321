//! Instructions against Rust, on fresh random inputs.

#![allow(clippy::unwrap_used)]

mod common;

use allotrope_cuda_emulator::machine::Random;
use common::{Bench, at, quads, seed, shape, words};

const THREADS: u32 = 256;

/// A kernel that loads `a`, `b`, `c` for its thread, runs a text, and stores `d`. Registers are `%{w,q}{a,b,c,d}`.
fn kernel(output: char, instruction: &str) -> String {
    let store = if output == 'w' {
        "mul.wide.u32 %o, %t, 4; add.s64 %o, %o, %out; st.global.u32 [%o], %wd;"
    } else {
        "mul.wide.u32 %o, %t, 8; add.s64 %o, %o, %out; st.global.u64 [%o], %qd;"
    };
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n\
         .visible .entry k(.param .u64 k_0, .param .u64 k_1)\n{{\n\
         .reg .b32 %wa, %wb, %wc, %wd, %t, %w<9>;\n.reg .b64 %qa, %qb, %qc, %qd, %o, %out, %in, %q<9>;\n\
         .reg .b16 %h<9>;\n.reg .pred %p<9>;\n\
         ld.param.u64 %out, [k_0]; ld.param.u64 %in, [k_1];\nmov.u32 %t, %tid.x;\n\
         mul.wide.u32 %o, %t, 24; add.s64 %o, %o, %in;\n\
         ld.global.u64 %qa, [%o]; ld.global.u64 %qb, [%o+8]; ld.global.u64 %qc, [%o+16];\n\
         cvt.u32.u64 %wa, %qa; cvt.u32.u64 %wb, %qb; cvt.u32.u64 %wc, %qc;\n{instruction}\n{store}\nret;\n}}"
    )
}

/// Random bits among which corner cases are frequent.
fn inputs(random: &mut Random) -> Vec<[u64; 3]> {
    let special =
        [0, 1, u64::MAX, 0x8000_0000, 0x7fff_ffff, 1 << 63, 0x7f80_0000, 0x3f80_0000, 0xff80_0000, 31, 32, 33];
    let mut one = |_| {
        let choice = random.below(4);
        let bits = random.bits();
        match choice {
            0 => special[random.below(special.len())],
            // Numbers of moderate size, which random bits hardly ever are.
            1 => u64::from(((bits >> 40) as f32 / 65536.0 - 128.0).to_bits()),
            2 => bits & 63,
            _ => bits,
        }
    };
    (0..THREADS).map(|_| [0; 3].map(&mut one)).collect()
}

fn check(output: char, instruction: &str, same: impl Fn([u64; 3], u64) -> Result<(), String>) {
    let mut bench = Bench::new(&kernel(output, instruction)).unwrap_or_else(|error| panic!("{instruction}: {error}"));
    let inputs = inputs(&mut Random::new(bench.seed));
    let flat: Vec<u8> = inputs.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let given = bench.put(&flat);
    let size = if output == 'w' { 4 } else { 8 };
    let result = bench.poisoned(THREADS as usize * size);
    bench.launch("k", shape(1, THREADS), &[at(&result), at(&given)]).unwrap_or_else(|report| panic!("{report}"));
    let results = if output == 'w' { words(&result).into_iter().map(u64::from).collect() } else { quads(&result) };
    for (input, got) in inputs.iter().zip(results) {
        if let Err(expected) = same(*input, got) {
            panic!("`{instruction}` of {input:x?}: {got:#x}, expected {expected}, seed {}", bench.seed);
        }
    }
}

fn word(instruction: &str, reference: impl Fn(u32, u32, u32) -> u32) {
    check('w', instruction, |[a, b, c], got| {
        let expected = reference(a as u32, b as u32, c as u32);
        if got == u64::from(expected) { Ok(()) } else { Err(format!("{expected:#x}")) }
    });
}

fn quad(instruction: &str, reference: impl Fn(u64, u64, u64) -> u64) {
    check('q', instruction, |[a, b, c], got| {
        let expected = reference(a, b, c);
        if got == expected { Ok(()) } else { Err(format!("{expected:#x}")) }
    });
}

fn single(instruction: &str, reference: impl Fn(f32, f32, f32) -> f32) {
    check('w', instruction, |[a, b, c], got| {
        let [a, b, c] = [a, b, c].map(|bits| f32::from_bits(bits as u32));
        let (got, expected) = (f32::from_bits(got as u32), reference(a, b, c));
        let same = got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
        if same { Ok(()) } else { Err(format!("{expected:e}")) }
    });
}

fn s(value: u32) -> i32 {
    value.cast_signed()
}

#[test]
fn integers() {
    word("add.s32 %wd, %wa, %wb;", |a, b, _| a.wrapping_add(b));
    word("sub.s32 %wd, %wa, %wb;", |a, b, _| a.wrapping_sub(b));
    word("mad.lo.s32 %wd, %wa, %wb, %wc;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    word("mul.hi.s32 %wd, %wa, %wb;", |a, b, _| ((i64::from(s(a)) * i64::from(s(b))) >> 32) as u32);
    word("mul.hi.u32 %wd, %wa, %wb;", |a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    word("max.s32 %wd, %wa, %wb;", |a, b, _| s(a).max(s(b)).cast_unsigned());
    word("min.u32 %wd, %wa, %wb;", |a, b, _| a.min(b));
    word(
        "@!%p1 setp.ne.s32 %p1, 1, 1; setp.ne.s32 %p1, %wb, 0; mov.u32 %wd, 7; @%p1 div.s32 %wd, %wa, %wb;",
        |a, b, _| {
            if b == 0 { 7 } else { s(a).wrapping_div(s(b)).cast_unsigned() }
        },
    );
    word("or.b32 %wb, %wb, 1; rem.u32 %wd, %wa, %wb;", |a, b, _| a % (b | 1));
    word("shl.b32 %wd, %wa, %wb;", |a, b, _| if b > 31 { 0 } else { a << b });
    word("shr.s32 %wd, %wa, %wb;", |a, b, _| (s(a) >> b.min(31)).cast_unsigned());
    word(
        "shf.l.wrap.b32 %wd, %wa, %wb, %wc;",
        |a, b, c| {
            if c & 31 == 0 { b } else { b << (c & 31) | a >> (32 - (c & 31)) }
        },
    );
    word("prmt.b32 %wd, %wa, %wb, 0x5410;", |a, b, _| (a & 0xffff) | b << 16);
    word("lop3.b32 %wd, %wa, %wb, %wc, 0x96;", |a, b, c| a ^ b ^ c);
    word("lop3.b32 %wd, %wa, %wb, %wc, 0xe8;", |a, b, c| (a & b) | (b & c) | (a & c));
    word("bfe.u32 %wd, %wa, 8, 4;", |a, _, _| a >> 8 & 15);
    word("bfe.s32 %wd, %wa, 8, 4;", |a, _, _| ((s(a) << 20) >> 28).cast_unsigned());
    word("bfi.b32 %wd, %wa, %wb, 4, 8;", |a, b, _| (b & !0xff0) | (a & 255) << 4);
    word("clz.b32 %wd, %wa;", |a, _, _| a.leading_zeros());
    word("popc.b32 %wd, %wa;", |a, _, _| a.count_ones());
    word("abs.s32 %wd, %wa;", |a, _, _| s(a).wrapping_abs().cast_unsigned());
    word(
        "{ .reg .b16 %x<3>; cvt.u16.u32 %x1, %wa; cvt.u16.u32 %x2, %wb; sub.s16 %x1, %x1, %x2; cvt.u32.u16 %wd, %x1; }",
        |a, b, _| a.wrapping_sub(b) & 0xffff,
    );
    word("cvt.u16.u32 %h1, %wa; cvt.s32.s16 %wd, %h1;", |a, _, _| i32::from(a as u16 as i16).cast_unsigned());
    word("mov.b32 {%h1, %h2}, %wa; mov.b32 %wd, {%h2, %h1};", |a, _, _| a.rotate_left(16));
}

#[test]
fn wide_integers() {
    quad("add.s64 %qd, %qa, %qb;", |a, b, _| a.wrapping_add(b));
    quad("mul.wide.s32 %qd, %wa, %wb;", |a, b, _| (i64::from(s(a as u32)) * i64::from(s(b as u32))).cast_unsigned());
    quad("mad.wide.u32 %qd, %wa, %wb, %qc;", |a, b, c| ((a & 0xffff_ffff) * (b & 0xffff_ffff)).wrapping_add(c));
    quad("mul.hi.u64 %qd, %qa, %qb;", |a, b, _| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    quad("or.b64 %qb, %qb, 1; div.u64 %qd, %qa, %qb;", |a, b, _| a / (b | 1));
    quad("shr.u64 %qd, %qa, %wb;", |a, b, _| a.checked_shr(b as u32).unwrap_or(0));
    quad("cvt.s64.s32 %qd, %wa;", |a, _, _| i64::from(s(a as u32)).cast_unsigned());
    quad("mov.b64 {%w1, %w2}, %qa; mov.b64 %qd, {%w2, %w1};", |a, _, _| a.rotate_left(32));
    quad("bfi.b64 %qd, %qa, %qb, 32, 32;", |a, b, _| (b & 0xffff_ffff) | a << 32);
    quad("setp.lt.s64 %p1, %qa, %qb; selp.b64 %qd, %qa, %qb, %p1;", |a, b, _| {
        a.cast_signed().min(b.cast_signed()).cast_unsigned()
    });
}

#[test]
fn singles() {
    single("add.f32 %wd, %wa, %wb;", |a, b, _| a + b);
    single("mul.rn.f32 %wd, %wa, %wb;", |a, b, _| a * b);
    single("fma.rn.f32 %wd, %wa, %wb, %wc;", f32::mul_add);
    single("div.rn.f32 %wd, %wa, %wb;", |a, b, _| a / b);
    single("rcp.rn.f32 %wd, %wa;", |a, _, _| 1.0 / a);
    single("sqrt.rn.f32 %wd, %wa;", |a, _, _| a.sqrt());
    single("rsqrt.approx.f32 %wd, %wa;", |a, _, _| (1.0 / f64::from(a).sqrt()) as f32);
    single("ex2.approx.f32 %wd, %wa;", |a, _, _| f64::from(a).exp2() as f32);
    single("lg2.approx.f32 %wd, %wa;", |a, _, _| f64::from(a).log2() as f32);
    single("neg.f32 %wd, %wa;", |a, _, _| -a);
    single("cvt.rmi.f32.f32 %wd, %wa;", |a, _, _| a.floor());
    single("cvt.rn.f32.s32 %wd, %wa;", |a, _, _| s(a.to_bits()) as f32);
    single(
        "max.f32 %wd, %wa, %wb;",
        |a, b, _| {
            if a == b { f32::from_bits(a.to_bits() & b.to_bits()) } else { a.max(b) }
        },
    );
    single("add.ftz.f32 %wd, %wa, %wb;", |a, b, _| {
        let flush = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
        flush(flush(a) + flush(b))
    });
}

/// Directed roundings: the result is the nearest float on the right side of the exact value, which `f64` holds for
/// products.
#[test]
fn roundings() {
    for (name, down) in [("rm", true), ("rp", false)] {
        let instruction = format!("mul.{name}.f32 %wd, %wa, %wb;");
        check('w', &instruction, |[a, b, _], got| {
            let exact = f64::from(f32::from_bits(a as u32)) * f64::from(f32::from_bits(b as u32));
            let got = f32::from_bits(got as u32);
            // Subnormal and infinite results have coarser neighbours.
            if !exact.is_finite() || exact.abs() < 1e-37 || exact.abs() > 3e38 {
                return Ok(());
            }
            let right_side = if down { f64::from(got) <= exact } else { f64::from(got) >= exact };
            let next = if down { got.next_up() } else { got.next_down() };
            let nearest = if down { f64::from(next) > exact } else { f64::from(next) < exact };
            if right_side && nearest { Ok(()) } else { Err(format!("{exact:e} {name}")) }
        });
    }
}

#[test]
fn small_formats() {
    let bf = |x: f32| half::bf16::from_f32(x);
    check('w', "cvt.rn.bf16.f32 %h1, %wa; cvt.f32.bf16 %wd, %h1;", |[a, ..], got| {
        let (got, expected) = (f32::from_bits(got as u32), bf(f32::from_bits(a as u32)).to_f32());
        if got == expected || got.is_nan() && expected.is_nan() { Ok(()) } else { Err(format!("{expected:e}")) }
    });
    check('w', "cvt.rn.f16.f32 %h1, %wa; cvt.f32.f16 %wd, %h1;", |[a, ..], got| {
        let (got, expected) = (f32::from_bits(got as u32), half::f16::from_f32(f32::from_bits(a as u32)).to_f32());
        if got == expected || got.is_nan() && expected.is_nan() { Ok(()) } else { Err(format!("{expected:e}")) }
    });
    // The first source is the upper half.
    word("mov.b32 %wa, 0f3F800000; mov.b32 %wb, 0f40000000; cvt.rn.bf16x2.f32 %wd, %wa, %wb;", |_, _, _| 0x3f80_4000);
    word(
        "mov.b32 %wa, 0f3F800000; mov.b32 %wb, 0fC0000000; cvt.rn.satfinite.e4m3x2.f32 %h1, %wa, %wb; cvt.u32.u16 %wd, %h1;",
        |_, _, _| 0x38c0,
    );
    word("mov.b32 %wa, 0x38c0; cvt.u16.u32 %h1, %wa; cvt.rn.f16x2.e4m3x2 %wd, %h1;", |_, _, _| 0x3c00_c000);
    word("mov.b32 %wa, 0x3f804000; fma.rn.bf16x2 %wd, %wa, %wa, %wa;", |_, _, _| 0x4000_40c0);
    word("mov.b32 %wa, 0x3c004000; mul.f16x2 %wd, %wa, %wa;", |_, _, _| 0x3c00_4400);
}

#[test]
fn comparisons() {
    type Comparison = fn(f32, f32) -> bool;
    let cases: [(&str, Comparison); 6] = [
        ("lt", |a, b| a < b),
        ("geu", |a, b| a >= b || a.is_nan() || b.is_nan()),
        ("ne", |a, b| !a.is_nan() && !b.is_nan() && a != b),
        ("neu", |a, b| a != b),
        ("equ", |a, b| a == b || a.is_nan() || b.is_nan()),
        ("num", |a, b| !a.is_nan() && !b.is_nan()),
    ];
    for (name, reference) in cases {
        let text = format!("setp.{name}.f32 %p1, %wa, %wb; selp.b32 %wd, 1, 0, %p1;");
        word(&text, |a, b, _| u32::from(reference(f32::from_bits(a), f32::from_bits(b))));
    }
    word("setp.hi.u32 %p1, %wa, %wb; selp.b32 %wd, 1, 0, %p1;", |a, b, _| u32::from(a > b));
    word("setp.gt.s32 %p1|%p2, %wa, %wb; selp.b32 %wd, 1, 0, %p2;", |a, b, _| u32::from(s(a) <= s(b)));
    word("setp.eq.s32 %p2, %wc, 0; setp.lt.and.u32 %p1, %wa, %wb, !%p2; selp.b32 %wd, 1, 0, %p1;", |a, b, c| {
        u32::from(a < b && c != 0)
    });
}

#[test]
fn lanes_together() {
    let lane = |index: u32| index % 32;
    let tagged = |body: &str| format!("mov.u32 %w1, %tid.x; {body}");
    let by_thread = |text: &str, reference: &dyn Fn(u32) -> u32| {
        let mut bench = Bench::new(&kernel('w', &tagged(text))).unwrap_or_else(|error| panic!("{text}: {error}"));
        let given = bench.put(&vec![0; THREADS as usize * 24]);
        let result = bench.poisoned(THREADS as usize * 4);
        bench.launch("k", shape(1, THREADS), &[at(&result), at(&given)]).unwrap_or_else(|report| panic!("{report}"));
        let expected: Vec<u32> = (0..THREADS).map(reference).collect();
        assert_eq!(words(&result), expected, "{text}");
    };
    by_thread("shfl.sync.bfly.b32 %wd, %w1, 3, 31, -1;", &|t| t ^ 3);
    by_thread("shfl.sync.down.b32 %wd|%p1, %w1, 4, 31, -1;", &|t| if lane(t) + 4 < 32 { t + 4 } else { t });
    by_thread("shfl.sync.up.b32 %wd, %w1, 1, 0, -1;", &|t| if lane(t) == 0 { t } else { t - 1 });
    // Segments of eight.
    by_thread("shfl.sync.idx.b32 %wd, %w1, 5, 0x181f, -1;", &|t| t / 8 * 8 + 5);
    by_thread("and.b32 %w2, %w1, 1; setp.eq.s32 %p1, %w2, 1; vote.sync.ballot.b32 %wd, %p1, -1;", &|_| 0xaaaa_aaaa);
    by_thread("redux.sync.add.s32 %wd, %w1, -1;", &|t| (t / 32 * 32..t / 32 * 32 + 32).sum());
    by_thread("shr.u32 %w2, %w1, 3; match.any.sync.b32 %wd, %w2, -1;", &|t| 255 << (lane(t) / 8 * 8));
    // Divergence: odd and even lanes go apart, vote among themselves, and meet again.
    by_thread(
        "and.b32 %w2, %w1, 1; setp.eq.s32 %p1, %w2, 1; mov.pred %p2, 1; @%p1 bra ODD;\n\
         vote.sync.ballot.b32 %w3, %p2, 0x55555555; bra MEET;\n\
         ODD: vote.sync.ballot.b32 %w3, %p2, 0xaaaaaaaa;\n\
         MEET: shfl.sync.bfly.b32 %wd, %w3, 1, 31, -1;",
        &|t| if t % 2 == 0 { 0xaaaa_aaaa } else { 0x5555_5555 },
    );
    // A loop as long as the lane's number.
    by_thread(
        "and.b32 %w2, %w1, 31; mov.u32 %wd, 0;\nLOOP: setp.ge.u32 %p1, %wd, %w2; @%p1 bra DONE; add.s32 %wd, %wd, 1; bra LOOP;\n\
         DONE: bar.warp.sync -1;",
        &lane,
    );
    // A table of branches.
    by_thread(
        "and.b32 %w2, %w1, 3;\nT: .branchtargets A, B, A, B;\nbrx.idx %w2, T;\nA: mov.u32 %wd, 1; bra E;\nB: mov.u32 %wd, 2;\nE:",
        &|t| 1 + t % 2,
    );
}

#[test]
fn hostile_texts_are_refused_with_their_place() {
    let refuse = |body: &str| Bench::new(&kernel('w', body)).err().unwrap_or_else(|| panic!("{body}")).to_string();
    assert_eq!(refuse("tcgen05.ld.sync %wd;"), "PTX line 15, column 1: unsupported instruction `tcgen05.ld.sync`");
    assert!(refuse("add.s32 %wd, %wa;").contains("an operand is missing"));
    assert!(refuse("add.s32 %wd, %wa, %wb, %wc;").contains("too many operands"));
    assert!(refuse("add.s32 %wd, %qa, %wb;").contains("wrong width"));
    assert!(refuse("add.s32 5, %wa, %wb;").contains("not a register"));
    assert!(refuse("add.s32 %tid.x, %wa, %wb;").contains("not a declared register"));
    assert!(refuse("bra NOWHERE;").contains("unknown label"));
    assert!(refuse("ld.global.v2.u32 {%wa}, [%qa];").contains("expected 2 registers"));
    assert!(refuse(".reg .b32 %huge<4294967295>; add.s32 %huge4294967294, %huge1, 1; frob;").contains("frob"));
    assert!(refuse(".shared .b8 x[300000];").contains("does not fit"));
    // Any prefix of a good text, and any text with a line left out, is run or refused, never worse.
    let good = kernel('w', "shfl.sync.bfly.b32 %wd|%p1, %wa, 1, 31, -1;\nmov.b64 {%w1, %w2}, %qa;");
    for end in 0..good.len() {
        let _ = Bench::new(&good[..end]);
    }
    let mut random = Random::new(seed());
    for _ in 0..2000 {
        let mut text: Vec<u8> = good.bytes().collect();
        for _ in 0..1 + random.below(3) {
            let place = random.below(text.len());
            text[place] = b" ;,{}[]%.|@!:<>0123456789abdpqrsuvwx"[random.below(36)];
        }
        let _ = Bench::new(std::str::from_utf8(&text).unwrap());
    }
}
