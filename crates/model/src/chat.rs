//! The chat template: messages to the text that the model was trained on.
//!
//! Templates are Jinja programs from the checkpoint. They run in minijinja as the Hugging Face library runs them in
//! jinja2 (trimmed blocks, loop controls, Python's string methods, `raise_exception`, `strftime_now`, its `tojson`), with
//! bounds on steps (which count the bytes of strings that are joined or repeated), recursion and output, because a
//! checkpoint is hostile input. The engine has no bound on the memory of lists that a template makes, or of what
//! `replace` and `join` give: a template made for that purpose can still use up memory.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind};
use regex::{Captures, Regex};
use serde::{Deserialize, Serialize};
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};

use crate::error::{ModelError, shorten};
use crate::json::{self, Fields};

/// Name of the file that may hold the chat template alone; it comes before the one in [`TOKENIZER_CONFIG_FILE`].
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";
/// Name of the file with the names of the special tokens, and usually the chat template.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// Largest `tokenizer_config.json` in bytes: some list a hundred thousand added tokens.
const MAX_TOKENIZER_CONFIG: u64 = 256 << 20;
/// Largest template in bytes; real ones have at most some ten thousand.
const MAX_TEMPLATE: u64 = 4 << 20;
/// Steps of the template engine for one rendering. A long template takes about 100 for a message.
const MAX_STEPS: u64 = 50_000_000;
/// Depth of nested calls (macros, recursive loops).
const MAX_RECURSION: usize = 100;
/// Largest rendered text in bytes beyond that of the messages.
const MAX_ADDED_TEXT: usize = 16 << 20;
/// Name of the template inside the engine.
const NAME: &str = "chat";
/// Special tokens that a template may use by these names.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: usually `system`, `user` or `assistant`. The template decides what it accepts.
    pub role: String,
    /// What they say.
    pub content: String,
}

impl Message {
    /// A message from its parts.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// The chat template of a checkpoint, parsed.
pub struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    special_tokens: Vec<(&'static str, String)>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("path", &self.path).field("special_tokens", &self.special_tokens).finish()
    }
}

impl ChatTemplate {
    /// Reads the template of the checkpoint in `folder`: `chat_template.jinja`, or else `chat_template` of
    /// `tokenizer_config.json` (a string, or a list of named templates of which `default` is taken).
    ///
    /// # Errors
    /// If there is no template, a file can't be read or is malformed, or the template does not parse.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let config_path = folder.join(TOKENIZER_CONFIG_FILE);
        let config = if json::exists(&config_path) {
            json::read_object(&config_path, MAX_TOKENIZER_CONFIG)?
        } else {
            serde_json::Map::new()
        };
        let fields = Fields::new(&config_path, &config);
        let special_tokens = special_tokens(&fields)?;
        let template_path = folder.join(CHAT_TEMPLATE_FILE);
        if json::exists(&template_path) {
            let source = json::read_text(&template_path, MAX_TEMPLATE)?;
            return Self::parse(template_path, &source, special_tokens);
        }
        match configured_template(&fields)? {
            Some(source) => Self::parse(config_path.clone(), source, special_tokens),
            None => {
                let expected = format!(
                    "{CHAT_TEMPLATE_FILE}, or `chat_template` in {TOKENIZER_CONFIG_FILE}; a base model has neither: complete text with it instead"
                );
                Err(ModelError::file(folder, "the checkpoint has no chat template", expected))
            }
        }
    }

    fn parse(path: PathBuf, source: &str, special_tokens: Vec<(&'static str, String)>) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| template_error(&path, &error))?);
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        let source = without_generation_tags(source);
        if let Err(error) = environment.add_template_owned(NAME, source) {
            return Err(template_error(&path, &error));
        }
        Ok(ChatTemplate { path, environment, special_tokens })
    }

    /// The text of a conversation. With `add_generation_prompt` it ends where the assistant's answer begins.
    ///
    /// Encode it without adding special tokens: the template writes them itself.
    ///
    /// # Errors
    /// If the template fails or refuses the messages (many accept only certain roles in a certain order), or exceeds
    /// the bounds on its work.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ModelError> {
        self.render_at(messages, add_generation_prompt, SystemTime::now())
    }

    /// As [`ChatTemplate::render`], for a given time instead of now: templates may write the date, as they see it in
    /// UTC, into the text.
    ///
    /// # Errors
    /// As for [`ChatTemplate::render`].
    pub fn render_at(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        now: SystemTime,
    ) -> Result<String, ModelError> {
        let mut context: Vec<(&str, Value)> =
            self.special_tokens.iter().map(|(name, token)| (*name, Value::from(token.as_str()))).collect();
        let message = |message: &Message| {
            Value::from_pairs([("role", message.role.as_str()), ("content", message.content.as_str())])
        };
        context.push(("messages", messages.iter().map(message).collect()));
        context.push(("add_generation_prompt", Value::from(add_generation_prompt)));
        context.push(("tools", Value::from(())));
        context.push(("documents", Value::from(())));
        context.push(("strftime_now", Value::from_function(move |format: &str| format_time(format, now))));
        let context = Value::from_pairs(context);

        let given: usize = messages.iter().map(|message| message.content.len() + message.role.len()).sum();
        let mut output =
            BoundedOutput { bytes: Vec::new(), bound: given.saturating_mul(4).saturating_add(MAX_ADDED_TEXT) };
        let template = self.environment.get_template(NAME).map_err(|error| template_error(&self.path, &error))?;
        let rendered = template.render_captured_to(context, &mut output);
        rendered.map_err(|error| template_error(&self.path, &error))?;
        String::from_utf8(output.bytes).map_err(|_| ModelError::Template {
            path: self.path.clone(),
            line: None,
            problem: "the rendered text is not UTF-8".to_owned(),
        })
    }
}

