//! The sources: which there are, what they are compiled to, and which headers they include.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use allotrope_cuda_runtime::bundle::{Architecture, Kind};

use super::manifest::FileRecord;
use super::sha256;
use crate::error::TaskError;
use crate::workspace;

/// What PTX is compiled for: the oldest architecture that the kernels run on, those that convert e4m3 by an instruction and
/// that let a kernel begin before the one in front of it is done, and the one with `wgmma`.
const PTX: [Architecture; 4] =
    [architecture(8, 0, false), architecture(8, 9, false), architecture(9, 0, false), architecture(9, 0, true)];

/// What machine code is compiled for.
const CUBINS: [Architecture; 6] = [
    architecture(8, 0, false),
    architecture(8, 6, false),
    architecture(8, 9, false),
    architecture(9, 0, true),
    architecture(10, 0, true),
    architecture(12, 0, false),
];

/// From this major version on a source may say that it is not for an architecture.
const FIRST_OPTIONAL: u8 = 10;

const fn architecture(major: u8, minor: u8, specific: bool) -> Architecture {
    Architecture { major, minor, specific }
}

/// A `.cu` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// File name without its ending.
    pub(super) name: String,
    /// Whether it is a template, of which there is PTX alone.
    is_template: bool,
    /// For which architectures it is not.
    not_for: Vec<Architecture>,
    /// The source itself, and behind it every header that it includes, by name.
    pub(super) files: Vec<FileRecord>,
}

impl Source {
    /// Every source in a folder, by name.
    ///
    /// # Errors
    /// If one can't be read, includes a header that is not there, or does not say what it is compiled to.
    pub(super) fn read_all(folder: &Path) -> Result<Vec<Source>, TaskError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(TaskError::file(folder))? {
            let name = entry.map_err(TaskError::file(folder))?.file_name();
            names.extend(name.to_str().and_then(|name| name.strip_suffix(".cu")).map(str::to_owned));
        }
        names.sort();
        names.iter().map(|name| Self::read(folder, name)).collect()
    }

    fn read(folder: &Path, name: &str) -> Result<Source, TaskError> {
        let file = format!("{name}.cu");
        let text = workspace::read(&folder.join(&file))?;
        let (is_template, not_for) =
            targets(&text).map_err(|message| TaskError::Message(format!("kernels/{file}: {message}")))?;
        let headers = headers(folder, &file, &text)?;
        let names = std::iter::once(&file).chain(&headers);
        let files: Result<_, _> = names.map(|name| FileRecord::of(folder, name)).collect();
        Ok(Source { name: name.to_owned(), is_template, not_for, files: files? })
    }

    /// What it is compiled to, in the order of the bundle.
    pub(super) fn outputs(&self) -> Vec<(Kind, Architecture)> {
        let cubins = CUBINS.into_iter().filter(|_| !self.is_template);
        let cubins = cubins.filter(|architecture| !self.not_for.contains(architecture));
        PTX.into_iter().map(|it| (Kind::Ptx, it)).chain(cubins.map(|it| (Kind::Cubin, it))).collect()
    }

    /// The architectures that it is compiled for.
    pub(super) fn architectures(&self) -> BTreeSet<Architecture> {
        self.outputs().into_iter().map(|(_, architecture)| architecture).collect()
    }
}

impl FileRecord {
    /// A file as it is now.
    ///
    /// # Errors
    /// If it can't be read.
    pub(super) fn of(folder: &Path, name: &str) -> Result<Self, TaskError> {
        let path = folder.join(name);
        let content = fs::read(&path).map_err(TaskError::file(&path))?;
        Ok(FileRecord { path: name.to_owned(), bytes: content.len(), sha256: sha256(&content) })
    }
}

