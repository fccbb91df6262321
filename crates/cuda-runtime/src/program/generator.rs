//! The generator: instructions for eight elements of a value at a time, from what the value is computed of.

use std::collections::HashMap;

use allotrope_graph::{DType, Definition, Graph, Input, Op, OpId, OpKind, ValueId};

use super::code::{Class, Code, Register, emit};
use super::numbers::{Numbers, Row, Space};
use super::place::{Axis, CHUNK, Elements, Place, Transform};
use super::pointers::{Pointer, Pointers};

/// What an architecture can do, as far as generated code asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// It converts e4m3 by an instruction (from 8.9).
    pub e4m3: bool,
    /// A kernel may begin before the one in front of it is done, and waits for it itself (from 9.0).
    pub dependent_launch: bool,
}

impl Features {
    /// Those of a compute capability.
    pub fn of(capability: (u32, u32)) -> Self {
        Self { e4m3: capability >= (8, 9), dependent_launch: capability >= (9, 0) }
    }

    /// Those of the target that PTX text names.
    pub fn of_target(ptx: &str) -> Self {
        let target = ptx.lines().find_map(|line| line.trim().strip_prefix(".target sm_")).unwrap_or_default();
        let digits: u32 = target.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(80);
        Self::of((digits / 10, digits % 10))
    }
}

/// Where a kernel's parameter has the array of [`Pointers`].
#[derive(Debug, Clone)]
pub(super) struct ParameterArray {
    /// The name of the parameter.
    pub(super) name: String,
    /// Bytes of it before the array.
    pub(super) offset: usize,
}

/// Results of products or of attention that a block has in shared memory as `f32`, scaled and not yet rounded.
#[derive(Debug, Clone)]
pub(super) struct Tile {
    /// The shared address of the tile.
    pub(super) address: Register,
    /// The row within the tile that code is generated for.
    pub(super) row: Register,
    /// The column of the values that the tile begins with.
    pub(super) first_column: Register,
    /// Columns of the tile.
    pub(super) columns: usize,
    /// Rows of the tile for each value.
    pub(super) rows: usize,
    /// The values in the tile, in order.
    pub(super) values: Vec<ValueId>,
}

/// The scalar of a row reduction.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scalar {
    Register(Register),
    /// In shared memory, at this address.
    Shared(Register),
}

/// Generates the code of one body.
pub(super) struct Generator<'a> {
    pub(super) graph: &'a Graph,
    /// The operations that are computed here; everything else is read.
    pub(super) ops: &'a [OpId],
    pub(super) code: Code,
    pub(super) features: Features,
    pub(super) pointers: &'a mut Pointers,
    pub(super) parameter: ParameterArray,
    /// The row that code is generated for.
    pub(super) row: Option<Register>,
    pub(super) tile: Option<Tile>,
    pub(super) scalars: HashMap<OpId, Scalar>,
    /// Whether a thread may still read the sums of a reduction before this point.
    pub(super) sums_are_read: bool,
    pub(super) places: u32,
    pub(super) transformed: HashMap<(u32, Transform), Place>,
    /// The first elements of a thread's chunks, by the row's width, the threads of the team and the chunk's number.
    pub(super) bases: HashMap<(usize, u32, usize), Register>,
    /// The places of a thread's chunks.
    pub(super) chunks: HashMap<(usize, u32, usize), Place>,
    computed: HashMap<(ValueId, u32), Numbers>,
    /// The words of a storage type that numbers were taken from.
    pub(super) words: HashMap<(DType, Numbers), Vec<Register>>,
    indices: HashMap<Input, Register>,
}

impl<'a> Generator<'a> {
    pub(super) fn new(
        graph: &'a Graph,
        ops: &'a [OpId],
        features: Features,
        pointers: &'a mut Pointers,
        parameter: ParameterArray,
        instance: u32,
    ) -> Self {
        Self {
            graph,
            ops,
            code: Code::new(instance),
            features,
            pointers,
            parameter,
            row: None,
            tile: None,
            scalars: HashMap::new(),
            sums_are_read: false,
            places: 0,
            transformed: HashMap::new(),
            bases: HashMap::new(),
            chunks: HashMap::new(),
            computed: HashMap::new(),
            words: HashMap::new(),
            indices: HashMap::new(),
        }
    }

