//! Names of requests, answers and calls, unique in this process and hard to collide with those of others.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The id of an answer of `/v1/chat/completions`.
pub fn chat_completion_id() -> String {
    identifier("chatcmpl-")
}

/// The id of an answer of `/v1/completions`.
pub fn completion_id() -> String {
    identifier("cmpl-")
}

/// The id of a tool call.
pub fn tool_call_id() -> String {
    identifier("call_")
}

/// The name of a request that brought none.
pub fn request_id() -> String {
    identifier("")
}

/// Now, in seconds since 1970, as the field `created` has it.
pub fn created_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |duration| duration.as_secs())
}

/// `prefix` with 128 bits in hexadecimal: a counter, hashed with two keys that are random in each process.
fn identifier(prefix: &str) -> String {
    static KEYS: OnceLock<[RandomState; 2]> = OnceLock::new();
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let [first, second] = KEYS.get_or_init(|| [RandomState::new(), RandomState::new()]);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{:016x}{:016x}", first.hash_one(count), second.hash_one(count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn identifiers_are_unique_and_have_their_prefix() {
        let all: HashSet<String> = (0..10_000).map(|_| tool_call_id()).collect();
        assert_eq!(all.len(), 10_000);
        assert!(all.iter().all(|id| id.starts_with("call_") && id.len() == 37));
        assert!(chat_completion_id().starts_with("chatcmpl-") && completion_id().starts_with("cmpl-"));
        assert!(created_now() > 1_700_000_000);
    }
}
