//! Rust source as a flat list of tokens, each with its line and with what the attributes around it say.
//!
//! Rules look at tokens and not at text, so that comments and strings can't confuse them.

use std::str::FromStr as _;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A token.
#[derive(Debug, Clone)]
pub(super) struct Token {
    /// An identifier, a literal as it is written, one punctuation character, or one bracket.
    pub(super) text: String,
    /// Line in the file, from 1.
    pub(super) line: usize,
    /// Whether an attribute makes it part of the tests alone.
    pub(super) is_test: bool,
    /// Whether an attribute with a reason allows panics here.
    pub(super) may_panic: bool,
}

/// An `allow` or `expect` attribute.
#[derive(Debug, Clone)]
pub(super) struct Allowance {
    /// Its text without spaces.
    pub(super) text: String,
    /// Line in the file, from 1.
    pub(super) line: usize,
    /// Whether it holds for tests alone.
    pub(super) is_test: bool,
}

/// A tokenized file.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    /// All tokens outside attributes, in order.
    pub(super) list: Vec<Token>,
    /// All `allow` and `expect` attributes.
    pub(super) allowances: Vec<Allowance>,
    /// Modules declared as `#[cfg(test)] mod NAME;`.
    pub(super) test_modules: Vec<String>,
}

/// What attributes say about the item that follows.
#[derive(Debug, Clone, Copy, Default)]
struct Marks {
    is_test: bool,
    may_panic: bool,
}

impl Tokens {
    /// Tokenizes a file.
    ///
    /// # Errors
    /// The lexer's message.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let stream = TokenStream::from_str(text).map_err(|error| error.to_string())?;
        let mut tokens = Tokens::default();
        tokens.walk(stream, Marks::default());
        Ok(tokens)
    }

    /// Whether the tokens from `index` on are `expected`.
    pub(super) fn matches(&self, index: usize, expected: &[&str]) -> bool {
        self.list
            .get(index..index + expected.len())
            .is_some_and(|found| found.iter().zip(expected).all(|(token, expected)| token.text == *expected))
    }

    /// Paths such as `std::env::var`, by the name after `prefix`: one name, or all in braces.
    pub(super) fn names_after(&self, prefix: &[&str]) -> Vec<&Token> {
        let mut names = Vec::new();
        for start in (0..self.list.len()).filter(|index| self.matches(*index, prefix)) {
            let rest = &self.list[start + prefix.len()..];
            match rest.first() {
                Some(first) if first.text == "{" => {
                    names.extend(rest.iter().skip(1).take_while(|token| token.text != "}"))
                }
                Some(first) => names.push(first),
                None => {}
            }
        }
        names
    }

    fn walk(&mut self, stream: TokenStream, outer: Marks) {
        let mut trees = stream.into_iter().peekable();
        let mut attributes: Vec<(String, usize)> = Vec::new();
        let mut outer = outer;
        let mut item = outer;
        let mut names = Vec::new();
        while let Some(tree) = trees.next() {
            if let TokenTree::Punct(punct) = &tree
                && punct.as_char() == '#'
            {
                let inner = trees.next_if(|next| matches!(next, TokenTree::Punct(p) if p.as_char() == '!')).is_some();
                let bracket =
                    |next: &TokenTree| matches!(next, TokenTree::Group(g) if g.delimiter() == Delimiter::Bracket);
                if let Some(TokenTree::Group(group)) = trees.next_if(bracket) {
                    let text: String = group.stream().to_string().split_whitespace().collect();
                    let line = group.span_open().start().line;
                    if inner {
                        outer = with_attribute(outer, &text);
                        item = outer;
                        self.note_allowance(&text, line, outer);
                    } else {
                        item = with_attribute(item, &text);
                        attributes.push((text, line));
                    }
                    continue;
                }
            }
            for (text, line) in attributes.drain(..) {
                self.note_allowance(&text, line, item);
            }
            let ends_item = self.push(tree, item, &mut names);
            if ends_item {
                if let [keyword, name] = names.as_slice()
                    && keyword == "mod"
                    && item.is_test
                {
                    self.test_modules.push(name.clone());
                }
                names.clear();
                item = outer;
            }
        }
    }

    /// Appends one tree; true if it ends an item.
    fn push(&mut self, tree: TokenTree, marks: Marks, names: &mut Vec<String>) -> bool {
        let line = tree.span().start().line;
        let token = |text: &str, line| Token {
            text: text.to_owned(),
            line,
            is_test: marks.is_test,
            may_panic: marks.may_panic,
        };
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                self.list.push(token(open, line));
                self.walk(group.stream(), marks);
                self.list.push(token(close, group.span_close().start().line));
                if group.delimiter() == Delimiter::Brace {
                    names.clear();
                }
                group.delimiter() == Delimiter::Brace
            }
            TokenTree::Punct(punct) => {
                self.list.push(token(&punct.as_char().to_string(), line));
                matches!(punct.as_char(), ';' | ',')
            }
            TokenTree::Ident(ident) => {
                let text = ident.to_string();
                self.list.push(token(&text, line));
                if text != "pub" {
                    names.push(text);
                }
                false
            }
            TokenTree::Literal(literal) => {
                self.list.push(token(&literal.to_string(), line));
                false
            }
        }
    }

    fn note_allowance(&mut self, text: &str, line: usize, marks: Marks) {
        if text.starts_with("allow(") || text.starts_with("expect(") {
            self.allowances.push(Allowance { text: text.to_owned(), line, is_test: marks.is_test });
        }
    }
}

fn with_attribute(marks: Marks, text: &str) -> Marks {
    let allows = text.starts_with("allow(") || text.starts_with("expect(");
    let panics = text.contains("clippy::panic") || text.contains("clippy::unreachable");
    Marks {
        is_test: marks.is_test || text == "test" || text == "cfg(test)" || text.starts_with("cfg(all(test,"),
        may_panic: marks.may_panic || (allows && panics && text.contains("reason=")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn attributes_reach_to_the_end_of_their_item() {
        let source =
            "#[cfg(test)]\nmod tests;\n#[allow(dead_code)]\n#[test]\nfn a() { b(\"c\"); }\nfn d() {}\n// unsafe";
        let tokens = Tokens::parse(source).unwrap();
        let of = |name: &str| tokens.list.iter().find(|token| token.text == name).unwrap();
        assert!(of("tests").is_test && of("b").is_test && !of("d").is_test);
        assert_eq!((of("a").line, of("d").line), (5, 6));
        assert_eq!(tokens.test_modules, ["tests"]);
        assert!(tokens.allowances[0].is_test);
        assert!(!tokens.list.iter().any(|token| token.text == "unsafe"));
    }

    #[test]
    fn names_are_found_alone_and_in_braces() {
        let tokens = Tokens::parse("use std::env::{args, var};\nfn f() { std::env::vars(); }").unwrap();
        let names: Vec<_> = tokens.names_after(&["env", ":", ":"]).iter().map(|token| token.text.as_str()).collect();
        assert_eq!(names, ["args", ",", "var", "vars"]);
    }
}
