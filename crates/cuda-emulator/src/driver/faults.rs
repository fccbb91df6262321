//! Errors on demand: the option `ALLOTROPE_EMULATOR_FAIL` names calls that are to fail, so that programs can be tested
//! for what they do then.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::state;
use super::status::Status;

/// A call that is to fail.
struct Planned {
    function: String,
    /// Which call of the function it is, from one.
    number: u64,
    status: Status,
    seen: AtomicU64,
}

static PLANNED: LazyLock<Vec<Planned>> = LazyLock::new(|| {
    let text = std::env::var("ALLOTROPE_EMULATOR_FAIL").unwrap_or_default();
    text.split(',').filter(|part| !part.trim().is_empty()).filter_map(parse).collect()
});

fn parse(text: &str) -> Option<Planned> {
    let parts: Vec<&str> = text.trim().split(':').collect();
    let planned = match parts.as_slice() {
        [function, number, code] => number.parse().ok().zip(code.parse().ok()).map(|(number, code)| Planned {
            function: (*function).to_owned(),
            number,
            status: Status(code),
            seen: AtomicU64::new(0),
        }),
        _ => None,
    };
    if planned.is_none() {
        eprintln!("ALLOTROPE_EMULATOR_FAIL: `{text}` is not like cuMemAlloc_v2:3:2 (function, which call of it, code)");
    }
    planned
}

/// The error that this call of a function is to have. One of a kernel stays, as if a kernel had failed.
pub(super) fn planned(function: &str) -> Option<Status> {
    let mut found = None;
    for planned in PLANNED.iter().filter(|planned| planned.function == function) {
        if planned.seen.fetch_add(1, Ordering::Relaxed) + 1 == planned.number {
            found = Some(planned.status);
        }
    }
    let status = found?;
    if [Status::ILLEGAL_ADDRESS, Status::MISALIGNED_ADDRESS, Status::LAUNCH_FAILED].contains(&status) {
        state::driver().lock().error.get_or_insert(status);
    }
    Some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_parsed() {
        let planned = parse(" cuMemAlloc_v2:3:2").map(|planned| (planned.function, planned.number, planned.status));
        assert_eq!(planned, Some(("cuMemAlloc_v2".to_owned(), 3, Status::OUT_OF_MEMORY)));
        assert!(
            ["cuMemAlloc_v2", "cuMemAlloc_v2:x:2", "cuMemAlloc_v2:1:2:3"].into_iter().all(|text| parse(text).is_none())
        );
    }
}