    /// Begins a row: what was computed for another one does not hold for it.
    pub(super) fn begin_row(&mut self, row: Register) {
        self.row = Some(row);
        self.forget();
        self.indices.clear();
        self.bases.clear();
        self.chunks.clear();
    }

    /// Forgets the elements that were computed so far: code that follows is not always reached through theirs.
    pub(super) fn forget(&mut self) {
        self.computed.clear();
        self.transformed.clear();
        self.chunks.clear();
    }

    /// The current row.
    pub(super) fn current_row(&mut self) -> Register {
        let row = self.row.unwrap_or_else(|| self.code.register(Class::Word));
        self.row = Some(row);
        row
    }

    /// An entry of the launch's array, in a register.
    pub(super) fn pointer(&mut self, pointer: Pointer) -> Register {
        let place = self.pointers.place(pointer);
        self.entry(place, Class::Long, "u64")
    }

    /// The number that an operation has as its attribute.
    pub(super) fn constant(&mut self, op: OpId, value: f32) -> Register {
        let place = self.pointers.constant(op, value);
        self.entry(place, Class::Float, "f32")
    }

    fn entry(&mut self, place: usize, class: Class, ty: &str) -> Register {
        let register = self.code.register(class);
        let ParameterArray { name, offset } = &self.parameter;
        let at = offset + 8 * place;
        self.code.line(format_args!("ld.param.{ty} {register}, [{name}+{at}];"));
        register
    }

    /// The operation of this body that makes a value.
    fn maker(&self, value: ValueId) -> Option<OpId> {
        let in_tile = self.tile.as_ref().is_some_and(|tile| tile.values.contains(&value));
        self.graph.producer(value).filter(|op| !in_tile && self.ops.contains(op))
    }

    pub(super) fn dtype(&self, value: ValueId) -> DType {
        self.graph.tensor_type(value).map_or(DType::F32, |tensor| tensor.dtype)
    }

    pub(super) fn width(&self, value: ValueId) -> usize {
        self.graph.tensor_type(value).and_then(|tensor| tensor.width()).unwrap_or(1)
    }

    /// The sizes of one row of a value.
    fn row_sizes(&self, value: ValueId) -> Vec<usize> {
        let Some(tensor) = self.graph.tensor_type(value) else { return Vec::new() };
        (1..tensor.shape.len()).map(|axis| tensor.static_size(axis).unwrap_or(1)).collect()
    }

    /// An index that an input of the step has for the current row.
    pub(super) fn index(&mut self, input: Input) -> Register {
        if let Some(known) = self.indices.get(&input) {
            return *known;
        }
        let (row, base) = (self.current_row(), self.pointer(Pointer::Input(input)));
        let (address, index) = (self.code.register(Class::Long), self.code.register(Class::Word));
        emit!(self, "mad.wide.u32 {address}, {row}, 4, {base};");
        emit!(self, "ld.global.b32 {index}, [{address}];");
        self.indices.insert(input, index);
        index
    }

    /// Reads the indices of the current row that the operations need, so that all code after it has them.
    pub(super) fn read_indices(&mut self) {
        for op in self.ops {
            let operands = &self.graph.op(*op).inputs;
            for operand in operands {
                if let Definition::Input(input) = self.graph.value(*operand).definition {
                    self.index(input);
                }
            }
        }
    }

    fn input_of(&self, value: ValueId) -> Option<Input> {
        match self.graph.value(value).definition {
            Definition::Input(input) => Some(input),
            _ => None,
        }
    }

