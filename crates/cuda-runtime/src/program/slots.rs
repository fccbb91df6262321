//! Fills the slots of a template kernel: each marker line in its PTX becomes generated code.

use std::collections::BTreeMap;

use allotrope_graph::{Graph, OpId, ValueId};

use super::code::{Block, Class, Register, emit};
use super::generator::{Features, Generator, ParameterArray, Scalar, Tile};
use super::place::{CHUNK, Elements, Mask, Place};
use super::pointers::Pointers;
use super::rows::{BLOCK, Store, Team, reductions, team_for};
use super::stores::stores;

/// How marker lines begin.
const MARKER: &str = "//@";

/// Bytes of scratch in front of the scalars of rows: sums of the warps of a block.
const SUMS: usize = 16;

/// A template that has other slots than its kernel should have: a bug.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the template {entry} has {problem}")]
pub struct TemplateError {
    entry: String,
    problem: String,
}

/// Results that a block has in shared memory together: products of the same columns, or attention's.
#[derive(Debug, Clone, PartialEq)]
pub struct Bundle {
    /// The results, in the order in which the tile has them.
    pub values: Vec<ValueId>,
    /// Columns of each.
    pub columns: usize,
    /// Columns that a block has at once.
    pub tile_columns: usize,
    /// The operations after them.
    pub epilogue: Vec<OpId>,
}

impl Bundle {
    /// Whether the last tile has as many columns as the others.
    fn has_whole_tiles(&self) -> bool {
        self.columns.is_multiple_of(self.tile_columns)
    }

    /// Whether every chunk of a tile has all its elements.
    fn has_whole_chunks(&self) -> bool {
        self.tile_columns.is_multiple_of(CHUNK) && self.columns.is_multiple_of(CHUNK)
    }
}

/// What the slots of one kernel are filled with.
#[derive(Debug, Clone, PartialEq)]
pub struct Filling<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// The operations before the products.
    pub prologue: Vec<OpId>,
    /// What each product multiplies.
    pub inputs: Vec<ValueId>,
    /// The bundles of the launch.
    pub bundles: Vec<Bundle>,
    /// Rows of a tile.
    pub rows: usize,
    /// Where the kernel's parameter has its array of pointers, in bytes.
    pub pointers_offset: usize,
}

impl Filling<'_> {
    fn reductions(&self) -> Vec<OpId> {
        reductions(self.graph, &self.prologue)
    }

    /// Bytes of shared memory that the slots need.
    pub fn scratch_bytes(&self) -> usize {
        SUMS + 4 * self.rows * self.reductions().len()
    }
}

/// The template with its slots filled, and what the array of pointers must hold.
///
/// # Errors
/// If the template has a slot that is not known, or with other registers than it should have.
pub fn fill(
    template: &str,
    entry: &str,
    filling: &Filling<'_>,
    features: Features,
) -> Result<(String, Pointers), TemplateError> {
    let fail = |problem: String| TemplateError { entry: entry.to_owned(), problem };
    let mut pointers = Pointers::default();
    let mut text = String::with_capacity(2 * template.len());
    let mut tables = BTreeMap::new();
    let mut markers = 0;
    for line in template.lines() {
        let Some(marker) = line.trim_start().strip_prefix(MARKER) else {
            text += line;
            text.push('\n');
            continue;
        };
        let parts: Vec<&str> = marker.split([' ', ',', '\t', ';']).filter(|part| !part.is_empty()).collect();
        let parameter = ParameterArray { name: format!("{entry}_param_0"), offset: filling.pointers_offset };
        let slot = Slot { filling, features, parameter, instance: markers };
        let block = slot.block(&parts, &mut pointers).ok_or_else(|| fail(format!("the slot `{}`", line.trim())))?;
        text += &block.text;
        tables.extend(block.tables);
        markers += 1;
    }
    if markers == 0 {
        return Err(fail("no slots".to_owned()));
    }
    let declarations: String = tables.into_values().collect();
    let (header, rest) = text.split_once(".address_size 64\n").ok_or_else(|| fail("no address size".to_owned()))?;
    Ok((format!("{header}.address_size 64\n{declarations}{rest}"), pointers))
}

struct Slot<'a> {
    filling: &'a Filling<'a>,
    features: Features,
    parameter: ParameterArray,
    /// The number of the marker in the text.
    instance: u32,
}

