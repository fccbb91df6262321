//! Structured output: text that a JSON schema, a regular expression, a list or a grammar accepts.
//!
//! A [`GrammarCompiler`] knows the tokens of a model. It turns what a request asks for into a [`Grammar`], which takes time and so is
//! for a thread that may wait, never the engine's. Each output then has a [`GrammarMatcher`], which follows its tokens and masks
//! those that may not come next. Grammars are those of the `llguidance` library: an Earley parser over lexemes that are regular
//! expressions with derivatives, so that nothing backtracks.
//!
//! What is compiled comes from strangers. Its size and nesting are bounded before the library sees it, the library's own limits
//! bound the work, and its panics become errors.

mod compiler;
mod error;
mod limits;
mod matcher;

pub use compiler::{Grammar, GrammarCompiler};
pub use error::StructuredOutputError;
pub use matcher::GrammarMatcher;

/// What an error of the library says to a person: its first line and, where an expression was wrong, why, without the states and
/// traces that may follow.
fn reason(error: &str) -> String {
    const LONGEST: usize = 300;
    let first = error.lines().find(|line| !line.trim().is_empty()).unwrap_or("the grammar library gave no reason");
    // The library's names for a text that can't go on.
    if matches!(first, "NoExtension" | "NoExtensionBias") {
        return "it allows no text that the model's tokens can write".to_owned();
    }
    if let Some(panic) = first.strip_prefix("panic: ") {
        return format!("the grammar library failed on it ({})", panic.chars().take(LONGEST).collect::<String>());
    }
    let why = error.lines().find_map(|line| line.strip_prefix("error: "));
    let shorten = |text: &str| {
        let shortened: String = text.chars().take(LONGEST).collect();
        if shortened.len() < text.len() { format!("{shortened}…") } else { shortened }
    };
    why.map_or_else(|| shorten(first), |why| format!("{} {}", shorten(first.trim()), shorten(why)))
}

#[cfg(test)]
mod tests;