    /// A row of a tensor in global memory; without a row, a vector that all rows share.
    pub(super) fn global_row(&mut self, value: ValueId, row: Option<Register>) -> Row {
        let (dtype, width) = (self.dtype(value), self.width(value));
        let base = self.pointer(Pointer::Value(value));
        let Some(row) = row else { return Row { address: base, space: Space::Global, dtype, aligned: true } };
        let address = self.code.register(Class::Long);
        emit!(self, "mad.wide.u32 {address}, {row}, {}, {base};", width * dtype.size_in_bytes());
        Row { address, space: Space::Global, dtype, aligned: width.is_multiple_of(CHUNK) }
    }

    /// The elements of a value at a place, rounded to its type.
    pub(super) fn numbers(&mut self, value: ValueId, place: Place) -> Numbers {
        if let Some(known) = self.computed.get(&(value, place.id)) {
            return *known;
        }
        let numbers = match self.maker(value) {
            Some(op) => self.result(op, place),
            None => self.read(value, place),
        };
        self.computed.insert((value, place.id), numbers);
        numbers
    }

    /// Reads a value that is made elsewhere.
    fn read(&mut self, value: ValueId, place: Place) -> Numbers {
        let tile = self.tile.as_ref().and_then(|tile| {
            let number = tile.values.iter().position(|other| *other == value)?;
            Some((tile.clone(), number))
        });
        let Some((tile, number)) = tile else {
            let row = self.current_row();
            let row = self.global_row(value, Some(row));
            return self.load(&row, place);
        };
        // The address of the row's column 0, which may lie before the tile.
        let address = self.code.register(Class::Word);
        let line = self.code.register(Class::Word);
        emit!(self, "add.u32 {line}, {}, {};", tile.row, number * tile.rows);
        emit!(self, "mul.lo.u32 {line}, {line}, {};", tile.columns);
        emit!(self, "sub.u32 {line}, {line}, {};", tile.first_column);
        emit!(self, "mad.lo.u32 {address}, {line}, 4, {};", tile.address);
        let aligned = tile.columns.is_multiple_of(CHUNK);
        let row = Row { address, space: Space::Shared, dtype: DType::F32, aligned };
        let numbers = self.load(&row, place);
        self.rounded(self.dtype(value), numbers)
    }

    /// The elements of an operation's result.
    fn result(&mut self, id: OpId, place: Place) -> Numbers {
        let (graph, output) = (self.graph, self.graph.op(id).output);
        let op = graph.op(id);
        let dtype = self.dtype(output);
        match &op.kind {
            OpKind::Embedding | OpKind::SelectRows => self.gathered(op, place),
            OpKind::Cast { .. } => {
                let x = self.operand(op, 0, place);
                self.rounded(dtype, x)
            }
            OpKind::RmsNorm { .. } => {
                let inverse = self.scalar(id);
                self.normalized(op, place, [inverse; CHUNK], place)
            }
            OpKind::HeadRmsNorm { heads, epsilon } => self.head_norm(id, *heads, *epsilon, place),
            OpKind::Quantize { scale } => {
                let (x, scale) = (self.operand(op, 0, place), self.constant(id, *scale));
                let divided = self.each(|g, element, result| emit!(g, "div.rn.f32 {result}, {}, {scale};", x[element]));
                self.rounded(dtype, divided)
            }
            OpKind::RopeAngles { inverse_frequencies, attention_scaling } => {
                self.angles(id, inverse_frequencies, *attention_scaling, place)
            }
            OpKind::Rope { .. } => self.rotated(op, place),
            OpKind::Silu => {
                let x = self.operand(op, 0, place);
                let result = x.map(|x| self.silu(x));
                self.rounded(dtype, result)
            }
            OpKind::Add | OpKind::Sub | OpKind::Mul => {
                let (a, b) = (self.operand(op, 0, place), self.second_operand(op, place));
                let name = match op.kind {
                    OpKind::Add => "add",
                    OpKind::Sub => "sub",
                    _ => "mul",
                };
                let result = self.each(|g, element, result| {
                    emit!(g, "{name}.rn.f32 {result}, {}, {};", a[element], b[element]);
                });
                self.rounded(dtype, result)
            }
            OpKind::MulScalar { factor: number } | OpKind::AddScalar { term: number } => {
                let (x, number) = (self.operand(op, 0, place), self.constant(id, *number));
                let name = if matches!(op.kind, OpKind::MulScalar { .. }) { "mul" } else { "add" };
                let result =
                    self.each(|g, element, result| emit!(g, "{name}.rn.f32 {result}, {}, {number};", x[element]));
                self.rounded(dtype, result)
            }
            OpKind::Reshape { .. } => self.operand(op, 0, place),
            OpKind::Slice { axis, start, .. } => self.sliced(op, *axis, *start, place),
            OpKind::Concat { axis } => self.concatenated(op, *axis, place),
            OpKind::Transpose { permutation } => self.transposed(op, permutation, place),
            // The target lets none of these be computed by rows.
            OpKind::Linear { .. } | OpKind::Attention { .. } | OpKind::KvWrite => self.read(output, place),
        }
    }

