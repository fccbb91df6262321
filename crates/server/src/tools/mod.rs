//! Calls of tools: how a model is told of them, made to call them, and how its calls are read from its text.

mod call_object;
mod forced;
mod parser;
mod preamble;

pub use forced::forced_output;
pub use parser::{ParsedAnswer, ToolEvent, ToolParser};
pub use preamble::describe_in_messages;

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// The whole answer is an object `{"name": …, "parameters": …}`, or several with `;` between them, perhaps after
    /// `<|python_tag|>`.
    Llama3Json,
    /// Objects `{"name": …, "arguments": …}` inside `<tool_call>` and `</tool_call>`, with text around them.
    Hermes,
}
