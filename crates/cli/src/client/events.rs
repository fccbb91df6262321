//! Server-sent events: from bytes, however they are cut, to the data of each event.

use std::collections::VecDeque;

use super::ClientError;

/// The longest event that is read, in bytes. One token with its log probabilities takes a few thousand.
const LONGEST_EVENT: usize = 1 << 20;

/// Collects the bytes of a stream and gives out the events that are whole.
#[derive(Debug, Default)]
pub(super) struct EventDecoder {
    /// The line that has not ended.
    line: Vec<u8>,
    /// The data lines of the event that has not ended.
    data: Option<Vec<u8>>,
    /// Whether the last byte was a carriage return, whose line feed belongs to it.
    after_return: bool,
}

impl EventDecoder {
    /// Takes the next bytes of the stream and adds the data of the events that they end to `events`.
    ///
    /// # Errors
    ///
    /// If an event is too long or is no text.
    pub(super) fn push(&mut self, bytes: &[u8], events: &mut VecDeque<String>) -> Result<(), ClientError> {
        for &byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => self.end_line(events)?,
                _ => {
                    let held = self.line.len() + self.data.as_ref().map_or(0, Vec::len);
                    if held >= LONGEST_EVENT {
                        return Err(ClientError::Protocol(format!("an event is longer than {LONGEST_EVENT} bytes")));
                    }
                    self.line.push(byte);
                }
            }
        }
        Ok(())
    }

    fn end_line(&mut self, events: &mut VecDeque<String>) -> Result<(), ClientError> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            if let Some(data) = self.data.take() {
                let text = String::from_utf8(data)
                    .map_err(|_| ClientError::Protocol("an event is not UTF-8 text".to_owned()))?;
                events.push_back(text);
            }
            return Ok(());
        }
        // Other fields and comments, such as those that keep a connection alive, say nothing about an answer.
        let Some(value) = field(&line, b"data") else { return Ok(()) };
        match &mut self.data {
            None => self.data = Some(value.to_vec()),
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
        }
        Ok(())
    }
}

/// The value of a line's field, if it is the field of this name. One space after the colon is not part of the value.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let rest = line.strip_prefix(name)?;
    let Some(value) = rest.strip_prefix(b":") else { return rest.is_empty().then_some(rest) };
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    const STREAM: &str = ": hello\n\nevent: x\ndata: {\"a\":\"é\"}\n\ndata:one\r\ndata: two\r\nid: 3\r\n\r\n\
                          : keep-alive\n\ndata\n\ndatum: no\n\ndata: [DONE]\r\rdata: not ended";
    const EVENTS: [&str; 4] = ["{\"a\":\"é\"}", "one\ntwo", "", "[DONE]"];

    fn decode(parts: &[&[u8]]) -> Vec<String> {
        let (mut decoder, mut events) = (EventDecoder::default(), VecDeque::new());
        for part in parts {
            decoder.push(part, &mut events).unwrap();
        }
        events.into()
    }

    #[test]
    fn events_are_the_same_wherever_the_stream_is_cut() {
        let bytes = STREAM.as_bytes();
        for place in 0..=bytes.len() {
            let (before, after) = bytes.split_at(place);
            assert_eq!(decode(&[before, after]), EVENTS, "cut at {place}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(decode(&single), EVENTS);
    }

    #[test]
    fn what_is_too_long_or_no_text_is_refused() {
        let (mut decoder, mut events) = (EventDecoder::default(), VecDeque::new());
        let part = vec![b'x'; LONGEST_EVENT / 2];
        assert!(decoder.push(&part, &mut events).is_ok());
        assert!(decoder.push(&part, &mut events).is_ok());
        assert!(decoder.push(b"x", &mut events).is_err(), "an endless line");
        let mut decoder = EventDecoder::default();
        let line = b"data: 0123456789\n".repeat(LONGEST_EVENT / 10);
        assert!(decoder.push(&line, &mut events).is_err(), "an endless event of short lines");
        assert!(EventDecoder::default().push(b"data: \xff\n\n", &mut events).is_err());
    }

    #[test]
    fn empty_data_lines_do_not_grow_without_end() {
        let (mut decoder, mut events) = (EventDecoder::default(), VecDeque::new());
        let lines = b"data\n".repeat(LONGEST_EVENT + 10);
        assert!(decoder.push(&lines, &mut events).is_err());
    }
}