    fn operand(&mut self, op: &Op, index: usize, place: Place) -> Numbers {
        self.numbers(op.inputs[index], place)
    }

    /// A new register for each of eight elements, filled by `line`.
    fn each(&mut self, mut line: impl FnMut(&mut Self, usize, Register)) -> Numbers {
        std::array::from_fn(|element| {
            let result = self.float();
            line(self, element, result);
            result
        })
    }

    /// The second operand of a sum may be one vector for all rows.
    fn second_operand(&mut self, op: &Op, place: Place) -> Numbers {
        let elements = |value: ValueId| self.graph.tensor_type(value).map_or(1, |tensor| tensor.shape.len());
        if elements(op.inputs[0]) == elements(op.inputs[1]) || self.maker(op.inputs[1]).is_some() {
            return self.operand(op, 1, place);
        }
        let length = self.graph.tensor_type(op.inputs[1]).and_then(|tensor| tensor.static_size(0)).unwrap_or(1);
        self.vector(op.inputs[1], length, place)
    }

    /// The elements of a vector that is repeated along a row.
    fn vector(&mut self, value: ValueId, length: usize, place: Place) -> Numbers {
        let place = self.transformed(place, Transform::Modulo(length));
        if let Some(known) = self.computed.get(&(value, place.id)) {
            return *known;
        }
        let row = self.global_row(value, None);
        let numbers = self.load(&row, place);
        self.computed.insert((value, place.id), numbers);
        numbers
    }

    fn gathered(&mut self, op: &Op, place: Place) -> Numbers {
        let Some(input) = self.input_of(op.inputs[1]) else { return self.operand(op, 0, place) };
        let index = self.index(input);
        let row = self.global_row(op.inputs[0], Some(index));
        self.load(&row, place)
    }

    /// The scalar of a row reduction that was computed before.
    fn scalar(&mut self, op: OpId) -> Register {
        match self.scalars.get(&op).copied() {
            Some(Scalar::Register(register)) => register,
            Some(Scalar::Shared(address)) => {
                let number = self.float();
                emit!(self, "ld.shared.f32 {number}, [{address}];");
                number
            }
            None => self.float(),
        }
    }

    /// `x · inverse`, rounded, times the weight, rounded.
    fn normalized(&mut self, op: &Op, place: Place, inverses: Numbers, weights: Place) -> Numbers {
        let dtype = self.dtype(op.output);
        let x = self.operand(op, 0, place);
        let product =
            self.each(|g, element, result| emit!(g, "mul.rn.f32 {result}, {}, {};", x[element], inverses[element]));
        let product = self.rounded(dtype, product);
        let length = self.graph.tensor_type(op.inputs[1]).and_then(|tensor| tensor.static_size(0)).unwrap_or(1);
        let weight = self.vector(op.inputs[1], length, weights);
        let result =
            self.each(|g, element, result| emit!(g, "mul.rn.f32 {result}, {}, {};", product[element], weight[element]));
        self.rounded(dtype, result)
    }

