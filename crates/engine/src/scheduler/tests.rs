//! Tests of the scheduler's rules, one by one and under random traffic.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

fn limits(max_num_seqs: usize, budget: usize) -> SchedulerLimits {
    SchedulerLimits {
        max_num_seqs,
        max_num_batched_tokens: budget,
        logit_rows: max_num_seqs,
        block_size: 4,
        prefix_caching: false,
        chunked_prefill: true,
        long_prefill: 0,
        by_priority: false,
    }
}

fn scheduler(max_num_seqs: usize, budget: usize, blocks: u32) -> Scheduler {
    Scheduler::new(limits(max_num_seqs, budget), BlockPool::new(blocks))
}

fn add(scheduler: &mut Scheduler, id: u64, prompt: Vec<u32>) {
    scheduler.add(SequenceId(id), NewSequence { prompt, ..NewSequence::default() });
}

/// Runs a step: whoever has no tokens left gets another one.
fn run(scheduler: &mut Scheduler) -> Vec<(u64, usize)> {
    let step = scheduler.schedule().unwrap();
    let named = step.iter().map(|s| (scheduler.running()[s.place].id.0, s.tokens)).collect();
    scheduler.advance(&step);
    let complete = |s: &&Scheduled| scheduler.running[s.place].remaining() == 0;
    for place in step.iter().filter(complete).map(|s| s.place).collect::<Vec<_>>() {
        scheduler.append(place, 0);
    }
    named
}

fn remove(scheduler: &mut Scheduler, id: u64) {
    scheduler.remove(SequenceId(id), 0).unwrap();
}

#[test]
fn long_prompts_are_prefilled_in_chunks_beside_running_ones() {
    let mut scheduler = scheduler(4, 8, 100);
    add(&mut scheduler, 1, vec![0; 3]);
    add(&mut scheduler, 2, vec![0; 10]);
    assert_eq!(run(&mut scheduler), [(1, 3), (2, 5)]);
    assert_eq!(run(&mut scheduler), [(1, 1), (2, 5)]);
    assert_eq!(run(&mut scheduler), [(1, 1), (2, 1)]);
}

#[test]
fn no_more_sequences_run_than_allowed() {
    let mut scheduler = scheduler(2, 100, 100);
    (0..3).for_each(|id| add(&mut scheduler, id, vec![0; 2]));
    assert_eq!(run(&mut scheduler), [(0, 2), (1, 2)]);
    remove(&mut scheduler, 0);
    assert_eq!(run(&mut scheduler), [(1, 1), (2, 2)]);
}

#[test]
fn a_long_prompt_leaves_room_for_others_where_that_is_asked_for() {
    let mut scheduler = Scheduler::new(SchedulerLimits { long_prefill: 3, ..limits(4, 8) }, BlockPool::new(100));
    add(&mut scheduler, 1, vec![0; 20]);
    assert_eq!(run(&mut scheduler), [(1, 8)], "alone it may have all");
    add(&mut scheduler, 2, vec![0; 5]);
    assert_eq!(run(&mut scheduler), [(1, 3), (2, 3)]);
}

#[test]
fn without_chunks_a_prompt_waits_until_it_fits_whole() {
    let mut scheduler = Scheduler::new(SchedulerLimits { chunked_prefill: false, ..limits(4, 8) }, BlockPool::new(100));
    add(&mut scheduler, 1, vec![0; 3]);
    add(&mut scheduler, 2, vec![0; 8]);
    add(&mut scheduler, 3, vec![0; 1]);
    assert_eq!(run(&mut scheduler), [(1, 3)], "the third does not overtake the second");
    remove(&mut scheduler, 1);
    assert_eq!(run(&mut scheduler), [(2, 8)]);
    assert_eq!(run(&mut scheduler), [(2, 1), (3, 1)]);
}

#[test]
fn a_prompt_is_admitted_only_with_blocks_for_all_of_it_and_none_overtakes_it() {
    let mut scheduler = scheduler(4, 4, 4);
    add(&mut scheduler, 1, vec![0; 4]);
    add(&mut scheduler, 2, vec![0; 16]);
    add(&mut scheduler, 3, vec![0; 1]);
    assert_eq!(run(&mut scheduler), [(1, 4)]);
    assert_eq!(run(&mut scheduler), [(1, 1)]);
    remove(&mut scheduler, 1);
    assert_eq!(run(&mut scheduler), [(2, 4)]);
}

