//! Who may ask: requests with one of the server's keys.

use axum::body::Body;
use axum::http::{Request, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::protocol::ApiError;

/// What answers everyone: probes have no key.
const OPEN_PATHS: [&str; 2] = ["/health", "/ready"];

/// The digests of the keys. Those of a given key are compared with all of them in a time that depends on none.
pub(crate) struct ApiKeys(Vec<[u8; 32]>);

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl ApiKeys {
    pub(crate) fn new(keys: &[String]) -> Self {
        ApiKeys(keys.iter().map(|key| Sha256::digest(key.as_bytes()).into()).collect())
    }

    /// Refuses a request that needs a key and has none of ours. The path is compared as it came, so no spelling of it opens
    /// what the router would not take for the same path.
    pub(crate) fn check(&self, request: &Request<Body>) -> Result<(), ApiError> {
        if self.0.is_empty() || OPEN_PATHS.contains(&request.uri().path()) {
            return Ok(());
        }
        let mut given = request.headers().get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (given.next(), given.next()) else { return Err(ApiError::unauthorized()) };
        match bearer(value.as_bytes()) {
            Some(key) if self.has(key) => Ok(()),
            _ => Err(ApiError::unauthorized()),
        }
    }

    fn has(&self, key: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(key).into();
        self.0.iter().fold(Choice::from(0), |found, own| found | own.ct_eq(&digest)).into()
    }
}

/// The key in `Bearer KEY`.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn check(path: &str, headers: &[&str]) -> bool {
        let keys = ApiKeys::new(&["secret".to_owned(), "other".to_owned()]);
        let mut request = Request::builder().uri(path);
        for value in headers {
            request = request.header("authorization", *value);
        }
        keys.check(&request.body(Body::empty()).unwrap()).is_ok()
    }

    #[test]
    fn each_key_opens_and_nothing_else_does() {
        for value in ["Bearer secret", "bearer other", "BEARER   secret "] {
            assert!(check("/v1/models", &[value]), "{value}");
        }
        for value in
            ["secret", "Bearer", "Bearer ", "Bearer Secret", "Bearer secre", "Basic secret", "Bearersecret", ""]
        {
            assert!(!check("/v1/models", &[value]), "{value}");
        }
        assert!(!check("/v1/models", &[]));
        assert!(!check("/v1/models", &["Bearer secret", "Bearer secret"]), "which of both is meant?");
        assert!(!check("/v1/models?api_key=secret", &[]));
        assert!(!check("/v1/models", &[&format!("Bearer {}", "x".repeat(1 << 20))]));
    }

    #[test]
    fn probes_are_open_in_exactly_their_spelling() {
        assert!(check("/health", &[]) && check("/ready?x=1", &[]));
        for path in ["/metrics", "/health/", "/health/../metrics", "//health", "/%68ealth", "/version", "/ping"] {
            assert!(!check(path, &[]), "{path}");
        }
        let open = ApiKeys::new(&[]);
        assert!(open.check(&Request::builder().uri("/metrics").body(Body::empty()).unwrap()).is_ok());
        assert_eq!(format!("{open:?}"), "0 keys");
    }
}
