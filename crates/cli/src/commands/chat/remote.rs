//! Answers of a server.

use std::sync::atomic::AtomicBool;

use allotrope_config::environment::Environment;
use allotrope_engine::Message;
use clap::ArgMatches;
use serde_json::{Map, Value, json};

use super::{Partner, Turn};
use crate::client::Session;
use crate::error::CliError;
use crate::model;
use crate::sampling::SamplingFlags;

/// A model behind an address.
pub(super) struct Remote {
    session: Session,
    members: Map<String, Value>,
    url: String,
}

impl Remote {
    pub(super) fn connect(
        url: &str,
        matches: &ArgMatches,
        flags: &SamplingFlags,
        environment: &Environment,
    ) -> Result<Self, CliError> {
        if let Some(flag) = model::setting_flags(matches).first() {
            let flag = flag.to_string_lossy();
            let flag = flag.split('=').next().unwrap_or_default();
            return Err(CliError::Usage(format!(
                "{flag} is a setting of a model in this process, but --url asks a server, which has its own; leave {flag} out"
            )));
        }
        let session = Session::new(url, matches, environment)?;
        Ok(Self { session, members: flags.members(), url: url.to_owned() })
    }
}

impl Partner for Remote {
    fn introduction(&self) -> String {
        format!("{} at {}", self.session.model().escape_debug(), self.url)
    }

    fn answer(&mut self, messages: Vec<Message>, interrupted: &AtomicBool) -> Result<Turn, CliError> {
        let mut members = self.members.clone();
        let messages: Vec<Value> =
            messages.iter().map(|message| json!({ "role": message.role, "content": message.content })).collect();
        members.insert("messages".to_owned(), messages.into());
        let shown = self.session.ask("/chat/completions", members, interrupted)?;
        let remark = match shown.finish_reason.as_deref() {
            Some("length") => {
                Some("(The answer was cut off: --max-tokens, or the context of the server is full.)".to_owned())
            }
            None => Some("(Stopped.)".to_owned()),
            Some(_) => None,
        };
        Ok(Turn { text: shown.text, remark, speed: shown.speed })
    }
}
