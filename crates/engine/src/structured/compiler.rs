//! From what a request asks for to a grammar over the tokens of a model.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use allotrope_model::Tokenizer;
use llguidance::api::{GrammarInit, TopLevelGrammar};
use llguidance::{JsonCompileOptions, Logger, Matcher, ParserFactory, panic_utils, regex_to_lark};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

use super::limits::{check, parser_limits, refused};
use super::{GrammarMatcher, StructuredOutputError, reason};
use crate::sampling::{SamplingError, StructuredOutput, validate_structured_output};

/// The longest token that a structured output may hold, in bytes. The trie's depth is bounded, and its construction recurses.
const MAX_TOKEN_BYTES: usize = 512;

/// The stack of a thread that compiles: the library recurses into what it is given, which [`check`] bounds.
const COMPILER_STACK: usize = 64 << 20;

/// How long a compilation is waited for. What the limits let through takes a fraction of it; this is for what they miss.
const COMPILER_PATIENCE: Duration = Duration::from_secs(5);

/// Compilations that may be overdue; while there are as many, no more are begun.
const MAX_OVERDUE: usize = 2;

/// Between the items of an object or an array, and between a key and its value: one space or none. Models write both; runs of
/// spaces and lines, into which small models fall and never get out of, are not allowed.
const ITEM_SEPARATOR: &str = ", ?";
const KEY_SEPARATOR: &str = ": ?";

/// Compiles structured outputs for the tokens of one model. A clone shares its tables.
#[derive(Clone)]
pub struct GrammarCompiler {
    shared: Arc<Shared>,
}

struct Shared {
    factory: ParserFactory,
    end_tokens: Arc<[u32]>,
    /// Compilations that nobody waits for any more.
    overdue: AtomicUsize,
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vocabulary = self.shared.factory.tok_env().tok_trie().vocab_size();
        let end_tokens = &self.shared.end_tokens;
        f.debug_struct("GrammarCompiler").field("vocabulary", &vocabulary).field("end_tokens", end_tokens).finish()
    }
}

impl GrammarCompiler {
    /// A compiler for the tokens of `tokenizer`, of which those below `vocabulary` (the width of the logits) can be chosen.
    /// `end_tokens` end an output; they are never text. Takes a fraction of a second for a vocabulary of 128 000 tokens.
    ///
    /// # Errors
    /// [`StructuredOutputError::Vocabulary`] if there is no end token, one is outside of the vocabulary, or the vocabulary is too
    /// large.
    pub fn new(tokenizer: &Tokenizer, vocabulary: usize, end_tokens: &[u32]) -> Result<Self, StructuredOutputError> {
        let wrong = |problem: String| StructuredOutputError::Vocabulary { problem };
        let Some(&first_end) = end_tokens.first() else {
            return Err(wrong("it has no end-of-sequence token; name one as eos_token_id in config.json".to_owned()));
        };
        let size = u32::try_from(vocabulary).map_err(|_| wrong(format!("it has {vocabulary} tokens")))?;
        if let Some(token) = end_tokens.iter().find(|token| **token >= size) {
            return Err(wrong(format!("its end token {token} is not among its {size} tokens")));
        }
        let words: Vec<Vec<u8>> = (0..size).map(|token| word(tokenizer, token, end_tokens)).collect();
        let factory = panic_utils::catch_unwind(AssertUnwindSafe(|| {
            let trie = TokTrie::from(&TokRxInfo::new(size, first_end), &words).with_eos_tokens(end_tokens);
            let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            ParserFactory::new_simple(&environment)
        }));
        let factory = factory.map_err(|error| wrong(reason(&error.to_string())))?;
        Ok(GrammarCompiler {
            shared: Arc::new(Shared { factory, end_tokens: end_tokens.into(), overdue: AtomicUsize::new(0) }),
        })
    }

