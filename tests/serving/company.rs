//! Greedy answers are equal token by token alone, in a batch, with prompts cut into chunks, with and without hits in the prefix
//! cache, and after a preemption, at every level; seeded ones too.

use allotrope_engine::{Llm, OptimizationLevel, Prompt, SamplingParams};
use allotrope_tests::{checkpoint, for_every_checkpoint, on_the_cpu};

use crate::Random;

const SEQUENCES: usize = 32;
const NEW_TOKENS: usize = 10;
const CONTEXT: usize = 64;
const BLOCK: usize = 4;

/// How the engine is bounded.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    max_num_seqs: usize,
    budget: usize,
    /// Blocks of the KV cache.
    blocks: usize,
    prefix_caching: bool,
}

fn load(name: &str, level: OptimizationLevel, bounds: Bounds) -> Llm {
    let folder = checkpoint(name);
    let per_token =
        allotrope_engine::TextModel::open(&folder).unwrap().checkpoint().graph().unwrap().kv_bytes_per_token();
    let set = |builder: allotrope_engine::LlmBuilder, path: &str, value: usize| {
        builder.set(path, &value.to_string()).unwrap()
    };
    let builder = on_the_cpu(folder).optimization_level(level);
    let builder = set(builder, "scheduler.max_num_seqs", bounds.max_num_seqs);
    let builder = set(builder, "scheduler.max_num_batched_tokens", bounds.budget);
    let builder = set(builder, "cache.block_size", BLOCK);
    let builder = set(builder, "model.max_model_len", CONTEXT);
    let builder = set(builder, "cache.kv_cache_memory", bounds.blocks * BLOCK * per_token);
    builder.set("cache.enable_prefix_caching", &bounds.prefix_caching.to_string()).unwrap().build().unwrap()
}

/// Prompts of many lengths, half of which begin alike.
fn prompts(random: &mut Random, vocabulary: usize) -> Vec<Prompt> {
    let mut tokens = |count: usize| (0..count).map(|_| random.below(vocabulary) as u32).collect::<Vec<_>>();
    let beginning = tokens(24);
    let lengths = tokens(2 * SEQUENCES);
    let prompt = |index: usize| {
        let shared = if index.is_multiple_of(2) { lengths[2 * index] as usize % 24 } else { 0 };
        let own = 1 + lengths[2 * index + 1] as usize % 20;
        Prompt::Tokens([&beginning[..shared], &tokens(own)].concat())
    };
    (0..SEQUENCES).map(prompt).collect()
}

fn tokens(llm: &mut Llm, prompts: &[Prompt], params: &SamplingParams) -> Vec<Vec<u32>> {
    llm.generate(prompts, params).unwrap().into_iter().map(|answer| answer.tokens).collect()
}

fn check(name: &str) {
    let mut random = Random::fresh();
    let seed = random.seed;
    let plenty = Bounds { max_num_seqs: SEQUENCES, budget: 2048, blocks: 16 * SEQUENCES, prefix_caching: false };
    let greedy = SamplingParams { max_tokens: Some(NEW_TOKENS), ignore_eos: true, ..SamplingParams::greedy() };
    let drawn = SamplingParams { seed: Some(seed), temperature: 1.0, top_p: 0.9, ..greedy.clone() };
    let mut alone = load(name, OptimizationLevel::O0, plenty);
    let prompts = prompts(&mut random, alone.text().vocabulary());
    let mut one_by_one = |params: &SamplingParams| -> Vec<Vec<u32>> {
        prompts.iter().flat_map(|prompt| tokens(&mut alone, std::slice::from_ref(prompt), params)).collect()
    };
    let (expected, expected_drawn) = (one_by_one(&greedy), one_by_one(&drawn));
    for level in OptimizationLevel::ALL {
        let context = |what: &str| format!("{name} at {level}, {what}, seed {seed}");
        let mut batch = load(name, level, Bounds { prefix_caching: true, ..plenty });
        assert_eq!(tokens(&mut batch, &prompts, &greedy), expected, "{}", context("in a batch"));
        assert_eq!(tokens(&mut batch, &prompts, &drawn), expected_drawn, "{}", context("drawn, from the prefix cache"));
        assert_eq!(tokens(&mut batch, &prompts, &greedy), expected, "{}", context("from the prefix cache"));
        let statistics = batch.statistics().throughput;
        assert!(
            statistics.prefix_cache_hits > statistics.prefix_cache_queries / 4,
            "{}: {statistics:?}",
            context("hits")
        );
        for budget in [3, BLOCK + 1, 2 * BLOCK, 31] {
            let bounds = Bounds { max_num_seqs: 3, budget, ..plenty };
            let found = tokens(&mut load(name, level, bounds), &prompts, &greedy);
            assert_eq!(found, expected, "{}", context(&format!("in chunks of {budget}")));
        }
        for prefix_caching in [false, true] {
            let bounds = Bounds { blocks: CONTEXT / BLOCK + 8, prefix_caching, ..plenty };
            let mut tight = load(name, level, bounds);
            let found = tokens(&mut tight, &prompts, &greedy);
            assert_eq!(found, expected, "{}", context("with little memory"));
            assert_eq!(
                tokens(&mut tight, &prompts, &drawn),
                expected_drawn,
                "{}",
                context("drawn, with little memory")
            );
            assert!(tight.statistics().throughput.preemptions > 0, "{}", context("nothing was preempted"));
        }
    }
}

macro_rules! checkpoints {
    ($($test:ident: $name:literal,)*) => {$(
        #[test]
        fn $test() {
            check($name);
        }
    )*};
}

for_every_checkpoint!(checkpoints);