impl Slot<'_> {
    /// The code for a marker: its name and the registers that follow it.
    fn block(&self, parts: &[&str], pointers: &mut Pointers) -> Option<Block> {
        match *parts {
            ["rows", row0, live, scratch] => Some(self.rows([row0, live, scratch], pointers)),
            ["input", ref results @ .., row_in_tile, row, element, linear, scratch] => {
                self.input(results, [row_in_tile, row, element, linear, scratch], pointers)
            }
            ["epilogue", tile, row0, live, column0, bundle, scratch] => {
                Some(self.epilogue([tile, row0, live, column0, bundle, scratch], pointers))
            }
            _ => None,
        }
    }

    fn generator<'g>(&'g self, ops: &'g [OpId], pointers: &'g mut Pointers) -> Generator<'g> {
        Generator::new(self.filling.graph, ops, self.features, pointers, self.parameter.clone(), self.instance)
    }

    /// Computes the scalars of the tile's rows into scratch memory.
    fn rows(&self, operands: [&str; 3], pointers: &mut Pointers) -> Block {
        let reductions = self.filling.reductions();
        let mut g = self.generator(&self.filling.prologue, pointers);
        let [row0, live, scratch] = operands.map(|name| g.taken(name));
        if reductions.is_empty() {
            return g.code.finish();
        }
        let widths = reductions.iter().map(|op| g.width(g.graph.op(*op).output));
        let threads = widths.map(team_for).max().unwrap_or(BLOCK);
        let [in_block, thread, index, row, address] = std::array::from_fn(|_| g.word());
        let [outside, first] = std::array::from_fn(|_| g.code.register(Class::Predicate));
        let (begin, end) = (g.code.label(), g.code.label());
        emit!(g, "mov.u32 {in_block}, %tid.x;");
        emit!(g, "and.b32 {thread}, {in_block}, {};", threads - 1);
        emit!(g, "div.u32 {index}, {in_block}, {threads};");
        emit!(g, "setp.eq.u32 {first}, {thread}, 0;");
        // By the round of the loop before.
        g.sums_are_read = true;
        g.code.place(begin);
        emit!(g, "setp.ge.u32 {outside}, {index}, {live};");
        emit!(g, "@{outside} bra {end};");
        emit!(g, "add.u32 {row}, {row0}, {index};");
        g.begin_row(row);
        g.read_indices();
        emit!(g, "mad.lo.u32 {address}, {index}, {}, {scratch};", 4 * reductions.len());
        for (number, reduction) in reductions.iter().enumerate() {
            let scalar = g.reduce(*reduction, Team { threads, thread, scratch });
            g.scalars.insert(*reduction, Scalar::Register(scalar));
            emit!(g, "@{first} st.shared.f32 [{address}+{}], {scalar};", SUMS + 4 * number);
        }
        emit!(g, "add.u32 {index}, {index}, {};", BLOCK / threads);
        emit!(g, "bra {begin};");
        g.code.place(end);
        g.code.finish()
    }

    /// Yields eight elements of what a product multiplies, in their storage form.
    fn input(&self, results: &[&str], operands: [&str; 5], pointers: &mut Pointers) -> Option<Block> {
        let mut inputs: Vec<ValueId> = Vec::new();
        for input in &self.filling.inputs {
            if !inputs.contains(input) {
                inputs.push(*input);
            }
        }
        let mut g = self.generator(&self.filling.prologue, pointers);
        let [row_in_tile, row, element, linear, scratch] = operands.map(|name| g.taken(name));
        self.find_scalars(&mut g, row_in_tile, scratch);
        g.begin_row(row);
        g.read_indices();
        let end = g.code.label();
        for (number, input) in inputs.iter().enumerate() {
            let next = g.code.label();
            if number + 1 < inputs.len() {
                self.skip_other_products(&mut g, linear, *input, next);
            }
            g.forget();
            let words = self.storage_form(&mut g, *input, element);
            if words.len() != results.len() {
                return None;
            }
            for (result, word) in results.iter().zip(&words) {
                emit!(g, "mov.b32 {result}, {word};");
            }
            emit!(g, "bra {end};");
            g.code.place(next);
        }
        g.code.place(end);
        Some(g.code.finish())
    }

    /// Says where the scalars of a row of the tile are that were computed before the products.
    fn find_scalars(&self, g: &mut Generator<'_>, row_in_tile: Register, scratch: Register) {
        let reductions = self.filling.reductions();
        let address = g.word();
        emit!(g, "mad.lo.u32 {address}, {row_in_tile}, {}, {scratch};", 4 * reductions.len());
        for (number, reduction) in reductions.into_iter().enumerate() {
            let place = g.word();
            emit!(g, "add.u32 {place}, {address}, {};", SUMS + 4 * number);
            g.scalars.insert(reduction, Scalar::Shared(place));
        }
    }

    /// Goes on at `next` unless the product multiplies this input.
    fn skip_other_products(&self, g: &mut Generator<'_>, linear: Register, input: ValueId, next: super::code::Label) {
        let here = g.code.label();
        for (number, _) in self.filling.inputs.iter().enumerate().filter(|(_, other)| **other == input) {
            let same = g.code.register(Class::Predicate);
            emit!(g, "setp.eq.u32 {same}, {linear}, {number};");
            emit!(g, "@{same} bra {here};");
        }
        emit!(g, "bra {next};");
        g.code.place(here);
    }

    fn storage_form(&self, g: &mut Generator<'_>, input: ValueId, element: Register) -> Vec<Register> {
        let (dtype, width) = (g.dtype(input), g.width(input));
        let made_here = g.graph.producer(input).is_some_and(|op| self.filling.prologue.contains(&op));
        if width.is_multiple_of(CHUNK) && !made_here {
            let row = g.current_row();
            let row = g.global_row(input, Some(row));
            return g.load_words(&row, element);
        }
        let place = g.chunk(element, width);
        let mut numbers = g.numbers(input, place);
        if let Some(valid) = g.within(element, width) {
            numbers = std::array::from_fn(|index| {
                let kept = g.float();
                emit!(g, "selp.f32 {kept}, {}, 0f00000000, {};", numbers[index], valid[index]);
                kept
            });
        }
        g.packed(dtype, &numbers)
    }

    /// Goes through the tile and writes what the operations after the products make of it. What they need of those before the
    /// products is computed again.
    fn epilogue(&self, operands: [&str; 6], pointers: &mut Pointers) -> Block {
        let after = self.filling.bundles.iter().flat_map(|bundle| &bundle.epilogue);
        let mut all: Vec<OpId> = self.filling.prologue.iter().chain(after).copied().collect();
        all.sort_unstable();
        all.dedup();
        let mut g = self.generator(&all, pointers);
        let [address, row0, live, first_column, bundle_number, scratch] = operands.map(|name| g.taken(name));
        let end = g.code.label();
        for (number, bundle) in self.filling.bundles.iter().enumerate() {
            let next = g.code.label();
            // What is no other bundle's is the last one's.
            if number + 1 < self.filling.bundles.len() {
                let other = g.code.register(Class::Predicate);
                emit!(g, "setp.ne.u32 {other}, {bundle_number}, {number};");
                emit!(g, "@{other} bra {next};");
            }
            let row = g.word();
            let tile = Tile {
                address,
                row,
                first_column,
                columns: bundle.tile_columns,
                rows: self.filling.rows,
                values: bundle.values.clone(),
            };
            g.tile = Some(tile);
            self.over_tile(&mut g, bundle, [row, row0, live, first_column, scratch]);
            if number + 1 < self.filling.bundles.len() {
                emit!(g, "bra {end};");
            }
            g.code.place(next);
        }
        g.code.place(end);
        g.code.finish()
    }

    fn over_tile(&self, g: &mut Generator<'_>, bundle: &Bundle, registers: [Register; 5]) {
        let [row_in_tile, row0, live, first_column, scratch] = registers;
        let chunks = bundle.tile_columns.div_ceil(CHUNK);
        let [item, items, chunk, base, row] = std::array::from_fn(|_| g.word());
        let outside = g.code.register(Class::Predicate);
        let (begin, skip, end) = (g.code.label(), g.code.label(), g.code.label());
        emit!(g, "mov.u32 {item}, %tid.x;");
        emit!(g, "mul.lo.u32 {items}, {live}, {chunks};");
        g.code.place(begin);
        emit!(g, "setp.ge.u32 {outside}, {item}, {items};");
        emit!(g, "@{outside} bra {end};");
        emit!(g, "div.u32 {row_in_tile}, {item}, {chunks};");
        emit!(g, "rem.u32 {chunk}, {item}, {chunks};");
        emit!(g, "mad.lo.u32 {base}, {chunk}, {CHUNK}, {first_column};");
        if !bundle.has_whole_tiles() {
            emit!(g, "setp.ge.u32 {outside}, {base}, {};", bundle.columns);
            emit!(g, "@{outside} bra {skip};");
        }
        emit!(g, "add.u32 {row}, {row0}, {row_in_tile};");
        self.find_scalars(g, row_in_tile, scratch);
        g.begin_row(row);
        // They serve every store, and so does the index of a store's row: the code of the bundle runs from top to bottom.
        let place = Self::tile_place(g, bundle, base, first_column);
        let valid = Self::tile_valid(g, bundle, base, first_column);
        for store in self.stores(g, bundle) {
            g.write(store, place, valid.as_ref());
        }
        g.code.place(skip);
        emit!(g, "add.u32 {item}, {item}, {BLOCK};");
        emit!(g, "bra {begin};");
        g.code.place(end);
    }

    /// What a bundle writes: results of its epilogue, and products that others read as they are. Of a cache write each bundle
    /// writes what it makes; what none makes, the first that has the operation.
    fn stores(&self, g: &Generator<'_>, bundle: &Bundle) -> Vec<Store> {
        let makers = bundle.values.iter().filter_map(|value| g.graph.producer(*value));
        let mut ops: Vec<OpId> = makers.chain(bundle.epilogue.iter().copied()).collect();
        ops.sort_unstable();
        ops.dedup();
        let makes = |bundle: &Bundle, value: ValueId| {
            bundle.values.contains(&value) || g.graph.producer(value).is_some_and(|op| bundle.epilogue.contains(&op))
        };
        let owner = |store: &Store| {
            let bundles = &self.filling.bundles;
            let maker = bundles.iter().find(|bundle| makes(bundle, store.value()));
            maker.or_else(|| {
                bundles.iter().find(|bundle| store.cache_write().is_some_and(|op| bundle.epilogue.contains(&op)))
            })
        };
        let all = stores(g.graph, &ops);
        all.into_iter().filter(|store| owner(store).is_some_and(|owner| owner.values == bundle.values)).collect()
    }

    /// The elements of a chunk of the tile.
    fn tile_place(g: &mut Generator<'_>, bundle: &Bundle, base: Register, first_column: Register) -> Place {
        if bundle.has_whole_chunks() {
            return g.new_place(Elements::Run(base));
        }
        let last = g.word();
        emit!(g, "add.u32 {last}, {first_column}, {};", bundle.tile_columns - 1);
        if !bundle.has_whole_tiles() {
            emit!(g, "min.u32 {last}, {last}, {};", bundle.columns - 1);
        }
        let each = std::array::from_fn(|element| {
            let index = g.word();
            emit!(g, "add.u32 {index}, {base}, {element};");
            emit!(g, "min.u32 {index}, {index}, {last};");
            index
        });
        g.new_place(Elements::Each(each))
    }

    /// For each element of a chunk whether the tile and the result have it, where that is not so for all.
    fn tile_valid(g: &mut Generator<'_>, bundle: &Bundle, base: Register, first_column: Register) -> Option<Mask> {
        if bundle.has_whole_chunks() {
            return None;
        }
        let end = g.word();
        emit!(g, "add.u32 {end}, {first_column}, {};", bundle.tile_columns);
        if !bundle.has_whole_tiles() {
            emit!(g, "min.u32 {end}, {end}, {};", bundle.columns);
        }
        Some(std::array::from_fn(|element| {
            let (index, valid) = (g.word(), g.code.register(Class::Predicate));
            emit!(g, "add.u32 {index}, {base}, {element};");
            emit!(g, "setp.lt.u32 {valid}, {index}, {end};");
            valid
        }))
    }
}

impl Generator<'_> {
    /// A register of the template, in one of ours.
    fn taken(&mut self, name: &str) -> Register {
        let register = self.word();
        emit!(self, "mov.b32 {register}, {name};");
        register
    }
}
