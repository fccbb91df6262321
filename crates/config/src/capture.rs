//! The batch sizes at which steps are recorded.

/// The largest size that is recorded if nobody gives a larger maximum.
pub(crate) const CEILING: usize = 512;

/// The most tokens that one step may be said to have; bounds the number of sizes.
pub(crate) const MOST_TOKENS: usize = 1 << 20;

/// Why no capture sizes can be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureSizesError {
    /// The list of sizes is empty, or nothing of it is within the token budget.
    #[error("no size is left: give at least one from 1 to {budget} (max_num_batched_tokens)")]
    NoSize {
        /// The token budget.
        budget: usize,
    },
    /// The maximum is 0.
    #[error("the largest size must be at least 1")]
    ZeroMaximum,
    /// Both a list and a maximum were given, and the largest of the list is another number.
    #[error("the largest of the sizes is {largest}, but the maximum is {maximum}: give one of the two")]
    MaximumContradictsSizes {
        /// The largest size of the list within the token budget.
        largest: usize,
        /// The maximum that was given.
        maximum: usize,
    },
    /// A number is beyond 1048576, the most tokens of a step.
    #[error("{0} is too large: at most {MOST_TOKENS} tokens make a step")]
    TooLarge(usize),
}

/// The capture sizes, in ascending order: 1, 2, 4, then steps of 8 below 256, then steps of 16, and `max_num_seqs` itself.
///
/// The largest is bounded by twice `max_num_seqs`, by 512 and by `max_num_batched_tokens`; `user_max` takes the place
/// of the first two. `user_sizes` takes the place of the whole list, less what is above `max_num_batched_tokens`.
/// The algorithm is that of vLLM 0.33 (`VllmConfig._set_cudagraph_sizes`) without speculation.
///
/// # Errors
///
/// If no size is left, if `user_max` is 0, or if `user_max` is not the largest of `user_sizes`.
pub fn capture_sizes(
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
    user_max: Option<usize>,
    user_sizes: Option<&[usize]>,
) -> Result<Vec<usize>, CaptureSizesError> {
    let wanted = user_max.unwrap_or_else(|| max_num_seqs.saturating_mul(2).min(CEILING));
    let largest = wanted.min(max_num_batched_tokens);
    if largest == 0 {
        return Err(CaptureSizesError::ZeroMaximum);
    }
    if largest > MOST_TOKENS {
        return Err(CaptureSizesError::TooLarge(largest));
    }
    let mut sizes: Vec<usize> = match user_sizes {
        Some(given) => given.iter().copied().filter(|size| (1..=max_num_batched_tokens).contains(size)).collect(),
        None => {
            let widest_decode = (user_max.is_none() && max_num_seqs <= wanted).then_some(max_num_seqs);
            grid(largest)
                .chain((max_num_batched_tokens <= largest).then_some(max_num_batched_tokens))
                .chain(widest_decode.filter(|size| *size <= max_num_batched_tokens))
                .collect()
        }
    };
    sizes.sort_unstable();
    sizes.dedup();
    let Some(last) = sizes.last().copied() else {
        return Err(CaptureSizesError::NoSize { budget: max_num_batched_tokens });
    };
    match (user_sizes, user_max) {
        (Some(_), Some(maximum)) if maximum != last => {
            Err(CaptureSizesError::MaximumContradictsSizes { largest: last, maximum })
        }
        _ => Ok(sizes),
    }
}

/// 1, 2, 4, 8, 16, 24, …, 248, 256, 272, … up to `largest`.
fn grid(largest: usize) -> impl Iterator<Item = usize> {
    [1, 2, 4]
        .into_iter()
        .chain((8..256).step_by(8))
        .chain((256..=largest).step_by(16))
        .filter(move |size| *size <= largest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at a surprise")]

    use super::*;

    fn sizes(max_num_seqs: usize, user_max: Option<usize>, tokens: usize) -> Vec<usize> {
        capture_sizes(max_num_seqs, tokens, user_max, None).unwrap()
    }

    #[test]
    fn lists_of_the_reference() {
        for (max_num_seqs, expected) in [
            (1, vec![1, 2]),
            (2, vec![1, 2, 4]),
            (3, vec![1, 2, 3, 4]),
            (4, vec![1, 2, 4, 8]),
            (5, vec![1, 2, 4, 5, 8]),
            (8, vec![1, 2, 4, 8, 16]),
            (16, vec![1, 2, 4, 8, 16, 24, 32]),
            (33, vec![1, 2, 4, 8, 16, 24, 32, 33, 40, 48, 56, 64]),
        ] {
            assert_eq!(sizes(max_num_seqs, None, 16384), expected, "max_num_seqs {max_num_seqs}");
        }
    }

    #[test]
    fn counts_and_maxima_of_the_reference() {
        for (max_num_seqs, user_max, tokens, count, largest, contains) in [
            (64, None, 16384, 19, 128, 64),
            (100, None, 16384, 29, 200, 100),
            (101, None, 16384, 29, 200, 101),
            (128, None, 16384, 35, 256, 128),
            (128, None, 2048, 35, 256, 128),
            (256, None, 16384, 51, 512, 256),
            (512, None, 16384, 51, 512, 512),
            (1024, None, 16384, 51, 512, 512),
            (257, None, 16384, 52, 512, 257),
            (256, Some(257), 16384, 35, 256, 256),
            (256, Some(7), 16384, 3, 4, 4),
            (256, Some(2048), 16384, 147, 2048, 2048),
            (256, Some(2048), 257, 36, 257, 257),
        ] {
            let given = sizes(max_num_seqs, user_max, tokens);
            let case = format!("max_num_seqs {max_num_seqs}, maximum {user_max:?}, tokens {tokens}");
            assert_eq!(given.len(), count, "{case}: {given:?}");
            assert_eq!(given.last(), Some(&largest), "{case}");
            assert!(given.contains(&contains), "{case}");
            assert!(given.is_sorted_by(|a, b| a < b), "{case}");
        }
    }

    #[test]
    fn the_list_of_a_person_is_sorted_and_cut_at_the_budget() {
        let given = |sizes: &[usize], tokens| capture_sizes(256, tokens, None, Some(sizes));
        assert_eq!(given(&[8, 4, 4, 2], 512), Ok(vec![2, 4, 8]));
        assert_eq!(given(&[1, 2, 4, 15], 512), Ok(vec![1, 2, 4, 15]));
        assert_eq!(given(&[1, 2, 4, 15], 8), Ok(vec![1, 2, 4]));
        assert_eq!(given(&[], 8), Err(CaptureSizesError::NoSize { budget: 8 }));
        assert_eq!(given(&[9], 8), Err(CaptureSizesError::NoSize { budget: 8 }));
    }

    #[test]
    fn contradictions_are_refused() {
        assert_eq!(capture_sizes(256, 512, Some(0), None), Err(CaptureSizesError::ZeroMaximum));
        assert_eq!(
            capture_sizes(256, 512, Some(8), Some(&[1, 2, 4])),
            Err(CaptureSizesError::MaximumContradictsSizes { largest: 4, maximum: 8 })
        );
        assert_eq!(capture_sizes(256, 512, Some(4), Some(&[1, 2, 4])), Ok(vec![1, 2, 4]));
        assert_eq!(
            capture_sizes(256, usize::MAX, Some(usize::MAX), None),
            Err(CaptureSizesError::TooLarge(usize::MAX))
        );
    }
}
