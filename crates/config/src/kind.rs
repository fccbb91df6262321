//! Kinds of values: how each is read from text, JSON and TOML, written, shown and described.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value as Json, json};

use crate::error::{nearest, quoted};

/// A value as it was given, before it is known what it should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Given<'a> {
    /// From the command line or the environment.
    Text(&'a str),
    /// From JSON, or from TOML that was turned into JSON.
    Json(&'a Json),
}

impl<'a> Given<'a> {
    /// The value for a message.
    pub(crate) fn shown(self) -> String {
        match self {
            Self::Text(text) => quoted(text),
            Self::Json(json) => quoted(&json.to_string()),
        }
    }

    /// The text of a value that was given as text or as a JSON string.
    fn text(self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Json(json) => json.as_str(),
        }
    }
}

/// One kind of value.
pub(crate) struct Kind<T: 'static> {
    /// Reads a value; the error says what is wrong and what would be right, to follow "cannot be X: ".
    pub(crate) read: fn(&Self, Given<'_>) -> Result<T, String>,
    /// Writes a value so that `read` gives it back.
    pub(crate) write: fn(&T) -> Json,
    /// Shows a value to a person.
    pub(crate) show: fn(&T) -> String,
    /// The JSON Schema of what `read` takes from JSON.
    pub(crate) schema: fn(&Self) -> Json,
    /// What the values are, in words.
    pub(crate) words: fn(&Self) -> String,
    /// The names of the values, where there are only a few.
    pub(crate) names: fn() -> Vec<&'static str>,
    /// What stands for the value in `--help`.
    pub(crate) placeholder: &'static str,
    /// The smallest and the largest number, for numbers and lists of them.
    pub(crate) range: (u64, u64),
}

/// On or off.
pub(crate) const SWITCH: Kind<bool> = Kind {
    read: read_switch,
    write: |value| Json::Bool(*value),
    show: ToString::to_string,
    schema: |_| json!({ "type": "boolean" }),
    words: |_| "true or false".to_owned(),
    names: || vec!["true", "false"],
    placeholder: "true|false",
    range: (0, 0),
};

fn read_switch(_: &Kind<bool>, given: Given<'_>) -> Result<bool, String> {
    let text = match given {
        Given::Json(Json::Bool(value)) => return Ok(*value),
        Given::Json(_) => return Err("it must be true or false".to_owned()),
        Given::Text(text) => text.trim().to_ascii_lowercase(),
    };
    match text.as_str() {
        "true" | "on" | "1" => Ok(true),
        "false" | "off" | "0" => Ok(false),
        _ => Err("it must be true or false (on, off, 1 and 0 are understood too)".to_owned()),
    }
}

/// A number of things, from `least` to `most`.
pub(crate) const fn count(least: u64, most: u64) -> Kind<usize> {
    Kind {
        read: |kind, given| {
            let number = read_number(given, suffix_of_count, count_forms())?;
            let number = in_range(number, kind.range)?;
            usize::try_from(number).map_err(|_| format!("{number} is more than this machine can address"))
        },
        write: |value| json!(value),
        show: ToString::to_string,
        schema: |kind| json!({ "type": "integer", "minimum": kind.range.0, "maximum": kind.range.1 }),
        words: |kind| format!("a whole number from {} to {}", kind.range.0, kind.range.1),
        names: Vec::new,
        placeholder: "N",
        range: (least, most),
    }
}

/// An amount of memory in bytes, from `least` to `most`.
pub(crate) const fn bytes(least: u64, most: u64) -> Kind<u64> {
    Kind {
        read: |kind, given| {
            let number = match given {
                Given::Json(Json::String(text)) => read_number(Given::Text(text), suffix_of_bytes, byte_forms())?,
                _ => read_number(given, suffix_of_bytes, byte_forms())?,
            };
            in_range(number, kind.range)
        },
        write: |value| json!(value),
        show: |value| show_bytes(*value),
        schema: |kind| {
            json!({
                "anyOf": [
                    { "type": "integer", "minimum": kind.range.0, "maximum": kind.range.1 },
                    { "type": "string", "pattern": "^ *[0-9][0-9_]* *([KkMmGgTt][Ii]?)?[Bb]? *$" }
                ]
            })
        },
        words: |_| {
            "an amount of memory: bytes, or a number with KiB, MiB, GiB, TiB (powers of 1024) or KB, MB, GB, TB (powers of 1000)".to_owned()
        },
        names: Vec::new,
        placeholder: "BYTES",
        range: (least, most),
    }
}

