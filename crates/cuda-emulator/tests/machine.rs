//! What blocks and warps do together, and what is wrong when they do not: barriers, atomics, copies, matrices,
//! memory.

#![allow(clippy::unwrap_used)]

mod common;

use allotrope_cuda_emulator::forms::number;
use allotrope_cuda_emulator::machine::{FaultKind, Random, Report};
use common::{Bench, Shape, assert_close, at, floats, shape, uniform, words};

const THREADS: u32 = 128;

/// A kernel with an output and an input of a word per thread, 4096 bytes of shared memory, and a text in between.
fn kernel(text: &str) -> String {
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.global .align 4 .u32 table[4] = {{1, 2, 3, 4}};\n\
         .visible .entry k(.param .u64 k_0, .param .u64 k_1)\n{{\n\
         .reg .b32 %r<40>, %t, %lane, %base;\n.reg .f32 %f<20>;\n.reg .b64 %d<20>, %out, %in, %own;\n.reg .pred %p<9>;\n\
         .shared .align 16 .b8 s[4096];\n.local .align 4 .b8 mine[16];\n\
         ld.param.u64 %out, [k_0]; ld.param.u64 %in, [k_1];\n\
         mov.u32 %t, %tid.x; and.b32 %lane, %t, 31; mov.u32 %base, s;\n\
         mad.wide.u32 %own, %t, 4, %out;\n{text}\nret;\n}}"
    )
}

