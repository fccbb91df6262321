//! The tools of a request, and whether they are to be called.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::{MAX_PARAMETERS_DEPTH, MAX_TOOLS, json, structured};

/// Longest name of a tool, in bytes.
const MAX_NAME: usize = 64;

/// A tool that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolDefinition {
    /// Letters, digits, `_`, `.` and `-`; 1 to 64 of them.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// A JSON schema for its arguments: an object. `None` if it has none.
    pub parameters: Option<Value>,
}

impl ToolDefinition {
    /// The tool as templates expect it, and as the request had it.
    pub fn to_value(&self) -> Value {
        let mut function = Map::new();
        function.insert("name".to_owned(), Value::from(self.name.as_str()));
        if let Some(description) = &self.description {
            function.insert("description".to_owned(), Value::from(description.as_str()));
        }
        let parameters = self.parameters.clone().unwrap_or_else(no_parameters);
        function.insert("parameters".to_owned(), parameters);
        let mut tool = Map::new();
        tool.insert("type".to_owned(), Value::from("function"));
        tool.insert("function".to_owned(), Value::Object(function));
        Value::Object(tool)
    }

    /// The schema of the arguments; of no arguments if the tool has none.
    pub fn schema(&self) -> Value {
        self.parameters.clone().unwrap_or_else(no_parameters)
    }

    pub(crate) fn text_bytes(&self) -> usize {
        self.name.len()
            + self.description.as_ref().map_or(0, String::len)
            + self.parameters.as_ref().map_or(0, json::text_bytes)
    }
}

fn no_parameters() -> Value {
    serde_json::json!({"type": "object", "properties": {}})
}

/// Whether tools are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// Never: the answer is text, even if it looks like a call.
    None,
    /// If the model wants to.
    Auto,
    /// At least one, whichever.
    Required,
    /// This one, and nothing else.
    Function(String),
}

/// The field `tools`; none if it is absent or empty.
pub(super) fn read(fields: &Fields<'_>) -> Result<Vec<ToolDefinition>, ApiError> {
    let values = fields.list("tools", MAX_TOOLS)?.unwrap_or_default();
    let mut names = HashSet::new();
    let mut tools = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let tool = definition(value, &format!("tools[{index}]"))?;
        if !names.insert(tool.name.clone()) {
            let path = format!("tools[{index}].function.name");
            let message =
                format!("`{path}` is \"{}\", as that of another tool; expected names that differ.", tool.name);
            return Err(ApiError::invalid(&path, &message));
        }
        tools.push(tool);
    }
    Ok(tools)
}

fn definition(value: &Value, path: &str) -> Result<ToolDefinition, ApiError> {
    let fields = Fields::of_value(value, path)?;
    if fields.string("type")?.is_none_or(|kind| kind != "function") {
        return Err(fields.error("type", "\"function\""));
    }
    let Some(function) = fields.object("function")? else {
        return Err(fields.error("function", "an object with `name`, `description` and `parameters`"));
    };
    let name = function.string("name")?.filter(|name| is_tool_name(name));
    let expected = || function.error("name", "1 to 64 letters, digits, `_`, `.` or `-`");
    let parameters = function.get("parameters");
    if let Some(parameters) = parameters {
        structured::check_schema(parameters, &function.path("parameters"), MAX_PARAMETERS_DEPTH)?;
    }
    Ok(ToolDefinition {
        name: name.ok_or_else(expected)?.to_owned(),
        description: function.string("description")?.map(str::to_owned),
        parameters: parameters.cloned(),
    })
}

/// Whether a tool may have this name.
pub(crate) fn is_tool_name(name: &str) -> bool {
    let accepted = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(accepted)
}

/// The field `tool_choice`: by default the model decides if there are tools.
pub(super) fn choice(fields: &Fields<'_>, tools: &[ToolDefinition]) -> Result<ToolChoice, ApiError> {
    const NAME: &str = "tool_choice";
    const FORMS: &str = "\"none\", \"auto\", \"required\" or an object that names a function";
    let choice = match fields.get(NAME) {
        None if tools.is_empty() => ToolChoice::None,
        None => ToolChoice::Auto,
        Some(Value::String(word)) => match word.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            _ => return Err(fields.error(NAME, FORMS)),
        },
        Some(Value::Object(_)) => named(fields, tools)?,
        Some(_) => return Err(fields.error(NAME, FORMS)),
    };
    if tools.is_empty() && choice != ToolChoice::None {
        // Clients that always send `tools: []` and "auto" mean no tools.
        if fields.get("tools").is_some() && choice == ToolChoice::Auto {
            return Ok(ToolChoice::None);
        }
        let message = "`tool_choice` is set, but there are no tools. Give `tools` or leave it out.";
        return Err(ApiError::invalid(NAME, message));
    }
    Ok(choice)
}

fn named(fields: &Fields<'_>, tools: &[ToolDefinition]) -> Result<ToolChoice, ApiError> {
    let Some(choice) = fields.object("tool_choice")? else { return Ok(ToolChoice::None) };
    if choice.string("type")? != Some("function") {
        return Err(choice.error("type", "\"function\""));
    }
    let Some(function) = choice.object("function")? else {
        return Err(choice.error("function", "an object with `name`"));
    };
    let name = function.string("name")?;
    match tools.iter().find(|tool| Some(tool.name.as_str()) == name) {
        Some(tool) => Ok(ToolChoice::Function(tool.name.clone())),
        None => Err(function.error("name", "the name of one of the tools")),
    }
}
