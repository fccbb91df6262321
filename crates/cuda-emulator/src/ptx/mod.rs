//! The front end: PTX text to a syntax tree. It knows the grammar and no instruction.

mod lexer;
mod parser;
pub mod syntax;

pub use parser::parse;
pub use syntax::{Error, Position};
