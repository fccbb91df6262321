//! Every path, type, layout and shape of the linear kernels against a plain sum, and the bits against each other.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use super::*;
use crate::testing::{ELEMENTS, assert_close, decode, encode, poisoned, random, random_elements};
use rand::RngExt;

struct Case {
    element: ElementType,
    rows: usize,
    columns: usize,
    depth: usize,
    x: Vec<u8>,
    w: Vec<u8>,
    scale: f32,
    exact: Vec<f64>,
    magnitude: Vec<f64>,
}

impl Case {
    fn new(random: &mut rand_chacha::ChaCha8Rng, element: ElementType, [rows, columns, depth]: [usize; 3]) -> Self {
        let (x, x_values) = random_elements(random, element, rows * depth);
        let (w, w_values) = random_elements(random, element, columns * depth);
        let scale = if element == ElementType::F8E4M3 { 0.37 } else { 1.0 };
        let (mut exact, mut magnitude) = (Vec::new(), Vec::new());
        for m in 0..rows {
            for n in 0..columns {
                let products =
                    (0..depth).map(|k| f64::from(x_values[m * depth + k]) * f64::from(w_values[n * depth + k]));
                exact.push(products.clone().sum::<f64>() * f64::from(scale));
                magnitude.push(products.map(f64::abs).sum::<f64>());
            }
        }
        Self { element, rows, columns, depth, x, w, scale, exact, magnitude }
    }

    /// Multiplies some rows, with weights as the file has them or `tiled` for the path.
    fn run(&self, team: &Team, isa: Isa, tiled: bool, rows: Range<usize>, output: ElementType) -> Vec<u8> {
        let shape = (self.columns, self.depth);
        let source = Weights::new(&self.w, self.element, WeightLayout::Rows, shape.0, shape.1).unwrap();
        let height = TileHeight::of(isa, self.element);
        let mut copy = poisoned(tiled_bytes(self.element, height, shape.0, shape.1).unwrap());
        repack(team, &source, height, &mut copy).unwrap();
        let copy = Weights::new(&copy, self.element, WeightLayout::Tiled(height), shape.0, shape.1).unwrap();
        let row_bytes = self.depth * self.element.bytes();
        let mut y = poisoned(rows.len() * self.columns * output.bytes());
        let product = Linear {
            isa,
            x: &self.x[rows.start * row_bytes..rows.end * row_bytes],
            rows: rows.len(),
            weights: if tiled { copy } else { source },
            scale: self.scale,
            output,
        };
        linear(team, &product, &mut y, &mut Workspace::default()).unwrap();
        y
    }
}

const LAYOUTS: [bool; 2] = [false, true];

/// Shapes that hit every tile, tails on each axis, several units and several runs of blocks.
fn shapes(random: &mut rand_chacha::ChaCha8Rng) -> Vec<[usize; 3]> {
    let mut shapes = vec![
        [1, 1, 1],
        [2, 3, 31],
        [3, 4, 32],
        [4, 5, 33],
        [5, 7, 64],
        [6, 8, 65],
        [7, 9, 100],
        [8, 13, 128],
        [9, 66, 257],
        [13, 12, 4100],
        [26, 37, 640],
        [33, 40, 96],
        [50, 300, 2200],
        [70, 17, 66],
        [515, 18, 40],
    ];
    for _ in 0..6 {
        shapes.push([random.random_range(1..20), random.random_range(1..60), random.random_range(1..700)]);
    }
    shapes
}

