//! `POST /tokenize` and `POST /detokenize`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response};

use super::{Failure, json_of_model, to_json};
use crate::body::read_json;
use crate::model::api_error;
use crate::prompt;
use crate::protocol::response::{DetokenizeResponse, TokenizeResponse};
use crate::protocol::tokenize::{DetokenizeRequest, TokenizeInput, TokenizeRequest};
use crate::state::App;

pub(super) async fn tokenize(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let model = app.lifecycle.model()?;
    let active = app.lifecycle.begin();
    let body = read_json(&app, request).await?;
    let work = move || {
        let request = TokenizeRequest::parse(&body, &model.context)?;
        let text = match &request.input {
            TokenizeInput::Prompt(text) => text.clone(),
            TokenizeInput::Chat(input) => prompt::render(&model, input)?,
        };
        let tokens = prompt::encode(&model, &text, request.add_special_tokens)?;
        let spelled = |token: &u32| model.tokenizer().token(*token).unwrap_or_default();
        let texts = request.return_token_strs.then(|| tokens.iter().map(spelled).collect());
        to_json(&TokenizeResponse::new(tokens, texts, model.context.max_model_len))
    };
    Ok(json_of_model(app.prepare(work).await?, active))
}

pub(super) async fn detokenize(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let model = app.lifecycle.model()?;
    let active = app.lifecycle.begin();
    let body = read_json(&app, request).await?;
    let work = move || {
        let request = DetokenizeRequest::parse(&body, &model.context)?;
        let prompt = model.tokenizer().decode(&request.tokens, false).map_err(|error| api_error(error.into()))?;
        to_json(&DetokenizeResponse { prompt })
    };
    Ok(json_of_model(app.prepare(work).await?, active))
}
