//! Weights in memory.

use std::collections::HashMap;

use allotrope_graph::{DType, Definition, Graph, Sizes, WeightData, WeightSource, numerics};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Weights in memory.
#[derive(Clone, Default)]
pub struct Weights(HashMap<String, (DType, Vec<usize>, Vec<u8>)>);

/// A way to spoil a tensor.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    /// It is not there.
    Missing,
    /// Its dimensions are in reverse.
    Shape,
    /// It says that it holds `f16`.
    Type,
    /// Its last byte is missing.
    Truncated,
}

impl WeightSource for Weights {
    fn weight(&self, name: &str) -> Option<WeightData<'_>> {
        self.0.get(name).map(|(dtype, shape, bytes)| WeightData { dtype: *dtype, shape, bytes })
    }
}

/// Appends a value.
#[allow(clippy::unreachable, reason = "weights are numbers, never indices")]
fn encode(dtype: DType, value: f32, bytes: &mut Vec<u8>) {
    match dtype {
        DType::F32 => bytes.extend(value.to_le_bytes()),
        DType::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
        DType::Bf16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
        DType::F8E4M3 => bytes.push(numerics::f32_to_e4m3(value)),
        DType::I32 => unreachable!("weights are numbers"),
    }
}

impl Weights {
    /// Random values from −1 to 1 for every weight of a graph.
    pub fn random(random: &mut ChaCha8Rng, graph: &Graph) -> Self {
        let mut weights = Self::default();
        for value in graph.values() {
            let (Definition::Weight(name), Some(tensor)) = (&value.definition, value.ty.tensor()) else { continue };
            let shape: Vec<usize> = tensor.shape.iter().map(|dim| Sizes::default().of(*dim)).collect();
            let count: usize = shape.iter().product();
            let mut bytes = Vec::with_capacity(count * tensor.dtype.size_in_bytes());
            (0..count).for_each(|_| encode(tensor.dtype, random.random::<f32>() * 2.0 - 1.0, &mut bytes));
            weights.0.insert(name.clone(), (tensor.dtype, shape, bytes));
        }
        weights
    }

    /// The same tensors, filled with what is not a number.
    pub(crate) fn not_numbers(&self) -> Self {
        let mut weights = self.clone();
        for (dtype, _, bytes) in weights.0.values_mut() {
            let (mut nan, length) = (Vec::new(), bytes.len());
            encode(*dtype, f32::NAN, &mut nan);
            *bytes = nan.repeat(length / nan.len());
        }
        weights
    }

    /// Sets one element.
    pub fn set(&mut self, name: &str, index: usize, value: f32) {
        let (dtype, _, bytes) = self.0.get_mut(name).expect("a weight of that name");
        let mut code = Vec::new();
        encode(*dtype, value, &mut code);
        bytes[index * code.len()..(index + 1) * code.len()].copy_from_slice(&code);
    }

    /// Spoils a tensor.
    pub fn change(&mut self, name: &str, change: Change) {
        let tensor = self.0.get_mut(name).expect("a weight of that name");
        match change {
            Change::Missing => drop(self.0.remove(name)),
            Change::Shape => tensor.1.reverse(),
            Change::Type => tensor.0 = DType::F16,
            Change::Truncated => drop(tensor.2.pop()),
        }
    }
}