    /// Each head is summed up by one thread: eight sums of every eighth element, then these in pairs.
    fn head_norm(&mut self, id: OpId, heads: usize, epsilon: f32, place: Place) -> Numbers {
        let op = self.graph.op(id);
        let head = (self.width(op.output) / heads.max(1)).max(1);
        let epsilon = self.constant(id, epsilon);
        let one_head = matches!(place.elements, Elements::Run(_)) && head.is_multiple_of(CHUNK);
        let mut inverses: Vec<Register> = Vec::with_capacity(CHUNK);
        for element in 0..if one_head { 1 } else { CHUNK } {
            let sums = self.each(|g, _, sum| emit!(g, "mov.f32 {sum}, 0f00000000;"));
            for chunk in 0..head.div_ceil(CHUNK) {
                let transform = match one_head {
                    true => Transform::OfHead { head, chunk },
                    false => Transform::OfHeadOf { element, head, chunk },
                };
                let part = self.transformed(place, transform);
                let x = self.operand(op, 0, part);
                for (number, sum) in x.into_iter().zip(sums).take(head - chunk * CHUNK) {
                    emit!(self, "fma.rn.f32 {sum}, {number}, {number}, {sum};");
                }
            }
            let squares = self.sum_of_eight(sums);
            inverses.push(self.inverse_root_mean_square(squares, head, epsilon));
        }
        let inverses = std::array::from_fn(|element| inverses[element.min(inverses.len() - 1)]);
        self.normalized(op, place, inverses, place)
    }

    /// The sum of eight numbers, in pairs.
    fn sum_of_eight(&mut self, mut sums: Numbers) -> Register {
        for distance in [4, 2, 1] {
            for element in 0..distance {
                let sum = self.float();
                emit!(self, "add.rn.f32 {sum}, {}, {};", sums[element], sums[element + distance]);
                sums[element] = sum;
            }
        }
        sums[0]
    }

    fn angles(&mut self, id: OpId, frequencies: &[f32], scaling: f32, place: Place) -> Numbers {
        let op = self.graph.op(id);
        let half = frequencies.len();
        let words: Vec<u32> = frequencies.iter().map(|frequency| frequency.to_bits()).collect();
        let table = self.code.table(&words);
        let scaling = self.constant(id, scaling);
        let position = self.input_of(op.inputs[0]).map(|input| self.index(input));
        let position = position.unwrap_or_else(|| self.code.register(Class::Word));
        let (base, number) = (self.code.register(Class::Long), self.float());
        emit!(self, "mov.u64 {base}, {table};");
        emit!(self, "cvt.rn.f32.s32 {number}, {position};");
        self.each(|g, element, result| {
            let index = g.element(place, element);
            let is_sine = g.in_second_half(index, half);
            let (within, address, angle) = (g.code.register(Class::Word), g.code.register(Class::Long), g.float());
            emit!(g, "rem.u32 {within}, {index}, {half};");
            emit!(g, "mad.wide.u32 {address}, {within}, 4, {base};");
            emit!(g, "ld.global.f32 {angle}, [{address}];");
            emit!(g, "mul.rn.f32 {angle}, {number}, {angle};");
            let value = g.cosine_or_sine(angle, is_sine);
            emit!(g, "mul.rn.f32 {result}, {value}, {scaling};");
        })
    }

    fn rotated(&mut self, op: &Op, place: Place) -> Numbers {
        let head = self.width(op.inputs[1]).max(2);
        let half = head / 2;
        let x = self.operand(op, 0, place);
        let other = self.transformed(place, Transform::OtherHalf { half });
        let other = self.operand(op, 0, other);
        let cosines = self.transformed(place, Transform::Modulo(half));
        let sines = self.transformed(cosines, Transform::Offset(half));
        let (cosines, sines) = (self.operand(op, 1, cosines), self.operand(op, 1, sines));
        let result = self.each(|g, element, result| {
            let (a, b, negative) = (g.float(), g.float(), g.float());
            let index = g.element(place, element);
            let second = g.in_second_half(index, half);
            emit!(g, "mul.rn.f32 {a}, {}, {};", x[element], cosines[element]);
            emit!(g, "mul.rn.f32 {b}, {}, {};", other[element], sines[element]);
            emit!(g, "neg.f32 {negative}, {b};");
            emit!(g, "selp.f32 {b}, {b}, {negative}, {second};");
            emit!(g, "add.rn.f32 {result}, {a}, {b};");
        });
        self.rounded(self.dtype(op.output), result)
    }

