//! The text form of a graph, `.air`: for people to read, for dumps, and for tests to write.
//!
//! ```text
//! graph {
//!   input %token_ids: i32[T]
//!   weight %table: bf16[100, 8]
//!   weight %scale: bf16[8]
//!
//!   %x: bf16[T, 8] = embedding(%table, %token_ids)
//!   group { ; launch 1: add+rms_norm
//!     %doubled: bf16[T, 8] = add(%x, %x)
//!     %y: bf16[T, 8] = rms_norm<epsilon=1e-5>(%doubled, %scale)
//!   }
//!   return %y
//! }
//! ```
//!
//! - Leaves come first: `input` with one of the names of [`Input`](crate::Input), `weight` with the checkpoint's name for
//!   it, `state<layer=N>` for a layer's KV cache.
//! - An operation is `%name: type = operation<attribute=value, …>(%operand, …)`. One by itself is a launch of its own;
//!   several in a `group` are one launch. Launches are in order.
//! - Sizes are numbers or `T` (tokens), `S` (sequences), `R` (rows whose logits are wanted), `B` (KV blocks in a row of the
//!   block table). Numbers are written as the shortest decimal that reads back as the same `f32`.
//! - A name is `%` and letters, digits, `_`, `.`, `-` or `/`; any other name is quoted: `%"a b"`.
//! - `;` begins a comment.
//!
//! The same graph always gives the same text, and reading it gives an equal graph.

mod dot;
mod html;
mod lexer;
mod parser;
mod printer;

pub use dot::dot;
pub use html::{Stage, page};
pub use parser::{Diagnostic, ParseError, parse, parse_unverified};
pub use printer::{Line, Place, launches_of_layer, lines, print_layer};

/// True if a name needs no quotes.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(is_name_character)
}

fn is_name_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '.' | '-' | '/')
}
