//! Number formats in PTX: reading and writing eight elements, rounding to a storage type.

use allotrope_graph::DType;

use super::code::{Class, Register, emit};
use super::generator::Generator;
use super::place::{CHUNK, Elements, Mask, Place};

/// Eight numbers, as `f32`.
pub(super) type Numbers = [Register; CHUNK];

/// A memory that elements are read from or written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    Global,
    Shared,
}

impl Space {
    const fn name(self) -> &'static str {
        match self {
            Space::Global => "global",
            Space::Shared => "shared",
        }
    }
}

/// A row of elements: where it begins and what it holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// The address of the row's first element: 64 bits in global memory, 32 in shared memory.
    pub(super) address: Register,
    pub(super) space: Space,
    pub(super) dtype: DType,
    /// Whether a run of eight is aligned to as many bytes as one access of it needs.
    pub(super) aligned: bool,
}

/// 32-bit words that hold eight elements.
pub(super) const fn words_of(dtype: DType) -> usize {
    CHUNK * dtype.size_in_bytes() / 4
}

impl Generator<'_> {
    pub(super) fn float(&mut self) -> Register {
        self.code.register(Class::Float)
    }

    /// The address of an element of a row.
    fn address(&mut self, row: &Row, index: Register) -> Register {
        let bytes = row.dtype.size_in_bytes();
        match row.space {
            Space::Global => {
                let address = self.code.register(Class::Long);
                emit!(self, "mad.wide.u32 {address}, {index}, {bytes}, {};", row.address);
                address
            }
            Space::Shared => {
                let address = self.code.register(Class::Word);
                emit!(self, "mad.lo.u32 {address}, {index}, {bytes}, {};", row.address);
                address
            }
        }
    }

    /// Reads the elements of a place.
    pub(super) fn load(&mut self, row: &Row, place: Place) -> Numbers {
        match place.elements {
            Elements::Run(base) if row.aligned => {
                let words = self.load_words(row, base);
                self.unpacked(row.dtype, &words)
            }
            _ => std::array::from_fn(|element| {
                let index = self.element(place, element);
                let address = self.address(row, index);
                self.load_one(row, address)
            }),
        }
    }

    /// Reads eight neighbours as words.
    pub(super) fn load_words(&mut self, row: &Row, base: Register) -> Vec<Register> {
        let address = self.address(row, base);
        let words: Vec<Register> = (0..words_of(row.dtype)).map(|_| self.code.register(Class::Word)).collect();
        for (index, part) in words.chunks(4).enumerate() {
            let (vector, names) = vector(part);
            emit!(self, "ld.{}.{vector}b32 {names}, [{address}+{}];", row.space.name(), 16 * index);
        }
        words
    }

    fn load_one(&mut self, row: &Row, address: Register) -> Register {
        let (space, result) = (row.space.name(), self.float());
        match row.dtype {
            DType::F32 | DType::I32 => emit!(self, "ld.{space}.f32 {result}, [{address}];"),
            DType::F16 => {
                let half = self.code.register(Class::Half);
                emit!(self, "ld.{space}.b16 {half}, [{address}];");
                emit!(self, "cvt.f32.f16 {result}, {half};");
            }
            DType::Bf16 => {
                let word = self.code.register(Class::Word);
                let half = self.code.register(Class::Half);
                emit!(self, "ld.{space}.b16 {half}, [{address}];");
                emit!(self, "cvt.u32.u16 {word}, {half};");
                emit!(self, "shl.b32 {word}, {word}, 16;");
                emit!(self, "mov.b32 {result}, {word};");
            }
            DType::F8E4M3 => {
                let word = self.code.register(Class::Word);
                emit!(self, "ld.{space}.u8 {word}, [{address}];");
                return self.unpacked_e4m3(word, 1)[0];
            }
        }
        result
    }

    /// The elements that words hold.
    fn unpacked(&mut self, dtype: DType, words: &[Register]) -> Numbers {
        let mut numbers = Vec::with_capacity(CHUNK);
        for word in words {
            match dtype {
                DType::F32 | DType::I32 => {
                    let number = self.float();
                    emit!(self, "mov.b32 {number}, {word};");
                    numbers.push(number);
                }
                DType::Bf16 => {
                    let (low, high) = (self.code.register(Class::Word), self.code.register(Class::Word));
                    emit!(self, "shl.b32 {low}, {word}, 16;");
                    emit!(self, "and.b32 {high}, {word}, 0xffff0000;");
                    for part in [low, high] {
                        let number = self.float();
                        emit!(self, "mov.b32 {number}, {part};");
                        numbers.push(number);
                    }
                }
                DType::F16 => numbers.extend(self.unpacked_f16(*word)),
                DType::F8E4M3 => numbers.extend(self.unpacked_e4m3(*word, 4)),
            }
        }
        let fallback = numbers.first().copied().unwrap_or_else(|| self.float());
        let numbers = std::array::from_fn(|element| numbers.get(element).copied().unwrap_or(fallback));
        self.words.insert((dtype, numbers), words.to_vec());
        numbers
    }

    fn unpacked_f16(&mut self, word: Register) -> [Register; 2] {
        let halves = [self.code.register(Class::Half), self.code.register(Class::Half)];
        emit!(self, "mov.b32 {{{}, {}}}, {word};", halves[0], halves[1]);
        halves.map(|half| {
            let number = self.float();
            emit!(self, "cvt.f32.f16 {number}, {half};");
            number
        })
    }

    /// The first `count` of the four e4m3 numbers in a word.
    fn unpacked_e4m3(&mut self, word: Register, count: usize) -> Vec<Register> {
        let mut numbers = Vec::with_capacity(4);
        for pair in 0..count.div_ceil(2) {
            let bits = self.code.register(Class::Word);
            emit!(self, "shr.u32 {bits}, {word}, {};", 16 * pair);
            if self.features.e4m3 {
                let (half, halves) = (self.code.register(Class::Half), self.code.register(Class::Word));
                emit!(self, "cvt.u16.u32 {half}, {bits};");
                emit!(self, "cvt.rn.f16x2.e4m3x2 {halves}, {half};");
                numbers.extend(self.unpacked_f16(halves));
            } else {
                for shift in [0, 8].into_iter().take(count - 2 * pair) {
                    let byte = self.code.register(Class::Word);
                    emit!(self, "shr.u32 {byte}, {bits}, {shift};");
                    numbers.push(self.decoded_e4m3(byte));
                }
            }
        }
        numbers.truncate(count);
        numbers
    }

    /// From the lowest byte of a word, by integer code: the magnitude's bits are those of an f32 whose exponent is 120 too
    /// small, subnormal numbers too.
    fn decoded_e4m3(&mut self, byte: Register) -> Register {
        let (sign, magnitude, bits) =
            (self.code.register(Class::Word), self.code.register(Class::Word), self.code.register(Class::Word));
        let (number, is_nan) = (self.float(), self.code.register(Class::Predicate));
        emit!(self, "and.b32 {magnitude}, {byte}, 0x7f;");
        emit!(self, "setp.eq.u32 {is_nan}, {magnitude}, 0x7f;");
        emit!(self, "shl.b32 {bits}, {magnitude}, 20;");
        emit!(self, "mov.b32 {number}, {bits};");
        emit!(self, "mul.rn.f32 {number}, {number}, 0f7B800000;"); // 2^120
        emit!(self, "selp.f32 {number}, 0f7FFFFFFF, {number}, {is_nan};");
        emit!(self, "and.b32 {sign}, {byte}, 0x80;");
        emit!(self, "shl.b32 {sign}, {sign}, 24;");
        emit!(self, "mov.b32 {bits}, {number};");
        emit!(self, "or.b32 {bits}, {bits}, {sign};");
        emit!(self, "mov.b32 {number}, {bits};");
        number
    }

    /// The numbers rounded to a storage type, as `f32`.
    pub(super) fn rounded(&mut self, dtype: DType, numbers: Numbers) -> Numbers {
        match dtype {
            DType::F32 | DType::I32 => numbers,
            _ => {
                let words = self.packed(dtype, &numbers);
                self.unpacked(dtype, &words)
            }
        }
    }

    /// Words that hold the numbers in a storage type, each rounded to the nearest: those that they were taken from, if it was
    /// such.
    pub(super) fn packed(&mut self, dtype: DType, numbers: &Numbers) -> Vec<Register> {
        if let Some(words) = self.words.get(&(dtype, *numbers)) {
            return words.clone();
        }
        let mut words = Vec::with_capacity(words_of(dtype));
        match dtype {
            DType::F32 | DType::I32 => {
                for number in numbers {
                    let word = self.code.register(Class::Word);
                    emit!(self, "mov.b32 {word}, {number};");
                    words.push(word);
                }
            }
            DType::Bf16 | DType::F16 => {
                let name = if dtype == DType::Bf16 { "bf16x2" } else { "f16x2" };
                for pair in numbers.as_chunks::<2>().0 {
                    let word = self.code.register(Class::Word);
                    emit!(self, "cvt.rn.{name}.f32 {word}, {}, {};", pair[1], pair[0]);
                    words.push(word);
                }
            }
            DType::F8E4M3 => {
                for four in numbers.as_chunks::<4>().0 {
                    words.push(self.packed_e4m3(four));
                }
            }
        }
        words
    }

    fn packed_e4m3(&mut self, four: &[Register; 4]) -> Register {
        let word = self.code.register(Class::Word);
        if self.features.e4m3 {
            let halves = [self.code.register(Class::Half), self.code.register(Class::Half)];
            for (half, pair) in halves.iter().zip(four.as_chunks::<2>().0) {
                emit!(self, "cvt.rn.satfinite.e4m3x2.f32 {half}, {}, {};", pair[1], pair[0]);
            }
            emit!(self, "mov.b32 {word}, {{{}, {}}};", halves[0], halves[1]);
            return word;
        }
        emit!(self, "mov.u32 {word}, 0;");
        for (place, number) in four.iter().enumerate() {
            let byte = self.encoded_e4m3(*number);
            emit!(self, "shl.b32 {byte}, {byte}, {};", 8 * place);
            emit!(self, "or.b32 {word}, {word}, {byte};");
        }
        word
    }

    /// To the lowest byte of a word, by integer code: to nearest, ties to even, held within ±448, NaN as 0x7f.
    fn encoded_e4m3(&mut self, number: Register) -> Register {
        let (bits, sign, odd, normal) = (
            self.code.register(Class::Word),
            self.code.register(Class::Word),
            self.code.register(Class::Word),
            self.code.register(Class::Word),
        );
        let (small, result) = (self.code.register(Class::Word), self.code.register(Class::Word));
        let magnitude = self.float();
        let (is_small, is_nan) = (self.code.register(Class::Predicate), self.code.register(Class::Predicate));
        emit!(self, "mov.b32 {bits}, {number};");
        emit!(self, "shr.u32 {sign}, {bits}, 24;");
        emit!(self, "and.b32 {sign}, {sign}, 0x80;");
        emit!(self, "setp.nan.f32 {is_nan}, {number}, {number};");
        emit!(self, "abs.f32 {magnitude}, {number};");
        emit!(self, "min.f32 {magnitude}, {magnitude}, 0f43E00000;"); // 448
        emit!(self, "setp.lt.f32 {is_small}, {magnitude}, 0f3C800000;"); // 2^-6
        // Below the smallest normal number codes are multiples of 2^-9.
        let scaled = self.float();
        emit!(self, "mul.rn.f32 {scaled}, {magnitude}, 0f44000000;"); // 512
        emit!(self, "cvt.rni.u32.f32 {small}, {scaled};");
        emit!(self, "mov.b32 {bits}, {magnitude};");
        emit!(self, "shr.u32 {odd}, {bits}, 20;");
        emit!(self, "and.b32 {odd}, {odd}, 1;");
        emit!(self, "add.u32 {normal}, {bits}, 0x7ffff;");
        emit!(self, "add.u32 {normal}, {normal}, {odd};");
        emit!(self, "shr.u32 {normal}, {normal}, 20;");
        emit!(self, "sub.u32 {normal}, {normal}, {};", (127 - 7) << 3);
        emit!(self, "selp.b32 {result}, {small}, {normal}, {is_small};");
        emit!(self, "or.b32 {result}, {result}, {sign};");
        emit!(self, "selp.b32 {result}, 0x7f, {result}, {is_nan};");
        result
    }

    /// Writes the elements of a place, each but those whose predicate does not hold.
    pub(super) fn store(&mut self, row: &Row, place: Place, numbers: &Numbers, valid: Option<&Mask>) {
        let space = row.space.name();
        let words = self.packed(row.dtype, numbers);
        if let (Elements::Run(base), true, None) = (place.elements, row.aligned, valid) {
            let address = self.address(row, base);
            for (index, part) in words.chunks(4).enumerate() {
                let (vector, names) = vector(part);
                emit!(self, "st.{space}.{vector}b32 [{address}+{}], {names};", 16 * index);
            }
            return;
        }
        let bytes = row.dtype.size_in_bytes();
        for element in 0..CHUNK {
            let index = self.element(place, element);
            let address = self.address(row, index);
            let guard = valid.map_or_else(String::new, |valid| format!("@{} ", valid[element]));
            let (word, shift) = (words[element * bytes / 4], element * bytes % 4 * 8);
            let part = self.code.register(Class::Word);
            emit!(self, "shr.u32 {part}, {word}, {shift};");
            match bytes {
                4 => emit!(self, "{guard}st.{space}.b32 [{address}], {part};"),
                2 => {
                    let half = self.code.register(Class::Half);
                    emit!(self, "cvt.u16.u32 {half}, {part};");
                    emit!(self, "{guard}st.{space}.b16 [{address}], {half};");
                }
                _ => emit!(self, "{guard}st.{space}.u8 [{address}], {part};"),
            }
        }
    }
}

/// How a vector of registers is accessed and written.
fn vector(part: &[Register]) -> (&'static str, String) {
    let names: Vec<String> = part.iter().map(Register::to_string).collect();
    match part.len() {
        4 => ("v4.", format!("{{{}}}", names.join(", "))),
        2 => ("v2.", format!("{{{}}}", names.join(", "))),
        _ => ("", names.join(", ")),
    }
}
