//! One JSON object of a request, with typed and checked access to its fields.
//!
//! Numbers are numbers: `"1"` is no number, `1.0` is no integer, `1` is no boolean. A `null` counts as absent.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::{ApiError, quote};

/// One JSON object, and where it stands in the request.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Dotted name of this object inside the request, with a dot at the end; empty for the whole body.
    prefix: String,
}

impl<'a> Fields<'a> {
    /// The fields of the body.
    pub(crate) fn of_body(object: &'a Map<String, Value>) -> Self {
        Fields { object, prefix: String::new() }
    }

    /// The fields of `value`, which stands at `path` and must be an object.
    pub(crate) fn of_value(value: &'a Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(object) => Ok(Fields { object, prefix: format!("{path}.") }),
            _ => Err(unexpected(path, value, "an object")),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// The name of a field as errors tell it.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The error for a field whose value, or absence, is not what was `expected`.
    pub(crate) fn error(&self, name: &str, expected: &str) -> ApiError {
        unexpected(&self.path(name), self.object.get(name).unwrap_or(&Value::Null), expected)
    }

    /// The error for a field that this server refuses whatever its value.
    pub(crate) fn refused(&self, name: &str, reason: &str) -> ApiError {
        let path = self.path(name);
        ApiError::invalid(&path, &format!("`{path}` is not supported: {reason}"))
    }

    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, Value::as_bool, "true or false")
    }

    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, ApiError> {
        Ok(self.boolean(name)?.unwrap_or(default))
    }

    pub(crate) fn string(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.typed(name, Value::as_str, "a string")
    }

    /// A string of 1 to `max_bytes` bytes.
    pub(crate) fn short_string(&self, name: &str, max_bytes: usize) -> Result<Option<&'a str>, ApiError> {
        let Some(text) = self.string(name)? else { return Ok(None) };
        if text.is_empty() || text.len() > max_bytes {
            return Err(self.error(name, &format!("a string of 1 to {max_bytes} bytes")));
        }
        Ok(Some(text))
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<f32>, ApiError> {
        self.typed(name, |value| value.as_f64().map(|number| number as f32), "a number")
    }

    pub(crate) fn integer(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_i64() {
            Some(integer) if range.contains(&integer) => Ok(Some(integer)),
            _ => Err(self.error(name, &format!("an integer from {} to {}", range.start(), range.end()))),
        }
    }

    /// An integer from 0 to `max`.
    pub(crate) fn count(&self, name: &str, max: usize) -> Result<Option<usize>, ApiError> {
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        Ok(self.integer(name, 0..=max)?.and_then(|integer| usize::try_from(integer).ok()))
    }

    pub(crate) fn list(&self, name: &str, max_length: usize) -> Result<Option<&'a [Value]>, ApiError> {
        let Some(values) = self.typed(name, Value::as_array, "a list")? else { return Ok(None) };
        if values.len() > max_length {
            return Err(self.error(name, &format!("a list of at most {max_length} values")));
        }
        Ok(Some(values))
    }

    pub(crate) fn strings(&self, name: &str, max_length: usize) -> Result<Option<Vec<String>>, ApiError> {
        let Some(values) = self.list(name, max_length)? else { return Ok(None) };
        let string = |(index, value): (usize, &Value)| match value.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(unexpected(&format!("{}[{index}]", self.path(name)), value, "a string")),
        };
        values.iter().enumerate().map(string).collect::<Result<_, _>>().map(Some)
    }

    /// A list of token ids below `vocabulary`.
    pub(crate) fn token_ids(
        &self,
        name: &str,
        max_length: usize,
        vocabulary: usize,
    ) -> Result<Option<Vec<u32>>, ApiError> {
        let Some(values) = self.list(name, max_length)? else { return Ok(None) };
        token_ids(values, &self.path(name), vocabulary).map(Some)
    }

    pub(crate) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.get(name).map(|value| Fields::of_value(value, &self.path(name))).transpose()
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.object.iter()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    fn typed<T>(
        &self,
        name: &str,
        read: impl Fn(&'a Value) -> Option<T>,
        expected: &str,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.error(name, expected))
    }
}

/// Token ids below `vocabulary` from the list at `path`.
pub(crate) fn token_ids(values: &[Value], path: &str, vocabulary: usize) -> Result<Vec<u32>, ApiError> {
    let id = |(index, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < vocabulary);
        id.ok_or_else(|| {
            unexpected(
                &format!("{path}[{index}]"),
                value,
                &format!("a token id below the vocabulary's size, {vocabulary}"),
            )
        })
    };
    values.iter().enumerate().map(id).collect()
}

/// The error for `value` at `path`.
pub(crate) fn unexpected(path: &str, value: &Value, expected: &str) -> ApiError {
    let found = match value {
        Value::Null => "missing".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.is_empty() => "an empty string".to_owned(),
        Value::String(text) => format!("the string {}", quote(text)),
        Value::Array(values) => format!("a list of {} values", values.len()),
        Value::Object(_) => "an object".to_owned(),
    };
    ApiError::invalid(path, &format!("`{path}` is {found}; expected {expected}."))
}
