//! What the rules of the settings need to know of a model, read off its graph.

use allotrope_config::{ActivationQuantization, ModelFacts};

use crate::graph::Graph;
use crate::op::OpKind;

/// The facts of a model with those that its graph shows: whether activations are quantized (by scales that are stored, since
/// `quantize` has no others), and whether query and key heads are normalized. The rest is as in `known`.
pub fn model_facts(graph: &Graph, known: ModelFacts) -> ModelFacts {
    let has = |is: fn(&OpKind) -> bool| graph.ops().iter().any(|op| is(&op.kind));
    ModelFacts {
        activation_quantization: match has(|kind| matches!(kind, OpKind::Quantize { .. })) {
            true => ActivationQuantization::Static,
            false => ActivationQuantization::None,
        },
        has_qk_norm: has(|kind| matches!(kind, OpKind::HeadRmsNorm { .. })),
        ..known
    }
}
