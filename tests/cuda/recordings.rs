//! Recordings through the library: when they are made, what replays them, and that answers are the CPU's whatever the choice.

use std::collections::{BTreeMap, BTreeSet};

use allotrope_config::{GraphCapture, GraphMode, RuntimeMode};
use allotrope_engine::{LlmBuilder, Message, OptimizationLevel, Prompt, SamplingParams, Statistics};
use allotrope_tests::{checkpoint, on_cuda, on_the_cpu, show, with_cuda};

/// Questions whose answers have other lengths, so that the batch shrinks from three to one.
const QUESTIONS: [&str; 3] = ["What is 7 + 8?", "What is the capital of France?", "Spell the word goat."];

fn prompts() -> Vec<Prompt> {
    let chat = |question: &str| Prompt::Chat(vec![Message { role: "user".into(), content: question.into() }]);
    QUESTIONS.map(chat).to_vec()
}

fn set(builder: LlmBuilder, settings: &[(&str, &str)]) -> LlmBuilder {
    settings.iter().fold(builder, |builder, (path, value)| builder.set(path, value).unwrap())
}

/// Few sequences and tokens, so that few sizes are recorded and they hold every step.
fn with_cuda_at(name: &str, level: OptimizationLevel, settings: &[(&str, &str)]) -> LlmBuilder {
    let small = [("scheduler.max_num_seqs", "4"), ("scheduler.max_num_batched_tokens", "8")];
    set(set(with_cuda(checkpoint(name)).optimization_level(level), &small), settings)
}

/// The tokens of the answers to all questions together, and what happened.
fn answers(builder: LlmBuilder) -> (Vec<Vec<u32>>, Statistics) {
    let mut llm = builder.build().unwrap();
    let params = SamplingParams { max_tokens: Some(12), ..SamplingParams::greedy() };
    let answers = llm.generate(&prompts(), &params).unwrap();
    (answers.into_iter().map(|answer| answer.tokens).collect(), llm.statistics())
}

fn on_cpu(name: &str) -> Vec<Vec<u32>> {
    answers(on_the_cpu(checkpoint(name))).0
}

/// The reasons for which steps ran in a way.
fn reasons(statistics: &Statistics, way: &str) -> BTreeSet<&'static str> {
    statistics.dispatch.steps.keys().filter(|(mode, _)| *mode == way).map(|(_, reason)| *reason).collect()
}

/// Launches of a decode step at each level, on CUDA.
const LAUNCHES: [(&str, [usize; 4]); 2] = [("tiny-chat", [75, 62, 23, 23]), ("tiny-chat-fp8", [103, 66, 23, 23])];

