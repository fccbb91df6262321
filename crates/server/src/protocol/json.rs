//! The body of a request to JSON, strictly.
//!
//! Refused besides what is no JSON: text that is not UTF-8, half surrogates, keys that come twice in an object, numbers
//! too large for a double, more than 128 levels of nesting, text after the value, and more values than any request needs.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::error::{ApiError, quote};

/// The most values of one body, so that its tree in memory stays in proportion.
const MAX_VALUES: usize = 4 << 20;
/// What an object counts as: its table takes about as much memory as so many plain values.
const OBJECT_COST: usize = 8;

/// Reads a request body, which is one JSON object.
///
/// # Errors
/// 400, with line and column, if it is not or breaks a rule of this module.
pub fn parse_body(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        ApiError::malformed_body(&format!(
            "The body is not UTF-8: byte {} is no part of a character.",
            error.valid_up_to()
        ))
    })?;
    match parse(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(ApiError::malformed_body("The body is JSON, but no object; expected an object in braces.")),
        Err(problem) => Err(ApiError::malformed_body(&format!("The body is not valid JSON: {problem}"))),
    }
}

/// Reads one JSON value that is text inside a request, with the same rules.
///
/// # Errors
/// What is wrong, with line and column.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let left = Cell::new(MAX_VALUES);
    let value = Strict { left: &left }.deserialize(&mut deserializer).map_err(|error| error.to_string())?;
    deserializer.end().map_err(|error| error.to_string())?;
    Ok(value)
}

/// Whether `value` nests at most `depth` levels deep; a plain value has none.
pub(crate) fn is_nested_at_most(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(values) => depth > 0 && values.iter().all(|value| is_nested_at_most(value, depth - 1)),
        Value::Object(fields) => depth > 0 && fields.values().all(|value| is_nested_at_most(value, depth - 1)),
        _ => true,
    }
}

/// The bytes of all keys and strings in `value`.
pub(crate) fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields.iter().map(|(key, value)| key.len() + text_bytes(value)).sum(),
        _ => 0,
    }
}

/// Builds a value, and refuses what serde_json's own builder lets through: keys that come twice, and too many values.
#[derive(Clone, Copy)]
struct Strict<'a> {
    left: &'a Cell<usize>,
}

impl Strict<'_> {
    fn spend<E: serde::de::Error>(self, cost: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(cost);
        self.left.set(left.ok_or_else(|| E::custom(format!("more than {MAX_VALUES} values")))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.spend(1)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = elements.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.spend(OBJECT_COST)?;
        let mut fields = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {} comes twice in one object", quote(&key))));
            }
            let value = entries.next_value_seed(self)?;
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn broken_bodies_are_refused_with_the_error_object() {
        let deep = [b"{\"a\":".as_slice(), &b"[".repeat(100_000)].concat();
        let many = [b"{\"a\":[".as_slice(), &b"{},".repeat(500_000), b"1]}"].concat();
        let bodies: [&[u8]; 21] = [
            b"",
            b" ",
            b"null",
            b"[]",
            b"\"x\"",
            b"{",
            b"{\"a\":1",
            b"{\"a\":1}}",
            b"{\"a\":1} x",
            b"{\"a\":1,}",
            b"{'a':1}",
            b"{\"a\":NaN}",
            b"{\"a\":Infinity}",
            b"{\"a\":1e999}",
            b"{\"a\":1,\"a\":2}",
            b"{\"b\":{\"a\":1,\"\\u0061\":2}}",
            b"{\"a\":\"\\ud800\"}",
            b"{\"a\":\"\\udc00 x\"}",
            b"{\"a\":\"\xff\"}",
            &deep,
            &many,
        ];
        for body in bodies {
            let error = parse_body(body).unwrap_err();
            let name = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
            assert_eq!((error.status(), error.kind()), (400, "Bad Request"), "{name}");
            assert!(error.to_json().len() < 1000, "{name}");
        }
    }

    #[test]
    fn what_is_odd_but_valid_is_read() {
        let object = parse_body(br#"{"a":"\u0000\ud83d\ude00","b":[1,-1,1.5,18446744073709551615],"":null}"#).unwrap();
        assert_eq!(Value::Object(object), json!({"a": "\u{0}😀", "b": [1, -1, 1.5, u64::MAX], "": null}));
        assert!(parse_body(b"{\"a\":[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]}").is_ok());
    }

    #[test]
    fn nesting_and_text_are_measured() {
        let value = json!({"ab": [{"c": "d\u{e9}"}]});
        assert!(is_nested_at_most(&value, 3) && !is_nested_at_most(&value, 2));
        assert!(is_nested_at_most(&json!(1), 0) && !is_nested_at_most(&json!([]), 0));
        assert_eq!(text_bytes(&value), 6);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_body(&bytes);
        }

        #[test]
        fn texts_of_json_characters_agree_with_serde_json(text in r#"[\[\]{}",:0-9eE.\\ a+-]{0,40}"#) {
            // Strictness only ever takes away.
            if let Ok(value) = parse(&text) {
                prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
            }
        }
    }
}
