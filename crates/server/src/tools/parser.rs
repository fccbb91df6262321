//! Calls out of a model's text, whole or as it comes.
//!
//! One machine reads both: what a stream is cut into changes nothing. Each character is looked at a bounded number of times, and
//! what is kept back until it is certain is bounded too. Text that turns out to be no call is content, as it was written;
//! only white space next to a call is left out.

use std::collections::HashSet;

use super::ToolFormat;
use super::call_object::{CallReader, Step, is_space};
use crate::protocol::MAX_TOOLS;
use crate::protocol::chat::{ChatRequest, ToolChoice, ToolDefinition};
use crate::protocol::identifiers;
use crate::protocol::response::{
    AssistantMessage, ChatDelta, FinishReason, FunctionCallDelta, ToolCall, ToolCallDelta,
};

/// Most bytes that are kept back because they may belong to a call.
const MAX_HELD: usize = 128 << 10;
/// What Llama 3 may write before its calls.
const PYTHON_TAG: &str = "<|python_tag|>";
/// What Hermes writes before a call.
const OPENING_TAG: &str = "<tool_call>";
/// What Hermes writes after a call.
const CLOSING_TAG: &str = "</tool_call>";

/// What a piece of text adds to the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolEvent {
    /// Text for the reader.
    Content(String),
    /// A call begins.
    Call {
        /// Which call of the answer, from 0.
        index: usize,
        /// `call_…`
        id: String,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments, as the model writes them.
    Arguments {
        /// Which call of the answer.
        index: usize,
        /// The text.
        text: String,
    },
}

impl From<ToolEvent> for ChatDelta {
    fn from(event: ToolEvent) -> Self {
        let call = match event {
            ToolEvent::Content(text) => return ChatDelta::text(text),
            ToolEvent::Call { index, id, name } => ToolCallDelta {
                index,
                id: Some(id),
                r#type: Some("function"),
                function: FunctionCallDelta { name: Some(name), arguments: Some(String::new()) },
            },
            ToolEvent::Arguments { index, text } => ToolCallDelta {
                index,
                function: FunctionCallDelta { name: None, arguments: Some(text) },
                ..ToolCallDelta::default()
            },
        };
        ChatDelta { tool_calls: vec![call], ..ChatDelta::default() }
    }
}

/// An answer, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParsedAnswer {
    /// Text for the reader; `None` if there is none and there are calls.
    pub content: Option<String>,
    /// The calls, in order.
    pub calls: Vec<ToolCall>,
}

impl ParsedAnswer {
    /// The message of the answer.
    pub fn into_message(self, role: &str) -> AssistantMessage {
        AssistantMessage { role: role.to_owned(), content: self.content, tool_calls: self.calls }
    }
}

/// How the text is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Model(ToolFormat),
    /// A list of calls.
    List,
    /// The arguments of the one tool alone.
    Arguments,
}

#[derive(Debug)]
enum State {
    /// Nothing but white space so far, and perhaps part of Llama's tag.
    Start {
        matched: usize,
    },
    /// Content, at the end of which may stand part of Hermes' tag.
    Text {
        matched: usize,
    },
    /// A call is to begin after white space.
    BeforeObject,
    Object(CallReader),
    /// After a call; part of Hermes' closing tag may stand here.
    AfterObject {
        matched: usize,
    },
    /// Content to the end.
    Rest,
}

/// Finds the calls in one answer.
///
/// ```
/// use allotrope_server::protocol::chat::ToolDefinition;
/// use allotrope_server::tools::{ToolFormat, ToolParser};
///
/// let tools = [ToolDefinition { name: "add".into(), description: None, parameters: None }];
/// let text = "Let me see.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>";
/// let answer = ToolParser::new(ToolFormat::Hermes, &tools, true).parse(text);
/// assert_eq!(answer.content.as_deref(), Some("Let me see."));
/// assert_eq!(answer.calls[0].function.arguments, "{\"a\": 1}");
/// ```
#[derive(Debug)]
pub struct ToolParser {
    layout: Layout,
    names: HashSet<String>,
    max_calls: usize,
    calls: usize,
    state: State,
    /// What was read since the last content and may belong to a call.
    held: String,
    /// White space at the end of the content, which is left out if a call follows.
    space: String,
    events: Vec<ToolEvent>,
}

impl ToolParser {
    /// Reads answers in a model's own format. Only the names of `tools` are calls; without `parallel_tool_calls` all calls
    /// but the first are left out.
    pub fn new(format: ToolFormat, tools: &[ToolDefinition], parallel_tool_calls: bool) -> Self {
        Self::with_layout(Layout::Model(format), tools, parallel_tool_calls)
    }