fn bench(text: &str) -> Bench {
    Bench::new(&kernel(text)).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn fault(text: &str) -> Box<Report> {
    let mut bench = bench(text);
    let (out, given) = (bench.poisoned(THREADS as usize * 4), bench.put(&[0; 512]));
    bench.launch("k", shape(1, THREADS), &[at(&out), at(&given)]).err().unwrap_or_else(|| panic!("no fault: {text}"))
}

fn results(text: &str, reference: impl Fn(u32) -> u32) {
    let mut bench = bench(text);
    for seed in 0..8 {
        bench.seed = bench.seed.wrapping_add(seed);
        let (out, given) = (bench.poisoned(THREADS as usize * 4), bench.put(&[0; 512]));
        bench
            .launch("k", shape(1, THREADS), &[at(&out), at(&given)])
            .unwrap_or_else(|report| panic!("{text}: {report}"));
        assert_eq!(words(&out), (0..THREADS).map(&reference).collect::<Vec<_>>(), "{text}");
    }
}

#[test]
fn barriers() {
    let exchange = |barrier: &str| {
        format!(
            "shl.b32 %r1, %t, 2; add.s32 %r1, %r1, %base; st.shared.u32 [%r1], %t; {barrier}\n\
             xor.b32 %r2, %t, 127; shl.b32 %r2, %r2, 2; add.s32 %r2, %r2, %base; ld.shared.u32 %r3, [%r2]; st.global.u32 [%own], %r3;"
        )
    };
    results(&exchange("bar.sync 0;"), |thread| thread ^ 127);
    results(&exchange("barrier.sync 3, 128;"), |thread| thread ^ 127);
    let without = fault(&exchange(""));
    assert!([FaultKind::Race, FaultKind::Uninitialized].contains(&without.kind), "{without}");
    // Warps 0 and 1 fill, warps 2 and 3 read.
    results(
        "setp.lt.u32 %p1, %t, 64; shl.b32 %r1, %t, 2; add.s32 %r1, %r1, %base; mov.u32 %r3, %t; @!%p1 bra READ;\n\
         st.shared.u32 [%r1], %t; bar.arrive 1, 128; bra END;\nREAD: bar.sync 1, 128; ld.shared.u32 %r3, [%r1+-256];\n\
         END: st.global.u32 [%own], %r3;",
        |thread| thread % 64,
    );
    results("setp.lt.u32 %p1, %t, 50; bar.red.popc.u32 %r1, 0, %p1; st.global.u32 [%own], %r1;", |_| 50);
    results(
        "setp.lt.u32 %p1, %t, 50; bar.red.or.pred %p2, 0, %p1; selp.b32 %r1, 7, 8, %p2; st.global.u32 [%own], %r1;",
        |_| 7,
    );
    // Threads that are done do not hold up the others.
    results("st.global.u32 [%own], %t; setp.gt.u32 %p1, %t, 40; @%p1 ret; bar.sync 0;", |thread| thread);
    let apart =
        fault("setp.gt.u32 %p1, %t, 40; @%p1 bra A; bar.sync 0; bra B; A: bar.sync 0; B: st.global.u32 [%own], %t;");
    assert!(apart.kind == FaultKind::Deadlock && apart.message.contains("two barriers"), "{apart}");
    assert_eq!(fault("setp.gt.u32 %p1, %t, 63; @%p1 bar.sync 1, 128;").kind, FaultKind::Deadlock);
    assert_eq!(fault("bar.sync 16;").kind, FaultKind::Operand);
}

#[test]
fn memory_is_checked() {
    let kind = |text: &str| fault(text).kind;
    assert_eq!(kind("ld.global.u32 %r1, [%in+512];"), FaultKind::Address);
    assert_eq!(kind("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%in+500];"), FaultKind::Address);
    assert_eq!(kind("ld.global.u32 %r1, [%in+2];"), FaultKind::Alignment);
    assert_eq!(kind("st.global.u32 [%in+-4], %t;"), FaultKind::Address);
    assert_eq!(kind("ld.shared.u32 %r1, [%base+4096];"), FaultKind::Address);
    assert_eq!(kind("ld.shared.u32 %r1, [%base];"), FaultKind::Uninitialized);
    assert_eq!(kind("ld.local.u32 %r1, [mine+16];"), FaultKind::Address);
    assert_eq!(kind("ld.param.u64 %d1, [k_1+8];"), FaultKind::Address);
    assert_eq!(kind("mov.u64 %d1, 0; ld.u32 %r1, [%d1];"), FaultKind::Address);
    assert_eq!(kind("setp.eq.u32 %p1, %t, 99; @%p1 trap;"), FaultKind::Trap);
    assert_eq!(fault("setp.eq.u32 %p1, %t, 99; @%p1 trap;").thread, [99, 0, 0]);
    // The window of shared memory in the generic space, variables, local memory.
    results(
        "cvt.u64.u32 %d1, %base; cvta.shared.u64 %d1, %d1; mad.wide.u32 %d1, %t, 4, %d1; st.u32 [%d1], %t; ld.u32 %r1, [%d1];\n\
         st.local.u32 [mine+4], %r1; ld.local.u32 %r2, [mine+4]; ld.global.u32 %r3, [table+8]; add.s32 %r1, %r2, %r3;\n\
         st.global.u32 [%own], %r1;",
        |thread| thread + 3,
    );
}

#[test]
fn atomics() {
    results(
        "setp.ne.u32 %p1, %t, 0; @%p1 bra A; st.shared.u32 [%base], 0; st.shared.u32 [%base+4], 0; A: bar.sync 0;\n\
         atom.shared.add.u32 %r1, [%base], %t; red.shared.max.u32 [%base+4], %t; bar.sync 0; ld.shared.u32 %r2, [%base];\n\
         ld.shared.u32 %r3, [%base+4]; add.s32 %r2, %r2, %r3; st.global.u32 [%own], %r2;",
        |_| (0..THREADS).sum::<u32>() + THREADS - 1,
    );
    // A lock of compare and swap, with a plain access under it: every lane has its turn, wherever the others wait.
    let mut bench = bench(
        "AGAIN: atom.global.cas.b32 %r1, [%in], 0, 1; setp.ne.s32 %p1, %r1, 0; @%p1 bra AGAIN;\n\
         ld.volatile.global.u32 %r2, [%in+4]; add.s32 %r2, %r2, 1; st.volatile.global.u32 [%in+4], %r2;\n\
         atom.global.exch.b32 %r1, [%in], 0; st.global.u32 [%own], %r2;",
    );
    let (out, lock) = (bench.poisoned(512), bench.put(&[0; 8]));
    bench.launch("k", shape(1, 64), &[at(&out), at(&lock)]).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(words(&lock), [0, 64]);
    let mut bench = bench_add();
    let (out, sum) = (bench.poisoned(512), bench.put_floats(&[0.0]));
    let grid = Shape { grid: [50, 2, 1], ..shape(1, 96) };
    bench.launch("k", grid, &[at(&out), at(&sum)]).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(floats(&sum), [9600.0]);
}

fn bench_add() -> Bench {
    bench("mov.f32 %f1, 0f3F800000; atom.global.add.f32 %f2, [%in], %f1;")
}

#[test]
fn copies_land_when_waited_for() {
    let text = |wait: &str| {
        format!(
            "shl.b32 %r1, %t, 2; add.s32 %r2, %r1, %base; cvt.u64.u32 %d1, %r1; add.s64 %d1, %d1, %in;\n\
             cp.async.ca.shared.global [%r2], [%d1], 4; cp.async.commit_group;\n\
             cp.async.ca.shared.global [%r2+512], [%d1], 4, 0; cp.async.commit_group; {wait}\n\
             ld.shared.u32 %r3, [%r2]; st.global.u32 [%own], %r3;"
        )
    };
    results(&text("cp.async.wait_group 1;"), |_| 0);
    results(&text("cp.async.wait_all;"), |_| 0);
    let early = fault(&text("cp.async.wait_group 2;"));
    assert!(early.kind == FaultKind::Race && early.message.contains("a wait is missing"), "{early}");
    assert_eq!(fault("cp.async.ca.shared.global [%base], [%in], 12;").kind, FaultKind::Operand);
}

/// Products of one warp. Each element's place in the registers is worked out here once more, from the layout as it is
/// documented.
#[test]
fn matrices() {
    struct Product {
        name: &'static str,
        depth: usize,
        per_word: usize,
        encode: fn(f32) -> u32,
        decode: fn(u32) -> f32,
    }
    let product = |name, depth, per_word, encode, decode| Product { name, depth, per_word, encode, decode };
    let all = [
        product("m16n8k16.row.col.f32.bf16.bf16.f32", 16, 2, number::to_bfloat, number::from_bfloat),
        product("m16n8k8.row.col.f32.bf16.bf16.f32", 8, 2, number::to_bfloat, number::from_bfloat),
        product("m16n8k16.row.col.f32.f16.f16.f32", 16, 2, number::to_half, number::from_half),
        product("m16n8k8.row.col.f32.tf32.tf32.f32", 8, 1, number::to_tensor_float, f32::from_bits),
        product("m16n8k32.row.col.f32.e4m3.e4m3.f32", 32, 4, number::to_e4m3, number::from_e4m3),
    ];
    for Product { name, depth, per_word, encode, decode } in all {
        let (a_words, b_words) = (16 * depth / per_word / 32, 8 * depth / per_word / 32);
        let list =
            |first: usize, count: usize| (first..first + count).map(|r| format!("%r{r}")).collect::<Vec<_>>().join(",");
        let mut loads = String::from(
            "mul.wide.u32 %d1, %t, 64; add.s64 %d1, %d1, %in; mul.wide.u32 %d2, %t, 16; add.s64 %d2, %d2, %out;\n",
        );
        for index in 0..a_words + b_words + 4 {
            loads += &format!("ld.global.u32 %r{index}, [%d1+{}];\n", index * 4);
        }
        let (a, b, c) = (list(0, a_words), list(a_words, b_words), list(a_words + b_words, 4));
        let text = format!(
            "{loads}mma.sync.aligned.{name} {{{}}}, {{{a}}}, {{{b}}}, {{{c}}};\nst.global.v4.u32 [%d2], {{{}}};",
            list(20, 4),
            list(20, 4)
        );
        let mut bench = bench(&text);
        let mut random = Random::new(bench.seed);
        let rounded = |values: Vec<f32>| values.into_iter().map(|x| decode(encode(x))).collect::<Vec<f32>>();
        let (a, b) = (rounded(uniform(&mut random, 16 * depth)), rounded(uniform(&mut random, depth * 8)));
        let c = uniform(&mut random, 16 * 8);
        let mut registers = vec![0u32; 32 * 16];
        let bits = 32 / per_word;
        for lane in 0..32 {
            let (group, member) = (lane / 4, lane % 4);
            for element in 0..a_words * per_word {
                let (word, place) = (element / per_word, element % per_word);
                let (row, column) = (group + 8 * (word % 2), member * per_word + place + word / 2 * 4 * per_word);
                registers[lane * 16 + word] |= encode(a[row * depth + column]) << (bits * place % 32);
            }
            for element in 0..b_words * per_word {
                let (word, place) = (element / per_word, element % per_word);
                let row = member * per_word + place + word * 4 * per_word;
                registers[lane * 16 + a_words + word] |= encode(b[row * 8 + group]) << (bits * place % 32);
            }
            for part in 0..4 {
                let value = c[(group + part / 2 * 8) * 8 + member * 2 + part % 2];
                registers[lane * 16 + a_words + b_words + part] = value.to_bits();
            }
        }
        let (given, out) = (bench.put_words(&registers), bench.poisoned(512));
        bench.launch("k", shape(1, 32), &[at(&out), at(&given)]).unwrap_or_else(|report| panic!("{name}: {report}"));
        let got = floats(&out);
        let mut expected = Vec::new();
        for lane in 0..32 {
            for part in 0..4 {
                let (row, column) = (lane / 4 + part / 2 * 8, lane % 4 * 2 + part % 2);
                let sum: f64 = (0..depth).map(|k| f64::from(a[row * depth + k]) * f64::from(b[k * 8 + column])).sum();
                expected.push((sum + f64::from(c[row * 8 + column])) as f32);
            }
        }
        assert_close(&got, &expected, 1e-5, 1e-5, name);
    }
}

/// `ldmatrix` gives lane `l` the elements 2(l mod 4) and the next of row l / 4; transposed, of column l / 4.
#[test]
fn matrices_from_shared_memory() {
    let text = |transposed: &str| {
        format!(
            "shl.b32 %r1, %t, 2; add.s32 %r1, %r1, %base; shl.b32 %r2, %t, 1; add.s32 %r3, %r2, 1; shl.b32 %r3, %r3, 16; or.b32 %r2, %r2, %r3;\n\
             st.shared.u32 [%r1], %r2; bar.sync 0; and.b32 %r4, %lane, 7; shl.b32 %r4, %r4, 4; add.s32 %r4, %r4, %base;\n\
             ldmatrix.sync.aligned.m8n8.x1{transposed}.shared.b16 {{%r5}}, [%r4]; st.global.u32 [%own], %r5;"
        )
    };
    // Element (row, column) of the matrix is 8 row + column.
    let of = |lane: u32, transposed: bool| {
        let (row, column) = (lane / 4, lane % 4 * 2);
        let at = |row, column| if transposed { column * 8 + row } else { row * 8 + column };
        at(row, column) | at(row, column + 1) << 16
    };
    results(&text(""), |thread| of(thread % 32, false));
    results(&text(".trans"), |thread| of(thread % 32, true));
}
