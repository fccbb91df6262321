//! How much a model multiplies, from its graph as the model builder wrote it.

use std::path::Path;

use allotrope_config::OptimizationLevel;
use allotrope_engine::{Llm, Plan};
use allotrope_graph::{Graph, OpKind, Sizes};
use serde::{Deserialize, Serialize};

use crate::error::TaskError;

/// Floating-point operations of a model: two for each element of a weight that a row is multiplied with, and those of
/// attention's two products. What is done element by element does not count.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Work {
    /// Of a whole prompt, of which the last row's logits are wanted: its tokens, and operations.
    pub(super) prompts: Vec<(u32, f64)>,
    /// Of one decoded token, in the middle of what is decoded.
    pub(super) decoded_token: f64,
}

/// What the benchmark must know of a checkpoint.
pub(super) struct Subject {
    plan: Plan,
}

impl Subject {
    /// Reads a checkpoint's description.
    ///
    /// # Errors
    /// If it can't be run.
    pub(super) fn open(model: &Path) -> Result<Self, TaskError> {
        let failed = |error: &dyn std::fmt::Display| TaskError::Message(error.to_string());
        let builder = Llm::builder(model).optimization_level(OptimizationLevel::O0);
        let builder = builder.set("device", "cpu").map_err(|error| failed(&error))?;
        Ok(Subject { plan: builder.plan().map_err(|error| failed(&error))? })
    }

    /// Tokens that there are.
    pub(super) fn vocabulary(&self) -> u32 {
        u32::try_from(self.plan.checkpoint().config().vocab_size).unwrap_or(u32::MAX)
    }

    /// The most tokens of a sequence.
    pub(super) fn longest(&self) -> u32 {
        u32::try_from(self.plan.checkpoint().config().max_position_embeddings).unwrap_or(u32::MAX)
    }

    /// The work of prompts and of a token that is decoded after `context` others.
    pub(super) fn work(&self, prompts: &[u32], context: u32) -> Work {
        let graph = self.plan.as_built();
        let of_prompt = |tokens: &u32| {
            let attended = f64::from(*tokens) * (f64::from(*tokens) + 1.0) / 2.0;
            (*tokens, operations(graph, *tokens as usize, attended))
        };
        Work {
            prompts: prompts.iter().map(of_prompt).collect(),
            decoded_token: operations(graph, 1, f64::from(context) + 1.0),
        }
    }
}

/// Floating-point operations of a step of so many tokens of one sequence, which attend to so many positions together.
fn operations(graph: &Graph, tokens: usize, attended: f64) -> f64 {
    let sizes = Sizes { tokens, sequences: 1, logit_rows: 1, blocks: 1 };
    let of_op = |op: &allotrope_graph::Op| {
        let operand = |index: usize| op.inputs.get(index).and_then(|id| graph.tensor_type(*id));
        match &op.kind {
            OpKind::Linear { .. } => {
                let rows = operand(0).map_or(0, |x| sizes.of(x.rows()));
                let weights = operand(1).map_or(0.0, |w| w.shape.iter().map(|dim| sizes.of(*dim) as f64).product());
                2.0 * rows as f64 * weights
            }
            // Of each position a key is multiplied with the query, and a value with its share.
            OpKind::Attention { .. } => 4.0 * attended * operand(0).and_then(|q| q.width()).unwrap_or(0) as f64,
            _ => 0.0,
        }
    };
    graph.ops().iter().map(of_op).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::workspace;

    #[test]
    fn the_work_of_tiny_chat_is_that_of_its_shape() {
        let subject = Subject::open(&workspace::root().join("tests/models/tiny-chat")).unwrap();
        assert_eq!((subject.vocabulary(), subject.longest()), (1024, 1024));
        // Hidden size 160, five heads of 32 with one of keys and values, 448 inside the MLP, four layers.
        let layer = 160 * (160 + 32 + 32) + 160 * 160 + 3 * 160 * 448;
        let (layers, head) = (4.0 * f64::from(layer), 160.0 * 1024.0);
        let work = subject.work(&[10], 7);
        let attention = |attended: f64| 4.0 * 4.0 * 160.0 * attended;
        assert_eq!(work.prompts, [(10, 2.0 * (10.0 * layers + head) + attention(55.0))]);
        assert_eq!(work.decoded_token, 2.0 * (layers + head) + attention(8.0));
    }
}
