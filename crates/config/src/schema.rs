//! JSON Schemas: of a settings file, and of the JSON form of `explain`.

use serde_json::{Map, Value as Json, json};

use crate::command_line::documentation;
use crate::declaration::Declared;
use crate::document::default_words;
use crate::level::OptimizationLevel;
use crate::settings::all;
use crate::source::Source;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The JSON Schema of a settings file, which is also that of `--compilation-config` at its `compilation`.
pub fn schema() -> Json {
    let mut root = table("Settings of Allotrope: allotrope.toml");
    for setting in all() {
        insert(&mut root, setting.path(), *setting);
    }
    if let Json::Object(root) = &mut root {
        root.insert("$schema".to_owned(), json!(DIALECT));
    }
    root
}

fn table(description: &str) -> Json {
    json!({
        "description": description,
        "type": "object",
        "properties": {},
        "additionalProperties": false,
    })
}

/// Puts a setting where its path says, with the tables around it.
fn insert(parent: &mut Json, path: &str, setting: &dyn Declared) {
    let Some(properties) = parent.get_mut("properties").and_then(Json::as_object_mut) else {
        return;
    };
    match path.split_once('.') {
        Some((group, rest)) => {
            let group = properties.entry(group).or_insert_with(|| table(""));
            if let Some(group) = group.as_object_mut() {
                group.remove("description");
            }
            insert(group, rest, setting);
        }
        None => {
            properties.insert(path.to_owned(), of(setting));
        }
    }
}

fn of(setting: &dyn Declared) -> Json {
    let (summary, details) = documentation(setting);
    let default = format!("Default: {}.", default_words(setting));
    let description: Vec<String> = [summary, details, default].into_iter().filter(|part| !part.is_empty()).collect();
    let mut schema = setting.schema();
    if let Json::Object(schema) = &mut schema {
        schema.insert("description".to_owned(), Json::String(description.join(" ")));
    }
    schema
}

/// The JSON Schema of what [`explain`](crate::explain) writes as JSON.
pub fn explanation_schema() -> Json {
    let rows: Vec<Json> = all()
        .iter()
        .map(|setting| {
            json!({
                "properties": { "setting": { "const": setting.path() }, "value": setting.schema() }
            })
        })
        .collect();
    let mut root = Map::new();
    root.insert("$schema".to_owned(), json!(DIALECT));
    root.insert(
        "description".to_owned(),
        json!("The resolved settings of Allotrope and what its passes did: allotrope explain --format json"),
    );
    root.insert("type".to_owned(), json!("object"));
    root.insert("required".to_owned(), json!(["settings", "passes"]));
    root.insert("additionalProperties".to_owned(), json!(false));
    root.insert(
        "properties".to_owned(),
        json!({
            "step": { "type": "object", "description": "What a step launches, where a model was given." },
            "settings": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["setting", "value", "source", "reason"],
                    "properties": { "source": source(), "reason": { "type": ["string", "null"] } },
                    "oneOf": rows,
                }
            },
            "passes": { "type": "array", "items": pass() },
        }),
    );
    Json::Object(root)
}

fn source() -> Json {
    json!({
        "type": "object",
        "required": ["kind"],
        "additionalProperties": false,
        "properties": {
            "kind": { "enum": Source::KINDS },
            "flag": { "type": "string" },
            "variable": { "type": "string" },
            "path": { "type": "string" },
            "line": { "type": "integer", "minimum": 1 },
            "level": { "enum": OptimizationLevel::ALL.map(|level| level.to_string()) },
        }
    })
}

fn pass() -> Json {
    json!({
        "type": "object",
        "required": ["name", "setting", "on", "source", "reason", "matches", "note", "left_alone"],
        "additionalProperties": false,
        "properties": {
            "name": { "type": "string" },
            "setting": { "type": "string" },
            "on": { "type": ["boolean", "null"] },
            "source": { "type": ["string", "null"] },
            "reason": { "type": ["string", "null"] },
            "matches": { "type": ["integer", "null"], "minimum": 0 },
            "note": { "type": ["string", "null"] },
            "left_alone": { "type": "array", "items": { "type": "string" } },
        }
    })
}