#[test]
fn the_last_to_come_gives_way_and_is_computed_again() {
    let mut scheduler = scheduler(4, 100, 4);
    add(&mut scheduler, 1, vec![0; 8]);
    add(&mut scheduler, 2, vec![0; 8]);
    assert_eq!(run(&mut scheduler), [(1, 8), (2, 8)]);
    // Both need a fifth and sixth block; there are four.
    assert_eq!(run(&mut scheduler), [(1, 1)]);
    assert_eq!(scheduler.counts().preemptions, 1);
    remove(&mut scheduler, 1);
    assert_eq!(run(&mut scheduler), [(2, 9)]);
}

#[test]
fn the_urgent_are_admitted_first_and_the_others_give_way() {
    let mut scheduler = Scheduler::new(SchedulerLimits { by_priority: true, ..limits(2, 100) }, BlockPool::new(4));
    let mut add = |id, priority, length| {
        let new = NewSequence { prompt: vec![0; length], priority, ..NewSequence::default() };
        scheduler.add(SequenceId(id), new);
    };
    add(1, 5, 8);
    add(2, 0, 4);
    add(3, -1, 8);
    assert_eq!(run(&mut scheduler), [(3, 8), (2, 4)]);
    assert_eq!(run(&mut scheduler), [(3, 1)], "the second had to give its block to the first");
    scheduler.remove(SequenceId(2), 0).unwrap();
    scheduler.remove(SequenceId(3), -1).unwrap();
    assert_eq!(run(&mut scheduler), [(1, 8)]);
}

#[test]
fn a_victim_that_was_scheduled_before_gives_its_tokens_back() {
    let mut scheduler = Scheduler::new(SchedulerLimits { by_priority: true, ..limits(3, 5) }, BlockPool::new(3));
    let add = |scheduler: &mut Scheduler, id, priority| {
        scheduler.add(SequenceId(id), NewSequence { prompt: vec![0; 4], priority, ..NewSequence::default() });
    };
    add(&mut scheduler, 1, 9);
    assert_eq!(run(&mut scheduler), [(1, 4)]);
    add(&mut scheduler, 2, 0);
    assert_eq!(run(&mut scheduler), [(1, 1), (2, 4)], "the first takes the last block");
    // The second needs a block now: the first, though scheduled before it, gives way.
    assert_eq!(run(&mut scheduler), [(2, 1)]);
    assert_eq!(scheduler.counts().preemptions, 1);
}

#[test]
fn a_known_beginning_is_not_run_again_but_for_the_last_token() {
    let mut scheduler = Scheduler::new(SchedulerLimits { prefix_caching: true, ..limits(4, 100) }, BlockPool::new(20));
    let prompt: Vec<u32> = (0..12).collect();
    add(&mut scheduler, 1, prompt.clone());
    add(&mut scheduler, 2, prompt.clone());
    assert_eq!(run(&mut scheduler), [(1, 12), (2, 4)], "what a step writes, the same step may read");
    add(&mut scheduler, 3, prompt[..11].to_vec());
    let salted = NewSequence { prompt: prompt.clone(), salt: Some("x".into()), ..NewSequence::default() };
    scheduler.add(SequenceId(4), salted);
    assert_eq!(run(&mut scheduler), [(1, 1), (2, 1), (3, 3), (4, 12)]);
    let counts = scheduler.counts();
    assert_eq!((counts.cache_queries, counts.cache_hits), (12 + 12 + 11 + 12, 8 + 8));
    assert_eq!(scheduler.blocks(), (4 + 2 + 1 + 3, 20));
}

#[test]
fn what_a_victim_was_to_compute_is_not_found_later() {
    let limits = SchedulerLimits { prefix_caching: true, by_priority: true, long_prefill: 4, ..limits(3, 8) };
    let mut scheduler = Scheduler::new(limits, BlockPool::new(6));
    let add = |scheduler: &mut Scheduler, id, priority, prompt| {
        scheduler.add(SequenceId(id), NewSequence { prompt, priority, ..NewSequence::default() });
    };
    add(&mut scheduler, 1, 9, vec![0; 20]);
    assert_eq!(run(&mut scheduler), [(1, 8)]);
    add(&mut scheduler, 2, 0, vec![1; 4]);
    assert_eq!(run(&mut scheduler), [(1, 4), (2, 4)]);
    // The first would fill its fourth block now, but the second, which is more urgent, needs one and takes the first's fifth.
    assert_eq!(run(&mut scheduler), [(2, 1)]);
    scheduler.remove(SequenceId(2), 0).unwrap();
    add(&mut scheduler, 3, 0, vec![0; 20]);
    assert_eq!(run(&mut scheduler)[0], (3, 8));
    assert_eq!(scheduler.counts().cache_hits, 12, "three blocks were computed");
}