/// The special tokens that `tokenizer_config.json` names; each is a string, or an object with `content`.
fn special_tokens(fields: &Fields<'_>) -> Result<Vec<(&'static str, String)>, ModelError> {
    let mut tokens = Vec::new();
    for name in SPECIAL_TOKENS {
        let Some(value) = fields.get(name) else { continue };
        let content = value.as_str().or_else(|| value.get("content").and_then(serde_json::Value::as_str));
        let content = content.ok_or_else(|| fields.error(name, "a string, or an object with `content`"))?;
        tokens.push((name, content.to_owned()));
    }
    Ok(tokens)
}

fn configured_template<'a>(fields: &Fields<'a>) -> Result<Option<&'a str>, ModelError> {
    const FIELD: &str = "chat_template";
    let source = match fields.get(FIELD) {
        None => return Ok(None),
        Some(serde_json::Value::Array(named)) => {
            let default = named.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"));
            default.and_then(|entry| entry.get("template")).and_then(serde_json::Value::as_str)
        }
        Some(value) => value.as_str(),
    };
    match source {
        Some(source) if source.len() as u64 <= MAX_TEMPLATE => Ok(Some(source)),
        _ => Err(fields
            .error(FIELD, format!("a template of at most {MAX_TEMPLATE} bytes, or a list with one named \"default\""))),
    }
}

/// `{% generation %}` marks the assistant's words for training and has no meaning here. It becomes a block that is always
/// taken, so that white space is trimmed around it as around any block.
fn without_generation_tags(source: &str) -> String {
    static TAGS: OnceLock<Option<Regex>> = OnceLock::new();
    let tags = TAGS.get_or_init(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());
    let Some(tags) = tags else { return source.to_owned() };
    let replace = |found: &Captures<'_>| {
        let statement = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {statement} {}%}}", &found[1], &found[3])
    };
    tags.replace_all(source, replace).into_owned()
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

fn format_time(format: &str, now: SystemTime) -> Result<String, Error> {
    let failed =
        |error: jiff::Error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"));
    let time = jiff::Timestamp::try_from(now).map_err(failed)?.to_zoned_datetime(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &time).map_err(failed)
}

/// `tojson` as the Hugging Face library defines it: Python's spacing, and no escapes for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    const MAX_INDENT: usize = 16;
    let indent: Option<usize> = options.get("indent")?;
    // The other options of Python's json.dumps change nothing in the templates we know; a template may name their defaults.
    let _: (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut bytes = Vec::new();
    match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent.min(MAX_INDENT));
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter)).map_err(failed)?;
        }
        None => {
            let formatter = PythonFormatter(CompactFormatter);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter)).map_err(failed)?;
        }
    }
    let text = String::from_utf8(bytes).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(text))
}

/// JSON with a space after each comma and colon, as Python writes it.
struct PythonFormatter(CompactFormatter);

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// A buffer that refuses to grow beyond its bound.
struct BoundedOutput {
    bytes: Vec<u8>,
    bound: usize,
}

impl Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.bound - self.bytes.len() {
            return Err(io::Error::other(format!("the template wrote more than {} bytes", self.bound)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn template_error(path: &Path, error: &Error) -> ModelError {
    let mut problem = match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (ErrorKind::OutOfFuel, None) => format!("it takes more than {MAX_STEPS} steps"),
        (kind, None) => kind.to_string(),
    };
    if let Some(source) = std::error::Error::source(error) {
        problem = format!("{problem}: {source}");
    }
    ModelError::Template { path: path.to_owned(), line: error.line(), problem: shorten(&problem) }
}
