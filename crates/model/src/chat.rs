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
use minijinja::value::{Kwargs, Serde, Value};
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
/// Stands at the end of a message that is to be continued, while the template runs. Not white space, so templates that trim
/// do not trim the message where the answer goes on.
const END_OF_CONTENT: &str = "\u{fdd0}end of content\u{fdd1}";
/// Where a template is said to come from that no file of the checkpoint holds.
const GIVEN: &str = "the chat template that was given";
/// Name of the template inside the engine.
const NAME: &str = "chat";
/// The function with which a template refuses a conversation.
const RAISE_EXCEPTION: &str = "raise_exception";
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

/// A conversation, and what else a template may use.
///
/// ```
/// use allotrope_model::Conversation;
/// use serde_json::json;
///
/// let messages = [json!({"role": "user", "content": "What time is it?"})];
/// let tools = [json!({"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}})];
/// let conversation = Conversation { tools: &tools, add_generation_prompt: true, ..Conversation::new(&messages) };
/// assert!(!conversation.continue_final_message);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'a> {
    /// The messages, each an object with `role`, usually `content`, and whatever else the template reads: `tool_calls`
    /// (their arguments as objects), `tool_call_id`, `name`.
    pub messages: &'a [serde_json::Value],
    /// Descriptions of tools; with none, the template sees none at all.
    pub tools: &'a [serde_json::Value],
    /// Documents to quote; with none, the template sees none at all.
    pub documents: &'a [serde_json::Value],
    /// More variables of the template. They cannot take the place of those that the engine sets.
    pub arguments: Option<&'a serde_json::Map<String, serde_json::Value>>,
    /// The text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// The text ends inside the last message, whose `content` is text, so that the model goes on with it.
    pub continue_final_message: bool,
}

impl<'a> Conversation<'a> {
    /// Messages and nothing else.
    pub fn new(messages: &'a [serde_json::Value]) -> Self {
        Conversation {
            messages,
            tools: &[],
            documents: &[],
            arguments: None,
            add_generation_prompt: false,
            continue_final_message: false,
        }
    }

    /// Bytes of text in it.
    fn bytes(&self) -> usize {
        let parts = self.messages.iter().chain(self.tools).chain(self.documents);
        let parts = parts.map(text_bytes).fold(0, usize::saturating_add);
        let arguments = self.arguments.into_iter().flatten();
        arguments.fold(parts, |bytes, (name, value)| bytes.saturating_add(name.len() + text_bytes(value)))
    }
}

/// The bytes of all keys and strings in `value`, and some for each value, which a template may write as well.
fn text_bytes(value: &serde_json::Value) -> usize {
    const OWN: usize = 4;
    let inner = match value {
        serde_json::Value::String(text) => text.len(),
        serde_json::Value::Array(values) => values.iter().map(text_bytes).fold(0, usize::saturating_add),
        serde_json::Value::Object(fields) => {
            fields.iter().fold(0_usize, |bytes, (key, value)| bytes.saturating_add(key.len() + text_bytes(value)))
        }
        _ => 0,
    };
    inner.saturating_add(OWN)
}

