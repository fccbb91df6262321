//! The PTX of the kernels.

/// The targets that PTX is compiled for.
pub(crate) const TARGETS: [&str; 2] = ["sm_80", "sm_90a"];

/// The PTX of a source file.
pub(crate) fn file(file: &str, target: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/kernels");
    let path = format!("{folder}/{file}.{}.ptx", target.trim_start_matches("sm_"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names of the kernels in a text.
pub(crate) fn names(text: &str) -> Vec<String> {
    let entry = |line: &str| Some(line.split_once(".entry ")?.1.trim_end_matches('(').to_owned());
    text.lines().filter_map(entry).collect()
}

/// A text with one kernel of a file, since a whole file takes a while to load.
pub(crate) fn kernel(source: &str, target: &str, kernel: &str) -> String {
    let text = file(source, target);
    let lines: Vec<&str> = text.lines().collect();
    let head = lines.iter().position(|line| line.contains(".entry ")).expect("a kernel");
    let begin = lines.iter().position(|line| line.contains(&format!(".entry {kernel}("))).expect("the kernel");
    let end = (begin..lines.len()).find(|line| lines[*line] == "}").expect("its end");
    let mut kept = lines[..head].to_vec();
    kept.extend(&lines[begin..=end]);
    kept.join("\n")
}

/// The text with each marker replaced by what is made of its name and registers.
pub(crate) fn fill(text: &str, slot: &dyn Fn(&str, &[&str]) -> String) -> String {
    let filled = |line: &str| match line.trim().strip_prefix("//@") {
        Some(marker) => {
            let words: Vec<&str> = marker.split_whitespace().collect();
            format!("{{\n{}\n}}", slot(words[0], &words[1..]))
        }
        None => line.to_owned(),
    };
    text.lines().map(filled).collect::<Vec<_>>().join("\n")
}