    /// The axes of a row: sizes in the result, all of them in the operand, and the operand's strides.
    fn axes(sizes: &[usize], operand: &[usize]) -> Vec<Axis> {
        let stride = |axis: usize| operand[axis + 1..].iter().product();
        let axes = sizes.iter().enumerate();
        axes.map(|(axis, size)| Axis { size: *size, shift: 0, limit: *size, stride: stride(axis) }).collect()
    }

    fn sliced(&mut self, op: &Op, axis: usize, start: usize, place: Place) -> Numbers {
        let (sizes, operand) = (self.row_sizes(op.output), self.row_sizes(op.inputs[0]));
        let axes = Self::axes(&sizes, &operand);
        let offset = axis.checked_sub(1).and_then(|axis| axes.get(axis)).map_or(0, |axis| axis.stride * start);
        let place = self.transformed(place, Transform::Strides { axes, offset });
        self.operand(op, 0, place)
    }

    fn transposed(&mut self, op: &Op, permutation: &[usize], place: Place) -> Numbers {
        let (sizes, operand) = (self.row_sizes(op.output), self.row_sizes(op.inputs[0]));
        let mut axes = Self::axes(&sizes, &operand);
        for (axis, from) in axes.iter_mut().zip(permutation.iter().skip(1)) {
            axis.stride = operand[*from..].iter().product();
        }
        let place = self.transformed(place, Transform::Strides { axes, offset: 0 });
        self.operand(op, 0, place)
    }

    /// Each operand is read at the nearest of its elements, and kept where it is the one that is wanted.
    fn concatenated(&mut self, op: &Op, axis: usize, place: Place) -> Numbers {
        let sizes = self.row_sizes(op.output);
        let along = axis.saturating_sub(1);
        let (mut shift, mut result) = (0, None);
        for (number, input) in op.inputs.iter().enumerate() {
            let operand = self.row_sizes(*input);
            let mut axes = Self::axes(&sizes, &operand);
            let limit = operand.get(along).copied().unwrap_or(1);
            if let Some(axis) = axes.get_mut(along) {
                (axis.shift, axis.limit) = (shift, limit);
            }
            let part = self.transformed(place, Transform::Strides { axes, offset: 0 });
            let part = self.operand(op, number, part);
            result = Some(match result {
                None => part,
                Some(before) => self.chosen_from(place, &sizes, along, shift, before, part),
            });
            shift += limit;
        }
        result.unwrap_or_else(|| std::array::from_fn(|_| self.float()))
    }

    /// `after` where the coordinate along an axis is at least `shift`, else `before`.
    fn chosen_from(
        &mut self,
        place: Place,
        sizes: &[usize],
        axis: usize,
        shift: usize,
        before: Numbers,
        after: Numbers,
    ) -> Numbers {
        let inner: usize = sizes[axis + 1..].iter().product();
        self.each(|g, element, result| {
            let index = g.element(place, element);
            let coordinate = g.code.register(Class::Word);
            let later = g.code.register(Class::Predicate);
            emit!(g, "div.u32 {coordinate}, {index}, {inner};");
            emit!(g, "rem.u32 {coordinate}, {coordinate}, {};", sizes[axis]);
            emit!(g, "setp.ge.u32 {later}, {coordinate}, {shift};");
            emit!(g, "selp.f32 {result}, {}, {}, {later};", after[element], before[element]);
        })
    }
}