/// The chat template of a checkpoint, parsed.
pub struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    special_tokens: Vec<(&'static str, String)>,
    takes_tools: bool,
    source: String,
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

    /// Reads `source` in place of the template of the checkpoint in `folder`, which may have none: only its special tokens are
    /// taken.
    ///
    /// # Errors
    /// If the names of the special tokens can't be read, or the source is too large or does not parse.
    pub fn open_with_source(folder: &Path, source: &str) -> Result<Self, ModelError> {
        let path = folder.join(TOKENIZER_CONFIG_FILE);
        let config =
            if json::exists(&path) { json::read_object(&path, MAX_TOKENIZER_CONFIG)? } else { serde_json::Map::new() };
        let special_tokens = special_tokens(&Fields::new(&path, &config))?;
        if source.len() as u64 > MAX_TEMPLATE {
            let problem = format!("the template has {} bytes, more than {MAX_TEMPLATE}", source.len());
            return Err(ModelError::Template { path: PathBuf::from(GIVEN), line: None, problem });
        }
        Self::parse(PathBuf::from(GIVEN), source, special_tokens)
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    fn parse(path: PathBuf, text: &str, special_tokens: Vec<(&'static str, String)>) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| template_error(&path, &error))?);
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(RAISE_EXCEPTION, raise_exception);
        environment.add_filter("tojson", to_json);
        let source = without_generation_tags(text);
        let takes_tools = mentions_tools(&source);
        if let Err(error) = environment.add_template_owned(NAME, source) {
            return Err(template_error(&path, &error));
        }
        Ok(ChatTemplate { path, environment, special_tokens, takes_tools, source: text.to_owned() })
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
        let messages: Vec<serde_json::Value> = messages
            .iter()
            .map(|message| serde_json::json!({"role": message.role, "content": message.content}))
            .collect();
        let conversation = Conversation { add_generation_prompt, ..Conversation::new(&messages) };
        self.render_conversation_at(&conversation, now)
    }

    /// The text of a conversation with tools, documents and more variables.
    ///
    /// # Errors
    /// As for [`ChatTemplate::render`]; and if the last message is to be continued, but its content is no text or the template
    /// does not write it.
    pub fn render_conversation(&self, conversation: &Conversation<'_>) -> Result<String, ModelError> {
        self.render_conversation_at(conversation, SystemTime::now())
    }

    /// As [`ChatTemplate::render_conversation`], for a given time instead of now.
    ///
    /// # Errors
    /// As for [`ChatTemplate::render_conversation`].
    pub fn render_conversation_at(
        &self,
        conversation: &Conversation<'_>,
        now: SystemTime,
    ) -> Result<String, ModelError> {
        let bound = conversation.bytes().saturating_mul(4).saturating_add(MAX_ADDED_TEXT);
        let mut output = BoundedOutput { bytes: Vec::new(), bound };
        let context = self.context(conversation, now)?;
        let template = self.environment.get_template(NAME).map_err(|error| template_error(&self.path, &error))?;
        let rendered = template.render_captured_to(context, &mut output);
        rendered.map_err(|error| template_error(&self.path, &error))?;
        let text =
            String::from_utf8(output.bytes).map_err(|_| self.error("the rendered text is not UTF-8".to_owned()))?;
        if conversation.continue_final_message { self.cut_at_mark(&text) } else { Ok(text) }
    }

    /// Whether the template can tell the model of tools. If not, tools that it is given are not in the text.
    pub fn takes_tools(&self) -> bool {
        self.takes_tools
    }

    /// Another template with the special tokens of this one.
    ///
    /// # Errors
    /// If `source` is too large or does not parse.
    pub fn with_source(&self, source: &str) -> Result<Self, ModelError> {
        if source.len() as u64 > MAX_TEMPLATE {
            return Err(self.error(format!("the template has {} bytes, more than {MAX_TEMPLATE}", source.len())));
        }
        Self::parse(PathBuf::from("chat_template of the request"), source, self.special_tokens.clone())
    }

    fn error(&self, problem: String) -> ModelError {
        ModelError::Template { path: self.path.clone(), line: None, problem }
    }

    fn context(&self, conversation: &Conversation<'_>, now: SystemTime) -> Result<Value, ModelError> {
        // Of two entries with one name the later one counts, so what comes from outside comes first.
        let mut context: Vec<(&str, Value)> = Vec::new();
        let arguments = conversation.arguments.into_iter().flatten();
        for (name, value) in arguments.filter(|(name, _)| *name != RAISE_EXCEPTION) {
            context.push((name, Value::from(Serde(value))));
        }
        context.extend(SPECIAL_TOKENS.iter().map(|name| (*name, Value::UNDEFINED)));
        context.extend(self.special_tokens.iter().map(|(name, token)| (*name, Value::from(token.as_str()))));
        let mut messages: Vec<Value> =
            conversation.messages.iter().map(|message| Value::from(Serde(message))).collect();
        if conversation.continue_final_message {
            let marked = conversation.messages.last().and_then(marked);
            let marked =
                marked.ok_or_else(|| self.error("the last message has no text that could be continued".to_owned()))?;
            messages.pop();
            messages.push(Value::from(Serde(&marked)));
        }
        let list = |values: &[serde_json::Value]| match values {
            [] => Value::from(()),
            values => Value::from(Serde(values)),
        };
        context.push(("messages", Value::from(messages)));
        context.push(("add_generation_prompt", Value::from(conversation.add_generation_prompt)));
        context.push(("continue_final_message", Value::from(conversation.continue_final_message)));
        context.push(("tools", list(conversation.tools)));
        context.push(("documents", list(conversation.documents)));
        context.push(("strftime_now", Value::from_function(move |format: &str| format_time(format, now))));
        Ok(Value::from_pairs(context))
    }

    /// The text up to the end of the last message's content.
    fn cut_at_mark(&self, text: &str) -> Result<String, ModelError> {
        match text.rfind(END_OF_CONTENT) {
            // A template that writes the content twice left the mark elsewhere too.
            Some(end) => Ok(text[..end].replace(END_OF_CONTENT, "")),
            None => {
                Err(self.error("the template does not write the last message, so it cannot be continued".to_owned()))
            }
        }
    }
}

/// The message with a mark at the end of its content; `None` if that is no text.
fn marked(message: &serde_json::Value) -> Option<serde_json::Value> {
    let content = message.get("content")?.as_str()?;
    let mut message = message.clone();
    let content = format!("{content}{END_OF_CONTENT}");
    message.as_object_mut()?.insert("content".to_owned(), serde_json::Value::String(content));
    Some(message)
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

/// Whether the source has the word `tools`. That is how templates that take tools call them; the word in a comment or a
/// text alone would mislead, which no template that we know does.
fn mentions_tools(source: &str) -> bool {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    source.split(|character| !is_word(character)).any(|word| word == "tools")
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
