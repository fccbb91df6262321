//! Whole kernels for row programs: a team of threads for each row.

use allotrope_graph::{Graph, Input, OpId, OpKind, ValueId};

use super::code::{Class, Register, emit};
use super::generator::{Generator, Scalar};
use super::numbers::{Row, Space};
use super::place::{CHUNK, Mask, Place};
use super::pointers::Pointer;

/// Threads of a block of every kernel.
pub const BLOCK: u32 = 128;

/// Threads of a warp.
const WARP: u32 = 32;

/// Rows up to this width are reduced by one warp, wider ones by a block.
const WARP_WIDTH: usize = 1024;

/// Chunks of one thread that are kept in registers; where there are more, they are computed in a loop.
const MOST_CHUNKS: usize = 8;

/// How many threads reduce a row: it depends on nothing but the row's width, so the order of the sum does not either.
pub(super) const fn team_for(width: usize) -> u32 {
    if width > WARP_WIDTH { BLOCK } else { WARP }
}

/// Something that a program writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    /// A value in the arena.
    Value(ValueId),
    /// The keys that a KV-cache write takes: the operation, the value, the layer.
    Keys(OpId, ValueId, usize),
    /// The values that it takes.
    Values(OpId, ValueId, usize),
}

impl Store {
    /// The operation, if it is a cache write.
    pub(super) const fn cache_write(&self) -> Option<OpId> {
        match self {
            Store::Value(_) => None,
            Store::Keys(op, ..) | Store::Values(op, ..) => Some(*op),
        }
    }

    /// The value whose elements are written.
    pub(super) const fn value(&self) -> ValueId {
        match self {
            Store::Value(value) | Store::Keys(_, value, _) | Store::Values(_, value, _) => *value,
        }
    }
}

/// The threads that compute a row together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Team {
    pub(super) threads: u32,
    /// The thread's number in its team.
    pub(super) thread: Register,
    /// The shared address of four words, for sums over a block.
    pub(super) scratch: Register,
}

/// The row reductions among operations, in order.
pub(super) fn reductions(graph: &Graph, ops: &[OpId]) -> Vec<OpId> {
    ops.iter().filter(|op| matches!(graph.op(**op).kind, OpKind::RmsNorm { .. })).copied().collect()
}

