//! Settings files: TOML, nested like the settings, with the line in every message.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Number, Value as Json};
use toml::de::{DeInteger, DeTable, DeValue};

use crate::error::{Problem, SettingsError};
use crate::options::Options;
use crate::source::Source;
use crate::tree::{Entry, Tree};

/// The most bytes that a settings file may have: many times what all settings take.
const MOST_BYTES: u64 = 1 << 20;

/// The file called `name` in `directory` or in the nearest folder above that has one.
pub(crate) fn find_upward(directory: &Path, name: &str) -> Option<PathBuf> {
    directory.ancestors().map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// What a settings file says.
pub(crate) fn read(path: &Path) -> Result<Options, SettingsError> {
    let unreadable = |message: String| SettingsError::from(Problem::Unreadable { path: path.to_owned(), message });
    // Asked before opening: opening a pipe would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?;
    if !metadata.is_file() {
        return Err(unreadable("it is not a regular file".to_owned()));
    }
    let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    let mut contents = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut contents).map_err(|error| unreadable(error.to_string()))?;
    if contents.len() as u64 > MOST_BYTES {
        return Err(unreadable(format!("it is larger than {MOST_BYTES} bytes, so it is no settings file")));
    }
    match std::str::from_utf8(&contents) {
        Ok(text) => parse(path, text),
        Err(error) => {
            let line = Lines::of(&contents).at(error.valid_up_to());
            Err(at(path, line, "the line is not UTF-8".to_owned()))
        }
    }
}

/// What the text of a settings file says; `path` is for messages.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Options, SettingsError> {
    let reader = Reader { path, lines: Lines::of(text.as_bytes()) };
    let table = DeTable::parse(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        reader.wrong(start, format!("not valid TOML: {}", error.message()))
    })?;
    let entries = reader.entries(table.into_inner())?;
    let mut options = Options::new();
    options.set_tree("", entries, &|_, line| Source::File { path: path.to_owned(), line })?;
    Ok(options)
}

fn at(path: &Path, line: usize, message: String) -> SettingsError {
    Problem::File { path: path.to_owned(), line, message }.into()
}

/// Where lines end, so that the line of a byte is found without counting again for every key.
struct Lines {
    ends: Vec<usize>,
}

impl Lines {
    fn of(text: &[u8]) -> Self {
        let ends = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(position, _)| position);
        Self { ends: ends.collect() }
    }

    /// The line, counted from 1, of a byte.
    fn at(&self, byte: usize) -> usize {
        1 + self.ends.partition_point(|end| *end < byte)
    }
}

struct Reader<'a> {
    path: &'a Path,
    lines: Lines,
}

impl Reader<'_> {
    fn wrong(&self, byte: usize, message: String) -> SettingsError {
        at(self.path, self.lines.at(byte), message)
    }

    /// The entries of a table, in the order of the file.
    fn entries(&self, table: DeTable<'_>) -> Result<Vec<Entry>, SettingsError> {
        let mut entries = Vec::with_capacity(table.len());
        for (key, value) in table {
            let start = key.span().start;
            let span = value.span();
            let value = match value.into_inner() {
                DeValue::Table(inner) => Tree::Table(self.entries(inner)?),
                other => Tree::Leaf(self.leaf(other, &span)?),
            };
            let line = self.lines.at(start);
            entries.push((start, Entry { key: key.into_inner().into_owned(), line, value }));
        }
        entries.sort_by_key(|(start, _)| *start);
        Ok(entries.into_iter().map(|(_, entry)| entry).collect())
    }

    fn leaf(&self, value: DeValue<'_>, span: &Range<usize>) -> Result<Json, SettingsError> {
        let wrong = |message: String| self.wrong(span.start, message);
        Ok(match value {
            DeValue::String(text) => Json::String(text.into_owned()),
            DeValue::Boolean(value) => Json::Bool(value),
            DeValue::Integer(integer) => {
                Json::Number(number(&integer).ok_or_else(|| wrong(format!("{integer} is too large for a number")))?)
            }
            DeValue::Float(float) => {
                let number = float.as_str().parse().ok().and_then(Number::from_f64);
                Json::Number(number.ok_or_else(|| wrong(format!("{float} is no finite number")))?)
            }
            DeValue::Datetime(date) => return Err(wrong(format!("{date} is a date, and no setting is one"))),
            DeValue::Array(items) => {
                let mut list = Vec::with_capacity(items.len());
                for item in items {
                    let span = item.span();
                    list.push(self.leaf(item.into_inner(), &span)?);
                }
                Json::Array(list)
            }
            DeValue::Table(_) => return Err(wrong("no setting is a list of tables".to_owned())),
        })
    }
}

fn number(integer: &DeInteger<'_>) -> Option<Number> {
    let unsigned = u64::from_str_radix(integer.as_str(), integer.radix()).map(Number::from);
    unsigned.or_else(|_| i64::from_str_radix(integer.as_str(), integer.radix()).map(Number::from)).ok()
}
