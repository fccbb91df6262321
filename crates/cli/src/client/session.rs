//! One person asking one server, one question at a time.

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use allotrope_config::environment::Environment;
use clap::ArgMatches;
use serde_json::{Map, Value, json};
use tokio::runtime::{Builder, Runtime};

use super::{Client, ClientError};
use crate::error::CliError;
use crate::speed::Speed;
use crate::{arguments, output};

/// How often it is looked whether Ctrl-C was pressed.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(50);

/// A server, and the model of it that is asked.
pub(crate) struct Session {
    runtime: Runtime,
    client: Client,
    model: String,
}

/// What was shown of an answer.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) text: String,
    /// Why the answer ended; `None` if it was stopped.
    pub(crate) finish_reason: Option<String>,
    pub(crate) speed: Speed,
}

impl Session {
    /// The server at `url`. The model is the one that was named, else the first that the server lists.
    pub(crate) fn new(url: &str, matches: &ArgMatches, environment: &Environment) -> Result<Self, CliError> {
        let client = Client::new(url, api_key(matches, environment).as_deref())?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| CliError::Failure(format!("cannot start the client: {error}")))?;
        let model = match matches.get_one::<String>(arguments::MODEL_NAME) {
            Some(name) => name.clone(),
            None => runtime.block_on(client.first_model("/models"))?,
        };
        Ok(Self { runtime, client, model })
    }

    /// The name of the model that is asked.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// Asks with `members` in the request and shows the answer while it comes, until `interrupted` is set.
    pub(crate) fn ask(
        &self,
        path: &str,
        members: Map<String, Value>,
        interrupted: &AtomicBool,
    ) -> Result<Shown, CliError> {
        let mut request = json!({
            "model": self.model,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        if let Some(object) = request.as_object_mut() {
            object.extend(members);
        }
        self.runtime.block_on(async {
            let mut shown = Shown { text: String::new(), finish_reason: None, speed: Speed::begin() };
            tokio::select! {
                result = show(&self.client, path, &request, &mut shown) => result?,
                () = set(interrupted) => {}
            }
            Ok(shown)
        })
    }
}

/// The key of the server: the one that was given, else that of the environment.
pub(crate) fn api_key(matches: &ArgMatches, environment: &Environment) -> Option<String> {
    matches.get_one::<String>(arguments::API_KEY).cloned().or_else(|| environment.api_key())
}

async fn show(client: &Client, path: &str, request: &Value, shown: &mut Shown) -> Result<(), CliError> {
    let to_terminal = io::stdout().is_terminal();
    let mut answer = client.stream(path, request).await?;
    let result = loop {
        match answer.next().await {
            Ok(Some(part)) => {
                if part.is_output {
                    shown.speed.output();
                }
                if let Some(usage) = part.usage {
                    shown.speed.set_tokens(usage.completion_tokens);
                }
                if part.finish_reason.is_some() {
                    shown.finish_reason = part.finish_reason;
                }
                if !part.text.is_empty() {
                    if to_terminal {
                        output::show(harmless(&part.text))?;
                    } else {
                        output::show(&part.text)?;
                    }
                    shown.text.push_str(&part.text);
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    if result.is_err() && !shown.text.is_empty() {
        // The message begins on a line of its own.
        output::show("\n")?;
    }
    result.map_err(|error: ClientError| error.into())
}

/// A text without what a terminal would obey.
fn harmless(text: &str) -> String {
    text.chars().filter(|character| !character.is_control() || matches!(character, '\n' | '\r' | '\t')).collect()
}

/// Waits until the flag is set, and resets it.
async fn set(flag: &AtomicBool) {
    while !flag.swap(false, Ordering::Relaxed) {
        tokio::time::sleep(INTERRUPT_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\x1b]0;title\x07\tb\nc\u{9b}é"), "a]0;title\tb\ncé");
    }
}