on_cuda! {
    /// Kernels and submissions fall from level to level, and a decode step at O2 is one launch of one graph.
    fn a_decode_step_at_o2_is_one_graph_launch() {
        for (name, pinned) in LAUNCHES {
            let expected = on_cpu(name);
            let mut submissions = Vec::new();
            for (level, pinned) in OptimizationLevel::ALL.into_iter().zip(pinned) {
                let (tokens, found) = answers(with_cuda_at(name, level, &[]));
                assert_eq!(tokens, expected, "{name} at {level}: other answers than on the CPU");
                let throughput = found.throughput;
                assert_eq!(throughput.launches_per_decode_step, pinned, "{name} at {level}");
                assert_eq!((found.failed_captures, found.late_captures), (0, 0), "{name} at {level}");
                submissions.push(throughput.submissions_per_decode_step);
                show(format_args!(
                    "{name} at {level}: {pinned} kernels of a decode step in {} submissions; {} recordings",
                    throughput.submissions_per_decode_step, found.recordings
                ));
            }
            assert_eq!(submissions[0], pinned[0], "{name}: at O0 each kernel is launched by itself");
            assert!(submissions[0] > submissions[1] && submissions[1] > 1, "{name}: {submissions:?}");
            assert_eq!(submissions[2..], [1, 1], "{name}");
        }
    }

    /// Each graph mode runs batches as its name says, and none changes an answer.
    fn every_graph_mode_gives_the_answers_of_the_cpu() {
        for name in ["tiny-chat", "tiny-chat-fp8"] {
            let expected = on_cpu(name);
            for level in [OptimizationLevel::O0, OptimizationLevel::O2] {
                for mode in [
                    GraphMode::None,
                    GraphMode::Piecewise,
                    GraphMode::Full,
                    GraphMode::FullDecodeOnly,
                    GraphMode::FullAndPiecewise,
                ] {
                    let context = format!("{name} at {level} in mode {mode}");
                    let written = mode.to_string();
                    let (tokens, found) = answers(with_cuda_at(name, level, &[("compilation.cudagraph_mode", &written)]));
                    assert_eq!(tokens, expected, "{context}");
                    let ways = BTreeSet::from([mode.decode(), mode.mixed()].map(|way| found.dispatch.total(way) > 0));
                    assert_eq!(ways, BTreeSet::from([true]), "{context}: {:?}", found.dispatch);
                    let others = [RuntimeMode::None, RuntimeMode::Piecewise, RuntimeMode::Full].into_iter();
                    let mut others = others.filter(|way| ![mode.decode(), mode.mixed()].contains(way));
                    assert!(others.all(|way| found.dispatch.total(way) == 0), "{context}: {:?}", found.dispatch);
                }
            }
        }
    }

    /// With `--require-graphs`, all of it ran from recordings, and a mode that launches something by itself is refused.
    fn graphs_can_be_required() {
        let required = ("require_graphs", "true");
        let (tokens, found) = answers(with_cuda_at("tiny-chat", OptimizationLevel::O2, &[required]));
        assert_eq!(tokens, on_cpu("tiny-chat"));
        assert_eq!(found.dispatch.total(RuntimeMode::None), 0, "{:?}", found.dispatch);
        let narrow = [required, ("compilation.cudagraph_capture_sizes", "1,2,4")];
        let mut llm = with_cuda_at("tiny-chat", OptimizationLevel::O2, &narrow).build().unwrap();
        let error = llm.generate(&prompts(), &SamplingParams::greedy()).unwrap_err().to_string();
        assert!(error.contains("can't run as a recording") && error.contains("cudagraph_capture_sizes"), "{error}");
        let of_one = llm.generate(&[Prompt::Tokens(vec![3])], &SamplingParams { max_tokens: Some(3), ..SamplingParams::greedy() });
        assert_eq!(of_one.unwrap().len(), 1, "the next request finds everything in order");
    }

    /// Recorded when first used: nothing at the start, then what steps need and no more, and never twice.
    fn recordings_are_made_when_first_used() {
        let lazy = ("compilation.cudagraph_capture", "lazy");
        // What is found in the prefix cache makes other batches the second time.
        let uncached = ("cache.enable_prefix_caching", "false");
        let mut llm = with_cuda_at("tiny-chat", OptimizationLevel::O2, &[lazy, uncached]).build().unwrap();
        assert_eq!(*llm.settings().compilation.cudagraph_capture, GraphCapture::Lazy);
        assert_eq!(llm.statistics().recordings, 0);
        let params = SamplingParams { max_tokens: Some(12), ..SamplingParams::greedy() };
        let first: Vec<_> = llm.generate(&prompts(), &params).unwrap().into_iter().map(|answer| answer.tokens).collect();
        assert_eq!(first, on_cpu("tiny-chat"));
        let found = llm.statistics();
        assert!(found.recordings > 0 && found.late_captures == found.recordings as u64, "{found:?}");
        assert_eq!(found.dispatch.total(RuntimeMode::None), 0, "{:?}", found.dispatch);
        let again: Vec<_> = llm.generate(&prompts(), &params).unwrap().into_iter().map(|answer| answer.tokens).collect();
        assert_eq!((again, llm.statistics().recordings), (first, found.recordings));
        let (_, at_startup) = answers(with_cuda_at("tiny-chat", OptimizationLevel::O2, &[]));
        assert!(found.recordings < at_startup.recordings, "{} of {}", found.recordings, at_startup.recordings);
        show(format_args!("lazy: {} of {} recordings", found.recordings, at_startup.recordings));
    }

    /// Recorded by another thread while steps run: each step runs from what is there, and at last all is.
    fn recordings_are_made_in_the_background() {
        let expected = on_cpu("tiny-chat");
        let background = ("compilation.cudagraph_capture", "background");
        let (_, at_startup) = answers(with_cuda_at("tiny-chat", OptimizationLevel::O2, &[]));
        let mut llm = with_cuda_at("tiny-chat", OptimizationLevel::O2, &[background]).build().unwrap();
        let params = SamplingParams { max_tokens: Some(12), ..SamplingParams::greedy() };
        let mut rounds = 0;
        loop {
            let tokens: Vec<_> = llm.generate(&prompts(), &params).unwrap().into_iter().map(|answer| answer.tokens).collect();
            assert_eq!(tokens, expected, "round {rounds}: {:?}", llm.statistics().dispatch);
            rounds += 1;
            if llm.statistics().recordings == at_startup.recordings {
                break;
            }
            assert!(rounds < 100, "{:?}", llm.statistics());
        }
        let found = llm.statistics();
        assert_eq!((found.failed_captures, found.late_captures), (0, at_startup.recordings as u64));
        assert_eq!(found.throughput.submissions_per_decode_step, 1);
        show(format_args!("background: {} recordings in {rounds} rounds; {:?}", found.recordings, found.dispatch.steps));
    }

    /// A dump shows every recording as a graph whose nodes name their kernels.
    fn a_dump_shows_the_captured_graphs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let (_, found) = answers(with_cuda_at("tiny-chat", OptimizationLevel::O2, &[("compilation.debug_dump_path", path)]));
        let files: Vec<_> = std::fs::read_dir(folder.path().join("recordings")).unwrap().collect();
        assert_eq!(files.len(), found.recordings);
        let step = std::fs::read_to_string(folder.path().join("recordings/step-4.dot")).unwrap();
        assert!(step.starts_with("digraph") && step.contains("attention") && step.contains("grid "), "{step}");
        let nodes = step.lines().filter(|line| line.contains("[label=")).count();
        let edges = step.lines().filter(|line| line.contains(" -> ")).count();
        assert_eq!((nodes, edges), (23, 22), "one chain of the step's kernels: {step}");
        let launches = std::fs::read_to_string(folder.path().join("launches.txt")).unwrap();
        assert!(!launches.contains("no kernel"), "{launches}");
    }

    /// A dump has the code that was generated, each text once: the layers of a model run the same, and so do two dumps.
    fn a_dump_has_the_generated_kernels_once_each() {
        let folder = tempfile::tempdir().unwrap();
        let dump = |name: &str| {
            let folder = folder.path().join(name);
            let settings = [("compilation.debug_dump_path", folder.to_str().unwrap())];
            drop(with_cuda_at("tiny-chat", OptimizationLevel::O2, &settings).plan().unwrap());
            let files = std::fs::read_dir(folder.join("kernels")).unwrap().map(|file| file.unwrap().path());
            let name = |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().to_owned();
            let files: BTreeMap<String, String> =
                files.map(|path| (name(&path), std::fs::read_to_string(&path).unwrap())).collect();
            (files, std::fs::read_to_string(folder.join("launches.txt")).unwrap())
        };
        let (files, launches) = dump("first");
        assert_eq!((files.clone(), launches.clone()), dump("second"));
        let texts: BTreeSet<&String> = files.values().collect();
        assert_eq!(texts.len(), files.len(), "each text once");
        let named: Vec<&str> = launches.lines().filter_map(|line| line.trim().strip_prefix("code in kernels/")).collect();
        assert_eq!(BTreeSet::from_iter(named.iter().copied()), files.keys().map(String::as_str).collect());
        assert!(files.values().all(|text| text.contains(".visible .entry") && !text.contains("//@")));
        // Each of the four layers names the files that the first one does.
        assert!(files.len() * 2 < named.len(), "{} files for {} kernels", files.len(), named.len());
        show(format_args!("{} generated kernels in {} files", named.len(), files.len()));
    }
}

on_cuda! {
    /// Batches that are wider than what is recorded run launch by launch, and say why.
    fn batches_beyond_the_largest_recording_are_launched() {
        let narrow = ("compilation.cudagraph_capture_sizes", "1,2");
        let (tokens, found) = answers(with_cuda_at("tiny-chat", OptimizationLevel::O2, &[narrow]));
        assert_eq!(tokens, on_cpu("tiny-chat"));
        let expected = BTreeSet::from(["the batch is larger than the largest captured size"]);
        assert_eq!(reasons(&found, "none"), expected, "{:?}", found.dispatch);
    }
}
