//! Tokens chosen on the device: the host's where they are greedy, and of a request's seed alone where they are drawn.

use std::fs;

use allotrope_engine::{Llm, LlmBuilder, OptimizationLevel, Prompt, SamplingParams};
use allotrope_tests::{checkpoint, on_cuda, on_the_cpu, show, with_cuda};

/// Tokens of each answer.
const TOKENS: usize = 10;

fn builder(level: OptimizationLevel) -> LlmBuilder {
    let small = [("scheduler.max_num_seqs", "8"), ("scheduler.max_num_batched_tokens", "16")];
    let builder = with_cuda(checkpoint("tiny-chat")).optimization_level(level);
    small.into_iter().fold(builder, |builder, (path, value)| builder.set(path, value).unwrap())
}

/// Parameters for answers of the same length.
fn params(change: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
    let mut params = SamplingParams { max_tokens: Some(TOKENS), ignore_eos: true, ..SamplingParams::default() };
    change(&mut params);
    params
}

fn prompt(number: u32) -> Prompt {
    Prompt::Tokens((0..3 + number % 4).map(|place| 20 + (7 * place + 31 * number) % 200).collect())
}

/// The tokens of each answer, and how many of them the device chose.
fn answers(llm: &mut Llm, requests: &[(Prompt, SamplingParams)]) -> (Vec<Vec<u32>>, u64) {
    let before = llm.statistics().throughput.tokens_sampled_on_device;
    let answers = llm.generate_each(requests).unwrap();
    let on_device = llm.statistics().throughput.tokens_sampled_on_device - before;
    (answers.into_iter().map(|answer| answer.tokens).collect(), on_device)
}

/// Requests of every kind, and whether the device chooses their tokens.
fn every_kind() -> Vec<(&'static str, (Prompt, SamplingParams), bool)> {
    let drawn = |seed, temperature| {
        params(|params| {
            params.seed = Some(seed);
            params.temperature = temperature;
        })
    };
    let kinds = [
        ("greedy", params(|params| params.temperature = 0.0), true),
        ("seeded", drawn(7, 1.5), true),
        ("another seed", drawn(8, 1.5), true),
        ("another temperature", drawn(7, 0.3), true),
        ("nearly greedy", drawn(7, 1e-20), true),
        ("top_p", SamplingParams { top_p: 0.9, ..drawn(7, 1.5) }, false),
        ("top_k", SamplingParams { top_k: 20, ..drawn(7, 1.5) }, false),
        ("min_p", SamplingParams { min_p: 0.05, ..drawn(7, 1.5) }, false),
        ("repetition_penalty", SamplingParams { repetition_penalty: 1.3, ..drawn(7, 1.5) }, false),
        (
            "greedy with a penalty",
            params(|params| {
                params.temperature = 0.0;
                params.repetition_penalty = 1.3;
            }),
            false,
        ),
    ];
    kinds
        .into_iter()
        .enumerate()
        .map(|(number, (name, params, on_device))| (name, (prompt(number as u32), params), on_device))
        .collect()
}

