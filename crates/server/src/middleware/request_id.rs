//! A name for each request, for logs on both sides.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::protocol::identifiers::request_id;

/// The header that carries it.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// The longest name that is taken from a client, in bytes.
const MAX_LENGTH: usize = 128;

/// The name of a request: the client's own if it is a fit one. Two requests may have the same; ids of answers differ all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestId(String);

impl RequestId {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let is_fit = |text: &&str| {
            (1..=MAX_LENGTH).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte))
        };
        let given = headers.get(HEADER).and_then(|value| value.to_str().ok()).filter(is_fit);
        RequestId(given.map_or_else(request_id, str::to_owned))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn to_header(&self) -> HeaderValue {
        // Its characters are fit for a header.
        HeaderValue::from_str(&self.0).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_fit_name_is_kept_and_any_other_replaced() {
        let of = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, HeaderValue::from_bytes(value).unwrap());
            RequestId::of(&headers)
        };
        assert_eq!(of(b"run-7_a.b:c").as_str(), "run-7_a.b:c");
        for unfit in [&b""[..], b"a b", b"\xff[31m", b"a\tb", "é".as_bytes(), &[b'a'; 129]] {
            let id = of(unfit);
            assert!(id.as_str().len() == 32 && id.to_header() != "unknown", "{unfit:?}: {id:?}");
        }
        assert_ne!(RequestId::of(&HeaderMap::new()), RequestId::of(&HeaderMap::new()));
    }
}
