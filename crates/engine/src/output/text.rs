//! Cutting generated text at stop strings while it streams.

use std::cmp::Reverse;

/// What one piece of text released.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Emitted {
    /// The text that may be shown now. It is never taken back.
    pub(crate) text: String,
    /// The place in the list of the stop string that has been completed: the output ends with `text`.
    pub(crate) stopped: Option<usize>,
}

/// The text of one request: takes decoded pieces, holds back what could be the beginning of a stop string, and ends
/// before the first stop string, or behind it if that is wanted.
///
/// The first stop string is the one that is complete first, and the longest if several end at the same place. So the
/// result does not depend on how the text is split into pieces.
#[derive(Debug, Clone)]
pub(crate) struct OutputText {
    matchers: Vec<Matcher>,
    keeps_stop: bool,
    held: String,
    stopped: Option<usize>,
    ended: bool,
}

impl OutputText {
    /// An empty output that ends before the first of `stop`, or with `keeps_stop` behind it. Empty strings stop nothing.
    pub(crate) fn new(stop: &[String], keeps_stop: bool) -> Self {
        let places = stop.iter().enumerate().filter(|(_, string)| !string.is_empty());
        let matchers = places.map(|(place, string)| Matcher::new(string, place)).collect();
        Self { matchers, keeps_stop, held: String::new(), stopped: None, ended: false }
    }

    /// Adds decoded text and returns what may be shown. After a stop string, further text is dropped. Where it may not stop yet, a
    /// string that is completed in this piece is text; one that only begins in it counts.
    pub(crate) fn push(&mut self, piece: &str, may_stop: bool) -> Emitted {
        if self.ended {
            return Emitted { text: String::new(), stopped: self.stopped };
        }
        let before = self.held.len();
        self.held.push_str(piece);
        for (offset, byte) in piece.bytes().enumerate() {
            let completed = self.matchers.iter_mut().filter_map(|matcher| matcher.advance(byte)).max();
            if let Some((length, Reverse(place))) = completed.filter(|_| may_stop) {
                // A stop string and the text are both whole characters, so the cut never divides one.
                let end = before + offset + 1;
                self.held.truncate(if self.keeps_stop { end } else { end - length });
                (self.stopped, self.ended) = (Some(place), true);
                return Emitted { text: std::mem::take(&mut self.held), stopped: self.stopped };
            }
        }
        let undecided = self.matchers.iter().map(|matcher| matcher.matched).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - undecided);
        Emitted { text: std::mem::replace(&mut self.held, kept), stopped: None }
    }

    /// Ends the output without a stop string and returns what was held back.
    pub(crate) fn finish(&mut self) -> String {
        self.ended = true;
        std::mem::take(&mut self.held)
    }
}

/// Finds one stop string in a stream of bytes, by the algorithm of Knuth, Morris and Pratt (1977).
#[derive(Debug, Clone)]
struct Matcher {
    pattern: Vec<u8>,
    /// Place of the string in the request's list.
    place: usize,
    /// For each length of a matched prefix of the pattern, less one: the length of the longest shorter prefix that also
    /// ends there.
    fallback: Vec<usize>,
    /// How many bytes of the pattern the stream now ends with; always less than the whole.
    matched: usize,
}

impl Matcher {
    fn new(pattern: &str, place: usize) -> Self {
        let pattern = pattern.as_bytes().to_vec();
        let mut fallback = vec![0; pattern.len()];
        let mut matched = 0;
        for end in 1..pattern.len() {
            matched = longest_prefix(&pattern, &fallback, matched, pattern[end]);
            fallback[end] = matched;
        }
        Self { pattern, place, fallback, matched: 0 }
    }

    /// Takes the next byte; returns the pattern's length and place if it completes the pattern. Of equal strings the first counts.
    fn advance(&mut self, byte: u8) -> Option<(usize, Reverse<usize>)> {
        self.matched = longest_prefix(&self.pattern, &self.fallback, self.matched, byte);
        let length = self.pattern.len();
        if self.matched < length {
            return None;
        }
        // Where it does not count, the next may begin inside it.
        self.matched = self.fallback[length - 1];
        Some((length, Reverse(self.place)))
    }
}

