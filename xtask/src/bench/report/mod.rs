//! The report: a page with plots and tables, and the plots as images.

mod image;
mod page;
mod plots;
mod svg;

use std::fs;
use std::path::{Path, PathBuf};

use super::measurement::Measurement;
use crate::error::TaskError;

/// Writes `index.html` and the plots as PNG, for light and for dark pages, into a folder, and gives the path of the page.
/// Images are named after the measurement where there are several.
///
/// # Errors
/// If a file can't be written.
pub(super) fn write(folder: &Path, measurements: &[Measurement]) -> Result<PathBuf, TaskError> {
    fs::create_dir_all(folder).map_err(TaskError::file(folder))?;
    for (index, measured) in measurements.iter().enumerate() {
        let prefix =
            if measurements.len() == 1 { String::new() } else { format!("{}-{}-", index + 1, measured.model_name()) };
        for (name, bytes) in images(measured, &prefix, |_| true)? {
            let path = folder.join(name);
            fs::write(&path, bytes).map_err(TaskError::file(&path))?;
        }
    }
    let path = folder.join("index.html");
    fs::write(&path, page::html(measurements)).map_err(TaskError::file(&path))?;
    Ok(path)
}

/// The plots of a measurement that are wanted by name: file names and bytes.
///
/// # Errors
/// If one can't be drawn.
pub(super) fn images(
    measured: &Measurement,
    prefix: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<(String, Vec<u8>)>, TaskError> {
    let mut images = Vec::new();
    for plot in plots::all(measured).iter().filter(|plot| wanted(plot.name)) {
        for (colours, ending) in [(&page::LIGHT, ""), (&page::DARK, "-dark")] {
            images.push((format!("{prefix}{}{ending}.png", plot.name), image::png(&plot.svg(&colours.style()))?));
        }
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::measurement::tests::measurement;
    use super::*;

    #[test]
    fn a_report_has_its_page_and_images_and_is_the_same_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), &[measurement()]).unwrap();
        assert!(fs::read_to_string(&path).unwrap().starts_with("<!DOCTYPE html>"));
        let light = fs::read(folder.path().join("levels.png")).unwrap();
        assert_ne!(light, fs::read(folder.path().join("levels-dark.png")).unwrap());
        let again = images(&measurement(), "", |name| name == "levels").unwrap();
        assert_eq!(again.len(), 2);
        assert_eq!(again[0], ("levels.png".to_owned(), light));
    }

    #[test]
    fn measurements_of_one_report_do_not_overwrite_each_other() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &[measurement(), measurement()]).unwrap();
        assert!(folder.path().join("1-m-levels.png").exists() && folder.path().join("2-m-levels.png").exists());
    }
}
