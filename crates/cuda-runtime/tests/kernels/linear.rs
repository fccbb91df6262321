//! Products of rows with weights.

use std::sync::Arc;

use allotrope_cuda_emulator::machine::Random;
use allotrope_cuda_emulator::machine::memory::Region;
use allotrope_graph::numerics::{e4m3_to_f32, f32_to_e4m3};

use super::common::{Bench, bytes};
use super::elements::{ELEMENTS, Element, between};
use super::{Parameters, launch, sizes, texts, untouched};

pub(crate) const KERNELS: [&str; 10] = [
    "linear_bf16_8",
    "linear_bf16_64",
    "linear_f16_8",
    "linear_f16_64",
    "linear_e4m3_8",
    "linear_e4m3_64",
    "linear_generic_f32",
    "linear_generic_bf16",
    "linear_generic_f16",
    "linear_generic_e4m3",
];

pub(crate) const TEMPLATES: [&str; 13] = [
    "linear_bf16_8_epilogue",
    "linear_bf16_64_epilogue",
    "linear_f16_8_epilogue",
    "linear_f16_64_epilogue",
    "linear_e4m3_8_epilogue",
    "linear_e4m3_64_epilogue",
    "linear_bf16_8_slots",
    "linear_f16_8_slots",
    "linear_e4m3_8_slots",
    "linear_generic_f32_slots",
    "linear_generic_bf16_slots",
    "linear_generic_f16_slots",
    "linear_generic_e4m3_slots",
];

/// What `kernels/linear.cuh` says about a kernel: rows of a tile, and bytes of shared memory for slabs.
pub(crate) fn resources(kernel: &str) -> (usize, usize) {
    match kernel {
        _ if kernel.contains("generic") => (8, 9472),
        _ if kernel.contains("_64") => (64, 32768),
        _ if kernel.ends_with("_slots") => (8, 24576),
        _ => (8, 27648),
    }
}

/// One product: inputs, weights and the output's type.
#[derive(Clone)]
pub(crate) struct Product {
    pub(crate) inner: usize,
    pub(crate) columns: usize,
    scale: f32,
    pub(crate) output: Element,
    pub(crate) x: Vec<f32>,
    w: Vec<f32>,
}

impl Product {
    fn random(random: &mut Random, element: Element, rows: usize, columns: usize, inner: usize) -> Self {
        Self {
            inner,
            columns,
            scale: [1.0, 0.37, -2.5][random.below(3)],
            output: Element::F32,
            x: element.random(random, rows * inner),
            w: element.random(random, columns * inner),
        }
    }

    /// Columns whose results are special cases of their types: NaN, infinite, subnormal, and too large or nearly so. No sum
    /// but that of its own column may see any of it. A row of inputs has a NaN if there are several.
    fn add_special_columns(&mut self, random: &mut Random, element: Element) {
        let inner = self.inner;
        let small = if self.output == Element::F16 && element != Element::E4m3 { -16 } else { -6 };
        let (infinite, large) = if element == Element::E4m3 { (448.0, 448.0) } else { (f32::INFINITY, 40960.0) };
        self.w[0] = f32::NAN;
        for (column, value) in [(1, 2f32.powi(small)), (2, infinite), (3, large)] {
            if column < self.columns {
                let weights = &mut self.w[column * inner..][..inner];
                weights.fill(0.0);
                weights[random.below(inner)] = value;
            }
        }
        if self.rows() > 2 {
            let row = random.below(self.rows());
            self.x[(row + 1) * inner - 1] = f32::NAN;
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.x.len() / self.inner
    }

    /// The product of rows from `first` on alone, as `f32`.
    fn alone(&self, first: usize, count: usize) -> Self {
        let x = self.x[first * self.inner..(first + count) * self.inner].to_vec();
        Self { x, output: Element::F32, ..self.clone() }
    }

    /// What an element is, and how far sums of `f32` may be from it.
    pub(crate) fn element(&self, row: usize, column: usize) -> (f64, f64) {
        let x = &self.x[row * self.inner..][..self.inner];
        let w = &self.w[column * self.inner..][..self.inner];
        let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        let scale = f64::from(self.scale);
        (sum * scale, size * scale.abs() * 16.0 * 2f64.powi(-24))
    }

    /// Compares every element of a result.
    fn compare(&self, got: &[f32]) -> Result<(), String> {
        for row in 0..self.rows() {
            for column in 0..self.columns {
                let (expected, sums) = self.element(row, column);
                let got = got[row * self.columns + column];
                if !self.output.is_near(got, expected, sums * 1.01 + Element::F32.rounding(expected)) {
                    let shape = format!("{} rows, {} columns, {} inner", self.rows(), self.columns, self.inner);
                    return Err(format!("row {row}, column {column} of {shape}: {got}, expected {expected}"));
                }
            }
        }
        Ok(())
    }
}

/// Products side by side: how many there are and how wide a block is.
#[derive(Clone, Copy)]
pub(crate) struct Bundle {
    pub(crate) products: usize,
    pub(crate) tile: usize,
}

/// A launch: products in bundles, over the same number of rows.
pub(crate) struct Case {
    pub(crate) products: Vec<Product>,
    pub(crate) bundles: Vec<Bundle>,
}

impl Case {
    /// Three bundles: one of two products of the same width, one with tiles wider than a step, and a small one. Each
    /// product has an output of another type.
    pub(crate) fn random(random: &mut Random, kernel: &str) -> Self {
        let element = Element::of(kernel);
        let (tile_rows, _) = resources(kernel);
        let rows = between(random, 1, tile_rows * 2 + 3);
        let granule = 16 / element.bytes();
        let most = if tile_rows == 64 { 200 } else { 400 };
        let mut inner = || match kernel.contains("generic") {
            true => between(random, 1, 70),
            false => between(random, 1, most / granule) * granule,
        };
        let mut inners = [inner(), inner(), inner(), inner()];
        if kernel.contains("generic") {
            // One element behind whole eights, where every check of a bound within eight counts.
            inners[0] = inners[0] / 8 * 8 + 1;
        }
        let widths = [between(random, 5, 60), between(random, 66, 140), between(random, 1, 9)];
        let bundles = vec![
            Bundle { products: 2, tile: between(random, 3, 30) },
            Bundle { products: 1, tile: between(random, 65, 100) },
            Bundle { products: 1, tile: 4 },
        ];
        let mut products = Vec::new();
        for (number, columns) in [widths[0], widths[0], widths[1], widths[2]].into_iter().enumerate() {
            let mut product = Product::random(random, element, rows, columns, inners[number]);
            product.output = ELEMENTS[number];
            product.add_special_columns(random, element);
            products.push(product);
        }
        Self { products, bundles }
    }