    /// Compiles what a request asks for. Blocks, mostly for milliseconds and for 5 seconds at most: call it on a thread that may
    /// wait.
    ///
    /// A JSON schema's text has no free-form white space: between items and after a colon one space or none. What the schema asks
    /// for and the library does not know is an error, and so is a `oneOf` whose members may hold at once. `$ref` is followed inside
    /// the schema only. Text that spells a special token is text.
    ///
    /// # Errors
    /// [`StructuredOutputError::Refused`] names the problem, [`StructuredOutputError::Busy`] asks to come back later.
    pub fn compile(&self, output: &StructuredOutput) -> Result<Grammar, StructuredOutputError> {
        let kind = kind(output);
        if let Err(SamplingError::Parameter { found, allowed, .. }) = validate_structured_output(output) {
            return Err(refused(kind, format!("it is {found}, but must be {allowed}")));
        }
        check(output)?;
        let overdue = self.shared.overdue.load(Ordering::Acquire);
        if overdue >= MAX_OVERDUE {
            return Err(StructuredOutputError::Busy { overdue });
        }
        let source = source(output)?;
        let limits = parser_limits(output);
        let matcher = self.shared.within(COMPILER_PATIENCE, kind, move |shared| {
            // Without a log, and without jumping ahead of the sampler or going back.
            let (source, log) = (GrammarInit::Serialized(source), Logger::new(0, 0));
            let parser =
                shared.factory.create_parser_from_init_ext(source, log, InferenceCapabilities::default(), limits);
            let mut matcher = Matcher::new(parser);
            if let Some(error) = matcher.get_error() {
                return Err(refused(kind, reason(&error)));
            }
            // The first mask shows what only matching finds out, such as a grammar that allows nothing.
            let masked = matcher.compute_mask_or_eos();
            masked.map(|_| matcher).map_err(|error| refused(kind, reason(&error.to_string())))
        })?;
        let compiled = Compiled { matcher: Mutex::new(matcher), end_tokens: Arc::clone(&self.shared.end_tokens) };
        Ok(Grammar { compiled: Arc::new(compiled) })
    }
}

impl Shared {
    /// Runs `compile` on a stack that has room for what the limits let through, and gives up waiting after `patience`: a thread
    /// can't be stopped, but it is counted as long as it runs.
    fn within<T: Send + 'static>(
        self: &Arc<Self>,
        patience: Duration,
        kind: &'static str,
        compile: impl FnOnce(&Shared) -> Result<T, StructuredOutputError> + Send + 'static,
    ) -> Result<T, StructuredOutputError> {
        let (result, wanted) = mpsc::sync_channel(1);
        let shared = Arc::clone(self);
        let settled = Arc::new(AtomicBool::new(false));
        let settled_by_thread = Arc::clone(&settled);
        let thread = thread::Builder::new().name("grammar".to_owned()).stack_size(COMPILER_STACK);
        let spawned = thread.spawn(move || {
            let compiled = panic_utils::catch_unwind(AssertUnwindSafe(|| Ok(compile(&shared))))
                .unwrap_or_else(|error| Err(refused(kind, reason(&error.to_string()))));
            // Nobody may be waiting any more.
            let _ = result.send(compiled);
            // Whoever comes second knows that the other has been there.
            if settled_by_thread.swap(true, Ordering::AcqRel) {
                shared.overdue.fetch_sub(1, Ordering::AcqRel);
            }
        });
        spawned.map_err(|error| refused(kind, format!("no thread could be started to compile it ({error})")))?;
        wanted.recv_timeout(patience).unwrap_or_else(|_| {
            self.overdue.fetch_add(1, Ordering::AcqRel);
            if settled.swap(true, Ordering::AcqRel) {
                self.overdue.fetch_sub(1, Ordering::AcqRel);
            }
            Err(refused(kind, format!("it takes more than {} seconds to compile", patience.as_secs_f32())))
        })
    }
}

/// A token as the library's trie wants it: its bytes, behind a mark if it is special. Empty, which is to say that no output holds
/// it, for ids without a token, for what would be taken for special though it is not, and for very long ones.
fn word(tokenizer: &Tokenizer, token: u32, end_tokens: &[u32]) -> Vec<u8> {
    let mut bytes = tokenizer.token_bytes(token).unwrap_or_default();
    if bytes.is_empty() || bytes.len() > MAX_TOKEN_BYTES {
        return Vec::new();
    }
    if tokenizer.is_special(token) || end_tokens.contains(&token) {
        bytes.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
    } else if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
        // No text has this byte, which is never part of UTF-8.
        return Vec::new();
    }
    bytes
}

