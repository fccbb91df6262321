//! The list of instructions in `docs/emulator.md` is that of the table. `BLESS=1` writes it down.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use allotrope_cuda_emulator::forms;

const BEGIN: &str = "<!-- forms: written by `BLESS=1 cargo test -p allotrope-cuda-emulator --test documents` -->\n";
const END: &str = "<!-- end of forms -->\n";

/// The forms by family. Those whose names have an underscore are forms of `mov` that only the table tells apart.
fn list() -> String {
    let mut families: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for form in forms::all().filter(|form| !form.names.starts_with("mov_")) {
        families.entry(form.names.split('.').next().unwrap()).or_default().push(form.names);
    }
    let count: usize = families.values().map(Vec::len).sum();
    let mut text = format!("{count} forms in {} families.\n\n", families.len());
    for (family, names) in families {
        let names: Vec<String> = names.iter().map(|name| format!("`{}`", name.replace("|", "\\|"))).collect();
        text += &format!("- **{family}**: {}\n", names.join(", "));
    }
    text.replace("\\|", "|")
}

#[test]
fn the_list_of_instructions_is_that_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/emulator.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (listed, after) = rest.split_once(END).unwrap();
    let list = format!("\n{}\n", list());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{list}{END}{after}")).unwrap();
    } else {
        assert_eq!(listed, list, "the table has changed: run this test with BLESS=1");
    }
}