    fn single(product: Product, tile: usize) -> Self {
        Self { products: vec![product], bundles: vec![Bundle { products: 1, tile }] }
    }

    pub(crate) fn rows(&self) -> usize {
        self.products[0].rows()
    }

    /// Launches with one tile of rows more than there are, and returns the outputs, each a row longer than it needs.
    pub(crate) fn run(
        &self,
        bench: &mut Bench,
        kernel: &str,
        pointers: &[Arc<Region>],
    ) -> Result<Vec<Arc<Region>>, String> {
        let element = Element::of(kernel);
        let (tile_rows, slabs) = resources(kernel);
        let place = Random::new(bench.seed).below(3);
        let sizes = sizes(bench, place, self.rows());
        let (mut tiles, mut first, mut widest) = (0, 0, 0);
        let mut bundles = Parameters::default();
        for bundle in &self.bundles {
            bundles = bundles.word(tiles).word(first).word(bundle.products).word(bundle.tile);
            tiles += self.products[first].columns.div_ceil(bundle.tile);
            first += bundle.products;
            widest = widest.max(bundle.products * tile_rows * bundle.tile * 4);
        }
        let mut operands = Parameters::default();
        let mut outputs = Vec::new();
        let makes_inputs = kernel.ends_with("_slots");
        for (number, product) in self.products.iter().enumerate() {
            let weight = bench.put(&element.encode_all(&product.w));
            let output = bench.poisoned((product.rows() + 1) * product.columns * product.output.bytes());
            bench.holds(&output, product.output.format());
            operands = operands.address(&weight);
            // Where slots make the inputs, each has a number.
            operands = match makes_inputs {
                true => operands.word(number + 1).word(0),
                false => operands.address(&bench.put(&element.encode_all(&product.x))),
            };
            operands = operands.address(&output);
            operands = operands.word(product.columns).word(product.inner).float(product.scale);
            operands = operands.word(product.output as usize);
            outputs.push(output);
        }
        let scratch = slabs + widest;
        let staged = (scratch + 4 * tile_rows).next_multiple_of(16);
        let line = |product: &Product| (product.inner * element.bytes()).div_ceil(128) * 128 + 16;
        let lines = tile_rows * self.products.iter().map(line).max().unwrap_or(0);
        let is_staged = makes_inputs && !kernel.contains("generic");
        let shared = staged + if is_staged { lines } else { 0 };
        let mut parameters = Parameters::default().address(&sizes).word(place).word(self.bundles.len());
        parameters = parameters.word(slabs).word(scratch).word(staged);
        parameters.0.extend(bundles.pad(8 * 16).0);
        parameters = parameters.word(0);
        parameters.0.extend(operands.pad(8 * 40).0);
        for pointer in pointers {
            parameters = parameters.address(pointer);
        }
        let grid = [tiles as u32, (self.rows().div_ceil(tile_rows) + 1) as u32];
        launch(bench, kernel, grid, shared as u32, parameters.pad(992))?;
        Ok(outputs)
    }
}

/// Random products in random bundles, element by element.
pub(crate) fn check(text: &str, kernel: &str) -> Result<(), String> {
    let mut bench = Bench::new(text).map_err(|error| error.to_string())?;
    let mut random = Random::new(bench.seed);
    let case = Case::random(&mut random, kernel);
    let outputs = case.run(&mut bench, kernel, &[])?;
    for (product, output) in case.products.iter().zip(&outputs) {
        let live = product.rows() * product.columns * product.output.bytes();
        product.compare(&product.output.decode(&bytes(output)[..live]))?;
        untouched(output, live)?;
    }
    Ok(())
}

/// The bits of the only product of a launch, as `f32`.
fn bits(bench: &mut Bench, kernel: &str, product: &Product, tile: usize) -> Vec<u8> {
    let product = Product { output: Element::F32, ..product.clone() };
    let case = Case::single(product.clone(), tile);
    let outputs = case.run(bench, kernel, &[]).unwrap_or_else(|message| panic!("{kernel}: {message}"));
    bytes(&outputs[0])[..product.rows() * product.columns * 4].to_vec()
}

fn bench(kernel: &str) -> Bench {
    Bench::new(&texts::kernel("linear", "sm_80", kernel)).unwrap_or_else(|error| panic!("{kernel}: {error}"))
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_company_in_any_tile_of_both_kernels() {
    for name in ["bf16", "f16", "e4m3"] {
        let kernels = [format!("linear_{name}_8"), format!("linear_{name}_64")];
        let [mut few, mut many] = [bench(&kernels[0]), bench(&kernels[1])];
        let mut random = Random::new(few.seed);
        let element = Element::of(name);
        let inner = between(&mut random, 10, 40) * 16;
        let product = Product::random(&mut random, element, 77, 50, inner);
        let company = bits(&mut many, &kernels[1], &product, 50);
        assert_eq!(bits(&mut few, &kernels[0], &product, 13), company, "{name}");
        for row in [0, 7, 8, 63, 64, 76] {
            let alone = product.alone(row, 1);
            let expected = &company[row * 200..][..200];
            assert_eq!(bits(&mut few, &kernels[0], &alone, 70), expected, "{name}, row {row}");
            assert_eq!(bits(&mut many, &kernels[1], &alone, 7), expected, "{name}, row {row}");
        }
    }
    let kernel = "linear_generic_f32";
    let mut bench = bench(kernel);
    let mut random = Random::new(bench.seed);
    let product = Product::random(&mut random, Element::F32, 19, 30, 101);
    let company = bits(&mut bench, kernel, &product, 30);
    for row in [0, 7, 8, 18] {
        let alone = product.alone(row, 1);
        assert_eq!(bits(&mut bench, kernel, &alone, 11), &company[row * 120..][..120], "row {row}");
    }
}

#[test]
fn results_are_rounded_once_to_nearest_even_in_every_type() {
    for target in texts::TARGETS {
        let mut bench = Bench::new(&texts::kernel("linear", target, "linear_generic_f32")).unwrap();
        let mut random = Random::new(bench.seed);
        // Any bits, and many of a size at which e4m3 and f16 have their limits, ties among them.
        let mut w: Vec<f32> = (0..500).map(|_| f32::from_bits(random.bits() as u32)).collect();
        w.extend((0..255u8).map(e4m3_to_f32));
        w.extend((1..2000).map(|step| step as f32 / 4096.0));
        w.extend((-1000..1000).map(|step| step as f32 / 2.0));
        w.extend([f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 448.0, 464.0, 464.1, 65504.0, 65520.0, -0.0]);
        for output in ELEMENTS {
            let one = vec![1.0];
            let product = Product { inner: 1, columns: w.len(), scale: 1.0, output, x: one, w: w.clone() };
            let outputs = Case::single(product, 64).run(&mut bench, "linear_generic_f32", &[]).unwrap();
            let got = output.decode(&bytes(&outputs[0])[..w.len() * output.bytes()]);
            for (value, got) in w.iter().zip(got) {
                // A sum starts with zero, so there is no negative one.
                let expected = output.decode(&output.encode(value + 0.0))[0];
                let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
                assert!(same, "{value} as {output:?} for {target}: {got}, expected {expected}");
            }
        }
    }
}

#[test]
fn every_code_of_e4m3_has_its_value() {
    let w: Vec<f32> = (0..=255u8).map(e4m3_to_f32).collect();
    for target in texts::TARGETS {
        for (kernel, inner) in [("linear_generic_e4m3", 1), ("linear_e4m3_8", 16), ("linear_e4m3_64", 16)] {
            let mut bench = Bench::new(&texts::kernel("linear", target, kernel)).unwrap();
            for place in [0, inner / 2, inner - 1] {
                let mut weights = vec![0.0; 256 * inner];
                let mut x = vec![0.0; inner];
                x[place] = 1.0;
                w.iter().enumerate().for_each(|(code, value)| weights[code * inner + place] = *value);
                let product = Product { inner, columns: 256, scale: 1.0, output: Element::F32, x, w: weights };
                let got = Element::F32.decode(&bits(&mut bench, kernel, &product, 64));
                for (expected, got) in w.iter().zip(got) {
                    let same = got == *expected || got.is_nan() && expected.is_nan();
                    assert!(same, "{kernel} for {target}: {got}, expected {expected}");
                    assert!(expected.is_nan() || e4m3_to_f32(f32_to_e4m3(got)) == got);
                }
            }
        }
    }
}
