//! The load itself: requests over time, and what came of each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::super::dataset::{Prompt, Request, words};
use crate::client::{Client, ClientError};

/// How requests are made of prompts.
#[derive(Debug, Clone)]
pub(super) struct Form {
    pub(super) endpoint: String,
    pub(super) chat: bool,
    pub(super) model: String,
    pub(super) temperature: f64,
    pub(super) ignore_eos: bool,
    /// Whether the text of the answers is kept.
    pub(super) keep_text: bool,
}

impl Form {
    fn body(&self, request: &Request) -> Value {
        let mut body = Map::from_iter([("model".to_owned(), json!(self.model))]);
        if self.chat {
            let text = match &request.prompt {
                Prompt::Text(text) => text.clone(),
                Prompt::Tokens(tokens) => words(tokens),
            };
            body.insert("messages".to_owned(), json!([{ "role": "user", "content": text }]));
        } else {
            let prompt = match &request.prompt {
                Prompt::Text(text) => json!(text),
                Prompt::Tokens(tokens) => json!(tokens),
            };
            body.insert("prompt".to_owned(), prompt);
        }
        body.insert("max_tokens".to_owned(), json!(request.output_tokens));
        body.insert("temperature".to_owned(), json!(self.temperature));
        body.insert("stream".to_owned(), json!(true));
        body.insert("stream_options".to_owned(), json!({ "include_usage": true }));
        if self.ignore_eos {
            body.insert("ignore_eos".to_owned(), json!(true));
        }
        Value::Object(body)
    }
}

/// What came of a request. Times count from the beginning of the load.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Outcome {
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) sent: Duration,
    /// When each output came.
    pub(super) outputs: Vec<Duration>,
    pub(super) text: String,
    pub(super) error: Option<String>,
    /// Whether the server said how many tokens there were.
    pub(super) counted: bool,
}

/// When requests are sent.
pub(super) struct Schedule {
    /// The moment of each request, from the beginning.
    pub(super) arrivals: Vec<Duration>,
    pub(super) max_concurrency: Option<usize>,
}

/// Sends the requests and waits for all of them. Gives what came of them, in their order, and how long it took.
pub(super) async fn run(
    client: Arc<Client>,
    form: Arc<Form>,
    requests: Vec<Request>,
    schedule: Schedule,
    progress: &ProgressBar,
) -> (Vec<Outcome>, Duration) {
    let permits = schedule.max_concurrency.map(|most| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))));
    let mut outcomes = vec![Outcome::default(); requests.len()];
    for outcome in &mut outcomes {
        outcome.error = Some("the request's task ended early".to_owned());
    }
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for ((index, request), arrival) in requests.into_iter().enumerate().zip(schedule.arrivals) {
        let wait = arrival.saturating_sub(began.elapsed());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        // Here and not in the task, as tasks begin in any order.
        let permit = match &permits {
            Some(permits) => Arc::clone(permits).acquire_owned().await.ok(),
            None => None,
        };
        let (client, form, progress) = (Arc::clone(&client), Arc::clone(&form), progress.clone());
        tasks.spawn(async move {
            let _permit = permit;
            let outcome = ask(&client, &form, &request, began).await;
            progress.inc(1);
            (index, outcome)
        });
    }
    while let Some(ended) = tasks.join_next().await {
        if let Ok((index, outcome)) = ended
            && let Some(place) = outcomes.get_mut(index)
        {
            *place = outcome;
        }
    }
    (outcomes, began.elapsed())
}

/// Sends one request and reads its answer.
pub(super) async fn ask(client: &Client, form: &Form, request: &Request, began: Instant) -> Outcome {
    let body = form.body(request);
    let mut outcome = Outcome { sent: began.elapsed(), ..Outcome::default() };
    if let Prompt::Tokens(tokens) = &request.prompt {
        outcome.input_tokens = tokens.len() as u64;
    }
    if let Err(error) = read(client, form, &body, began, &mut outcome).await {
        outcome.error = Some(error.to_string());
    } else if outcome.outputs.is_empty() {
        outcome.error = Some("the answer had no output".to_owned());
    }
    outcome
}

async fn read(
    client: &Client,
    form: &Form,
    body: &Value,
    began: Instant,
    outcome: &mut Outcome,
) -> Result<(), ClientError> {
    let mut answer = client.stream(&form.endpoint, body).await?;
    while let Some(part) = answer.next().await? {
        if part.is_output {
            outcome.outputs.push(began.elapsed());
            if !outcome.counted {
                outcome.output_tokens = outcome.outputs.len() as u64;
            }
        }
        if form.keep_text {
            outcome.text.push_str(&part.text);
        }
        if let Some(usage) = part.usage {
            outcome.counted = true;
            outcome.input_tokens = usage.prompt_tokens;
            outcome.output_tokens = usage.completion_tokens;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(chat: bool) -> Form {
        let model = "m".to_owned();
        Form { endpoint: "/x".to_owned(), chat, model, temperature: 0.0, ignore_eos: !chat, keep_text: false }
    }

    #[test]
    fn completions_get_token_ids_and_chats_get_words() {
        let request = Request { prompt: Prompt::Tokens(vec![0, 1]), output_tokens: 7 };
        let usage = json!({ "include_usage": true });
        let expected = json!({
            "model": "m", "prompt": [0, 1], "max_tokens": 7, "temperature": 0.0, "stream": true,
            "stream_options": usage, "ignore_eos": true,
        });
        assert_eq!(form(false).body(&request), expected);
        let expected = json!({
            "model": "m", "messages": [{ "role": "user", "content": "time year" }], "max_tokens": 7, "temperature": 0.0,
            "stream": true, "stream_options": usage,
        });
        assert_eq!(form(true).body(&request), expected);
        let request = Request { prompt: Prompt::Text("a".to_owned()), output_tokens: 1 };
        assert_eq!(form(false).body(&request)["prompt"], "a");
        assert_eq!(form(true).body(&request)["messages"][0]["content"], "a");
    }
}