    /// Reads answers that [`forced_output`](super::forced_output) constrained; `None` if it constrains none.
    pub fn forced(choice: &ToolChoice, tools: &[ToolDefinition], parallel_tool_calls: bool) -> Option<Self> {
        match choice {
            ToolChoice::None | ToolChoice::Auto => None,
            ToolChoice::Required => Some(Self::with_layout(Layout::List, tools, parallel_tool_calls)),
            ToolChoice::Function(name) => {
                let tool = tools.iter().find(|tool| tool.name == *name)?;
                Some(Self::with_layout(Layout::Arguments, std::slice::from_ref(tool), false))
            }
        }
    }

    /// The parser for one answer to `request`; `None` if the answer is plain text, because no tool may be called or the model's
    /// format is not known.
    pub fn for_request(request: &ChatRequest, format: Option<ToolFormat>) -> Option<Self> {
        let (tools, parallel) = (&request.input.tools, request.parallel_tool_calls);
        match request.tool_choice {
            ToolChoice::None => None,
            ToolChoice::Auto => format.map(|format| Self::new(format, tools, parallel)),
            ToolChoice::Required | ToolChoice::Function(_) => Self::forced(&request.tool_choice, tools, parallel),
        }
    }

    fn with_layout(layout: Layout, tools: &[ToolDefinition], parallel_tool_calls: bool) -> Self {
        let state = match layout {
            Layout::Model(ToolFormat::Hermes) => State::Text { matched: 0 },
            _ => State::Start { matched: 0 },
        };
        ToolParser {
            layout,
            names: tools.iter().map(|tool| tool.name.clone()).collect(),
            max_calls: if parallel_tool_calls { MAX_TOOLS } else { 1 },
            calls: 0,
            state,
            held: String::new(),
            space: String::new(),
            events: Vec::new(),
        }
    }

    /// Takes the next piece of the text; what is certain now.
    pub fn push(&mut self, text: &str) -> Vec<ToolEvent> {
        if self.layout == Layout::Arguments {
            self.push_arguments(text);
        } else {
            for character in text.chars() {
                self.push_character(character);
            }
        }
        std::mem::take(&mut self.events)
    }

    /// The text is complete: what was kept back.
    pub fn finish(&mut self) -> Vec<ToolEvent> {
        let state = std::mem::replace(&mut self.state, State::Rest);
        match state {
            State::Object(reader) if reader.is_started() => {}
            State::AfterObject { .. } => self.held.clear(),
            _ => self.release(),
        }
        let space = std::mem::take(&mut self.space);
        if self.calls == 0 && !space.is_empty() {
            self.emit_content(&space);
        }
        std::mem::take(&mut self.events)
    }

    /// Takes apart a whole answer.
    pub fn parse(mut self, text: &str) -> ParsedAnswer {
        let mut events = self.push(text);
        events.extend(self.finish());
        let mut answer = ParsedAnswer::default();
        for event in events {
            match event {
                ToolEvent::Content(text) => answer.content.get_or_insert_default().push_str(&text),
                ToolEvent::Call { id, name, .. } => answer.calls.push(ToolCall::new(id, name, String::new())),
                ToolEvent::Arguments { index, text } => {
                    if let Some(call) = answer.calls.get_mut(index) {
                        call.function.arguments.push_str(&text);
                    }
                }
            }
        }
        if answer.calls.is_empty() {
            answer.content.get_or_insert_default();
        }
        answer
    }

    /// Whether a call has been found.
    pub fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// Why an answer ended, as clients are told: one that ended by itself and calls tools ended for that.
    pub fn finish_reason(&self, reason: FinishReason) -> FinishReason {
        if self.has_calls() && reason == FinishReason::Stop { FinishReason::ToolCalls } else { reason }
    }

    fn push_arguments(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        if self.calls == 0
            && let Some(name) = self.names.iter().next().cloned()
        {
            self.start_call(name, text);
        } else {
            self.emit_arguments(text);
        }
    }

    fn push_character(&mut self, character: char) {
        let state = std::mem::replace(&mut self.state, State::Rest);
        self.state = match state {
            State::Start { matched } => self.at_start(character, matched),
            State::Text { matched } => self.in_text(character, matched),
            State::BeforeObject => self.before_object(character),
            State::Object(reader) => self.in_object(character, reader),
            State::AfterObject { matched } => self.after_object(character, matched),
            State::Rest => {
                self.content(character);
                State::Rest
            }
        };
        if self.held.len() > MAX_HELD {
            // Too long to be a call that is only beginning.
            self.state = self.give_up();
        }
    }

    fn at_start(&mut self, character: char, matched: usize) -> State {
        if matched == 0 && is_space(character) {
            self.held.push(character);
            return State::Start { matched };
        }
        match self.layout {
            Layout::Model(_) => {
                if let Some(matched) = next_match(PYTHON_TAG, matched, character) {
                    self.held.push(character);
                    return if matched == PYTHON_TAG.len() { State::BeforeObject } else { State::Start { matched } };
                }
                if matched == 0 { self.before_object(character) } else { self.give_up_at(character) }
            }
            Layout::List | Layout::Arguments if character == '[' => {
                self.held.push(character);
                State::BeforeObject
            }
            Layout::List | Layout::Arguments => self.give_up_at(character),
        }
    }

