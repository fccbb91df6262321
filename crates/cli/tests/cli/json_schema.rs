//! Validating JSON against a JSON Schema, as far as ours go. A keyword that is not known here fails the test instead of passing over it.

use serde_json::Value;

/// What is wrong with `value`, with the place in it; nothing if it is valid.
pub(crate) fn faults(schema: &Value, value: &Value, place: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (keyword, expected) in schema.as_object().unwrap() {
        let fault = |message: String| vec![format!("{place}: {message}, by {keyword} {expected}")];
        faults.extend(match keyword.as_str() {
            "$schema" | "description" => Vec::new(),
            "type" => {
                let names: Vec<&Value> =
                    expected.as_array().map_or_else(|| vec![expected], |names| names.iter().collect());
                if names.iter().any(|name| has_type(value, name.as_str().unwrap())) {
                    Vec::new()
                } else {
                    fault(value.to_string())
                }
            }
            "const" => {
                if value == expected {
                    Vec::new()
                } else {
                    fault(value.to_string())
                }
            }
            "enum" => {
                if expected.as_array().unwrap().contains(value) {
                    Vec::new()
                } else {
                    fault(value.to_string())
                }
            }
            "minimum" => {
                if value.as_f64().is_none_or(|number| number >= expected.as_f64().unwrap()) {
                    Vec::new()
                } else {
                    fault(value.to_string())
                }
            }
            "maximum" => {
                if value.as_f64().is_none_or(|number| number <= expected.as_f64().unwrap()) {
                    Vec::new()
                } else {
                    fault(value.to_string())
                }
            }
            "required" => {
                let missing = |name: &&Value| value.is_object() && value.get(name.as_str().unwrap()).is_none();
                expected
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(missing)
                    .flat_map(|name| fault(format!("no {name}")))
                    .collect()
            }
            "properties" => members(value)
                .filter_map(|(name, member)| Some((name, expected.get(name)?, member)))
                .flat_map(|(name, schema, member)| self::faults(schema, member, &format!("{place}.{name}")))
                .collect(),
            "additionalProperties" => {
                assert_eq!(expected, &Value::Bool(false), "the only form that is known here");
                let known = schema.get("properties");
                let unknown = |name: &str| known.and_then(|known| known.get(name)).is_none();
                members(value)
                    .filter(|(name, _)| unknown(name))
                    .flat_map(|(name, _)| fault(format!("unknown {name}")))
                    .collect()
            }
            "items" => {
                let items = value.as_array().into_iter().flatten().enumerate();
                items.flat_map(|(index, item)| self::faults(expected, item, &format!("{place}[{index}]"))).collect()
            }
            "oneOf" | "anyOf" => {
                let matching = expected
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(|form| self::faults(form, value, place).is_empty())
                    .count();
                let valid = matching == 1 || (keyword == "anyOf" && matching > 1);
                if valid { Vec::new() } else { vec![format!("{place}: {value} has {matching} forms of {keyword}")] }
            }
            "pattern" => {
                let pattern = regex::Regex::new(expected.as_str().unwrap()).unwrap();
                if value.as_str().is_none_or(|text| pattern.is_match(text)) {
                    Vec::new()
                } else {
                    fault(value.to_string())
                }
            }
            other => panic!("the keyword {other} is not known here: {schema}"),
        });
    }
    faults
}

fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, member)| (name.as_str(), member))
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("the type {other} is not known here"),
    }
}

#[test]
fn what_is_wrong_is_found() {
    let schema = serde_json::json!({
        "type": "object",
        "required": ["a"],
        "additionalProperties": false,
        "properties": {
            "a": { "type": ["integer", "null"], "minimum": 1, "maximum": 3 },
            "s": { "type": "string", "pattern": "^[0-9]+$" },
            "b": { "type": "array", "items": { "oneOf": [{ "const": "x" }, { "enum": ["x", "y"] }] } },
        },
    });
    let count = |text: &str| faults(&schema, &serde_json::from_str(text).unwrap(), "").len();
    for valid in [r#"{"a": 1}"#, r#"{"a": null, "b": []}"#, r#"{"a": 3, "b": ["y"], "s": "12"}"#] {
        assert_eq!(count(valid), 0, "{valid}");
    }
    for wrong in [
        "1",
        "{}",
        r#"{"a": 0}"#,
        r#"{"a": 4}"#,
        r#"{"a": "1"}"#,
        r#"{"a": 1, "c": 1}"#,
        r#"{"a": 1, "b": ["x"]}"#,
        r#"{"a": 1, "s": "1x"}"#,
        r#"{"a": 1, "b": ["z"]}"#,
    ] {
        assert_eq!(count(wrong), 1, "{wrong}");
    }
}