/// A set of numbers from `least` to `most`, kept in ascending order without repetition.
pub(crate) const fn counts(least: u64, most: u64) -> Kind<Vec<usize>> {
    Kind {
        read: read_counts,
        write: |value| json!(value),
        show: |value| show_counts(value),
        schema: |kind| {
            json!({
                "type": "array",
                "items": { "type": "integer", "minimum": kind.range.0, "maximum": kind.range.1 }
            })
        },
        words: |kind| format!("a list of whole numbers from {} to {}", kind.range.0, kind.range.1),
        names: Vec::new,
        placeholder: "N,N,…",
        range: (least, most),
    }
}

/// The numbers, with runs of four and more at the same distance as "8 to 64 by 8".
fn show_counts(numbers: &[usize]) -> String {
    let mut parts = Vec::new();
    let mut rest = numbers;
    while let [first, tail @ ..] = rest {
        let step = tail.first().map_or(0, |second| second.abs_diff(*first));
        let run =
            1 + rest.windows(2).take_while(|pair| matches!(pair, [low, high] if high.abs_diff(*low) == step)).count();
        let (shown, after) = match rest.split_at_checked(run) {
            Some((run, after)) if run.len() >= 4 => (run, after),
            _ => (std::slice::from_ref(first), tail),
        };
        parts.push(match shown {
            [first, .., last] => format!("{first} to {last} by {step}"),
            _ => first.to_string(),
        });
        rest = after;
    }
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

fn read_counts(kind: &Kind<Vec<usize>>, given: Given<'_>) -> Result<Vec<usize>, String> {
    let one = count(kind.range.0, kind.range.1);
    let expected = "it must be a list of whole numbers, such as [1, 2, 4]";
    let mut numbers = read_list(given, expected, |item| (one.read)(&one, item))?;
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// Reads the items of a list: a JSON list, also as text, or text with commas or spaces between the items.
fn read_list<T>(
    given: Given<'_>,
    expected: &str,
    read: impl Fn(Given<'_>) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let parsed: Json;
    let items: Vec<Given<'_>> = match given {
        Given::Json(Json::Array(items)) => items.iter().map(Given::Json).collect(),
        Given::Json(_) => return Err(expected.to_owned()),
        Given::Text(text) if text.trim_start().starts_with('[') => {
            parsed = serde_json::from_str(text).map_err(|error| format!("{expected} ({error})"))?;
            match &parsed {
                Json::Array(items) => items.iter().map(Given::Json).collect(),
                _ => return Err(expected.to_owned()),
            }
        }
        Given::Text(text) if text.trim().is_empty() => Vec::new(),
        Given::Text(text) if text.contains(',') => text.split(',').map(Given::Text).collect(),
        Given::Text(text) => text.split_whitespace().map(Given::Text).collect(),
    };
    items
        .into_iter()
        .map(|item| read(item).map_err(|wrong| format!("{} is in the list, and {wrong}", item.shown())))
        .collect()
}

/// A list of names, kept in the order given without repetition.
pub(crate) const NAMES: Kind<Vec<String>> = Kind {
    read: read_names,
    write: |value| json!(value),
    show: |value| if value.is_empty() { "none".to_owned() } else { value.join(", ") },
    schema: |_| json!({ "type": "array", "items": { "type": "string", "pattern": "^[a-z][a-z0-9_]*$" } }),
    words: |_| "a list of names: small letters, digits and `_`, a letter first".to_owned(),
    names: Vec::new,
    placeholder: "NAME,NAME,…",
    range: (0, 0),
};

fn read_names(_: &Kind<Vec<String>>, given: Given<'_>) -> Result<Vec<String>, String> {
    let expected = "it must be a list of names, such as attention,linear or [\"attention\", \"linear\"]";
    let mut names = read_list(given, expected, |item| {
        let name = item.text().map(str::trim).filter(|name| is_name(name)).map(str::to_owned);
        name.ok_or_else(|| {
            "it must be a name of small letters, digits and _ with a letter first, such as attention".to_owned()
        })
    })?;
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Ok(names)
}

fn is_name(text: &str) -> bool {
    let within = |character: char| matches!(character, 'a'..='z' | '0'..='9' | '_');
    text.starts_with(|first: char| first.is_ascii_lowercase()) && text.chars().all(within)
}

/// The path of a folder. A relative one stays relative.
pub(crate) const FOLDER: Kind<PathBuf> = Kind {
    read: read_folder,
    write: |value| json!(value.to_string_lossy()),
    show: |value| value.display().to_string(),
    schema: |_| json!({ "type": "string", "pattern": "\\S" }),
    words: |_| "the path of a folder".to_owned(),
    names: Vec::new,
    placeholder: "DIR",
    range: (0, 0),
};

fn read_folder(_: &Kind<PathBuf>, given: Given<'_>) -> Result<PathBuf, String> {
    let text = given.text().filter(|text| !text.trim().is_empty());
    let text = text.ok_or_else(|| "it must be the path of a folder, such as ./dump".to_owned())?;
    // They would reach the terminal whenever the value is shown.
    if text.contains(char::is_control) {
        return Err("it must be a path without control characters, such as ./dump".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// A setting that may be without a value.
pub(crate) trait Optional {
    /// The type of its value.
    type Value: 'static;
    /// The kind of its value.
    const KIND: Kind<Self::Value>;
    /// The word that is said and shown where it has none.
    const UNSET: &'static str;
}

/// A value of the kind, or none: `null` in JSON, and a word everywhere.
pub(crate) const fn optional<T: Optional>() -> Kind<Option<T::Value>> {
    Kind {
        read: |_, given| {
            let unset = match given {
                Given::Json(Json::Null) => true,
                _ => given.text().is_some_and(|text| text.trim().eq_ignore_ascii_case(T::UNSET)),
            };
            if unset { Ok(None) } else { (T::KIND.read)(&T::KIND, given).map(Some) }
        },
        write: |value| value.as_ref().map_or(Json::Null, T::KIND.write),
        show: |value| value.as_ref().map_or_else(|| T::UNSET.to_owned(), T::KIND.show),
        schema: |_| json!({ "anyOf": [(T::KIND.schema)(&T::KIND), { "enum": [null, T::UNSET] }] }),
        words: |_| format!("{}, or `{}`", (T::KIND.words)(&T::KIND), T::UNSET),
        names: T::KIND.names,
        placeholder: T::KIND.placeholder,
        range: T::KIND.range,
    }
}

fn in_range(number: u64, (least, most): (u64, u64)) -> Result<u64, String> {
    if (least..=most).contains(&number) { Ok(number) } else { Err(format!("it must be from {least} to {most}")) }
}

const fn count_forms() -> &'static str {
    "it must be a whole number, such as 512 (k, m, g mean powers of 1000, K, M, G powers of 1024)"
}

const fn byte_forms() -> &'static str {
    "it must be a whole number of bytes or an amount such as 512MiB, 4GiB or 2GB"
}

fn suffix_of_count(suffix: &str) -> Option<u64> {
    Some(match suffix {
        "" => 1,
        "k" => 1000,
        "m" => 1_000_000,
        "g" => 1_000_000_000,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    })
}

fn suffix_of_bytes(suffix: &str) -> Option<u64> {
    Some(match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        _ => return None,
    })
}

/// Reads a whole number that is not negative, with a suffix where it is text.
fn read_number(given: Given<'_>, suffix_value: fn(&str) -> Option<u64>, forms: &str) -> Result<u64, String> {
    let text = match given {
        Given::Json(Json::Number(number)) => {
            return number.as_u64().ok_or_else(|| forms.to_owned());
        }
        Given::Json(_) => return Err(forms.to_owned()),
        Given::Text(text) => text.trim(),
    };
    let end = text.find(|character: char| !(character.is_ascii_digit() || character == '_')).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(end);
    if !digits.starts_with(|character: char| character.is_ascii_digit()) {
        return Err(forms.to_owned());
    }
    let unit = suffix_value(suffix.trim_start()).ok_or_else(|| forms.to_owned())?;
    digits
        .replace('_', "")
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| "the number is too large".to_owned())
}

/// Bytes in the largest unit that gives a whole number.
pub(crate) fn show_bytes(bytes: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >= 1 << shift && bytes.trailing_zeros() >= shift {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

/// What another spelling of a choice stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OtherName<T> {
    /// The same as this choice.
    Means(T),
    /// Something that does not exist here, for this reason.
    Refused(&'static str),
}

/// A value that is one of a few names. Names are read in any case.
pub(crate) trait Named: Copy + PartialEq + 'static {
    /// All choices, in the order in which they are listed.
    const ALL: &'static [Self];
    /// Further spellings, such as vLLM's numbers.
    const OTHER_NAMES: &'static [(&'static str, OtherName<Self>)];
    /// The name that is written.
    fn name(self) -> &'static str;
}

