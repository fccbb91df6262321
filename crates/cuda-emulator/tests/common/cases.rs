//! The kernels under `tests/ptx`, each with inputs and a reference in Rust.

#![allow(unreachable_pub, clippy::unwrap_used, reason = "for tests")]

use allotrope_cuda_emulator::machine::Random;
use half::bf16;

use super::common::{Argument, Bench, Shape, at, bytes, difference, floats, shape, uniform, words};

/// A kernel and how to check it. What is wrong comes back as a text.
pub struct Case {
    pub file: &'static str,
    pub kernel: &'static str,
    pub check: fn(&mut Bench) -> Result<(), String>,
}

/// Every kernel.
pub const CASES: [Case; 10] = [
    Case { file: "basic", kernel: "add", check: add },
    Case { file: "basic", kernel: "total", check: total },
    Case { file: "rows", kernel: "rms_norm", check: rms_norm },
    Case { file: "rows", kernel: "silu_mul", check: silu_mul },
    Case { file: "rows", kernel: "rope", check: rope },
    Case { file: "rows", kernel: "quantize", check: quantize },
    Case { file: "products", kernel: "gemv", check: gemv },
    Case { file: "products", kernel: "gemm", check: gemm },
    Case { file: "attention", kernel: "attention", check: attention },
    Case { file: "cooperative", kernel: "histogram", check: histogram },
];

/// The PTX of a file for a target; where the tests were taken to another machine, from below `ALLOTROPE_TEST_ROOT`.
pub fn text(file: &str, target: &str) -> String {
    let folder = match std::env::var("ALLOTROPE_TEST_ROOT") {
        Ok(root) => format!("{root}/crates/cuda-emulator"),
        Err(_) => env!("CARGO_MANIFEST_DIR").to_owned(),
    };
    std::fs::read_to_string(format!("{folder}/tests/ptx/{file}.{target}.ptx")).unwrap()
}

fn launch(bench: &mut Bench, kernel: &str, shape: Shape, arguments: &[Argument]) -> Result<(), String> {
    bench.launch(kernel, shape, arguments).map(|_| ()).map_err(|report| report.to_string())
}

fn close(got: &[f32], expected: &[f32], relative: f32, absolute: f32) -> Result<(), String> {
    difference(got, expected, relative, absolute).map_or(Ok(()), Err)
}

/// Random numbers of a format, as bytes and as what they stand for.
fn bfloats(random: &mut Random, count: usize) -> (Vec<u8>, Vec<f32>) {
    let values: Vec<bf16> = uniform(random, count).into_iter().map(bf16::from_f32).collect();
    (values.iter().flat_map(|value| value.to_le_bytes()).collect(), values.iter().map(|value| value.to_f32()).collect())
}

fn from_bfloats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<2>().0.iter().map(|two| bf16::from_le_bytes(*two).to_f32()).collect()
}

fn word(value: usize) -> Argument {
    Argument::Word(value as u32)
}

fn add(bench: &mut Bench) -> Result<(), String> {
    let mut random = Random::new(bench.seed);
    let count = 1000 - random.below(100);
    let (a, b) = (uniform(&mut random, count), uniform(&mut random, count));
    let (first, second, out) = (bench.put_floats(&a), bench.put_floats(&b), bench.poisoned(count * 4));
    launch(bench, "add", shape(8, 128), &[at(&out), at(&first), at(&second), word(count)])?;
    let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    close(&floats(&out), &expected, 0.0, 0.0)
}

fn total(bench: &mut Bench) -> Result<(), String> {
    [5, 127, 300, 385, 700].into_iter().try_for_each(|size| total_of(bench, size))
}

fn total_of(bench: &mut Bench, size: usize) -> Result<(), String> {
    let mut random = Random::new(bench.seed);
    let width = size;
    let x = uniform(&mut random, width * 6);
    let (given, out) = (bench.put_floats(&x), bench.poisoned(24));
    launch(bench, "total", shape(6, 128), &[at(&out), at(&given), word(width)])?;
    let expected: Vec<f32> = x.chunks(width).map(|row| row.iter().sum()).collect();
    close(&floats(&out), &expected, 1e-4, 1e-4)
}

fn rms_norm(bench: &mut Bench) -> Result<(), String> {
    [64, 1032, 2056].into_iter().try_for_each(|size| rms_norm_of(bench, size))
}

fn rms_norm_of(bench: &mut Bench, size: usize) -> Result<(), String> {
    let width = size;
    let mut random = Random::new(bench.seed);
    let ((x_bytes, x), (weight_bytes, weight)) = (bfloats(&mut random, 5 * width), bfloats(&mut random, width));
    let (given, weights, out) = (bench.put(&x_bytes), bench.put(&weight_bytes), bench.poisoned(5 * width * 2));
    let arguments = [at(&out), at(&given), at(&weights), word(width), Argument::Float(1e-5)];
    launch(bench, "rms_norm", shape(5, 128), &arguments)?;
    let mut expected = Vec::new();
    for row in x.chunks(width) {
        let mean = row.iter().map(|x| x * x).sum::<f32>() / width as f32;
        expected.extend(row.iter().zip(&weight).map(|(x, weight)| x / (mean + 1e-5).sqrt() * weight));
    }
    close(&from_bfloats(&bytes(&out)), &expected, 0.005, 1e-6)
}

