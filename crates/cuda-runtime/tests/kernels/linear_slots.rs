//! Templates of products with slots filled in.

use allotrope_cuda_emulator::machine::Random;

use super::common::{Bench, Format, floats};
use super::elements::Element;
use super::linear::{Case, resources};
use super::{texts, untouched};

/// Slots that fetch rows by their numbers in a list, and multiply what the products of a bundle give.
///
/// Pointers: the list, the result of each bundle `[rows + 1, columns]`, and the table of each product, whose rows are
/// filled up to whole eights.
struct Gather {
    kernel: String,
    element: Element,
    inners: Vec<usize>,
    widths: Vec<usize>,
    tiles: Vec<usize>,
    products: Vec<usize>,
}

impl Gather {
    /// Where a pointer is among the parameters.
    fn pointer(&self, number: usize) -> String {
        format!("{}_param_0+{}", self.kernel, 480 + 8 * number)
    }

    fn slot(&self, name: &str, registers: &[&str]) -> String {
        match name {
            "rows" => self.rows(registers),
            "input" => self.input(registers),
            _ => self.epilogue(registers),
        }
    }

    /// A thread for each live row brings its number to the scratch.
    fn rows(&self, registers: &[&str]) -> String {
        let [row0, live, scratch] = registers else { panic!("{registers:?}") };
        format!(
            ".reg .pred %sp; .reg .b32 %s<4>; .reg .b64 %sd<3>;
             mov.u32 %s0, %tid.x;
             setp.ge.u32 %sp, %s0, {live};
             @%sp bra $ROWS_END;
             ld.param.u64 %sd0, [{list}];
             add.u32 %s1, {row0}, %s0;
             mul.wide.u32 %sd1, %s1, 4;
             add.u64 %sd0, %sd0, %sd1;
             ld.global.u32 %s2, [%sd0];
             shl.b32 %s3, %s0, 2;
             add.u32 %s3, %s3, {scratch};
             st.shared.u32 [%s3], %s2;
             $ROWS_END:",
            list = self.pointer(0)
        )
    }

    /// The elements of the row that the scratch names.
    fn input(&self, registers: &[&str]) -> String {
        let (data, [row_in_tile, _, element, linear, scratch]) = registers.split_at(registers.len() - 5) else {
            panic!("{registers:?}")
        };
        let mut text = format!(
            ".reg .pred %sp; .reg .b32 %s<4>; .reg .b64 %sd<3>;
             shl.b32 %s0, {row_in_tile}, 2;
             add.u32 %s0, %s0, {scratch};
             ld.shared.u32 %s0, [%s0];\n"
        );
        for (number, inner) in self.inners.iter().enumerate() {
            let (stride, table) = (inner.next_multiple_of(8), self.pointer(1 + self.tiles.len() + number));
            text += &format!(
                "setp.eq.u32 %sp, {linear}, {number};
                 @%sp mov.u32 %s1, {stride};
                 @%sp ld.param.u64 %sd0, [{table}];\n"
            );
        }
        text += &format!(
            "mad.lo.u32 %s0, %s0, %s1, {element};
             mul.wide.u32 %sd1, %s0, {};
             add.u64 %sd0, %sd0, %sd1;\n",
            self.element.bytes()
        );
        for (place, register) in data.iter().enumerate() {
            text += &format!("ld.global.b32 {register}, [%sd0+{}];\n", place * 4);
        }
        text
    }

