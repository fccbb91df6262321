//! Conversions to and from e4m3, by instruction and, where an architecture has none, by integer code: exact for every code and
//! every `f32`.

use allotrope_cuda_emulator::machine::Random;
use allotrope_cuda_runtime::lower::{Templates, plan};
use allotrope_cuda_runtime::program::{BLOCK, Pointer};
use allotrope_graph::numerics::{e4m3_to_f32, f32_to_e4m3};
use allotrope_graph::text::parse;

use super::bench::named;
use super::common::{Bench, Shape, bytes, seed};

/// The bytes of `%r`, which `op` makes of the bytes of `%x`, for rows of a width.
fn converted(op: &str, [from, to]: [&str; 2], width: usize, capability: (u32, u32), x: &[u8]) -> Vec<u8> {
    let size = |dtype: &str| if dtype == "f32" { 4 } else { 1 };
    let text = format!(
        "graph {{
           input %token_ids: i32[T]
           weight %table: {from}[50, {width}]
           %x: {from}[T, {width}] = embedding(%table, %token_ids)
           %r: {to}[T, {width}] = {op}(%x)
           return %r
         }}"
    );
    let graph = parse(&text).unwrap();
    let group = graph.group_of(graph.producer(named(&graph, "r")).unwrap());
    let templates = Templates::embedded(capability).unwrap();
    let plan = plan(&graph, &graph.groups()[group].ops, templates.features()).unwrap();
    let launch = &plan.variants[0].launches[0];
    let kernel = templates.ptx(&graph, launch).unwrap().unwrap();
    let mut bench = Bench::new(&kernel.text).unwrap();
    let rows = x.len() / size(from) / width;
    let (sizes, input) = (bench.put_words(&[rows as u32, 0, 0, 0]), bench.put(x));
    let output = bench.poisoned(rows * width * size(to));
    let address = |pointer: &Pointer| match pointer {
        Pointer::Sizes => Ok(sizes.address),
        Pointer::Value(value) if *value == named(&graph, "x") => Ok(input.address),
        Pointer::Value(value) if *value == named(&graph, "r") => Ok(output.address),
        other => Err(format!("{other:?} is no operand")),
    };
    let parameters = launch.parameter.resolved(address).unwrap();
    let shape = Shape { grid: launch.grid.dimensions(rows), threads: BLOCK, dynamic_shared: 0, cooperative: false };
    bench.launch_laid_out(&kernel.entry, shape, parameters).unwrap();
    bytes(&output)
}

#[test]
fn every_e4m3_code_is_read_as_the_number_that_it_is() {
    for capability in [(8, 0), (8, 9)] {
        // Sixteen bytes at once, and byte by byte.
        for width in [64, 51] {
            let codes: Vec<u8> = (0..=u8::MAX).cycle().take(width * 6).collect();
            let found = converted("cast<to=f32>", ["f8e4m3", "f32"], width, capability, &codes);
            for (code, found) in codes.iter().zip(found.as_chunks::<4>().0) {
                let (found, expected) = (f32::from_le_bytes(*found), e4m3_to_f32(*code));
                let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                assert!(same, "{code:#04x} for {capability:?}: {found}, expected {expected}");
            }
        }
    }
}

#[test]
fn every_number_is_rounded_to_the_nearest_e4m3_code() {
    let mut random = Random::new(seed());
    // Any bits, magnitudes about those of e4m3, numbers halfway between two codes and their neighbours, and what is special.
    let mut numbers: Vec<f32> = (0..4096).map(|_| f32::from_bits(random.bits() as u32)).collect();
    numbers.extend((0..4096).map(|_| f32::from_bits(0x3a00_0000 + random.bits() as u32 % 0x0a00_0000)));
    for code in 0..0x7eu8 {
        let half = f64::midpoint(f64::from(e4m3_to_f32(code)), f64::from(e4m3_to_f32(code + 1))) as f32;
        numbers.extend([half.next_down(), half, half.next_up(), -half.next_down(), -half, -half.next_up()]);
    }
    numbers.extend([0.0, -0.0, 448.0, 464.0, 480.0, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN]);
    for capability in [(8, 0), (8, 9)] {
        for width in [64, 51] {
            let rows = numbers.len().div_ceil(width);
            let x: Vec<f32> = numbers.iter().copied().cycle().take(rows * width).collect();
            let stored: Vec<u8> = x.iter().flat_map(|number| number.to_le_bytes()).collect();
            for (op, scale) in [("quantize<scale=1.0>", 1.0), ("quantize<scale=0.3>", 0.3), ("cast<to=f8e4m3>", 1.0)] {
                let found = converted(op, ["f32", "f8e4m3"], width, capability, &stored);
                for (number, found) in x.iter().zip(found) {
                    let expected = f32_to_e4m3(number / scale);
                    assert_eq!(found, expected, "{op} of {number:e} ({:#x}) for {capability:?}", number.to_bits());
                }
            }
        }
    }
}
