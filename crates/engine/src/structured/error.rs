//! What can go wrong with a structured output.

/// Why a structured output was refused, or can't go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StructuredOutputError {
    /// The request's fault: the schema, the expression or the grammar is wrong, too large, or asks for what is not supported.
    #[error("the {kind} of the structured output can't be used: {problem}")]
    Refused {
        /// What was given: a JSON schema, a regular expression, a list of choices or a grammar.
        kind: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Earlier requests take too long to compile and none can be taken now.
    #[error("{overdue} structured outputs are overdue and still being compiled; try again later")]
    Busy {
        /// Requests whose compilation was given up but goes on.
        overdue: usize,
    },
    /// The output can't go on: the grammar allows none of the tokens, or what follows is too much work to find out.
    #[error("no token of the structured output can be found after {tokens} tokens: {problem}")]
    Stuck {
        /// The tokens that were accepted.
        tokens: usize,
        /// What stopped it.
        problem: String,
    },
    /// A token was chosen that the grammar does not allow: a bug of the caller.
    #[error("the structured output does not allow token {token} after {tokens} tokens")]
    Forbidden {
        /// The token.
        token: u32,
        /// The tokens that were accepted before.
        tokens: usize,
    },
    /// The model's fault: its vocabulary can't be used for structured output.
    #[error("this model can't write structured output: {problem}")]
    Vocabulary {
        /// What is wrong.
        problem: String,
    },
}