/// What the comment with which a source begins says: whether it is a template, and for what it is not.
fn targets(text: &str) -> Result<(bool, Vec<Architecture>), String> {
    let comment = text.lines().map_while(|line| line.strip_prefix("//")).map(str::trim);
    let (mut is_template, mut not_for) = (None, Vec::new());
    for line in comment {
        if let Some(targets) = line.strip_prefix("targets:") {
            is_template = Some(match targets.trim() {
                "all" => false,
                "ptx" => true,
                other => return Err(format!("`targets: {other}`: it is `all` or `ptx`")),
            });
        } else if let Some(names) = line.strip_prefix("not-for:") {
            for name in names.split(',').map(str::trim) {
                let named = |architecture: &&Architecture| name == format!("sm_{architecture}");
                let found = CUBINS.iter().filter(|it| it.major >= FIRST_OPTIONAL).find(named);
                not_for.push(*found.ok_or_else(|| format!("`not-for: {name}`: it is sm_100a or sm_120"))?);
            }
        }
    }
    let is_template =
        is_template.ok_or("lacks the line `// targets: all` or `// targets: ptx` in its first comment")?;
    Ok((is_template, not_for))
}

/// The headers that a source includes in quotes, itself or through others, sorted.
fn headers(folder: &Path, file: &str, text: &str) -> Result<BTreeSet<String>, TaskError> {
    let mut headers = BTreeSet::new();
    let mut unread = vec![(file.to_owned(), text.to_owned())];
    while let Some((from, text)) = unread.pop() {
        for name in included(&text) {
            let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
            let path = folder.join(name);
            if !is_plain || !path.is_file() {
                let message = format!("kernels/{from} includes \"{name}\", which is no file in kernels");
                return Err(TaskError::Message(message));
            }
            if headers.insert(name.to_owned()) {
                unread.push((name.to_owned(), workspace::read(&path)?));
            }
        }
    }
    Ok(headers)
}

fn included(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let include = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
        include.trim_start().strip_prefix('"')?.split('"').next()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn targets_of(text: &str) -> Result<Vec<String>, String> {
        let (is_template, not_for) = targets(text)?;
        let source = Source { name: "a".into(), is_template, not_for, files: Vec::new() };
        let name = |(kind, architecture): (Kind, Architecture)| format!("{}_{architecture}", kind.prefix());
        Ok(source.outputs().into_iter().map(name).collect())
    }

    #[test]
    fn the_first_comment_says_what_a_source_is_compiled_to() {
        let ptx = ["compute_80", "compute_89", "compute_90", "compute_90a"];
        let cubins = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120"];
        let all = [&ptx[..], &cubins].concat();
        assert_eq!(targets_of("// Adds.\n// targets: all\nint x;").unwrap(), all);
        assert_eq!(targets_of("// targets: ptx\n").unwrap(), ptx);
        assert_eq!(targets_of("// targets: all\n// not-for: sm_120, sm_100a").unwrap(), all[..8]);
    }

    #[test]
    fn a_source_that_does_not_say_it_well_is_refused() {
        let cases = [
            ("int x;\n// targets: all", "lacks the line"),
            ("// targets: some", "`all` or `ptx`"),
            ("// targets: all\n// not-for: sm_80", "sm_100a or sm_120"),
            ("// targets: all\n// not-for: turing", "sm_100a or sm_120"),
        ];
        for (text, message) in cases {
            let error = targets_of(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn headers_are_found_through_headers_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("a.cu", "// targets: all\n#include <cuda_fp16.h>\n#include \"b.cuh\"\n  # include \"c.cuh\" // why\n");
        write("b.cuh", "#pragma once\n#include \"d.cuh\"\n");
        write("c.cuh", "#include \"b.cuh\"\n#include \"c.cuh\"\n");
        write("d.cuh", "");
        write("unused.cuh", "");
        let sources = Source::read_all(folder.path()).unwrap();
        let names: Vec<&str> = sources[0].files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!((sources.len(), names), (1, vec!["a.cu", "b.cuh", "c.cuh", "d.cuh"]));
        for header in ["e.cuh", "../a.cuh", "sub/a.cuh"] {
            write("d.cuh", &format!("#include \"{header}\"\n"));
            let error = Source::read_all(folder.path()).unwrap_err().to_string();
            assert!(error.contains("d.cuh") && error.contains(header), "{error}");
        }
    }
}
