//! Measurements that the documentation shows: kept as JSON in `docs/data/levels`, and written from there into a marked
//! part of `docs/benchmarks.md` and into `docs/images`.

use std::fs;
use std::path::PathBuf;

use super::measurement::Measurement;
use super::{report, table};
use crate::error::TaskError;
use crate::workspace;

const DATA: &str = "docs/data/levels";
const IMAGES: &str = "docs/images";
/// The document with the tables.
pub(crate) const DOCUMENT: &str = "docs/benchmarks.md";
const BEGIN: &str = "<!-- levels: written by `cargo xtask bench --report`, do not edit -->";
const END: &str = "<!-- end of levels -->";
/// The plots that the documentation shows of each measurement.
const PLOTS: [&str; 4] = ["levels", "tokens", "prefill", "decode"];

/// Checks a name for a published measurement, which becomes a file's.
///
/// # Errors
/// In words, if it has other characters than small letters, digits, `.` and `-`, or does not begin with a letter or a digit.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let plain = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit();
    if text.starts_with(plain) && text.chars().all(|character| plain(character) || ".-".contains(character)) {
        return Ok(text.to_owned());
    }
    Err("write small letters, digits, `.` and `-`, and begin with a letter or a digit".to_owned())
}

/// All published measurements by name, in alphabetical order.
///
/// # Errors
/// If one can't be read.
pub(super) fn all() -> Result<Vec<(String, Measurement)>, TaskError> {
    let folder = workspace::root().join(DATA);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut measurements = Vec::new();
    for path in workspace::files_below(&folder)? {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        measurements.push((stem, Measurement::read(&path)?));
    }
    Ok(measurements)
}

/// Publishes a measurement, in place of one of the same name, and writes the documentation again.
///
/// # Errors
/// If a file can't be written.
pub(super) fn keep(name: &str, measured: &Measurement) -> Result<(), TaskError> {
    measured.write(&workspace::root().join(DATA).join(format!("{name}.json")))?;
    write_documentation(&all()?)
}

/// Writes the tables and the plots of the documentation.
///
/// # Errors
/// If a file can't be written, or the document lacks the marks.
pub(super) fn write_documentation(measurements: &[(String, Measurement)]) -> Result<(), TaskError> {
    let root = workspace::root();
    let path = root.join(DOCUMENT);
    let text = with_tables(&workspace::read(&path)?, measurements)?;
    fs::write(&path, text).map_err(TaskError::file(&path))?;
    let folder = root.join(IMAGES);
    fs::create_dir_all(&folder).map_err(TaskError::file(&folder))?;
    for (name, measured) in measurements {
        for (file, bytes) in report::images(measured, &format!("{name}-"), |plot| PLOTS.contains(&plot))? {
            let path = folder.join(file);
            fs::write(&path, bytes).map_err(TaskError::file(&path))?;
        }
    }
    println!("wrote {DOCUMENT} and {IMAGES}");
    Ok(())
}

/// The document as the published measurements make it.
///
/// # Errors
/// If something can't be read, or the document lacks the marks.
pub(crate) fn document() -> Result<String, TaskError> {
    let path: PathBuf = workspace::root().join(DOCUMENT);
    with_tables(&workspace::read(&path)?, &all()?)
}

/// The document with other tables between the marks.
fn with_tables(document: &str, measurements: &[(String, Measurement)]) -> Result<String, TaskError> {
    let lacks = || TaskError::Message(format!("{DOCUMENT} lacks the line `{BEGIN}`, or `{END}` after it"));
    let (before, rest) = document.split_once(BEGIN).ok_or_else(lacks)?;
    let (_, after) = rest.split_once(END).ok_or_else(lacks)?;
    let section = |(name, measured): &(String, Measurement)| {
        let image = |plot: &str| format!("![{name}: {plot}](images/{name}-{plot}.png)\n");
        let images: String = PLOTS.iter().map(|plot| image(plot)).collect();
        format!("### {name}\n\n{}\n{images}\n", table::markdown(measured))
    };
    let sections: String = measurements.iter().map(section).collect();
    Ok(format!("{before}{BEGIN}\n\n{sections}{END}{after}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::measurement::tests::measurement;
    use super::*;

    #[test]
    fn tables_replace_those_between_the_marks() {
        let document = format!("before\n{BEGIN}\nreplaced\n{END}\nafter\n");
        let new = with_tables(&document, &[("m".into(), measurement())]).unwrap();
        assert!(new.starts_with("before\n") && new.ends_with("after\n") && !new.contains("replaced"), "{new}");
        assert!(
            new.contains("### m") && new.contains("| ready, warm, ms") && new.contains("images/m-levels.png"),
            "{new}"
        );
        assert_eq!(with_tables(&new, &[("m".into(), measurement())]).unwrap(), new);
        for broken in ["", BEGIN, END, &format!("{END}{BEGIN}")] {
            assert!(with_tables(broken, &[]).unwrap_err().to_string().contains(DOCUMENT), "{broken}");
        }
    }

    #[test]
    fn names_stay_file_names() {
        for good in ["tiny-chat", "llama-3.2-1b", "1b"] {
            assert_eq!(name(good).as_deref(), Ok(good));
        }
        for bad in ["", "../x", "a/b", ".hidden", "-x", "A b"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
