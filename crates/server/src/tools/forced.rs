//! Schemas that leave a model nothing to write but calls.

use allotrope_engine::StructuredOutput;
use serde_json::{Map, Value, json};

use crate::protocol::MAX_TOOLS;
use crate::protocol::chat::{ToolChoice, ToolDefinition};

/// The constraint on an answer that must call tools; `None` if it need not.
///
/// For one function by name it is the schema of its parameters, so the answer is the arguments alone. Otherwise it is a list of
/// `{"name": …, "parameters": …}`, of one call only without `parallel_tool_calls`.
/// [`ToolParser::forced`](super::ToolParser::forced) reads both.
pub fn forced_output(
    choice: &ToolChoice,
    tools: &[ToolDefinition],
    parallel_tool_calls: bool,
) -> Option<StructuredOutput> {
    match choice {
        ToolChoice::None | ToolChoice::Auto => None,
        ToolChoice::Function(name) => {
            let tool = tools.iter().find(|tool| tool.name == *name)?;
            Some(StructuredOutput::Json(tool.schema()))
        }
        ToolChoice::Required => {
            let calls: Vec<Value> = tools.iter().enumerate().map(|(index, tool)| call_schema(tool, index)).collect();
            let most = if parallel_tool_calls { MAX_TOOLS } else { 1 };
            let schema = json!({"type": "array", "minItems": 1, "maxItems": most, "items": {"anyOf": calls}});
            Some(StructuredOutput::Json(schema))
        }
    }
}

fn call_schema(tool: &ToolDefinition, index: usize) -> Value {
    let mut parameters = tool.schema();
    if let Value::Object(fields) = &mut parameters {
        // They are meant for a schema that stands alone: an id would make references relative to it.
        fields.shift_remove("$schema");
        fields.shift_remove("$id");
    }
    let root = format!("#/items/anyOf/{index}/properties/parameters");
    let parameters = moved_below(parameters, &root, Keys::Keywords);
    json!({
        "type": "object",
        "properties": {"name": {"const": tool.name}, "parameters": parameters},
        "required": ["name", "parameters"],
        "additionalProperties": false,
    })
}

/// What the keys of an object in a schema are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// Keywords of JSON schema.
    Keywords,
    /// Names that the schema's author chose, of schemas.
    Names,
}

/// A schema that was a whole document, with its references set right for its place `root` in another. The depth of a
/// request's schema is bounded, and so is the recursion.
fn moved_below(schema: Value, root: &str, keys: Keys) -> Value {
    match schema {
        Value::Object(fields) => {
            let moved = |(key, value): (String, Value)| {
                let value = match (key.as_str(), value) {
                    (_, value) if keys == Keys::Names => moved_below(value, root, Keys::Keywords),
                    ("$ref", Value::String(target)) => match target.strip_prefix('#') {
                        Some(pointer) if pointer.is_empty() || pointer.starts_with('/') => {
                            Value::String(format!("{root}{pointer}"))
                        }
                        _ => Value::String(target),
                    },
                    // Values, not schemas.
                    ("const" | "enum" | "default" | "examples", value) => value,
                    ("properties" | "patternProperties" | "dependentSchemas" | "$defs" | "definitions", value) => {
                        moved_below(value, root, Keys::Names)
                    }
                    (_, value) => moved_below(value, root, Keys::Keywords),
                };
                (key, value)
            };
            Value::Object(fields.into_iter().map(moved).collect::<Map<_, _>>())
        }
        Value::Array(values) => {
            Value::Array(values.into_iter().map(|value| moved_below(value, root, Keys::Keywords)).collect())
        }
        plain => plain,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn tool(name: &str, parameters: Option<Value>) -> ToolDefinition {
        ToolDefinition { name: name.to_owned(), description: None, parameters }
    }

    #[test]
    fn a_named_function_forces_its_own_arguments() {
        let schema = json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {}}});
        let tools = [tool("f", Some(schema.clone())), tool("g", None)];
        let named = |name: &str| forced_output(&ToolChoice::Function(name.to_owned()), &tools, true);
        assert_eq!(named("f"), Some(StructuredOutput::Json(schema)));
        assert_eq!(named("g"), Some(StructuredOutput::Json(json!({"type": "object", "properties": {}}))));
        assert_eq!(named("h"), None);
        assert_eq!(forced_output(&ToolChoice::Auto, &tools, true), None);
        assert_eq!(forced_output(&ToolChoice::None, &tools, true), None);
    }

    #[test]
    fn references_still_point_to_what_they_named() {
        let schema = json!({
            "$id": "http://x/", "type": "object",
            "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"const": {"$ref": "#/kept"}}, "c": {"$ref": "#"}},
            "$defs": {"A": {"type": "string"}},
        });
        let output = forced_output(&ToolChoice::Required, &[tool("f", None), tool("g", Some(schema))], false);
        let Some(StructuredOutput::Json(schema)) = output else { panic!("{output:?}") };
        assert_eq!((&schema["minItems"], &schema["maxItems"]), (&json!(1), &json!(1)));
        let parameters = &schema["items"]["anyOf"][1]["properties"]["parameters"];
        let target = |name: &str| parameters["properties"][name]["$ref"].as_str().unwrap().strip_prefix('#').unwrap();
        assert_eq!(schema.pointer(target("a")), Some(&json!({"type": "string"})));
        assert_eq!(schema.pointer(target("c")), Some(parameters));
        assert_eq!(parameters["properties"]["b"]["const"]["$ref"], "#/kept");
        assert_eq!(parameters.get("$id"), None);
        assert_eq!(schema["items"]["anyOf"][0]["properties"]["name"]["const"], "f");
    }

    #[test]
    fn references_of_parameters_with_names_of_keywords_are_set_right_too() {
        let names = ["default", "enum", "const", "examples", "properties", "$defs", "$ref"];
        let all =
            || names.iter().map(|name| ((*name).to_owned(), json!({"$ref": "#/$defs/enum"}))).collect::<Map<_, _>>();
        let schema = json!({
            "type": "object", "properties": all(), "patternProperties": all(),
            "$defs": {"enum": {"enum": [{"$ref": "#/kept"}]}, "const": {"properties": all()}},
        });
        let output = forced_output(&ToolChoice::Required, &[tool("f", Some(schema))], false);
        let Some(StructuredOutput::Json(schema)) = output else { panic!("{output:?}") };
        let parameters = &schema["items"]["anyOf"][0]["properties"]["parameters"];
        for place in ["/properties", "/patternProperties", "/$defs/const/properties"] {
            for name in names {
                let reference = &parameters.pointer(place).unwrap()[name]["$ref"];
                let target = reference.as_str().unwrap().strip_prefix('#').unwrap();
                assert_eq!(schema.pointer(target), Some(&json!({"enum": [{"$ref": "#/kept"}]})), "{place}/{name}");
            }
        }
    }
}