#[test]
fn a_prompt_whose_probabilities_are_wanted_is_run_whole_within_the_rows_of_logits() {
    let limits = SchedulerLimits { prefix_caching: true, logit_rows: 4, ..limits(4, 100) };
    let mut scheduler = Scheduler::new(limits, BlockPool::new(20));
    let wanted = NewSequence { prompt: (0..8).collect(), wants_prompt_rows: true, ..NewSequence::default() };
    add(&mut scheduler, 1, (0..8).collect());
    scheduler.add(SequenceId(2), wanted);
    add(&mut scheduler, 3, vec![1]);
    assert_eq!(run(&mut scheduler), [(1, 8), (2, 2), (3, 1)], "a row is left for the third");
    assert_eq!(run(&mut scheduler), [(1, 1), (2, 2), (3, 1)]);
    assert_eq!(run(&mut scheduler), [(1, 1), (2, 2), (3, 1)]);
    assert_eq!(run(&mut scheduler), [(1, 1), (2, 2), (3, 1)]);
    assert_eq!(run(&mut scheduler), [(1, 1), (2, 1), (3, 1)]);
}

/// One request of a random run.
#[derive(Debug, Clone)]
struct Arrival {
    step: usize,
    prompt: Vec<u32>,
    answer: usize,
    priority: i64,
    salted: bool,
    wants_prompt_rows: bool,
    /// Aborted in so many steps, if it has not ended by then.
    aborted: Option<usize>,
}

const BLOCKS: u32 = 8;

fn arrival() -> impl Strategy<Value = Arrival> {
    // Nearly all tokens are the same, so that beginnings are shared.
    let prompt = proptest::collection::vec(prop_oneof![9 => Just(0u32), 1 => Just(1)], 1..20);
    let abort = prop_oneof![3 => Just(None), 1 => (0usize..30).prop_map(Some)];
    (0usize..40, prompt, 1usize..12, -2i64..3, proptest::bool::weighted(0.1), proptest::bool::weighted(0.1), abort)
        .prop_map(|(step, prompt, answer, priority, salted, wants_prompt_rows, aborted)| Arrival {
            step,
            prompt,
            answer,
            priority,
            salted,
            wants_prompt_rows,
            aborted,
        })
}

/// Free and held blocks are all; a block is in two tables only where both have the same tokens up to its end.
fn check_blocks(scheduler: &Scheduler, salts: &[bool]) -> Result<(), TestCaseError> {
    let size = scheduler.limits.block_size;
    let mut holders: HashMap<u32, (&[u32], bool)> = HashMap::new();
    for sequence in scheduler.running() {
        for (place, block) in sequence.blocks.iter().enumerate() {
            let end = ((place + 1) * size).min(sequence.tokens.len());
            let held = (&sequence.tokens[..end], salts[sequence.id.0 as usize]);
            if let Some(other) = holders.insert(*block, held) {
                prop_assert!(end == (place + 1) * size && other == held, "block {} is in two tables", block);
            }
        }
    }
    let (used, total) = scheduler.blocks();
    prop_assert_eq!((used, total), (holders.len(), BLOCKS as usize));
    Ok(())
}

/// What each slot of the cache holds: the tokens up to its own, and whether they are salted.
type Contents = HashMap<(u32, usize), (Vec<u32>, bool)>;