on_cuda! {
    fn greedy_tokens_are_those_that_the_host_chooses() {
        let mut llm = builder(OptimizationLevel::O2).build().unwrap();
        let mut on_cpu = on_the_cpu(checkpoint("tiny-chat")).build().unwrap();
        let greedy: Vec<_> = (0..5).map(|number| (prompt(number), params(|params| params.temperature = 0.0))).collect();
        let (found, on_device) = answers(&mut llm, &greedy);
        assert_eq!(on_device, (greedy.len() * TOKENS) as u64, "no logits were read");
        for (number, found) in found.iter().enumerate() {
            let Prompt::Tokens(tokens) = prompt(number as u32) else { unreachable!() };
            // Reads the logits of each step.
            assert_eq!(llm.logits(&tokens, TOKENS).unwrap().tokens, *found, "prompt {number}");
        }
        // A choice among one, which the host makes.
        let of_one: Vec<_> = (0..5).map(|number| (prompt(number), params(|params| params.top_k = 1))).collect();
        assert_eq!(answers(&mut llm, &of_one), (found.clone(), 0));
        assert_eq!(answers(&mut on_cpu, &greedy), (found, 0), "on the CPU");
    }

    fn a_request_has_the_same_tokens_alone_and_among_others_of_every_kind() {
        let kinds = every_kind();
        let requests: Vec<_> = kinds.iter().map(|(_, request, _)| request.clone()).collect();
        let mut at_o0 = None;
        for level in [OptimizationLevel::O0, OptimizationLevel::O2] {
            let mut llm = builder(level).build().unwrap();
            let (together, on_device) = answers(&mut llm, &requests);
            let expected = kinds.iter().filter(|(.., on_device)| *on_device).count() * TOKENS;
            assert_eq!(on_device, expected as u64, "{level}");
            for ((name, request, on_device), together) in kinds.iter().zip(&together) {
                assert_eq!(together.len(), TOKENS, "{name}");
                let expected = if *on_device { TOKENS as u64 } else { 0 };
                let alone = answers(&mut llm, std::slice::from_ref(request));
                assert_eq!(alone, (vec![together.clone()], expected), "{name} at {level}, alone");
            }
            // In another order, so in other rows and with other requests running when each ends.
            let reversed: Vec<_> = requests.iter().rev().cloned().collect();
            let mut found = answers(&mut llm, &reversed).0;
            found.reverse();
            assert_eq!(found, together, "{level}, in reverse");
            assert_eq!(*at_o0.get_or_insert_with(|| together.clone()), together, "{level}");
            show(format_args!("{level}: {on_device} of {} tokens chosen on the device", together.len() * TOKENS));
        }
    }

    /// A sequence that gives its KV blocks back and is computed again goes on with the draws that come next.
    fn a_preempted_request_draws_what_it_would_have_drawn() {
        let requests: Vec<_> = every_kind().into_iter().map(|(_, request, _)| request).collect();
        let (expected, _) = answers(&mut builder(OptimizationLevel::O2).build().unwrap(), &requests);
        // 48 tokens of 512 bytes each, and eight sequences of up to sixteen.
        let narrow = [("cache.kv_cache_memory", "24576"), ("cache.block_size", "4"), ("model.max_model_len", "32")];
        let narrow = narrow.into_iter().fold(builder(OptimizationLevel::O2), |builder, (path, value)| builder.set(path, value).unwrap());
        let mut llm = narrow.build().unwrap();
        assert_eq!(llm.statistics().kv_cache_tokens, 48);
        let (found, _) = answers(&mut llm, &requests);
        assert!(llm.statistics().throughput.preemptions > 0, "{:?}", llm.statistics());
        assert_eq!(found, expected);
    }

    fn seeds_decide_what_is_drawn() {
        let mut llm = builder(OptimizationLevel::O2).build().unwrap();
        let drawn = |seed| (prompt(1), params(|params| {
            params.seed = Some(seed);
            params.temperature = 2.0;
        }));
        let seeds = [1, 2, 1, u64::MAX, 1 << 32];
        let (found, _) = answers(&mut llm, &seeds.map(drawn));
        assert_eq!(found[0], found[2], "one seed");
        for (one, other) in [(0, 1), (0, 3), (0, 4), (1, 3), (1, 4), (3, 4)] {
            assert_ne!(found[one], found[other], "the seeds {} and {}", seeds[one], seeds[other]);
        }
        let unseeded = [(prompt(1), params(|params| params.temperature = 2.0)), (prompt(1), params(|params| params.temperature = 2.0))];
        let (found, on_device) = answers(&mut llm, &unseeded);
        assert_eq!(on_device, 2 * TOKENS as u64);
        assert_ne!(found[0], found[1], "requests without a seed get one each");
    }

    /// The device chooses nothing where there is nothing to choose from, and the host says why.
    fn weights_that_are_not_numbers_are_the_error_that_they_are_on_the_cpu() {
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(checkpoint("gqa-bf16")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
        let path = copy.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        // 0x7fc0 is a NaN in bf16.
        bytes[header..].chunks_exact_mut(2).for_each(|element| element.copy_from_slice(&[0xc0, 0x7f]));
        fs::write(path, bytes).unwrap();
        let expected = on_the_cpu(copy.path()).build().unwrap().generate(&[prompt(0)], &SamplingParams::greedy()).unwrap_err();
        assert!(expected.to_string().contains("NaN"), "{expected}");
        let mut llm = with_cuda(copy.path()).build().unwrap();
        for params in [SamplingParams::greedy(), SamplingParams::default()] {
            let found = llm.generate(&[prompt(0)], &params).unwrap_err();
            assert_eq!(found.to_string(), expected.to_string(), "{params:?}");
        }
    }
}
