//! Which elements of a row code works on: eight at a time, neighbours where it can be.

use super::code::{Class, Register, emit};
use super::generator::Generator;

/// Elements that are computed together.
pub(super) const CHUNK: usize = 8;

/// The indices of eight elements in a row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Elements {
    /// Eight neighbours. The first is a multiple of eight.
    Run(Register),
    /// Any eight.
    Each([Register; CHUNK]),
}

/// For each of eight elements whether it is one of the row.
pub(super) type Mask = [Register; CHUNK];

/// Eight elements, known by a number: what was computed for them is found again by it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) id: u32,
    pub(super) elements: Elements,
}

/// From the elements of a result to those of an operand.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Transform {
    /// The index modulo a length.
    Modulo(usize),
    /// So many further.
    Offset(usize),
    /// In each head of twice `half` elements, the element of the other half.
    OtherHalf { half: usize },
    /// Elements `8 · chunk ..` of the head of `head` elements that the elements are in; the last one again beyond its end.
    OfHead { head: usize, chunk: usize },
    /// As `OfHead`, for the head of one of the eight elements.
    OfHeadOf { element: usize, head: usize, chunk: usize },
    /// Coordinates in the result's row of the given sizes, times strides in the operand's row, plus an offset. A coordinate
    /// is first reduced by `shift` and held within `0..limit`.
    Strides { axes: Vec<Axis>, offset: usize },
}

/// How one coordinate of a result enters the index of an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Axis {
    /// Coordinates in the result.
    pub(super) size: usize,
    /// Taken off.
    pub(super) shift: usize,
    /// Coordinates in the operand.
    pub(super) limit: usize,
    /// Elements of the operand between two coordinates.
    pub(super) stride: usize,
}

impl Transform {
    /// Whether eight neighbours at a multiple of eight become such again.
    fn keeps_runs(&self) -> bool {
        let whole = |number: &usize| number.is_multiple_of(CHUNK);
        match self {
            Transform::Modulo(length) => whole(length),
            Transform::Offset(offset) => whole(offset),
            Transform::OtherHalf { half } => whole(half),
            Transform::OfHead { head, .. } | Transform::OfHeadOf { head, .. } => whole(head),
            Transform::Strides { axes, offset } => {
                let inner = axes.last().is_some_and(|axis| {
                    axis.stride == 1 && whole(&axis.size) && whole(&axis.shift) && whole(&axis.limit)
                });
                inner && whole(offset) && axes.iter().rev().skip(1).all(|axis| whole(&axis.stride))
            }
        }
    }
}

