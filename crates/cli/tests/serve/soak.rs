//! Many requests at once, some of which are dropped on the way: none is lost, none is wrong, and nothing is left behind.
//!
//! `cargo xtask soak` runs ten thousand; `ALLOTROPE_SOAK_REQUESTS` says how many.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use futures_util::StreamExt;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::process::{Server, settle, text};

const CONCURRENCY: usize = 64;
const PROMPTS: usize = 48;

/// What became of the requests.
#[derive(Default)]
struct Tally {
    answered: AtomicUsize,
    cancelled: AtomicUsize,
}

fn body(prompt: usize, stream: bool) -> Value {
    // Half of the prompts begin alike, so that the prefix cache has something to share.
    let beginning = if prompt.is_multiple_of(2) {
        "Once upon a time there was a fox named Ida who lived in the woods. "
    } else {
        ""
    };
    let text = format!("{beginning}What is {} + {}?", prompt % 10, prompt / 10);
    json!({
        "prompt": text, "max_tokens": 8 + prompt, "temperature": if prompt.is_multiple_of(3) { 1.0 } else { 0.0 }, "seed": prompt,
        "ignore_eos": true, "stream": stream,
    })
}

async fn answer(client: &reqwest::Client, url: &str, prompt: usize) -> String {
    let answer = client.post(format!("{url}/v1/completions")).json(&body(prompt, false)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    text(&answer.json().await.unwrap())
}

/// Reads a stream to its end, or drops it after so many bytes.
async fn stream(client: &reqwest::Client, url: &str, prompt: usize, limit: Option<usize>) -> Option<String> {
    let answer = client.post(format!("{url}/v1/completions")).json(&body(prompt, true)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut parts = answer.bytes_stream();
    let mut bytes = Vec::new();
    while let Some(part) = parts.next().await {
        bytes.extend_from_slice(&part.unwrap());
        if limit.is_some_and(|limit| bytes.len() >= limit) {
            return None;
        }
    }
    let events = String::from_utf8(bytes).unwrap();
    let mut data = events.lines().filter_map(|line| line.strip_prefix("data: ")).collect::<Vec<_>>();
    assert_eq!(data.pop(), Some("[DONE]"), "{events}");
    Some(data.iter().map(|event| text(&serde_json::from_str(event).unwrap())).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_wrong_or_left_behind() {
    let requests = std::env::var("ALLOTROPE_SOAK_REQUESTS").ok().map_or(400, |count| count.parse().unwrap());
    let server = Server::start(&["--max-num-seqs", "32", "-O2"]);
    let url = Arc::new(server.url.clone());
    let client = reqwest::Client::new();
    let mut expected = Vec::new();
    for prompt in 0..PROMPTS {
        expected.push(answer(&client, &url, prompt).await);
    }
    let expected = Arc::new(expected);
    let seed = RandomState::new().hash_one(0);
    eprintln!("{requests} requests, seed {seed}");
    let mut baseline = None;
    // The first part warms allocators and caches up; what is measured after it is compared with what is left at the end.
    for part in [requests / 4, requests - requests / 4] {
        let (next, tally) = (Arc::new(AtomicUsize::new(0)), Arc::new(Tally::default()));
        let workers = (0..CONCURRENCY).map(|worker| {
            let (url, client, expected) = (Arc::clone(&url), client.clone(), Arc::clone(&expected));
            let (next, tally) = (Arc::clone(&next), Arc::clone(&tally));
            let mut random = ChaCha8Rng::seed_from_u64(seed.wrapping_add((part * CONCURRENCY + worker) as u64));
            tokio::spawn(async move {
                while next.fetch_add(1, Relaxed) < part {
                    let prompt = (random.next_u64() % PROMPTS as u64) as usize;
                    let cancel = random.next_u64().is_multiple_of(3).then(|| (random.next_u64() % 4000) as usize);
                    let found = match random.next_u64() % 4 {
                        0 => Some(answer(&client, &url, prompt).await),
                        _ => stream(&client, &url, prompt, cancel).await,
                    };
                    match found {
                        Some(found) => {
                            assert_eq!(found, expected[prompt], "prompt {prompt}, seed {seed}");
                            tally.answered.fetch_add(1, Relaxed);
                        }
                        None => drop(tally.cancelled.fetch_add(1, Relaxed)),
                    }
                }
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            worker.await.unwrap();
        }
        let (answered, cancelled) = (tally.answered.load(Relaxed), tally.cancelled.load(Relaxed));
        assert_eq!(answered + cancelled, part, "requests were lost");
        settle(&url).await;
        let left = (server.memory("VmRSS"), server.open_files());
        eprintln!("{answered} answered rightly, {cancelled} cancelled; {} KiB resident, {} files open", left.0, left.1);
        let (memory, files) = *baseline.get_or_insert(left);
        assert!(left.0 <= memory + memory / 5 + 16 * 1024, "memory grows: {memory} KiB, then {} KiB", left.0);
        assert!(left.1 <= files + CONCURRENCY, "files stay open: {files}, then {}", left.1);
    }
}