    fn in_text(&mut self, character: char, matched: usize) -> State {
        if let Some(matched) = next_match(OPENING_TAG, matched, character) {
            self.held.push(character);
            return if matched == OPENING_TAG.len() { State::BeforeObject } else { State::Text { matched } };
        }
        if matched > 0 {
            self.release();
            // The tag's first character comes in it once only, so a match can begin here alone.
            return self.in_text(character, 0);
        }
        self.content(character);
        State::Text { matched: 0 }
    }

    fn before_object(&mut self, character: char) -> State {
        if character != '{' && !is_space(character) {
            return self.give_up_at(character);
        }
        self.held.push(character);
        if character == '{' { State::Object(CallReader::default()) } else { State::BeforeObject }
    }

    fn in_object(&mut self, character: char, mut reader: CallReader) -> State {
        match reader.push(character, &self.names) {
            Step::Kept => {
                if !reader.is_started() {
                    self.held.push(character);
                }
                State::Object(reader)
            }
            Step::Started { name, arguments } => {
                self.start_call(name, &arguments);
                State::Object(reader)
            }
            Step::Argument => {
                self.emit_arguments(character.encode_utf8(&mut [0; 4]));
                State::Object(reader)
            }
            Step::Ended => State::AfterObject { matched: 0 },
            Step::StartedAndEnded { name, arguments } => {
                self.start_call(name, &arguments);
                State::AfterObject { matched: 0 }
            }
            Step::Failed if reader.is_started() => self.after_object(character, 0),
            Step::Failed => self.give_up_at(character),
        }
    }

    fn after_object(&mut self, character: char, matched: usize) -> State {
        let is_hermes = self.layout == Layout::Model(ToolFormat::Hermes);
        if is_hermes && let Some(matched) = next_match(CLOSING_TAG, matched, character) {
            self.held.push(character);
            if matched < CLOSING_TAG.len() {
                return State::AfterObject { matched };
            }
            self.held.clear();
            return State::Text { matched: 0 };
        }
        // Small models like to write one brace too many.
        let is_filler = is_space(character) || character == '}' || (!is_hermes && matches!(character, ';' | ','));
        match character {
            _ if matched > 0 => self.give_up_at(character),
            _ if is_filler => {
                self.held.push(character);
                State::AfterObject { matched }
            }
            '{' if !is_hermes => self.before_object(character),
            ']' if self.layout == Layout::List => {
                self.held.clear();
                State::Rest
            }
            _ => self.give_up_at(character),
        }
    }

    /// What was kept back is no call, and neither does one begin with `character`, unless it is one of Hermes' tags.
    fn give_up_at(&mut self, character: char) -> State {
        match self.give_up() {
            State::Text { matched } => self.in_text(character, matched),
            state => {
                self.content(character);
                state
            }
        }
    }

    fn give_up(&mut self) -> State {
        self.release();
        match self.layout {
            Layout::Model(ToolFormat::Hermes) => State::Text { matched: 0 },
            _ => State::Rest,
        }
    }

    /// Makes content of what was kept back.
    fn release(&mut self) {
        for character in std::mem::take(&mut self.held).chars() {
            self.content(character);
        }
    }

    fn content(&mut self, character: char) {
        if is_space(character) && self.space.len() < MAX_HELD {
            self.space.push(character);
            return;
        }
        let mut text = std::mem::take(&mut self.space);
        text.push(character);
        self.emit_content(&text);
    }

    fn emit_content(&mut self, text: &str) {
        match self.events.last_mut() {
            Some(ToolEvent::Content(last)) => last.push_str(text),
            _ => self.events.push(ToolEvent::Content(text.to_owned())),
        }
    }

    fn start_call(&mut self, name: String, arguments: &str) {
        self.held.clear();
        self.space.clear();
        self.calls += 1;
        if self.calls <= self.max_calls {
            let (index, id) = (self.calls - 1, identifiers::tool_call_id());
            self.events.push(ToolEvent::Call { index, id, name });
        }
        self.emit_arguments(arguments);
    }

    fn emit_arguments(&mut self, text: &str) {
        if self.calls == 0 || self.calls > self.max_calls || text.is_empty() {
            return;
        }
        match self.events.last_mut() {
            Some(ToolEvent::Arguments { text: last, .. }) => last.push_str(text),
            _ => self.events.push(ToolEvent::Arguments { index: self.calls - 1, text: text.to_owned() }),
        }
    }
}

/// The bytes of `tag` that are matched with `character` after `matched` of them; `None` if it does not go on so.
fn next_match(tag: &str, matched: usize, character: char) -> Option<usize> {
    tag.get(matched..)?.starts_with(character).then(|| matched + character.len_utf8())
}

#[cfg(test)]
mod tests;
