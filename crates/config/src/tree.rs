//! Nested settings as they are written in TOML files and in JSON, before they are settings.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value as Json};

use crate::error::SettingsError;
use crate::options::{Options, is_group, unknown};
use crate::settings::find;
use crate::source::Source;

/// A nested value that keeps repeated keys and, where it is known, the line of each.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tree {
    /// Anything but a table.
    Leaf(Json),
    /// A table; of a repeated key every occurrence.
    Table(Vec<Entry>),
}

/// One entry of a table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// The line of the key, counted from 1; 0 where there are no lines.
    pub(crate) line: usize,
    pub(crate) value: Tree,
}

impl Tree {
    fn into_json(self) -> Json {
        match self {
            Self::Leaf(value) => value,
            Self::Table(entries) => Json::Object(
                entries.into_iter().map(|entry| (entry.key, entry.value.into_json())).collect::<Map<_, _>>(),
            ),
        }
    }
}

impl Options {
    /// Says every setting of a table whose own path is `prefix` (empty, or ending with a dot).
    pub(crate) fn set_tree(
        &mut self,
        prefix: &str,
        entries: Vec<Entry>,
        source: &dyn Fn(&str, usize) -> Source,
    ) -> Result<(), SettingsError> {
        for Entry { key, line, value } in entries {
            let path = format!("{prefix}{key}");
            match value {
                Tree::Table(inner) if find(&path).is_none() && !inner.is_empty() => {
                    self.set_tree(&format!("{path}."), inner, source)?;
                }
                // An empty table says nothing, if it is a table at all.
                Tree::Table(inner) if inner.is_empty() && is_group(&path) => {}
                value => {
                    let origin = source(&path, line);
                    if is_group(&path) {
                        return Err(unknown(&path, origin));
                    }
                    self.set_json(&path, &value.into_json(), origin)?;
                }
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Leaf(Json::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Tree, E> {
        Number::from_f64(value)
            .map(|number| Tree::Leaf(Json::Number(number)))
            .ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Leaf(Json::String(value.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf(Json::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element::<Json>()? {
            items.push(item);
        }
        Ok(Tree::Leaf(Json::Array(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Tree>()? {
            entries.push(Entry { key, line: 0, value });
        }
        Ok(Tree::Table(entries))
    }
}