fn kind(output: &StructuredOutput) -> &'static str {
    match output {
        StructuredOutput::Json(_) | StructuredOutput::JsonObject => "JSON schema",
        StructuredOutput::Regex(_) => "regular expression",
        StructuredOutput::Choice(_) => "list",
        StructuredOutput::Grammar(_) => "grammar",
    }
}

/// What the library is to compile.
fn source(output: &StructuredOutput) -> Result<TopLevelGrammar, StructuredOutputError> {
    Ok(match output {
        StructuredOutput::JsonObject => TopLevelGrammar::from_json_schema(compact(json!({ "type": "object" }))),
        StructuredOutput::Json(Value::Bool(false)) => {
            return Err(refused("JSON schema", "it is `false`, which no text fulfils".to_owned()));
        }
        StructuredOutput::Json(Value::Object(schema)) => {
            TopLevelGrammar::from_json_schema(compact(Value::Object(schema.clone())))
        }
        StructuredOutput::Json(_) => TopLevelGrammar::from_json_schema(compact(json!({}))),
        StructuredOutput::Regex(pattern) => {
            TopLevelGrammar::from_lark(format!("start: TEXT\nTEXT: /{}/", regex_to_lark(pattern, "")))
        }
        StructuredOutput::Choice(choices) => {
            // A JSON string is a string of a grammar; one terminal for all is one automaton.
            let choices: Vec<String> = choices.iter().map(|choice| Value::from(choice.as_str()).to_string()).collect();
            TopLevelGrammar::from_lark(format!("start: TEXT\nTEXT: {}", choices.join(" | ")))
        }
        StructuredOutput::Grammar(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
    })
}

/// Sets the library's options in a schema, over any that the schema brings itself.
fn compact(mut schema: Value) -> Value {
    let options = JsonCompileOptions {
        item_separator: ITEM_SEPARATOR.to_owned(),
        key_separator: KEY_SEPARATOR.to_owned(),
        whitespace_flexible: false,
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut schema);
    schema
}

/// A compiled structured output. A clone shares it.
#[derive(Clone)]
pub struct Grammar {
    compiled: Arc<Compiled>,
}

struct Compiled {
    /// A matcher that has accepted nothing.
    matcher: Mutex<Matcher>,
    end_tokens: Arc<[u32]>,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("end_tokens", &self.compiled.end_tokens).finish_non_exhaustive()
    }
}

impl Grammar {
    /// A matcher for one output, at its start. Matchers share nothing, so that none depends on what others have matched.
    pub fn matcher(&self) -> GrammarMatcher {
        let matcher = self.compiled.matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        GrammarMatcher::new(matcher, Arc::clone(&self.compiled.end_tokens))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn a_compilation_that_takes_too_long_is_given_up_and_counted_until_it_ends() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/tiny-chat");
        let compiler = GrammarCompiler::new(&Tokenizer::open(&folder).unwrap(), 1024, &[1]).unwrap();
        let output = StructuredOutput::Regex("a".to_owned());
        let mut gates = Vec::new();
        for _ in 0..MAX_OVERDUE {
            let (gate, opened) = mpsc::channel::<()>();
            gates.push(gate);
            let given_up = compiler.shared.within(Duration::ZERO, "list", move |_| {
                let _ = opened.recv();
                Ok(())
            });
            assert!(matches!(given_up, Err(StructuredOutputError::Refused { kind: "list", .. })), "{given_up:?}");
        }
        assert_eq!(compiler.compile(&output).unwrap_err(), StructuredOutputError::Busy { overdue: MAX_OVERDUE });
        drop(gates);
        while compiler.shared.overdue.load(Ordering::Acquire) > 0 {
            thread::yield_now();
        }
        assert!(compiler.compile(&output).is_ok());
    }

    #[test]
    fn a_panic_while_compiling_is_an_error() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/tiny-chat");
        let compiler = GrammarCompiler::new(&Tokenizer::open(&folder).unwrap(), 1024, &[1]).unwrap();
        let failed: Result<(), _> = compiler.shared.within(COMPILER_PATIENCE, "list", |_| panic!("on purpose"));
        assert_eq!(failed, Err(refused("list", "the grammar library failed on it (on purpose)".to_owned())));
    }
}
