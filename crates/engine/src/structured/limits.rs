//! Bounds on what a request may give to be compiled, checked before anything is built from it.

use std::io::{self, Write};

use llguidance::api::ParserLimits;
use serde_json::Value;

use super::StructuredOutputError;
use crate::sampling::StructuredOutput;

/// The longest JSON schema, in bytes of its text.
const MAX_SCHEMA_BYTES: usize = 256 << 10;
/// The most members of an object of a schema, and the most schemas in a list: some of the library's work is the square of them.
const MAX_MEMBERS: usize = 512;
/// The most properties of an object whose number of properties is bounded: for each the library makes a rule of all.
const MAX_COUNTED_PROPERTIES: usize = 32;
/// The least common multiple of all `multipleOf` of a schema, in units of the finest decimal place that one of them has. The
/// automaton of a multiple has a state for each remainder, and those of schemas that hold together are multiplied.
const MAX_MULTIPLE: u64 = 10_000;
/// The longest regular expression, in bytes.
const MAX_REGEX_BYTES: usize = 16 << 10;
/// The longest grammar, in bytes.
const MAX_GRAMMAR_BYTES: usize = 64 << 10;
/// The most lines of a grammar: there are no more rules, and rules may refer to each other in a chain.
const MAX_GRAMMAR_LINES: usize = 512;
/// Brackets inside each other in a grammar.
const MAX_GRAMMAR_NESTING: usize = 64;
/// The most choices.
const MAX_CHOICES: usize = 1024;
/// All choices together, in bytes.
const MAX_CHOICES_BYTES: usize = 64 << 10;

