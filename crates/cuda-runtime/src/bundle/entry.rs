//! Takes one kernel out of the text of a PTX module, so that the driver compiles that one alone.

/// Directives that end with their line and not with a semicolon.
const LINE_DIRECTIVES: [&str; 4] = [".version", ".target", ".address_size", ".file"];

/// A declaration or definition of a module.
struct Item<'a> {
    text: &'a str,
    /// The kernel's name, if it is one.
    kernel: Option<&'a str>,
}

/// The module without its kernels but one: its header, its variables and functions, and that kernel, each as it was
/// written; comments between them are left out. `None` if there is no such kernel, or the text breaks off.
#[must_use]
pub fn entry(ptx: &str, kernel: &str) -> Option<String> {
    let items = items(ptx)?;
    let is_wanted = |item: &&Item<'_>| item.kernel.is_none_or(|name| name == kernel);
    let kept: Vec<&str> = items.iter().filter(is_wanted).map(|item| item.text).collect();
    let found = items.iter().any(|item| item.kernel == Some(kernel));
    found.then(|| kept.join("\n") + "\n")
}

/// The names of a module's kernels, in order; none if the text breaks off.
#[must_use]
pub fn entry_names(ptx: &str) -> Vec<&str> {
    items(ptx).unwrap_or_default().iter().filter_map(|item| item.kernel).collect()
}

/// The items of a module; `None` if one has no end.
fn items(ptx: &str) -> Option<Vec<Item<'_>>> {
    let mut items = Vec::new();
    let mut rest = ptx;
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Some(items);
        }
        if let Some(length) = skipped(rest)? {
            rest = rest.get(length..)?;
            continue;
        }
        let (text, after) = rest.split_at_checked(item_length(rest)?)?;
        items.push(Item { text: text.trim_end(), kernel: kernel_name(text) });
        rest = after;
    }
}

/// The length of the comment or string with which a text begins, `Some(None)` if it begins with neither, `None` if it has
/// no end.
fn skipped(text: &str) -> Option<Option<usize>> {
    if text.starts_with("//") {
        return Some(Some(text.find('\n').unwrap_or(text.len())));
    }
    let (open, close) = match text.as_bytes() {
        [b'/', b'*', ..] => (2, "*/"),
        [b'"', ..] => (1, "\""),
        _ => return Some(None),
    };
    Some(Some(open + text.get(open..)?.find(close)? + close.len()))
}

/// The length of the item with which a text begins.
fn item_length(text: &str) -> Option<usize> {
    let word = text.split(char::is_whitespace).next()?;
    if LINE_DIRECTIVES.contains(&word) {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    let (mut position, mut depth, mut has_initializer) = (0, 0_usize, false);
    loop {
        let rest = text.get(position..)?;
        if let Some(length) = skipped(rest)? {
            position += length;
            continue;
        }
        let next = rest.chars().next()?;
        position += next.len_utf8();
        match next {
            '{' => depth += 1,
            '}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 && !has_initializer {
                    return Some(position);
                }
            }
            '=' if depth == 0 => has_initializer = true,
            ';' if depth == 0 => return Some(position),
            _ => {}
        }
    }
}

fn kernel_name(item: &str) -> Option<&str> {
    let head = item.split(['(', '{']).next()?;
    let mut words = head.split_whitespace();
    words.find(|word| *word == ".entry")?;
    words.next()
}