/// One of the names of `T`.
pub(crate) const fn choice<T: Named>() -> Kind<T> {
    Kind {
        read: |_, given| match given {
            Given::Text(text) => read_name(text),
            Given::Json(Json::String(text)) => read_name(text),
            Given::Json(json) => read_name(&json.to_string()),
        },
        write: |value| Json::String(value.name().to_owned()),
        show: |value| value.name().to_owned(),
        schema: |_| {
            let mut names: Vec<Json> = T::ALL.iter().map(|choice| json!(choice.name())).collect();
            for (name, meaning) in T::OTHER_NAMES {
                if let (OtherName::Means(_), Ok(number)) = (meaning, name.parse::<u64>()) {
                    names.push(json!(number));
                }
            }
            json!({ "enum": names })
        },
        words: |_| format!("one of {}", names_of::<T>()),
        names: || T::ALL.iter().map(|choice| choice.name()).collect(),
        placeholder: "NAME",
        range: (0, 0),
    }
}

fn names_of<T: Named>() -> String {
    let names: Vec<&str> = T::ALL.iter().map(|choice| choice.name()).collect();
    names.join(", ")
}

/// Reads a name in any case, with `-` for `_` where somebody prefers it.
pub(crate) fn read_name<T: Named>(text: &str) -> Result<T, String> {
    let given = text.trim().replace('-', "_");
    let plain = T::ALL.iter().copied().find(|choice| choice.name().eq_ignore_ascii_case(&given));
    let other = || {
        T::OTHER_NAMES.iter().find_map(|(name, meaning)| match meaning {
            OtherName::Means(choice) if name.eq_ignore_ascii_case(&given) => Some(*choice),
            _ => None,
        })
    };
    plain.or_else(other).ok_or_else(|| name_error::<T>(text))
}

fn name_error<T: Named>(text: &str) -> String {
    let given = text.trim().replace('-', "_");
    let refused = T::OTHER_NAMES.iter().find_map(|(name, meaning)| match meaning {
        OtherName::Refused(why) if name.eq_ignore_ascii_case(&given) => Some(*why),
        _ => None,
    });
    if let Some(why) = refused {
        return why.to_owned();
    }
    let expected = format!("it must be one of {}", names_of::<T>());
    match nearest(&given, T::ALL.iter().map(|choice| choice.name())) {
        Some(name) => format!("{expected}; did you mean `{name}`?"),
        None => expected,
    }
}

/// Gives a [`Named`] type its `Display` and its `FromStr`.
macro_rules! display_and_parse {
    ($name:ident) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.pad($crate::kind::Named::name(*self))
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            /// Reads the name in any case, and vLLM's number for it; the error says what would be right.
            fn from_str(text: &str) -> Result<Self, String> {
                $crate::kind::read_name(text)
            }
        }
    };
}
pub(crate) use display_and_parse;