impl Generator<'_> {
    pub(super) fn word(&mut self) -> Register {
        self.code.register(Class::Word)
    }

    /// Runs `body` for each chunk of a row that a thread has, with the elements that are within the row.
    pub(super) fn for_chunks(
        &mut self,
        width: usize,
        team: Team,
        body: &mut dyn FnMut(&mut Self, Place, Option<&Mask>),
    ) {
        let chunks = width.div_ceil(CHUNK);
        let each = chunks.div_ceil(team.threads as usize);
        if each > MOST_CHUNKS {
            return self.loop_over_chunks(width, team, body);
        }
        for number in 0..each {
            let base = self.base_of(width, team, number);
            let end = self.code.label();
            if (number + 1) * team.threads as usize > chunks {
                let outside = self.code.register(Class::Predicate);
                emit!(self, "setp.ge.u32 {outside}, {base}, {width};");
                emit!(self, "@{outside} bra {end};");
            }
            let place = self.kept_chunk(base, width, team, number);
            let valid = self.within(base, width);
            body(self, place, valid.as_ref());
            self.code.place(end);
        }
    }

    /// The first element of a thread's chunk. It is computed where all threads pass.
    fn base_of(&mut self, width: usize, team: Team, number: usize) -> Register {
        let key = (width, team.threads, number);
        if let Some(base) = self.bases.get(&key) {
            return *base;
        }
        let base = self.word();
        emit!(self, "add.u32 {base}, {}, {};", team.thread, number as u32 * team.threads);
        emit!(self, "mul.lo.u32 {base}, {base}, {CHUNK};");
        self.bases.insert(key, base);
        base
    }

    /// The place of a thread's chunk: the same in every pass over the row, so that what one pass computed the next ones have.
    fn kept_chunk(&mut self, base: Register, width: usize, team: Team, number: usize) -> Place {
        let key = (width, team.threads, number);
        if let Some(place) = self.chunks.get(&key) {
            return *place;
        }
        let place = self.chunk(base, width);
        self.chunks.insert(key, place);
        place
    }

    fn loop_over_chunks(&mut self, width: usize, team: Team, body: &mut dyn FnMut(&mut Self, Place, Option<&Mask>)) {
        let (base, outside) = (self.word(), self.code.register(Class::Predicate));
        let (begin, end) = (self.code.label(), self.code.label());
        emit!(self, "mul.lo.u32 {base}, {}, {CHUNK};", team.thread);
        self.code.place(begin);
        emit!(self, "setp.ge.u32 {outside}, {base}, {width};");
        emit!(self, "@{outside} bra {end};");
        self.forget();
        let place = self.chunk(base, width);
        let valid = self.within(base, width);
        body(self, place, valid.as_ref());
        emit!(self, "add.u32 {base}, {base}, {};", CHUNK as u32 * team.threads);
        emit!(self, "bra {begin};");
        self.code.place(end);
        self.forget();
    }

    /// For each element of a chunk whether it is within the row, where that is not so for all.
    pub(super) fn within(&mut self, base: Register, width: usize) -> Option<Mask> {
        (!width.is_multiple_of(CHUNK)).then(|| {
            std::array::from_fn(|element| {
                let (index, valid) = (self.word(), self.code.register(Class::Predicate));
                emit!(self, "add.u32 {index}, {base}, {element};");
                emit!(self, "setp.lt.u32 {valid}, {index}, {width};");
                valid
            })
        })
    }

    /// Computes the scalar of a row reduction in all threads of the team.
    pub(super) fn reduce(&mut self, id: OpId, team: Team) -> Register {
        let op = self.graph.op(id);
        let OpKind::RmsNorm { epsilon } = op.kind else { return self.float() };
        let (x, width) = (op.inputs[0], self.width(op.output));
        let team = self.reducing(team, width);
        let squares = self.float();
        emit!(self, "mov.f32 {squares}, 0f00000000;");
        self.for_chunks(width, team, &mut |g, place, valid| {
            let numbers = g.numbers(x, place);
            for (element, number) in numbers.into_iter().enumerate() {
                let number = match valid {
                    None => number,
                    Some(valid) => {
                        let kept = g.float();
                        emit!(g, "selp.f32 {kept}, {number}, 0f00000000, {};", valid[element]);
                        kept
                    }
                };
                emit!(g, "fma.rn.f32 {squares}, {number}, {number}, {squares};");
            }
        });
        let squares = self.sum(squares, team);
        let epsilon = self.constant(id, epsilon);
        self.inverse_root_mean_square(squares, width, epsilon)
    }

    /// The threads of a team that reduce a row of the given width: of a larger one, each warp for itself.
    fn reducing(&mut self, team: Team, width: usize) -> Team {
        if team_for(width) == team.threads {
            return team;
        }
        let thread = self.word();
        emit!(self, "and.b32 {thread}, {}, {};", team.thread, WARP - 1);
        Team { threads: WARP, thread, ..team }
    }

    /// The sum over the team's threads: a butterfly in each warp, then the warps in order.
    fn sum(&mut self, mut value: Register, team: Team) -> Register {
        for distance in [16, 8, 4, 2, 1] {
            let (bits, other, sum) = (self.word(), self.word(), self.float());
            let number = self.float();
            emit!(self, "mov.b32 {bits}, {value};");
            emit!(self, "shfl.sync.bfly.b32 {other}, {bits}, {distance}, 0x1f, 0xffffffff;");
            emit!(self, "mov.b32 {number}, {other};");
            emit!(self, "add.rn.f32 {sum}, {value}, {number};");
            value = sum;
        }
        if team.threads == WARP {
            return value;
        }
        let (warp, address, lane) = (self.word(), self.word(), self.word());
        let (first, number, total) = (self.code.register(Class::Predicate), self.float(), self.float());
        if self.sums_are_read {
            emit!(self, "bar.sync 0;");
        }
        self.sums_are_read = true;
        emit!(self, "shr.u32 {warp}, {}, 5;", team.thread);
        emit!(self, "and.b32 {lane}, {}, 31;", team.thread);
        emit!(self, "mad.lo.u32 {address}, {warp}, 4, {};", team.scratch);
        emit!(self, "setp.eq.u32 {first}, {lane}, 0;");
        emit!(self, "@{first} st.shared.f32 [{address}], {value};");
        emit!(self, "bar.sync 0;");
        emit!(self, "ld.shared.f32 {total}, [{}];", team.scratch);
        for warp in 1..team.threads / WARP {
            emit!(self, "ld.shared.f32 {number}, [{}+{}];", team.scratch, 4 * warp);
            emit!(self, "add.rn.f32 {total}, {total}, {number};");
        }
        total
    }

    /// Where a store goes, for the current row.
    pub(super) fn destination(&mut self, store: Store) -> (Row, Option<Register>) {
        let (op, value, pointer) = match store {
            Store::Value(value) => {
                let row = self.current_row();
                return (self.global_row(value, Some(row)), None);
            }
            Store::Keys(op, value, layer) => (op, value, Pointer::Keys { layer }),
            Store::Values(op, value, layer) => (op, value, Pointer::Values { layer }),
        };
        let cache = self.graph.value(self.graph.op(op).output).ty.kv_cache();
        let dtype = cache.map_or_else(|| self.dtype(value), |cache| cache.dtype);
        let width = self.width(value);
        let slot = self.index(Input::Slots);
        let (base, address) = (self.pointer(pointer), self.code.register(Class::Long));
        emit!(self, "mad.wide.u32 {address}, {slot}, {}, {base};", width * dtype.size_in_bytes());
        let row = Row { address, space: Space::Global, dtype, aligned: width.is_multiple_of(CHUNK) };
        let nowhere = self.code.register(Class::Predicate);
        emit!(self, "setp.lt.s32 {nowhere}, {slot}, 0;");
        (row, Some(nowhere))
    }

    /// Writes the elements of a place.
    pub(super) fn write(&mut self, store: Store, place: Place, valid: Option<&Mask>) {
        let numbers = self.numbers(store.value(), place);
        let (row, nowhere) = self.destination(store);
        let end = self.code.label();
        if let Some(nowhere) = nowhere {
            emit!(self, "@{nowhere} bra {end};");
        }
        self.store(&row, place, &numbers, valid);
        self.code.place(end);
    }

    /// Computes and writes one row.
    pub(super) fn whole_row(&mut self, stores: &[Store], team: Team) {
        self.read_indices();
        for reduction in reductions(self.graph, self.ops) {
            let scalar = self.reduce(reduction, team);
            self.scalars.insert(reduction, Scalar::Register(scalar));
        }
        let mut widths: Vec<usize> = stores.iter().map(|store| self.width(store.value())).collect();
        widths.sort_unstable();
        widths.dedup();
        for width in widths {
            let of_width: Vec<Store> =
                stores.iter().filter(|store| self.width(store.value()) == width).copied().collect();
            self.for_chunks(width, team, &mut |g, place, valid| {
                of_width.iter().for_each(|store| g.write(*store, place, valid));
            });
        }
    }
}