impl Generator<'_> {
    /// A place for elements that nothing was computed for yet.
    pub(super) fn new_place(&mut self, elements: Elements) -> Place {
        self.places += 1;
        Place { id: self.places, elements }
    }

    /// The chunk whose first element is `base`, a multiple of eight below `width`: the last element again where the row ends.
    pub(super) fn chunk(&mut self, base: Register, width: usize) -> Place {
        if width.is_multiple_of(CHUNK) {
            return self.new_place(Elements::Run(base));
        }
        let each = std::array::from_fn(|element| {
            let index = self.code.register(Class::Word);
            emit!(self, "add.u32 {index}, {base}, {element};");
            emit!(self, "min.u32 {index}, {index}, {};", width - 1);
            index
        });
        self.new_place(Elements::Each(each))
    }

    /// The operand's elements for a result's.
    pub(super) fn transformed(&mut self, place: Place, transform: Transform) -> Place {
        if let Some(known) = self.transformed.get(&(place.id, transform.clone())) {
            return *known;
        }
        let elements = match place.elements {
            Elements::Run(base) if transform.keeps_runs() => Elements::Run(self.transformed_index(base, 0, &transform)),
            Elements::Run(_) | Elements::Each(_) => Elements::Each(std::array::from_fn(|element| {
                let from = match &transform {
                    Transform::OfHead { .. } => 0,
                    Transform::OfHeadOf { element, .. } => *element,
                    _ => element,
                };
                let index = self.element(place, from);
                self.transformed_index(index, element, &transform)
            })),
        };
        let found = self.new_place(elements);
        self.transformed.insert((place.id, transform), found);
        found
    }

    /// The index of one of a place's elements.
    pub(super) fn element(&mut self, place: Place, element: usize) -> Register {
        match place.elements {
            Elements::Each(each) => each[element],
            Elements::Run(base) if element == 0 => base,
            Elements::Run(base) => {
                let index = self.code.register(Class::Word);
                emit!(self, "add.u32 {index}, {base}, {element};");
                index
            }
        }
    }

    fn transformed_index(&mut self, index: Register, element: usize, transform: &Transform) -> Register {
        let result = self.code.register(Class::Word);
        match transform {
            Transform::Modulo(length) => emit!(self, "rem.u32 {result}, {index}, {length};"),
            Transform::Offset(offset) => emit!(self, "add.u32 {result}, {index}, {offset};"),
            Transform::OtherHalf { half } => {
                let second = self.in_second_half(index, *half);
                let (up, down) = (self.code.register(Class::Word), self.code.register(Class::Word));
                emit!(self, "add.u32 {up}, {index}, {half};");
                emit!(self, "sub.u32 {down}, {index}, {half};");
                emit!(self, "selp.b32 {result}, {down}, {up}, {second};");
            }
            Transform::OfHead { head, chunk } | Transform::OfHeadOf { head, chunk, .. } => {
                // Run: the first of eight neighbours; else each by itself, held within the head.
                let within = (chunk * CHUNK + element).min(head - 1);
                let first = self.code.register(Class::Word);
                emit!(self, "div.u32 {first}, {index}, {head};");
                emit!(self, "mad.lo.u32 {result}, {first}, {head}, {within};");
            }
            Transform::Strides { axes, offset } => self.strided_index(result, index, axes, *offset),
        }
        result
    }

    fn strided_index(&mut self, result: Register, index: Register, axes: &[Axis], offset: usize) {
        emit!(self, "mov.u32 {result}, {offset};");
        let mut rest = index;
        for (place, axis) in axes.iter().enumerate().rev() {
            let coordinate = self.code.register(Class::Word);
            if place == 0 {
                emit!(self, "mov.u32 {coordinate}, {rest};");
            } else {
                let outer = self.code.register(Class::Word);
                emit!(self, "rem.u32 {coordinate}, {rest}, {};", axis.size);
                emit!(self, "div.u32 {outer}, {rest}, {};", axis.size);
                rest = outer;
            }
            if axis.shift > 0 {
                emit!(self, "sub.s32 {coordinate}, {coordinate}, {};", axis.shift);
                emit!(self, "max.s32 {coordinate}, {coordinate}, 0;");
            }
            if axis.limit + axis.shift < axis.size {
                // The last run of eight, or the last element: a coordinate of a run is its first.
                let whole = axis.stride == 1 && axis.limit.is_multiple_of(CHUNK) && axis.size.is_multiple_of(CHUNK);
                let last = if whole && axis.shift.is_multiple_of(CHUNK) { axis.limit - CHUNK } else { axis.limit - 1 };
                if last + 1 == axis.limit {
                    emit!(self, "min.s32 {coordinate}, {coordinate}, {last};");
                } else {
                    self.hold_within(coordinate, axis.limit);
                }
            }
            emit!(self, "mad.lo.u32 {result}, {coordinate}, {}, {result};", axis.stride);
        }
    }

    /// Holds the first of eight neighbours, or one element, within `limit`: its place within a chunk is kept.
    fn hold_within(&mut self, coordinate: Register, limit: usize) {
        let within = self.code.register(Class::Word);
        let last = self.code.register(Class::Word);
        emit!(self, "and.b32 {within}, {coordinate}, {};", CHUNK - 1);
        emit!(self, "add.u32 {last}, {within}, {};", limit - CHUNK);
        emit!(self, "min.s32 {coordinate}, {coordinate}, {last};");
    }

    /// Whether an element is in the second half of its head.
    pub(super) fn in_second_half(&mut self, index: Register, half: usize) -> Register {
        let within = self.code.register(Class::Word);
        let second = self.code.register(Class::Predicate);
        emit!(self, "rem.u32 {within}, {index}, {};", 2 * half);
        emit!(self, "setp.ge.u32 {second}, {within}, {half};");
        second
    }
}