    /// The products of each row and column, walked through by all threads.
    fn epilogue(&self, registers: &[&str]) -> String {
        let [tile, row0, live, column0, bundle, _] = registers else { panic!("{registers:?}") };
        let rows = resources(&self.kernel).0;
        let mut text = ".reg .pred %sp; .reg .b32 %s<8>; .reg .f32 %sf<2>; .reg .b64 %sd<3>;\n".to_owned();
        for (number, (width, columns)) in self.tiles.iter().zip(&self.widths).enumerate() {
            let mut factors = String::new();
            for product in 1..self.products[number] {
                factors += &format!("ld.shared.f32 %sf1, [%s3+{}];\n", product * rows * width * 4);
                factors += "mul.rn.f32 %sf0, %sf0, %sf1;\n";
            }
            text += &format!(
                "setp.ne.u32 %sp, {bundle}, {number};
                 @%sp bra $NEXT{number};
                 ld.param.u64 %sd0, [{out}];
                 mov.u32 %s0, %tid.x;
                 mul.lo.u32 %s6, {live}, {width};
                 $LOOP{number}:
                 setp.ge.u32 %sp, %s0, %s6;
                 @%sp bra $NEXT{number};
                 div.u32 %s1, %s0, {width};
                 rem.u32 %s2, %s0, {width};
                 shl.b32 %s3, %s0, 2;
                 add.u32 %s3, %s3, {tile};
                 add.u32 %s0, %s0, 128;
                 add.u32 %s2, %s2, {column0};
                 setp.ge.u32 %sp, %s2, {columns};
                 @%sp bra $LOOP{number};
                 ld.shared.f32 %sf0, [%s3];
                 {factors}
                 add.u32 %s4, %s1, {row0};
                 mad.lo.u32 %s4, %s4, {columns}, %s2;
                 mul.wide.u32 %sd1, %s4, 4;
                 add.u64 %sd1, %sd1, %sd0;
                 st.global.f32 [%sd1], %sf0;
                 bra $LOOP{number};
                 $NEXT{number}:\n",
                out = self.pointer(1 + number)
            );
        }
        text
    }
}

/// A template with its slots filled in: rows are fetched by number, and the products of a bundle multiplied.
pub(crate) fn check(text: &str, kernel: &str) -> Result<(), String> {
    let mut random = Random::new(super::common::seed());
    let mut case = Case::random(&mut random, kernel);
    let element = Element::of(kernel);
    let (rows, table_rows) = (case.rows(), case.rows() + 5);
    let list: Vec<u32> = (0..rows).map(|_| random.below(table_rows) as u32).collect();
    let firsts = [0, 2, 3];
    let gather = Gather {
        kernel: kernel.to_owned(),
        element,
        inners: case.products.iter().map(|product| product.inner).collect(),
        widths: firsts.iter().map(|first| case.products[*first].columns).collect(),
        tiles: case.bundles.iter().map(|bundle| bundle.tile).collect(),
        products: case.bundles.iter().map(|bundle| bundle.products).collect(),
    };
    let text = texts::fill(text, &|name, registers| gather.slot(name, registers));
    let mut bench = Bench::new(&text).map_err(|error| error.to_string())?;
    let mut pointers = vec![bench.put_words(&list)];
    for columns in &gather.widths {
        let out = bench.poisoned((rows + 1) * columns * 4);
        bench.holds(&out, Format::F32);
        pointers.push(out);
    }
    for product in &mut case.products {
        let stride = product.inner.next_multiple_of(8);
        let mut table = element.random(&mut random, table_rows * stride);
        for row in table.chunks_mut(stride) {
            row[product.inner..].fill(0.0);
        }
        product.x = list.iter().flat_map(|row| table[*row as usize * stride..][..product.inner].to_vec()).collect();
        product.output = Element::F32;
        pointers.push(bench.put(&element.encode_all(&table)));
    }
    case.run(&mut bench, kernel, &pointers)?;
    for (number, (first, columns)) in firsts.into_iter().zip(&gather.widths).enumerate() {
        let out = &pointers[1 + number];
        untouched(out, rows * columns * 4)?;
        let got = floats(out);
        for (row, column) in (0..rows).flat_map(|row| (0..*columns).map(move |column| (row, column))) {
            let (mut expected, mut tolerance) = (1.0f64, 0.0f64);
            for product in &case.products[first..first + case.bundles[number].products] {
                let (factor, sums) = product.element(row, column);
                tolerance = tolerance * (factor.abs() + sums) + expected.abs() * sums;
                expected *= factor;
            }
            let got = got[row * columns + column];
            if !Element::F32.is_near(got, expected, tolerance + expected.abs() * 1e-6 + 1e-30) {
                return Err(format!("bundle {number}, row {row}, column {column}: {got}, expected {expected}"));
            }
        }
    }
    Ok(())
}