/// What an output may cost the library. Fuel is its own unit: some 50 000 are a millisecond of compilation.
pub(super) fn parser_limits(output: &StructuredOutput) -> ParserLimits {
    ParserLimits {
        max_items_in_row: match output {
            // Ambiguous rules have items for every place where they may have begun, and the work of a step is the square of them.
            StructuredOutput::Grammar(_) => 512,
            // Each optional property of an object takes four.
            _ => 4096,
        },
        initial_lexer_fuel: 1_000_000,
        // Of a lexer's states each takes one or two kilobytes, for each output.
        max_lexer_states: 20_000,
        max_grammar_size: 200_000,
        // Errors go to whoever sent the request: they name the problem, not the parser's insides.
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Checks sizes and nesting.
pub(super) fn check(output: &StructuredOutput) -> Result<(), StructuredOutputError> {
    match output {
        StructuredOutput::JsonObject => Ok(()),
        StructuredOutput::Json(schema) => check_schema(schema),
        StructuredOutput::Regex(pattern) => bounded("regular expression", pattern.len(), MAX_REGEX_BYTES),
        StructuredOutput::Choice(choices) => {
            if choices.len() > MAX_CHOICES {
                return Err(refused(
                    "list",
                    format!("it has {} choices, and {MAX_CHOICES} are the most", choices.len()),
                ));
            }
            bounded("list", choices.iter().map(String::len).sum(), MAX_CHOICES_BYTES)
        }
        StructuredOutput::Grammar(grammar) => check_grammar(grammar),
    }
}

fn check_schema(schema: &Value) -> Result<(), StructuredOutputError> {
    let mut counter = Counter { left: MAX_SCHEMA_BYTES };
    serde_json::to_writer(&mut counter, schema)
        .map_err(|_| refused("JSON schema", format!("it is longer than {MAX_SCHEMA_BYTES} bytes")))?;
    if let Some((members, most)) = too_many_members(schema) {
        let problem = format!("it has {members} members or schemas in one place, and {most} are the most there");
        return Err(refused("JSON schema", problem));
    }
    let mut multiples = Vec::new();
    find_multiples(schema, &mut multiples);
    if common_multiple(&multiples).is_some_and(|multiple| multiple <= MAX_MULTIPLE) {
        return Ok(());
    }
    let problem =
        "the numbers of its `multipleOf` are too large or have too many decimals: their least common multiple may be";
    Err(refused("JSON schema", format!("{problem} {MAX_MULTIPLE} units of the last place at most")))
}

/// The length of an object or a list that is longer than it may be, and how long that is. A list of plain values, such as an `enum`,
/// may be longer, unless they are the names of properties.
fn too_many_members(schema: &Value) -> Option<(usize, usize)> {
    let beyond = |length: usize, most: usize| (length > most).then_some((length, most));
    match schema {
        Value::Array(items) => {
            let plain = items.iter().all(|item| !item.is_object() && !item.is_array());
            let long = if plain { None } else { beyond(items.len(), MAX_MEMBERS) };
            long.or_else(|| items.iter().find_map(too_many_members))
        }
        Value::Object(members) => {
            let length = |name: &str| match members.get(name) {
                Some(Value::Array(items)) => items.len(),
                Some(Value::Object(members)) => members.len(),
                _ => 0,
            };
            let counted = members.contains_key("minProperties") || members.contains_key("maxProperties");
            let properties = if counted { beyond(length("properties"), MAX_COUNTED_PROPERTIES) } else { None };
            let long = properties.or_else(|| beyond(length("required"), MAX_MEMBERS));
            let long = long.or_else(|| beyond(members.len(), MAX_MEMBERS));
            long.or_else(|| members.values().find_map(too_many_members))
        }
        _ => None,
    }
}

/// Collects the values of all `multipleOf` of a schema, whose nesting was checked.
fn find_multiples(schema: &Value, multiples: &mut Vec<f64>) {
    match schema {
        Value::Array(items) => items.iter().for_each(|item| find_multiples(item, multiples)),
        Value::Object(members) => {
            multiples.extend(members.get("multipleOf").and_then(Value::as_f64));
            members.values().for_each(|member| find_multiples(member, multiples));
        }
        _ => {}
    }
}

/// The least common multiple of positive numbers in units of the finest decimal place that one of them has. `None` if it is too
/// large to tell.
fn common_multiple(multiples: &[f64]) -> Option<u64> {
    const LARGEST: f64 = 1e9;
    let whole = |unit: f64| multiples.iter().all(|multiple| (multiple * unit - (multiple * unit).round()).abs() < 1e-6);
    let unit = (0..9).map(|place| 10f64.powi(place)).find(|unit| whole(*unit))?;
    multiples.iter().try_fold(1u64, |common, multiple| {
        let multiple = (multiple * unit).round();
        // What is not positive is for the library to refuse.
        let multiple = (1.0..=LARGEST).contains(&multiple).then_some(multiple as u64)?;
        let (mut divisor, mut rest) = (common, multiple);
        while rest > 0 {
            (divisor, rest) = (rest, divisor % rest);
        }
        (common / divisor).checked_mul(multiple)
    })
}

fn check_grammar(grammar: &str) -> Result<(), StructuredOutputError> {
    bounded("grammar", grammar.len(), MAX_GRAMMAR_BYTES)?;
    let lines = grammar.lines().count();
    if lines > MAX_GRAMMAR_LINES {
        return Err(refused("grammar", format!("it has {lines} lines, and {MAX_GRAMMAR_LINES} are the most")));
    }
    // A schema inside would pass by the bounds on schemas.
    for nested in ["%json", "%lark"] {
        if grammar.contains(nested) {
            let problem =
                format!("it has {nested}, which is not supported; give a JSON schema by itself, and write rules out");
            return Err(refused("grammar", problem));
        }
    }
    // Brackets of strings and expressions count as well: more than a grammar needs, and simple.
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in grammar.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > MAX_GRAMMAR_NESTING {
        let problem = format!("it has {deepest} brackets inside each other, and {MAX_GRAMMAR_NESTING} are the most");
        return Err(refused("grammar", problem));
    }
    Ok(())
}

fn bounded(kind: &'static str, bytes: usize, most: usize) -> Result<(), StructuredOutputError> {
    if bytes <= most {
        return Ok(());
    }
    Err(refused(kind, format!("it is {bytes} bytes long, and {most} are the most")))
}

pub(super) fn refused(kind: &'static str, problem: String) -> StructuredOutputError {
    StructuredOutputError::Refused { kind, problem }
}

/// Counts what is written, and fails beyond a number of bytes.
struct Counter {
    left: usize,
}

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_bounded_where_the_work_is_more_than_their_length() {
        let properties = |count: usize| -> serde_json::Map<String, Value> {
            (0..count).map(|name| (format!("p{name}"), Value::Bool(true))).collect()
        };
        let names: Vec<String> = (0..513).map(|name| format!("p{name}")).collect();
        for (schema, found) in [
            (json!({ "enum": names }), None),
            (json!({ "properties": properties(512) }), None),
            (json!({ "properties": properties(513) }), Some((513, 512))),
            (json!({ "items": { "minProperties": 1, "properties": properties(32) } }), None),
            (json!({ "items": { "minProperties": 1, "properties": properties(33) } }), Some((33, 32))),
            (json!({ "required": names }), Some((513, 512))),
            (json!({ "anyOf": [{ "oneOf": vec![json!({}); 513] }] }), Some((513, 512))),
        ] {
            assert_eq!(too_many_members(&schema), found);
        }
    }

    #[test]
    fn multiples_are_counted_in_units_of_their_last_place() {
        assert_eq!(common_multiple(&[]), Some(1));
        assert_eq!(common_multiple(&[0.01]), Some(1));
        assert_eq!(common_multiple(&[0.5, 0.25, 2.0]), Some(200));
        assert_eq!(common_multiple(&[6.0, 10.0]), Some(30));
        for beyond in [f64::NAN, f64::INFINITY, 1e300, 1e-300, 0.0, -1.0, 1.0 / 3.0] {
            assert_eq!(common_multiple(&[beyond]), None, "{beyond}");
        }
        assert_eq!(common_multiple(&[999_999_937.0, 999_999_929.0, 999_999_893.0]), None);
    }
}
