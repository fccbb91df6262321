//! A client of OpenAI-compatible servers, for `complete`, `chat --url` and `bench serve`.
//!
//! It trusts no answer: every length has a limit, and what is not as it should be is an error.

mod answer;
mod error;
mod events;
mod session;

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Response, Url};
use serde_json::Value;

pub(crate) use self::answer::Answer;
pub(crate) use self::error::ClientError;
pub(crate) use self::session::{Session, api_key};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a server may say nothing in the middle of a request: long prompts wait for their turn.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(3600);

/// The most that is read of an answer that is no stream, in bytes.
const LARGEST_BODY: usize = 1 << 20;

/// A server that can be asked.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    /// A client of the server at `base`, which the paths of requests are added to.
    ///
    /// # Errors
    ///
    /// If that is no address of a server that can be asked, or the key can't be sent.
    pub(crate) fn new(base: &str, api_key: Option<&str>) -> Result<Self, ClientError> {
        let base = checked(base)?;
        let mut headers = HeaderMap::new();
        if let Some(key) = api_key {
            let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| {
                ClientError::Usage("the API key has characters that no key can have, such as a line break".to_owned())
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(SILENCE_TIMEOUT)
            .tcp_nodelay(true)
            // Variables of a proxy are no settings of ours, and a proxy between would be measured too.
            .no_proxy()
            // A key must not follow to where the server points.
            .redirect(Policy::none())
            .build();
        let http = http.map_err(|error| ClientError::Usage(format!("cannot start the client: {}", reason(error))))?;
        Ok(Self { http, base })
    }

    /// The name of the first model of the list at `path`.
    ///
    /// # Errors
    ///
    /// If there is no such list, or no model in it.
    pub(crate) async fn first_model(&self, path: &str) -> Result<String, ClientError> {
        let url = self.url(path);
        let response = self.http.get(&url).send().await.map_err(|error| unreachable(&url, error))?;
        let response = accepted(&url, response).await?;
        let list: Value = serde_json::from_slice(&body(response).await?)
            .map_err(|error| ClientError::Protocol(format!("{url} is no list of models: {error}")))?;
        let name = list.pointer("/data/0/id").and_then(Value::as_str);
        name.map(str::to_owned)
            .ok_or_else(|| ClientError::Protocol(format!("{url} lists no model; name one on the command line")))
    }

    /// Sends a request whose answer is streamed.
    ///
    /// # Errors
    ///
    /// If the server can't be reached, or refuses the request.
    pub(crate) async fn stream(&self, path: &str, request: &Value) -> Result<Answer, ClientError> {
        let url = self.url(path);
        let response = self.http.post(&url).json(request).send().await.map_err(|error| unreachable(&url, error))?;
        let response = accepted(&url, response).await?;
        let kind = response.headers().get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
        match kind {
            Some(kind) if !kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream") => {
                let kind = error::clean(&kind);
                Err(ClientError::Protocol(format!("{url} sent {kind} and not text/event-stream: it does not stream")))
            }
            _ => Ok(Answer::new(response)),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }
}

/// The address of a server, without the slash at its end.
fn checked(base: &str) -> Result<String, ClientError> {
    let wrong = |message: &str| {
        let shown = without_secrets(base);
        Err(ClientError::Usage(format!("{shown}: {message}; give an address such as http://127.0.0.1:8000/v1")))
    };
    let url = match Url::parse(base) {
        Ok(url) => url,
        Err(error) => return wrong(&format!("not a URL ({error})")),
    };
    match url.scheme() {
        "http" if !url.username().is_empty() || url.password().is_some() => {
            wrong("the URL has a name or a password in it; give a key with --api-key instead")
        }
        "http" if url.query().is_some() || url.fragment().is_some() => wrong("the URL must end with its path"),
        "http" => Ok(base.trim_end_matches('/').to_owned()),
        "https" => wrong(
            "https is not supported, as this build has no TLS; use http, or a proxy on this machine that speaks TLS to \
             the server",
        ),
        _ => wrong("only http is supported"),
    }
}

/// An address as a message may show it: without a name and a password, where it could have one. What can't be read is cut as well.
fn without_secrets(address: &str) -> String {
    match address.rsplit_once('@') {
        Some((_, host)) => format!("…@{}", error::clean(host)),
        None => error::clean(address),
    }
}

/// A response that is a success; else what the server said.
async fn accepted(url: &str, response: Response) -> Result<Response, ClientError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let hint = match status.as_u16() {
        401 | 403 => "; give the server's key with --api-key or ALLOTROPE_API_KEY",
        404 => "; is the address right, and the name of the model?",
        300..=399 => "; redirects are not followed: give the address that it points to",
        _ => "",
    };
    // A body that breaks off still was a refusal.
    let body = body(response).await.unwrap_or_default();
    let said = serde_json::from_slice::<Value>(&body).ok().as_ref().and_then(answer::error_message);
    let message = said.unwrap_or_else(|| error::clean(&String::from_utf8_lossy(&body)));
    Err(ClientError::Status { url: url.to_owned(), status: status.as_u16(), message, hint })
}

/// A body up to the limit.
async fn body(mut response: Response) -> Result<Vec<u8>, ClientError> {
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(|error| ClientError::Disconnected(reason(error)))? {
        if body.len() + bytes.len() > LARGEST_BODY {
            return Err(ClientError::Protocol(format!("the answer is longer than {LARGEST_BODY} bytes")));
        }
        body.extend_from_slice(&bytes);
    }
    Ok(body)
}

fn unreachable(url: &str, error: reqwest::Error) -> ClientError {
    ClientError::Unreachable { url: url.to_owned(), reason: reason(error) }
}

/// What an error of the library says, with its causes.
fn reason(error: reqwest::Error) -> String {
    crate::error::chain(&error.without_url())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn an_address_that_cannot_be_asked_is_refused() {
        for (base, part) in [
            ("https://127.0.0.1/v1", "no TLS"),
            ("127.0.0.1:8000", "not a URL"),
            ("ftp://127.0.0.1", "only http"),
            ("http://127.0.0.1/v1?a=b", "must end with its path"),
            ("http://me:secret@127.0.0.1/v1", "--api-key"),
            ("https://me:secret@127.0.0.1/v1", "no TLS"),
            ("ftp://secret@127.0.0.1", "only http"),
            ("http://me:secret@127.0.0.1:99999/v1", "not a URL"),
            ("http://me:secret@one@127.0.0.1 /v1?", "…@127.0.0.1"),
            ("me:secret@127.0.0.1:8000", "only http"),
        ] {
            let error = Client::new(base, None).unwrap_err();
            assert!(matches!(&error, ClientError::Usage(message) if message.contains(part)), "{base}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert!(matches!(Client::new("http://127.0.0.1", Some("a\nb")), Err(ClientError::Usage(_))));
    }

    #[test]
    fn paths_are_added_to_the_address() {
        for base in ["http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1/"] {
            assert_eq!(Client::new(base, None).unwrap().url("/models"), "http://127.0.0.1:8000/v1/models");
        }
    }
}
