//! The engine on its thread: streams, cancellation, queue limits, and what happens where something fails.

use allotrope_engine::{
    AsyncLlm, EngineError, FinishReason, LogprobCount, OptimizationLevel, Prompt, RequestFailure, SamplingParams,
    StopReason, SubmitError,
};
use allotrope_tests::{checkpoint, on_the_cpu};

fn load(settings: &[(&str, &str)]) -> AsyncLlm {
    let builder = on_the_cpu(checkpoint("tiny-chat")).optimization_level(OptimizationLevel::O1);
    let set = |builder: allotrope_engine::LlmBuilder, (path, value): &(&str, &str)| builder.set(path, value).unwrap();
    settings.iter().fold(builder, set).build_async().unwrap()
}

fn endless() -> SamplingParams {
    SamplingParams { ignore_eos: true, ..SamplingParams::greedy() }
}

/// Waits until nothing runs, waits or holds blocks.
async fn settle(llm: &AsyncLlm) {
    let status = llm.engine().status();
    while status.running() > 0 || status.waiting().0 > 0 || status.blocks().0 > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn parts_make_up_the_answer_that_the_same_prompt_gets_offline() {
    let prompt = Prompt::Chat(vec![allotrope_engine::Message::new("user", "What is 7 + 8?")]);
    let params = SamplingParams::greedy();
    let mut offline = on_the_cpu(checkpoint("tiny-chat")).build().unwrap();
    let expected = offline.generate(std::slice::from_ref(&prompt), &params).unwrap().remove(0);
    let llm = load(&[]);
    let mut answer = llm.generate(&prompt, &params).unwrap();
    let (mut text, mut tokens) = (String::new(), Vec::new());
    while let Some(part) = answer.next().await {
        let part = part.unwrap();
        assert_eq!(part.prompt.is_some(), tokens.is_empty(), "the prompt is reported with the first token");
        text.push_str(&part.text);
        tokens.push(part.token);
    }
    assert_eq!((text, tokens), (expected.text, expected.tokens));
}

#[tokio::test]
async fn a_dropped_answer_is_gone_soon_and_others_go_on() {
    let llm = load(&[]);
    let prompt = Prompt::from("Once upon a time");
    let mut kept = llm.generate(&prompt, &SamplingParams { max_tokens: Some(200), ..endless() }).unwrap();
    let mut dropped = llm.generate(&prompt, &endless()).unwrap();
    for _ in 0..3 {
        dropped.next().await.unwrap().unwrap();
    }
    let status = llm.engine().status().clone();
    assert_eq!(status.running(), 2);
    drop(dropped);
    while status.running() == 2 {
        tokio::task::yield_now().await;
    }
    let mut tokens = 0;
    while let Some(part) = kept.next().await {
        tokens += 1;
        assert!(part.unwrap().finish_reason.is_none_or(|reason| reason == FinishReason::Length));
    }
    assert_eq!(tokens, 200);
    settle(&llm).await;
}

#[tokio::test]
async fn several_answers_to_one_prompt_are_numbered_and_repeatable() {
    let llm = load(&[]);
    let params =
        SamplingParams { n: 3, seed: Some(5), max_tokens: Some(12), temperature: 1.0, ..SamplingParams::default() };
    let collect = async || {
        let mut answers = llm.generate(&Prompt::from("The fox"), &params).unwrap();
        let mut tokens = vec![Vec::new(); 3];
        while let Some(part) = answers.next().await {
            let part = part.unwrap();
            tokens[part.index].push(part.token);
        }
        tokens
    };
    let first = collect().await;
    assert_eq!(collect().await, first);
    assert!(first[0] != first[1] && first[1] != first[2], "each draws by itself: {first:?}");
}

#[tokio::test]
async fn a_stop_string_ends_the_request_in_the_engine_too() {
    let llm = load(&[]);
    let params = SamplingParams { stop: vec!["zebra".into(), " a".into()], ..endless() };
    let mut answer = llm.generate(&Prompt::from("Once upon"), &params).unwrap();
    let mut last = None;
    while let Some(part) = answer.next().await {
        last = Some(part.unwrap());
    }
    let last = last.unwrap();
    assert_eq!(last.finish_reason, Some(FinishReason::Stop));
    assert_eq!(last.stop_reason, Some(StopReason::String(" a".into())));
    settle(&llm).await;
}

#[tokio::test]
async fn a_stop_token_ends_the_answer_and_is_named() {
    let llm = load(&[]);
    let mut free = llm.generate(&Prompt::from("Once upon"), &endless()).unwrap();
    let mut tokens = Vec::new();
    for _ in 0..4 {
        tokens.push(free.next().await.unwrap().unwrap().token);
    }
    let stop = *tokens.iter().find(|token| **token != tokens[0]).unwrap();
    let at = tokens.iter().position(|token| *token == stop).unwrap();
    for (min_tokens, ends_there) in [(0, true), (at + 2, false)] {
        let params = SamplingParams { stop_token_ids: vec![stop], min_tokens, max_tokens: Some(20), ..endless() };
        let mut answer = llm.generate(&Prompt::from("Once upon"), &params).unwrap();
        let mut parts = Vec::new();
        while let Some(part) = answer.next().await {
            parts.push(part.unwrap());
        }
        assert_eq!(parts.len() == at + 1, ends_there, "{min_tokens}: {parts:?}");
        if ends_there {
            assert_eq!(parts.last().unwrap().stop_reason, Some(StopReason::Token(stop)));
        }
    }
}

#[tokio::test]
async fn requests_beyond_the_queue_are_refused_and_none_is_lost() {
    let llm = load(&[("scheduler.max_num_seqs", "1"), ("scheduler.max_num_queued_reqs", "2")]);
    let params = SamplingParams { max_tokens: Some(400), ..endless() };
    let prompt = Prompt::from("The fox");
    let mut first = llm.generate(&prompt, &params).unwrap();
    first.next().await.unwrap().unwrap();
    let waiting: Vec<_> = (0..2).map(|_| llm.generate(&prompt, &params).unwrap()).collect();
    let refused = llm.generate(&prompt, &params).unwrap_err();
    assert!(matches!(&refused, EngineError::Submit(SubmitError::Overloaded { waiting: 2, .. })), "{refused}");
    assert_eq!(llm.engine().status().rejections(), 1);
    drop(first);
    for mut answer in waiting {
        let mut tokens = 0;
        while let Some(part) = answer.next().await {
            part.unwrap();
            tokens += 1;
        }
        assert_eq!(tokens, 400);
    }
    settle(&llm).await;
}

#[tokio::test]
async fn a_drained_engine_finishes_what_it_has_and_a_stopped_one_gives_it_up() {
    let llm = load(&[]);
    let prompt = Prompt::from("The fox");
    let mut answer = llm.generate(&prompt, &SamplingParams { max_tokens: Some(50), ..endless() }).unwrap();
    llm.engine().drain();
    assert!(matches!(llm.generate(&prompt, &endless()), Err(EngineError::Submit(SubmitError::ShuttingDown))));
    let mut tokens = 0;
    while let Some(part) = answer.next().await {
        part.unwrap();
        tokens += 1;
    }
    assert_eq!(tokens, 50);

    let llm = load(&[]);
    let mut answer = llm.generate(&prompt, &endless()).unwrap();
    answer.next().await.unwrap().unwrap();
    llm.engine().stop();
    let end = loop {
        if let Some(Err(error)) = answer.next().await {
            break error;
        }
    };
    assert!(end.to_string().contains("shuts down"), "{end}");
    assert!(matches!(llm.generate(&prompt, &endless()), Err(EngineError::Submit(SubmitError::ShuttingDown))));
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_is_refused_with_the_words_that_clients_look_for() {
    let llm = load(&[("model.max_model_len", "16")]);
    let tokens = |count: usize| Prompt::Tokens(vec![5; count]);
    for (count, fits) in [(15, true), (16, false), (17, false)] {
        match llm.generate(&tokens(count), &endless()) {
            Ok(mut answer) => {
                assert!(fits, "{count}");
                let part = answer.next().await.unwrap().unwrap();
                assert_eq!(part.finish_reason, Some(FinishReason::Length), "one token fits");
            }
            Err(error) => {
                assert!(!fits, "{count}: {error}");
                assert!(error.to_string().contains("maximum context length"), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn the_prefix_cache_can_be_emptied_while_nothing_runs() {
    let llm = load(&[]);
    let prompt = Prompt::Tokens((0..64).collect());
    let params = SamplingParams { max_tokens: Some(1), ..endless() };
    let cached = async || {
        let part = llm.generate(&prompt, &params).unwrap().next().await.unwrap().unwrap();
        settle(&llm).await;
        part.prompt.unwrap().cached_tokens
    };
    assert_eq!((cached().await, cached().await), (0, 48));
    assert!(llm.engine().reset_prefix_cache().await);
    assert_eq!(cached().await, 0);
}

#[tokio::test]
async fn an_idle_engine_takes_more_answers_to_one_prompt_than_may_wait_and_all_or_none() {
    let llm = load(&[("scheduler.max_num_queued_reqs", "2"), ("scheduler.max_num_seqs", "1")]);
    let params = SamplingParams { n: 4, temperature: 1.0, max_tokens: Some(30), ..endless() };
    let mut answers = llm.generate(&Prompt::from("The fox"), &params).unwrap();
    answers.next().await.unwrap().unwrap();
    assert_eq!(llm.engine().status().waiting().0, 3);
    assert!(matches!(
        llm.generate(&Prompt::from("x"), &params),
        Err(EngineError::Submit(SubmitError::Overloaded { .. }))
    ));
    assert_eq!(llm.engine().status().waiting().0, 3, "none of what was refused waits");
    let mut finished = 0;
    while let Some(part) = answers.next().await {
        finished += usize::from(part.unwrap().finish_reason.is_some());
    }
    assert_eq!(finished, 4);
}

#[tokio::test]
async fn a_request_that_allows_no_token_fails_alone() {
    let llm = load(&[]);
    let prompt = Prompt::from("The fox");
    let mut other = llm.generate(&prompt, &SamplingParams { max_tokens: Some(100), ..endless() }).unwrap();
    let end = llm.text().checkpoint().eos_token_ids().to_vec();
    let params = SamplingParams { allowed_token_ids: Some(end), min_tokens: 1, ..SamplingParams::greedy() };
    let failure = llm.generate(&prompt, &params).unwrap().next().await.unwrap().unwrap_err();
    assert!(matches!(&failure, EngineError::Failure(RequestFailure::Masked(_))), "{failure}");
    let mut tokens = 0;
    while let Some(part) = other.next().await {
        part.unwrap();
        tokens += 1;
    }
    assert_eq!(tokens, 100);
    settle(&llm).await;
}

#[test]
fn what_a_failed_step_did_not_compute_is_not_found_later() {
    let builder = on_the_cpu(checkpoint("tiny-chat")).optimization_level(OptimizationLevel::O2);
    let settings =
        [("require_graphs", "true"), ("compilation.cudagraph_capture_sizes", "1,2,4"), ("cache.block_size", "4")];
    let set = |builder: allotrope_engine::LlmBuilder, (path, value): (&str, &str)| builder.set(path, value).unwrap();
    let mut llm = settings.into_iter().fold(builder, set).build().unwrap();
    let prompt = Prompt::Tokens((10..30).collect());
    for attempt in 0..2 {
        let error = llm.generate(std::slice::from_ref(&prompt), &endless()).unwrap_err();
        assert!(error.to_string().contains("can't run as a recording"), "attempt {attempt}: {error}");
    }
}

#[test]
fn probabilities_of_prompts_are_those_of_the_logits_whatever_the_chunks() {
    let tokens: Vec<u32> = (40..75).collect();
    let ask = |max_num_seqs: &str, budget: &str| {
        let builder = on_the_cpu(checkpoint("tiny-chat")).set("scheduler.max_num_seqs", max_num_seqs).unwrap();
        let mut llm = builder.set("scheduler.max_num_batched_tokens", budget).unwrap().build().unwrap();
        let params = SamplingParams {
            prompt_logprobs: Some(LogprobCount::Top(3)),
            logprobs: Some(LogprobCount::Top(0)),
            max_tokens: Some(4),
            ..endless()
        };
        // The second time, the prefix cache has the prompt, and must not be asked.
        let prompt = Prompt::Tokens(tokens.clone());
        llm.generate(std::slice::from_ref(&prompt), &SamplingParams { max_tokens: Some(1), ..endless() }).unwrap();
        llm.generate(std::slice::from_ref(&prompt), &params).unwrap().remove(0)
    };
    let whole = ask("64", "64");
    assert_eq!(ask("2", "5").prompt_logprobs, whole.prompt_logprobs);
    let mut llm = on_the_cpu(checkpoint("tiny-chat")).build().unwrap();
    let logits = llm.logits(&tokens, 1).unwrap();
    assert_eq!(whole.prompt_logprobs.len(), tokens.len());
    assert!(whole.prompt_logprobs[0].is_none());
    for (position, found) in whole.prompt_logprobs.iter().enumerate().skip(1) {
        let row = &logits.prompt[(position - 1) * logits.vocabulary..][..logits.vocabulary];
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = row.iter().map(|logit| f64::from(logit - largest).exp()).sum();
        let found = found.as_ref().unwrap();
        let token = tokens[position];
        let expected = f64::from(row[token as usize] - largest) - total.ln();
        assert_eq!(found.token, token);
        assert!((f64::from(found.logprob) - expected).abs() <= 1e-4, "{position}: {} and {expected}", found.logprob);
        assert_eq!(found.rank as usize, row.iter().filter(|logit| **logit >= row[token as usize]).count());
        assert_eq!(found.top.len(), 3);
    }
}
