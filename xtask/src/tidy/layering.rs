//! The layering of the crates: `docs/architecture.md` lists them in order, and each may use only those above it.

use toml::{Table, Value};

use super::{Finding, TextFile};

const ARCHITECTURE: &str = "docs/architecture.md";

/// Crates that must not use each other although the order would let them: (crate, what it knows nothing of).
const KNOWS_NOTHING_OF: [(&str, &str); 3] = [
    ("allotrope-model", "allotrope-runtime"),
    ("allotrope-model", "allotrope-cpu-runtime"),
    ("allotrope-graph", "libc"),
];

/// A crate of the workspace.
struct Package {
    /// Path of its `Cargo.toml`.
    manifest: String,
    /// Its folder as the table of the architecture page names it.
    folder: String,
    name: String,
    /// Names of everything it depends on, tests and build scripts included.
    dependencies: Vec<String>,
    inherits_lints: bool,
}

/// Every breach of the layering.
pub(super) fn check(files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut packages = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with("/Cargo.toml")) {
        match package(file) {
            Ok(package) => packages.push(package),
            Err(message) => findings.push(Finding::new(&file.path, 0, message)),
        }
    }
    let Some(architecture) = files.iter().find(|file| file.path == ARCHITECTURE) else {
        findings.push(Finding::new(ARCHITECTURE, 0, "is missing; its table orders the crates"));
        return findings;
    };
    let order = order(&architecture.text);
    let rank = |package: &Package| order.iter().position(|folder| *folder == package.folder);
    for package in &packages {
        let Some(own_rank) = rank(package) else {
            findings.push(Finding::new(&package.manifest, 0, format!("is not in the crate table of {ARCHITECTURE}")));
            continue;
        };
        // A crate's tests may name the crate itself, to turn a feature of it on.
        let uses = |other: &&Package| other.name != package.name && package.dependencies.contains(&other.name);
        for used in packages.iter().filter(uses) {
            if rank(used).is_none_or(|rank| rank >= own_rank) {
                let message = format!("uses {}, which is not above it in {ARCHITECTURE}", used.name);
                findings.push(Finding::new(&package.manifest, 0, message));
            }
        }
        for (_, unknown) in KNOWS_NOTHING_OF.iter().filter(|(name, _)| *name == package.name) {
            if package.dependencies.iter().any(|name| name == unknown) {
                findings.push(Finding::new(
                    &package.manifest,
                    0,
                    format!("uses {unknown}, of which it must know nothing"),
                ));
            }
        }
        if !package.inherits_lints {
            findings.push(Finding::new(&package.manifest, 0, "lacks `[lints] workspace = true`"));
        }
    }
    for folder in order.iter().filter(|folder| !packages.iter().any(|package| package.folder == **folder)) {
        findings.push(Finding::new(
            ARCHITECTURE,
            0,
            format!("its crate table names {folder}, which has no Cargo.toml"),
        ));
    }
    findings
}

/// The folders of the table under "Crates", top to bottom.
fn order(architecture: &str) -> Vec<String> {
    let rows = architecture.lines().skip_while(|line| *line != "## Crates").skip(1);
    let section = rows.take_while(|line| !line.starts_with("## "));
    section.filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect()
}

fn package(file: &TextFile) -> Result<Package, String> {
    let manifest: Table = file.text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let name = manifest.get("package").and_then(|package| package.get("name")).and_then(Value::as_str);
    let tables = ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .filter_map(|key| manifest.get(*key)?.as_table());
    Ok(Package {
        manifest: file.path.clone(),
        folder: file.path.trim_end_matches("/Cargo.toml").to_owned(),
        name: name.ok_or("has no package name")?.to_owned(),
        dependencies: tables.flat_map(|table| table.keys().cloned()).collect(),
        inherits_lints: manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(Value::as_bool)
            == Some(true),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# A\n| `before` | x |\n## Crates\n\n| folder | crate |\n|---|---|\n| `crates/low` | `low` |\n\
                        | `crates/high` | `high` |\n\n## Numbers\n| `after` | x |\n";

    fn file(path: &str, text: &str) -> TextFile {
        TextFile { path: path.into(), text: text.into() }
    }

    fn manifest(name: &str, dependencies: &str) -> TextFile {
        let text = format!("[package]\nname = \"{name}\"\n[lints]\nworkspace = true\n{dependencies}");
        file(&format!("crates/{name}/Cargo.toml"), &text)
    }

    fn messages(files: &[TextFile]) -> Vec<String> {
        check(files).iter().map(Finding::to_string).collect()
    }

    #[test]
    fn a_crate_may_use_what_is_above_it() {
        let files =
            [file(ARCHITECTURE, PAGE), manifest("low", ""), manifest("high", "[dependencies]\nlow.workspace = true\n")];
        assert_eq!(messages(&files), Vec::<String>::new());
    }

    #[test]
    fn a_crate_may_not_use_what_is_below_it() {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let low = manifest("low", &format!("[{kind}]\nhigh.workspace = true\n"));
            let files = [file(ARCHITECTURE, PAGE), low, manifest("high", "")];
            let found = messages(&files);
            assert_eq!(found.len(), 1, "{kind}: {found:?}");
            assert!(found[0].contains("uses high"), "{found:?}");
        }
    }

    #[test]
    fn table_and_workspace_must_agree() {
        let files = [file(ARCHITECTURE, PAGE), manifest("low", ""), manifest("other", "")];
        let found = messages(&files);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("other") && found[1].contains("crates/high"), "{found:?}");
    }

    #[test]
    fn lints_are_inherited_and_manifests_parse() {
        let bare = file("crates/low/Cargo.toml", "[package]\nname = \"low\"\n");
        let found = messages(&[file(ARCHITECTURE, PAGE), bare, file("crates/high/Cargo.toml", "[package\n")]);
        assert!(found.iter().any(|line| line.contains("[lints]")), "{found:?}");
        assert!(found.iter().any(|line| line.starts_with("crates/high/Cargo.toml: ")), "{found:?}");
    }

    #[test]
    fn forbidden_pairs_are_found() {
        let page =
            PAGE.replace("crates/low", "crates/allotrope-runtime").replace("crates/high", "crates/allotrope-model");
        let files = [
            file(ARCHITECTURE, &page),
            manifest("allotrope-runtime", ""),
            manifest("allotrope-model", "[dependencies]\nallotrope-runtime.workspace = true\n"),
        ];
        let found = messages(&files);
        assert!(found.len() == 1 && found[0].contains("know nothing"), "{found:?}");
    }
}
