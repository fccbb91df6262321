//! The vocabulary of a byte-pair tokenizer: strings to ids and back, all text in one allocation.

use std::fmt;
use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable, hash_table};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Tokens and their ids. A file with 128 000 of them is read without an allocation for each.
pub(super) struct Vocabulary {
    /// All tokens, one behind the other.
    text: String,
    /// Entries by the hash of their token.
    table: HashTable<Entry>,
    /// Entries by id.
    by_id: Vec<Option<Entry>>,
    hasher: DefaultHashBuilder,
}

/// One token: its place in the text, and its id.
#[derive(Clone, Copy)]
struct Entry {
    start: u32,
    end: u32,
    id: u32,
}

impl Vocabulary {
    /// The id of `token`.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(token);
        self.table.find(hash, |entry| entry.token(&self.text) == token).map(|entry| entry.id)
    }

    /// The token of `id`.
    pub(super) fn token(&self, id: u32) -> Option<&str> {
        let entry = self.by_id.get(id as usize)?.as_ref()?;
        Some(entry.token(&self.text))
    }

    /// Number of different tokens.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// All tokens with their ids, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.table.iter().map(|entry| (entry.token(&self.text), entry.id))
    }

    /// Builds the tables. `None` if the ids are so sparse that a table by id would be much larger than the file.
    fn index(text: String, entries: &[Entry]) -> Option<Self> {
        let bound = entries.iter().map(|entry| entry.id as usize + 1).max().unwrap_or(0);
        if bound > 4 * entries.len() + 1024 {
            return None;
        }
        let hasher = DefaultHashBuilder::default();
        let mut table = HashTable::with_capacity(entries.len());
        let mut by_id = vec![None; bound];
        for entry in entries {
            // Of several tokens with the same text or id the last one counts.
            if let Some(place) = by_id.get_mut(entry.id as usize) {
                *place = Some(*entry);
            }
            let token = entry.token(&text);
            let same = |other: &Entry| other.token(&text) == token;
            match table.entry(hasher.hash_one(token), same, |other| hasher.hash_one(other.token(&text))) {
                hash_table::Entry::Occupied(mut place) => *place.get_mut() = *entry,
                hash_table::Entry::Vacant(place) => {
                    place.insert(*entry);
                }
            }
        }
        Some(Vocabulary { text, table, by_id, hasher })
    }
}

impl Entry {
    fn token(self, text: &str) -> &str {
        text.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// Reads `vocab`: a [`Vocabulary`] from an object, `None` from anything else that a tokenizer file may have there.
pub(super) struct VocabularySeed;

impl<'de> DeserializeSeed<'de> for VocabularySeed {
    type Value = Option<Vocabulary>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for VocabularySeed {
    type Value = Option<Vocabulary>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a vocabulary")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut sequence: S) -> Result<Self::Value, S::Error> {
        while sequence.next_element::<serde::de::IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut text = String::new();
        let mut entries = Vec::new();
        let mut start = 0;
        while map.next_key_seed(AppendText(&mut text))?.is_some() {
            let end = u32::try_from(text.len()).map_err(|_| M::Error::custom("more than 4 GiB of tokens"))?;
            entries.push(Entry { start, end, id: map.next_value::<u32>()? });
            start = end;
        }
        Ok(Vocabulary::index(text, &entries))
    }
}

/// Appends a string of the file to a buffer, without an allocation of its own.
pub(super) struct AppendText<'a>(pub(super) &'a mut String);

impl<'de> DeserializeSeed<'de> for AppendText<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for AppendText<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a token")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.push_str(text);
        Ok(())
    }
}
