//! Tests of the engine on its thread: what ends it, and who hears of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;

use allotrope_runtime::{DeviceError, ExecutorError};

use super::*;
use crate::client::{EngineClient, QueueLimits, SubmitError, TokenReceiver, channel};
use crate::llm::Llm;
use crate::request::TokenRequest;
use crate::sampling::SamplingParams;

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    Panic,
    DeviceLost,
}

impl EngineThread {
    pub(super) fn go_wrong(&mut self) -> Result<(), EngineError> {
        let steps = self.inbox.status().steps();
        match self.planted {
            Some((step, Fault::Panic)) if step == steps => panic!("planted"),
            Some((step, Fault::DeviceLost)) if step == steps => {
                let lost = DeviceError::Environment { device: "test".into(), message: "the device is lost".into() };
                Err(ExecutorError::Device(lost).into())
            }
            _ => Ok(()),
        }
    }
}

/// An engine of tiny-chat that fails in a step.
fn engine(planted: Option<(u64, Fault)>) -> (EngineClient, std::thread::JoinHandle<()>) {
    let (client, inbox) = channel(QueueLimits::UNLIMITED);
    let serve = move || {
        let mut thread = EngineThread::new(loaded(), inbox);
        thread.planted = planted;
        thread.run();
    };
    (client, std::thread::spawn(serve))
}

fn loaded() -> Loaded {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/tiny-chat");
    let builder = Llm::builder(folder).set("device", "cpu").unwrap().set("scheduler.max_num_seqs", "2").unwrap();
    builder.load().unwrap()
}

fn request(max_tokens: usize) -> TokenRequest {
    TokenRequest {
        prompt: vec![5, 6, 7].into(),
        params: SamplingParams::greedy().into(),
        seed: 0,
        max_tokens,
        end_tokens: [].into(),
        bad_words: [].into(),
        grammar: None,
        priority: 0,
        cache_salt: None,
    }
}

/// Tokens until the end, and what the end was.
fn end(mut receiver: TokenReceiver) -> (usize, Option<RequestFailure>) {
    let mut tokens = 0;
    while let Some(event) = receiver.wait_next() {
        match event {
            Ok(_) => tokens += 1,
            Err(failure) => return (tokens, Some(failure)),
        }
    }
    (tokens, None)
}

#[test]
fn whatever_ends_the_engine_every_request_hears_of_it_and_no_more_are_taken() {
    for (fault, words) in [(Fault::Panic, "planted"), (Fault::DeviceLost, "the device is lost")] {
        let (client, thread) = engine(Some((5, fault)));
        // Two run and one waits.
        let receivers: Vec<_> = (0..3).map(|_| client.submit(request(100)).unwrap()).collect();
        for receiver in receivers {
            let (tokens, failure) = end(receiver);
            assert!(tokens <= 5);
            assert!(
                matches!(&failure, Some(RequestFailure::EngineDead(reason)) if reason.contains(words)),
                "{failure:?}"
            );
        }
        thread.join().unwrap();
        assert!(matches!(client.status().state(), EngineState::Dead(reason) if reason.contains(words)));
        assert!(matches!(client.submit(request(1)), Err(SubmitError::EngineDead(_))));
        assert_eq!((client.status().waiting(), client.status().running()), ((0, 0), 0));
    }
}

#[test]
fn whose_reader_is_gone_is_in_no_further_step_whether_it_runs_or_waits() {
    let (client, inbox) = channel(QueueLimits::UNLIMITED);
    let mut thread = EngineThread::new(loaded(), inbox);
    let mut receivers: Vec<_> = (0..4).map(|_| client.submit(request(100)).unwrap()).collect();
    while let Ok(Some(command)) = thread.inbox.try_next() {
        thread.obey(command);
    }
    thread.step().unwrap();
    assert_eq!((client.status().running(), client.status().waiting().0), (2, 2));
    // One that runs and one that waits.
    drop(receivers.remove(3));
    drop(receivers.remove(0));
    thread.drop_cancelled().unwrap();
    assert_eq!((thread.loaded.core.running(), client.status().waiting().0), (1, 1));
    thread.step().unwrap();
    assert_eq!(
        (client.status().running(), client.status().waiting()),
        (2, (0, 0)),
        "the other one that waited runs now"
    );
    drop(receivers);
    thread.drop_cancelled().unwrap();
    assert_eq!((thread.loaded.core.blocks().0, thread.replies.len()), (0, 0));
}

#[test]
fn the_engine_ends_when_its_last_client_is_gone_and_what_it_has_is_finished() {
    let (client, thread) = engine(None);
    let receiver = client.submit(request(20)).unwrap();
    drop(client);
    assert_eq!(end(receiver), (20, None));
    thread.join().unwrap();
}

#[test]
fn a_reader_that_never_reads_holds_nobody_up() {
    let (client, thread) = engine(None);
    let unread = client.submit(request(300)).unwrap();
    assert_eq!(end(client.submit(request(300)).unwrap()), (300, None));
    assert_eq!(end(unread), (300, None), "nothing of it is lost");
    drop(client);
    thread.join().unwrap();
}