/// Writes what a step computes, and checks that every sequence finds in its blocks the keys and values of its own tokens: those it
/// computed before, those it found, and those that another writes in this very step.
fn check_contents(
    scheduler: &Scheduler,
    step: &[Scheduled],
    salts: &[bool],
    contents: &mut Contents,
) -> Result<(), TestCaseError> {
    let size = scheduler.limits.block_size;
    let slot = |sequence: &Sequence, position: usize| (sequence.blocks[position / size], position % size);
    let own =
        |sequence: &Sequence, position: usize| (sequence.tokens[..=position].to_vec(), salts[sequence.id.0 as usize]);
    for s in step {
        let sequence = &scheduler.running()[s.place];
        for position in sequence.computed..sequence.computed + s.tokens {
            contents.insert(slot(sequence, position), own(sequence, position));
        }
    }
    for s in step {
        let sequence = &scheduler.running()[s.place];
        for position in 0..sequence.computed + s.tokens {
            let found = contents.get(&slot(sequence, position));
            prop_assert_eq!(found, Some(&own(sequence, position)), "{:?}, position {}", sequence.id, position);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes and goes: the bounds hold, no block leaks or is shared by those that differ, every sequence finds its own keys
    /// and values, all end, and who came first is admitted first.
    #[test]
    fn random_traffic_ends_and_leaves_nothing_behind(
        mut arrivals in proptest::collection::vec(arrival(), 1..20),
        max_num_seqs in 1usize..6,
        budget in 1usize..40,
        more_rows in 0usize..4,
        prefix_caching in proptest::bool::weighted(0.8),
        by_priority in any::<bool>(),
        long_prefill in 0usize..6,
    ) {
        arrivals.sort_by_key(|arrival| arrival.step);
        let limits = SchedulerLimits {
            prefix_caching, by_priority, long_prefill,
            max_num_batched_tokens: budget.max(max_num_seqs),
            logit_rows: max_num_seqs + more_rows,
            chunked_prefill: budget < 32,
            ..limits(max_num_seqs, 0)
        };
        let mut scheduler = Scheduler::new(limits, BlockPool::new(BLOCKS));
        let salts: Vec<bool> = arrivals.iter().map(|arrival| arrival.salted).collect();
        let mut live: HashSet<u64> = HashSet::new();
        let mut admitted: Vec<u64> = Vec::new();
        let mut contents = Contents::new();
        let mut came = 0;
        for now in 0..5000 {
            while came < arrivals.len() && arrivals[came].step <= now {
                let Arrival { prompt, priority, salted, wants_prompt_rows, .. } = arrivals[came].clone();
                let salt = salted.then(|| "salt".into());
                scheduler.add(SequenceId(came as u64), NewSequence { prompt, priority, salt, wants_prompt_rows });
                live.insert(came as u64);
                came += 1;
            }
            let gone = |id: &&u64| arrivals[**id as usize].aborted.is_some_and(|after| now >= arrivals[**id as usize].step + after);
            for id in live.iter().filter(gone).copied().collect::<Vec<_>>() {
                scheduler.remove(SequenceId(id), arrivals[id as usize].priority).unwrap();
                live.remove(&id);
            }
            let step = scheduler.schedule().unwrap();
            check_blocks(&scheduler, &salts)?;
            check_contents(&scheduler, &step, &salts, &mut contents)?;
            prop_assert_eq!(step.is_empty(), live.is_empty(), "something is there and nothing runs");
            prop_assert!(step.iter().map(|s| s.tokens).sum::<usize>() <= limits.max_num_batched_tokens);
            prop_assert!(scheduler.running().len() <= max_num_seqs);
            let rows: usize = step.iter().map(|s| {
                let sequence = &scheduler.running()[s.place];
                let ends = sequence.computed + s.tokens == sequence.tokens.len();
                if sequence.wants_prompt_rows() { s.tokens } else { usize::from(ends) }
            }).sum();
            prop_assert!(rows <= limits.logit_rows);
            let places: HashSet<usize> = step.iter().map(|s| s.place).collect();
            prop_assert_eq!(places.len(), step.len());
            for s in &step {
                let sequence = &scheduler.running()[s.place];
                prop_assert!(s.tokens >= 1 && sequence.computed + s.tokens <= sequence.tokens.len());
                prop_assert!(sequence.blocks.len() * limits.block_size >= sequence.computed + s.tokens);
                if !admitted.contains(&sequence.id.0) {
                    admitted.push(sequence.id.0);
                }
            }
            scheduler.advance(&step);
            let complete: Vec<usize> =
                step.iter().filter(|s| scheduler.running()[s.place].remaining() == 0).map(|s| s.place).collect();
            for place in &complete {
                scheduler.append(*place, u32::from(now % 9 == 0));
            }
            let done = |sequence: &&Sequence| {
                let arrival = &arrivals[sequence.id.0 as usize];
                sequence.tokens.len() >= (arrival.prompt.len() + arrival.answer).min(BLOCKS as usize * limits.block_size)
            };
            for id in scheduler.running().iter().filter(done).map(|sequence| sequence.id).collect::<Vec<_>>() {
                scheduler.remove(id, arrivals[id.0 as usize].priority).unwrap();
                live.remove(&id.0);
            }
            if came == arrivals.len() && live.is_empty() {
                break;
            }
        }
        prop_assert!(live.is_empty(), "{:?} starve", live);
        prop_assert_eq!((scheduler.blocks().0, scheduler.preempted()), (0, 0));
        prop_assert!(by_priority || admitted.is_sorted(), "{:?}", admitted);
    }
}