#[test]
fn every_path_agrees_with_the_exact_sum() {
    let mut random = random();
    let team = Team::new(2).unwrap();
    for element in ELEMENTS {
        for shape in shapes(&mut random) {
            let case = Case::new(&mut random, element, shape);
            for isa in Isa::available() {
                let y = case.run(&team, isa, false, 0..case.rows, ElementType::F32);
                let what = format!("{isa} {element:?} {shape:?}");
                // Sums of K terms in at least 8 lanes; bf16 products are exact in single precision.
                let bound = (shape[2] as f64 / 8.0 + 8.0) * f64::from(f32::EPSILON);
                assert_close(
                    &decode(ElementType::F32, &y),
                    &case.exact,
                    |index| case.magnitude[index] * bound + 1e-37,
                    &what,
                );
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_batch_threads_layout_or_tile() {
    let mut random = random();
    let teams: Vec<_> = (1..=4).map(|threads| Team::new(threads).unwrap()).collect();
    for element in ELEMENTS {
        for shape in shapes(&mut random) {
            let case = Case::new(&mut random, element, shape);
            for isa in Isa::available() {
                let all = 0..case.rows;
                let whole = case.run(&teams[0], isa, false, all.clone(), ElementType::F32);
                for team in &teams {
                    for tiled in LAYOUTS {
                        let y = case.run(team, isa, tiled, all.clone(), ElementType::F32);
                        assert!(y == whole, "{isa} {element:?} {shape:?} tiled: {tiled} {team:?}");
                    }
                }
                let row_bytes = case.columns * 4;
                for row in 0..case.rows {
                    let alone = case.run(&teams[1], isa, false, row..row + 1, ElementType::F32);
                    assert!(
                        alone == whole[row * row_bytes..(row + 1) * row_bytes],
                        "{isa} {element:?} {shape:?}: row {row} alone"
                    );
                }
                let first = case.rows / 2;
                let part = case.run(&teams[2], isa, true, first..case.rows, ElementType::F32);
                assert!(part == whole[first * row_bytes..], "{isa} {element:?} {shape:?}: half");
            }
        }
    }
}

#[test]
fn outputs_are_the_sums_rounded_to_nearest() {
    let mut random = random();
    let team = Team::new(2).unwrap();
    for element in ELEMENTS {
        let case = Case::new(&mut random, element, [7, 30, 200]);
        for isa in Isa::available() {
            let sums = case.run(&team, isa, true, 0..7, ElementType::F32);
            let sums = decode(ElementType::F32, &sums);
            for output in [ElementType::Bf16, ElementType::F16] {
                let y = case.run(&team, isa, true, 0..7, output);
                assert!(y == encode(output, &sums), "{isa} {element:?} -> {output:?}");
            }
        }
    }
}

#[test]
fn all_fp8_codes_are_multiplied_exactly() {
    // Row n of w is code n at place n % K and zero elsewhere; x is one everywhere, so y[n] is the code's value.
    let depth = 130;
    let element = ElementType::F8E4M3;
    let mut w = vec![0u8; 256 * depth];
    for code in 0..256 {
        w[code * depth + code % depth] = u8::try_from(code).unwrap();
    }
    let one = encode(element, &[1.0]);
    let team = Team::new(2).unwrap();
    for isa in Isa::available() {
        for rows in [1, 3, 15] {
            let product = Linear {
                isa,
                x: &one.repeat(rows * depth),
                rows,
                weights: Weights::new(&w, element, WeightLayout::Rows, 256, depth).unwrap(),
                scale: 1.0,
                output: ElementType::F32,
            };
            let mut y = poisoned(rows * 256 * 4);
            linear(&team, &product, &mut y, &mut Workspace::default()).unwrap();
            for (index, value) in decode(ElementType::F32, &y).into_iter().enumerate() {
                let expected = crate::simd::E4M3_VALUES[index % 256];
                assert!(
                    value == expected || value.is_nan() && expected.is_nan(),
                    "{isa}, {rows} rows, code {:#x}: {value} for {expected}",
                    index % 256
                );
            }
        }
    }
}

#[test]
fn nan_and_infinity_reach_the_outputs_they_should() {
    let mut random = random();
    let team = Team::new(2).unwrap();
    for element in [ElementType::Bf16, ElementType::F16, ElementType::F32] {
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut case = Case::new(&mut random, element, [3, 9, 75]);
            // The last, partial block of the middle row of x.
            let at = (75 + 74) * element.bytes();
            case.x[at..at + element.bytes()].copy_from_slice(&encode(element, &[special]));
            for isa in Isa::available() {
                for tiled in LAYOUTS {
                    let y = case.run(&team, isa, tiled, 0..3, ElementType::Bf16);
                    for (index, value) in decode(ElementType::Bf16, &y).into_iter().enumerate() {
                        let middle = (9..18).contains(&index);
                        assert_eq!(value.is_finite(), !middle, "{isa} {element:?} {index}: {value}");
                        assert!(!middle || value.is_nan() == special.is_nan(), "{isa} {value}");
                    }
                }
            }
        }
    }
}

#[test]
fn repacking_interleaves_rows_and_pads_with_zeros() {
    let mut random = random();
    for (threads, height) in [(1, TileHeight::Four), (3, TileHeight::Four), (2, TileHeight::Sixteen)] {
        let (team, tile) = (Team::new(threads).unwrap(), height.rows());
        let (rows, columns) = (1030, 701);
        let (w, _) = random_elements(&mut random, ElementType::Bf16, rows * columns);
        let source = Weights::new(&w, ElementType::Bf16, WeightLayout::Rows, rows, columns).unwrap();
        let mut tiled = poisoned(tiled_bytes(ElementType::Bf16, height, rows, columns).unwrap());
        repack(&team, &source, height, &mut tiled).unwrap();
        let blocks = (columns * 2).div_ceil(64);
        for (index, block) in tiled.chunks_exact(64).enumerate() {
            let (row, at) = (index / (tile * blocks) * tile + index % tile, index / tile % blocks * 64);
            let end = (at + 64).min(columns * 2);
            let mut expected =
                if row < rows { w[row * columns * 2 + at..row * columns * 2 + end].to_vec() } else { Vec::new() };
            expected.resize(64, 0);
            assert!(block == expected, "row {row}, byte {at}");
        }
    }
}

#[test]
fn wrong_sizes_are_refused() {
    let team = Team::new(1).unwrap();
    let bytes = vec![0u8; 64];
    assert!(Weights::new(&bytes, ElementType::Bf16, WeightLayout::Rows, 5, 7).is_err());
    assert!(Weights::new(&bytes, ElementType::F32, WeightLayout::Rows, usize::MAX, 8).is_err());
    assert!(tiled_bytes(ElementType::Bf16, TileHeight::Four, usize::MAX, 1).is_err());
    let weights = Weights::new(&bytes, ElementType::Bf16, WeightLayout::Rows, 4, 8).unwrap();
    let product = |x, rows, output| Linear { isa: Isa::detect(), x, rows, weights, scale: 1.0, output };
    let mut workspace = Workspace::default();
    let mut y = vec![0u8; 8];
    let x = vec![0u8; 16];
    linear(&team, &product(&x, 1, ElementType::Bf16), &mut y, &mut workspace).unwrap();
    for (x, rows, output) in [
        (&x[..15], 1, ElementType::Bf16),
        (&x[..], 2, ElementType::Bf16),
        (&x[..], 1, ElementType::F32),
        (&x[..], 1, ElementType::F8E4M3),
    ] {
        let error = linear(&team, &product(x, rows, output), &mut y, &mut workspace).unwrap_err();
        assert!(error.to_string().starts_with("linear: "), "{error}");
    }
}