fn silu_mul(bench: &mut Bench) -> Result<(), String> {
    let mut random = Random::new(bench.seed);
    let count = 500 + random.below(11);
    let gate: Vec<f32> = uniform(&mut random, count).iter().map(|x| x * 8.0).collect();
    let up = uniform(&mut random, count);
    let (first, second, out) = (bench.put_floats(&gate), bench.put_floats(&up), bench.poisoned(count * 4));
    launch(bench, "silu_mul", shape(4, 128), &[at(&out), at(&first), at(&second), word(count)])?;
    let expected: Vec<f32> = gate.iter().zip(&up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
    close(&floats(&out), &expected, 1e-5, 1e-7)
}

fn rope(bench: &mut Bench) -> Result<(), String> {
    [90, 40, 300].into_iter().try_for_each(|size| rope_of(bench, size))
}

fn rope_of(bench: &mut Bench, size: usize) -> Result<(), String> {
    let width = size;
    // The last one is large enough for the slow path of the sine.
    let positions = [0u32, 1, 77, 4095, 900_000];
    let mut random = Random::new(bench.seed);
    let x = uniform(&mut random, positions.len() * width);
    let (given, places) = (bench.put_floats(&x), bench.put_words(&positions));
    launch(bench, "rope", shape(5, 64), &[at(&given), at(&places), word(width), Argument::Float(10000.0)])?;
    let mut expected = x.clone();
    for (row, position) in expected.chunks_mut(width).zip(positions) {
        for index in 0..width / 2 {
            let angle = f64::from(position as f32 * 10000f32.powf(-2.0 * index as f32 / width as f32));
            let (sine, cosine) = (angle.sin() as f32, angle.cos() as f32);
            let (a, b) = (row[index], row[index + width / 2]);
            (row[index], row[index + width / 2]) = (a * cosine - b * sine, b * cosine + a * sine);
        }
    }
    // An error of the power in its last digit is one of the angle, which grows with the position.
    let got = floats(&given);
    for (index, position) in positions.iter().enumerate() {
        let range = index * width..(index + 1) * width;
        close(&got[range.clone()], &expected[range], 1e-4, 1e-5 + *position as f32 * 3e-7)?;
    }
    Ok(())
}

fn quantize(bench: &mut Bench) -> Result<(), String> {
    [300, 50, 640, 1111].into_iter().try_for_each(|size| quantize_of(bench, size))
}

fn quantize_of(bench: &mut Bench, size: usize) -> Result<(), String> {
    let width = size;
    let mut random = Random::new(bench.seed);
    let mut x = uniform(&mut random, 4 * width);
    // Some of them so small that the format has fewer bits for them.
    x.iter_mut().step_by(7).for_each(|x| *x *= 3e-5);
    let (given, out, scales) = (bench.put_floats(&x), bench.poisoned(4 * width), bench.poisoned(16));
    launch(bench, "quantize", shape(4, 128), &[at(&out), at(&scales), at(&given), word(width)])?;
    let most = |row: &[f32]| row.iter().fold(0f32, |most, x| most.max(x.abs()));
    let expected: Vec<f32> = x.chunks(width).map(|row| most(row) / 448.0).collect();
    close(&floats(&scales), &expected, 1e-6, 0.0)?;
    let decoded = bytes(&out).into_iter().map(|byte| allotrope_cuda_emulator::forms::number::from_e4m3(byte.into()));
    let back: Vec<f32> = decoded.enumerate().map(|(index, value)| value * expected[index / width]).collect();
    // Three bits after the point: half a step is a sixteenth; below 2⁻⁶ steps no longer shrink.
    close(&back, &x, 0.0626, expected[0].max(expected[1]).max(expected[2]).max(expected[3]) / 1024.0)
}

fn gemv(bench: &mut Bench) -> Result<(), String> {
    [500, 20, 2, 322].into_iter().try_for_each(|size| gemv_of(bench, size))
}

fn gemv_of(bench: &mut Bench, size: usize) -> Result<(), String> {
    let (rows, width) = (37, size);
    let mut random = Random::new(bench.seed);
    let ((matrix_bytes, matrix), (x_bytes, x)) = (bfloats(&mut random, rows * width), bfloats(&mut random, width));
    let (left, right, out) = (bench.put(&matrix_bytes), bench.put(&x_bytes), bench.poisoned(rows * 4));
    launch(bench, "gemv", shape(10, 128), &[at(&out), at(&left), at(&right), word(rows), word(width)])?;
    let expected: Vec<f32> = matrix.chunks(width).map(|row| row.iter().zip(&x).map(|(a, b)| a * b).sum()).collect();
    close(&floats(&out), &expected, 1e-4, 1e-4)
}

fn gemm(bench: &mut Bench) -> Result<(), String> {
    [160, 32, 64, 96].into_iter().try_for_each(|size| gemm_of(bench, size))
}

fn gemm_of(bench: &mut Bench, size: usize) -> Result<(), String> {
    let (rows, columns, depth) = (64, 96, size);
    let mut random = Random::new(bench.seed);
    let ((a_bytes, a), (b_bytes, b)) = (bfloats(&mut random, rows * depth), bfloats(&mut random, columns * depth));
    let (left, right, out) = (bench.put(&a_bytes), bench.put(&b_bytes), bench.poisoned(rows * columns * 4));
    let grid = Shape { grid: [3, 2, 1], ..shape(1, 64) };
    launch(bench, "gemm", grid, &[at(&out), at(&left), at(&right), word(columns), word(depth)])?;
    let dot = |row: &[f32], column: &[f32]| row.iter().zip(column).map(|(a, b)| a * b).sum();
    let expected: Vec<f32> =
        a.chunks(depth).flat_map(|row| b.chunks(depth).map(move |column| dot(row, column))).collect();
    close(&floats(&out), &expected, 1e-4, 1e-4)
}

fn attention(bench: &mut Bench) -> Result<(), String> {
    const WIDTH: usize = 64;
    let (heads, most_blocks, page) = (3, 5, 8);
    let lengths = [40u32, 1, 17];
    let mut random = Random::new(bench.seed);
    let blocks = lengths.len() * most_blocks;
    // A step that has no common factor with the number of blocks mixes them all.
    let table: Vec<u32> = (0..blocks).map(|index| ((index * 7 + 3) % blocks) as u32).collect();
    let q = uniform(&mut random, lengths.len() * heads * WIDTH);
    let (keys, values) =
        (uniform(&mut random, blocks * page * heads * WIDTH), uniform(&mut random, blocks * page * heads * WIDTH));
    let regions = [bench.put_floats(&q), bench.put_floats(&keys), bench.put_floats(&values)];
    let (tables, sizes, out) = (bench.put_words(&table), bench.put_words(&lengths), bench.poisoned(q.len() * 4));
    let grid = Shape { grid: [heads as u32, 3, 1], dynamic_shared: 4 * 66 * 4, ..shape(1, 128) };
    let [first, second, third] = &regions;
    let numbers = [word(heads), word(most_blocks), word(page), Argument::Float(0.3)];
    let mut arguments = vec![at(&out), at(first), at(second), at(third), at(&tables), at(&sizes)];
    arguments.extend(numbers);
    launch(bench, "attention", grid, &arguments)?;
    let mut expected = Vec::new();
    for (sequence, length) in lengths.iter().enumerate() {
        for head in 0..heads {
            let place = |t: usize| {
                ((table[sequence * most_blocks + t / page] as usize * page + t % page) * heads + head) * WIDTH
            };
            let query = &q[(sequence * heads + head) * WIDTH..][..WIDTH];
            let score = |t: usize| query.iter().zip(&keys[place(t)..]).map(|(q, k)| q * k).sum::<f32>() * 0.3;
            let weights: Vec<f32> = (0..*length as usize).map(|t| score(t).exp()).collect();
            let sum: f32 = weights.iter().sum();
            let mix = |column: usize| {
                weights.iter().enumerate().map(|(t, weight)| weight * values[place(t) + column]).sum::<f32>()
            };
            expected.extend((0..WIDTH).map(|column| mix(column) / sum));
        }
    }
    close(&floats(&out), &expected, 1e-4, 1e-5)
}

fn histogram(bench: &mut Bench) -> Result<(), String> {
    [1500, 150, 100, 3000].into_iter().try_for_each(|size| histogram_of(bench, size))
}

fn histogram_of(bench: &mut Bench, size: usize) -> Result<(), String> {
    let mut random = Random::new(bench.seed);
    let keys: Vec<u32> = (0..size + random.below(50)).map(|_| random.bits() as u32).collect();
    let (given, out) = (bench.put_words(&keys), bench.put_words(&[0; 64]));
    launch(bench, "histogram", shape(3, 96), &[at(&out), at(&given), word(keys.len())])?;
    let mut expected = vec![0; 64];
    keys.iter().for_each(|key| expected[*key as usize & 63] += 1);
    if words(&out) == expected { Ok(()) } else { Err("a count is wrong".into()) }
}

/// The grid that waits for itself.
pub fn cooperative(bench: &mut Bench) -> Result<(), String> {
    let mut random = Random::new(bench.seed);
    let x = uniform(&mut random, 3000);
    let (given, sum) = (bench.put_floats(&x), bench.put_floats(&[0.0]));
    let grid = Shape { cooperative: true, ..shape(6, 96) };
    launch(bench, "normalize", grid, &[at(&given), at(&sum), word(x.len())])?;
    let scale = (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32).sqrt();
    let expected: Vec<f32> = x.iter().map(|x| x / scale).collect();
    close(&floats(&given), &expected, 1e-4, 1e-6)
}