/// The length of the longest prefix of `pattern` that `matched` bytes of it followed by `byte` end with.
/// `matched` is less than the length of the pattern.
fn longest_prefix(pattern: &[u8], fallback: &[usize], mut matched: usize, byte: u8) -> usize {
    while pattern[matched] != byte {
        if matched == 0 {
            return 0;
        }
        matched = fallback[matched - 1];
    }
    matched + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The text before the stop string that is complete first, by the definition; `None` if there is none.
    fn cut_at_earliest<'a>(text: &'a str, stop: &[String]) -> Option<&'a str> {
        (0..=text.len()).filter(|&end| text.is_char_boundary(end)).find_map(|end| {
            let ending = stop.iter().filter(|string| text[..end].ends_with(string.as_str()));
            ending.map(|string| string.len()).max().map(|length| &text[..end - length])
        })
    }

    /// Streams `pieces` and checks on the way that nothing follows a stop.
    fn stream(pieces: &[&str], stop: &[String]) -> (String, bool) {
        let mut output = OutputText::new(stop, false);
        let (mut text, mut stopped) = (String::new(), false);
        for piece in pieces {
            let emitted = output.push(piece, true);
            assert!(!stopped || (emitted.stopped.is_some() && emitted.text.is_empty()), "text after the stop string");
            text.push_str(&emitted.text);
            stopped = emitted.stopped.is_some();
        }
        let rest = output.finish();
        assert!(!stopped || rest.is_empty(), "text after the stop string");
        text.push_str(&rest);
        (text, stopped)
    }

    fn strings(strings: &[&str]) -> Vec<String> {
        strings.iter().map(|&string| string.to_owned()).collect()
    }

    #[test]
    fn every_way_of_splitting_a_short_text_gives_the_same() {
        let cases: [(&str, &[&str]); 8] = [
            ("ababac", &["abac"]),
            ("aaab", &["aab"]),
            ("xabc", &["abc", "b"]),
            ("xxab", &["ab", "xab", "b"]),
            ("a\u{e9}\u{20ac}b", &["\u{20ac}"]),
            ("\u{1f600}a", &["\u{1f601}"]),
            ("abab", &["abx", "bay"]),
            ("stop", &["stop"]),
        ];
        for (text, stop) in cases {
            let stop = strings(stop);
            let expected = cut_at_earliest(text, &stop);
            let inner: Vec<usize> = (1..text.len()).filter(|&at| text.is_char_boundary(at)).collect();
            for choice in 0u32..1 << inner.len() {
                let mut pieces = Vec::new();
                let mut start = 0;
                for (bit, &at) in inner.iter().enumerate() {
                    if choice >> bit & 1 == 1 {
                        pieces.push(&text[start..at]);
                        start = at;
                    }
                }
                pieces.push(&text[start..]);
                let (streamed, stopped) = stream(&pieces, &stop);
                assert_eq!((streamed.as_str(), stopped), (expected.unwrap_or(text), expected.is_some()), "{pieces:?}");
            }
        }
    }

    #[test]
    fn only_what_could_become_a_stop_string_is_held_back() {
        let mut output = OutputText::new(&strings(&["END", "\n\n"]), false);
        let shown: Vec<String> =
            ["The E", "N", "V is\n", "fine", "E"].iter().map(|p| output.push(p, true).text).collect();
        assert_eq!(shown, ["The ", "", "ENV is", "\nfine", ""]);
        assert_eq!(output.finish(), "E");
        assert_eq!(output.push("more", true), Emitted { text: String::new(), stopped: None });
    }

    #[test]
    fn without_stop_strings_everything_passes_at_once() {
        for stop in [strings(&[]), strings(&[""])] {
            let mut output = OutputText::new(&stop, false);
            assert_eq!(output.push("text", true), Emitted { text: "text".to_owned(), stopped: None });
            assert_eq!(output.finish(), "");
        }
    }

    #[test]
    fn a_stop_string_may_stay_and_text_may_be_kept_from_stopping() {
        let stop = strings(&["b", "ab", "ab"]);
        let kept = OutputText::new(&stop, true).push("xaby", true);
        assert_eq!(kept, Emitted { text: "xab".to_owned(), stopped: Some(1) }, "the longest, and of equals the first");
        let mut output = OutputText::new(&stop, false);
        assert_eq!(output.push("ab", false), Emitted { text: "ab".to_owned(), stopped: None });
        assert_eq!(output.push("a", false).text, "", "it may be the beginning of one that counts");
        assert_eq!(output.push("b", true), Emitted { text: String::new(), stopped: Some(1) });
    }

    proptest! {
        #[test]
        fn streaming_gives_the_whole_text_cut_at_the_earliest_match(
            pieces in proptest::collection::vec("[ab\u{e9}\u{1f600}]{0,4}", 0..12),
            stop in proptest::collection::vec("[ab\u{e9}\u{1f600}]{1,5}", 0..4),
        ) {
            let text = pieces.concat();
            let expected = cut_at_earliest(&text, &stop);
            let (streamed, stopped) = stream(&pieces.iter().map(String::as_str).collect::<Vec<_>>(), &stop);
            prop_assert_eq!(stopped, expected.is_some());
            prop_assert_eq!(streamed, expected.unwrap_or(&text));
        }

        #[test]
        fn what_is_held_back_is_always_the_beginning_of_a_stop_string(
            pieces in proptest::collection::vec("[ab]{0,4}", 0..12),
            stop in proptest::collection::vec("[ab]{1,5}", 1..4),
        ) {
            let mut output = OutputText::new(&stop, false);
            for piece in &pieces {
                output.push(piece, true);
                prop_assert!(output.held.is_empty() || stop.iter().any(|string| string.starts_with(&output.held)));
            }
        }
    }
}
