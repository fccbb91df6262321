//! What the text of an answer must be: `response_format`, `structured_outputs` and the older `guided_…` fields.
//!
//! Only the form of the request is checked here. Whether a schema or a pattern can be used is for whoever compiles it,
//! which happens before a request reaches the engine.

use allotrope_engine::StructuredOutput;
use serde_json::Value;

use super::MAX_SCHEMA_DEPTH;
use super::error::ApiError;
use super::fields::{Fields, unexpected};
use super::json;

/// The most bytes of a schema, a pattern, a grammar or all choices.
const MAX_CONSTRAINT: usize = 1 << 20;
/// The most choices.
const MAX_CHOICES: usize = 4096;

/// The constraint that a request names, if it names one.
pub(crate) fn read(fields: &Fields<'_>) -> Result<Option<StructuredOutput>, ApiError> {
    let mut found: Vec<(String, StructuredOutput)> = Vec::new();
    if let Some(output) = response_format(fields)? {
        found.push(("response_format".to_owned(), output));
    }
    if let Some(outputs) = fields.object("structured_outputs")? {
        if outputs.get("structural_tag").is_some() {
            return Err(outputs.refused("structural_tag", "use json, regex, choice, grammar or json_object"));
        }
        let named = constraints(&outputs, "")?;
        if named.is_empty() {
            return Err(fields.error("structured_outputs", "one of json, regex, choice, grammar or json_object in it"));
        }
        found.extend(named);
    }
    found.extend(constraints(fields, "guided_")?);
    match found.len() {
        0 | 1 => Ok(found.pop().map(|(_, output)| output)),
        _ => {
            let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
            let message = format!("An answer can have one constraint, but the request names {}.", names.join(" and "));
            Err(ApiError::invalid(names.last().unwrap_or(&""), &message))
        }
    }
}

/// Refuses a schema that is no object, is nested more than `depth` levels deep or is too large. `path` is where it stands.
pub(crate) fn check_schema(schema: &Value, path: &str, depth: usize) -> Result<(), ApiError> {
    if !schema.is_object() {
        return Err(unexpected(path, schema, "a JSON schema, which is an object"));
    }
    if !json::is_nested_at_most(schema, depth) {
        let message = format!("`{path}` is nested more than {depth} levels deep; expected a flatter schema.");
        return Err(ApiError::invalid(path, &message));
    }
    check_size(json::text_bytes(schema), path)
}

/// The constraints among `fields`, whose names begin with `prefix`.
fn constraints(fields: &Fields<'_>, prefix: &str) -> Result<Vec<(String, StructuredOutput)>, ApiError> {
    let mut found = Vec::new();
    let name = |short: &str| format!("{prefix}{short}");
    let json = name("json");
    if let Some(value) = fields.get(&json) {
        let path = fields.path(&json);
        let schema = match value {
            Value::String(text) => {
                check_size(text.len(), &path)?;
                let failed = |problem| ApiError::invalid(&path, &format!("`{path}` is not valid JSON: {problem}"));
                json::parse(text).map_err(failed)?
            }
            value => value.clone(),
        };
        check_schema(&schema, &path, MAX_SCHEMA_DEPTH)?;
        found.push((path, StructuredOutput::Json(schema)));
    }
    let regex = name("regex");
    if let Some(pattern) = fields.short_string(&regex, MAX_CONSTRAINT)? {
        if pattern.contains('\0') {
            return Err(fields.error(&regex, "a pattern without the character NUL"));
        }
        found.push((fields.path(&regex), StructuredOutput::Regex(pattern.to_owned())));
    }
    let choice = name("choice");
    if let Some(choices) = fields.strings(&choice, MAX_CHOICES)? {
        if choices.is_empty() || choices.iter().any(String::is_empty) {
            return Err(fields.error(&choice, "at least one choice, and none empty"));
        }
        check_size(choices.iter().map(String::len).sum(), &fields.path(&choice))?;
        found.push((fields.path(&choice), StructuredOutput::Choice(choices)));
    }
    let grammar = name("grammar");
    if let Some(text) = fields.short_string(&grammar, MAX_CONSTRAINT)? {
        if text.trim().is_empty() {
            return Err(fields.error(&grammar, "a grammar that is not empty"));
        }
        found.push((fields.path(&grammar), StructuredOutput::Grammar(text.to_owned())));
    }
    let json_object = name("json_object");
    if fields.flag(&json_object, false)? {
        found.push((fields.path(&json_object), StructuredOutput::JsonObject));
    }
    Ok(found)
}

fn response_format(fields: &Fields<'_>) -> Result<Option<StructuredOutput>, ApiError> {
    const KINDS: &str = "text, json_object or json_schema";
    let Some(format) = fields.object("response_format")? else { return Ok(None) };
    match format.string("type")? {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(StructuredOutput::JsonObject)),
        Some("json_schema") => {
            let Some(outer) = format.object("json_schema")? else {
                return Err(format.error("json_schema", "an object with `name` and `schema`"));
            };
            let Some(schema) = outer.get("schema") else { return Err(outer.error("schema", "a JSON schema")) };
            check_schema(schema, &outer.path("schema"), MAX_SCHEMA_DEPTH)?;
            Ok(Some(StructuredOutput::Json(schema.clone())))
        }
        _ => Err(format.error("type", KINDS)),
    }
}

fn check_size(bytes: usize, path: &str) -> Result<(), ApiError> {
    if bytes > MAX_CONSTRAINT {
        return Err(ApiError::invalid(
            path,
            &format!("`{path}` has {bytes} bytes; expected at most {MAX_CONSTRAINT}."),
        ));
    }
    Ok(())
}
