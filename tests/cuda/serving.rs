//! Serving on CUDA: the same answers alone, in company, in chunks, from the prefix cache and after a preemption, and through the
//! engine's own thread.

use allotrope_engine::{
    Llm, LlmBuilder, LogprobCount, OptimizationLevel, Prompt, SamplingParams, StructuredOutput, TextModel,
};
use allotrope_tests::{checkpoint, on_cuda, show, with_cuda};

const CONTEXT: usize = 32;
const BLOCK: usize = 4;

fn builder(level: OptimizationLevel, budget: usize, blocks: usize) -> LlmBuilder {
    let folder = checkpoint("tiny-chat");
    let per_token = TextModel::open(&folder).unwrap().checkpoint().graph().unwrap().kv_bytes_per_token();
    let settings = [
        ("scheduler.max_num_seqs", 4),
        ("scheduler.max_num_batched_tokens", budget),
        ("cache.block_size", BLOCK),
        ("model.max_model_len", CONTEXT),
        ("cache.kv_cache_memory", blocks * BLOCK * per_token),
    ];
    let set = |builder: LlmBuilder, (path, value): (&str, usize)| builder.set(path, &value.to_string()).unwrap();
    settings.into_iter().fold(with_cuda(folder).optimization_level(level), set)
}

fn prompts() -> Vec<Prompt> {
    // All begin alike, with different ends.
    let prompt = |number: u32| {
        (0..6).map(|place| 30 + 5 * place).chain((0..2 + number).map(move |place| 90 + 7 * place + number))
    };
    (0..4).map(|number| Prompt::Tokens(prompt(number).collect())).collect()
}

fn tokens(llm: &mut Llm, prompts: &[Prompt], params: &SamplingParams) -> Vec<Vec<u32>> {
    llm.generate(prompts, params).unwrap().into_iter().map(|answer| answer.tokens).collect()
}

on_cuda! {
    fn company_chunks_cache_and_preemption_change_no_token() {
        let greedy = SamplingParams { max_tokens: Some(6), ignore_eos: true, ..SamplingParams::greedy() };
        let mut alone = builder(OptimizationLevel::O1, 16, 64).set("cache.enable_prefix_caching", "false").unwrap().build().unwrap();
        let expected: Vec<_> = prompts().iter().flat_map(|prompt| tokens(&mut alone, std::slice::from_ref(prompt), &greedy)).collect();
        for level in [OptimizationLevel::O1, OptimizationLevel::O2] {
            let mut batch = builder(level, 16, 64).build().unwrap();
            assert_eq!(tokens(&mut batch, &prompts(), &greedy), expected, "{level}, in a batch");
            assert_eq!(tokens(&mut batch, &prompts(), &greedy), expected, "{level}, from the cache");
            let hits = batch.statistics().throughput.prefix_cache_hits;
            assert!(hits > 0, "{level}: nothing was found");
            let mut tight = builder(level, 5, CONTEXT / BLOCK).build().unwrap();
            assert_eq!(tokens(&mut tight, &prompts(), &greedy), expected, "{level}, in chunks, with little memory");
            let preemptions = tight.statistics().throughput.preemptions;
            assert!(preemptions > 0, "{level}: nothing was preempted");
            show(format_args!("{level}: {hits} tokens found in the prefix cache, {preemptions} preemptions"));
        }
    }

    fn probabilities_and_grammars_work_beside_tokens_that_the_device_chooses() {
        let greedy = SamplingParams { max_tokens: Some(4), ignore_eos: true, ..SamplingParams::greedy() };
        let requests = [
            greedy.clone(),
            SamplingParams { logprobs: Some(LogprobCount::Top(2)), prompt_logprobs: Some(LogprobCount::Top(0)), ..greedy.clone() },
            SamplingParams { structured_output: Some(StructuredOutput::Regex("[0-9]{2}".into())), ..greedy.clone() },
        ];
        let mut llm = builder(OptimizationLevel::O2, 16, 64).build().unwrap();
        let prompt = &prompts()[0];
        let asked: Vec<_> = requests.into_iter().map(|params| (prompt.clone(), params)).collect();
        let answers = llm.generate_each(&asked).unwrap();
        assert_eq!(answers[0].tokens, answers[1].tokens);
        for (token, logprobs) in answers[1].tokens.iter().zip(&answers[1].logprobs) {
            assert_eq!((logprobs.token, logprobs.rank, logprobs.top[0].0), (*token, 1, *token));
        }
        let of_prompt = &answers[1].prompt_logprobs;
        assert!(of_prompt.len() == 8 && of_prompt[0].is_none() && of_prompt[1..].iter().all(Option::is_some), "{of_prompt:?}");
        assert!(answers[2].text.len() == 2 && answers[2].text.bytes().all(|byte| byte.is_ascii_digit()), "{}", answers[2].text);
    }

    fn the_engine_serves_from_a_thread_of_its_own() {
        let llm = builder(OptimizationLevel::O2, 16, 64).build_async().unwrap();
        let params = SamplingParams { max_tokens: Some(5), ignore_eos: true, ..SamplingParams::greedy() };
        let mut offline = builder(OptimizationLevel::O2, 16, 64).build().unwrap();
        let expected = tokens(&mut offline, &prompts(), &params);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut streams: Vec<_> = prompts().iter().map(|prompt| llm.generate(prompt, &params).unwrap()).collect();
            for (stream, expected) in streams.iter_mut().zip(expected) {
                let mut found = Vec::new();
                while let Some(part) = stream.next().await {
                    found.push(part.unwrap().token);
                }
                assert_eq!(found, expected);
            }
        });
    }
}
