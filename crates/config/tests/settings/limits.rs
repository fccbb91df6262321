//! Defaults that are lowered with a reason, and explicit values that are refused for the same reason.

use allotrope_config::{
    ActivationQuantization, AttentionGraphSupport, CompilationMode, DeviceChoice, DeviceFacts, GraphMode, KvCacheDtype,
    LoadFormat, ModelFacts, OptimizationLevel, Options, Problem, Settings, SettingsError, Source, device_choice,
    kv_cache_dtype, load_format, resolve, resolve_with,
};

use crate::facts::{device, model};

fn said(values: &[(&str, &str)]) -> Options {
    let mut options = Options::new();
    for (path, value) in values {
        let flag = format!("--{path}");
        options.set(path, value, Source::CommandLine { flag }).unwrap();
    }
    options
}

fn on_cpu(values: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    resolve(&said(values), &model("plain"), &device("cpu"))
}

#[track_caller]
fn refused(result: Result<Settings, SettingsError>, setting: &str, part: &str) {
    let error = result.expect_err(part);
    assert!(matches!(error.problem(), Problem::Impossible { setting: of, .. } if of == setting), "{error}");
    assert!(error.to_string().contains(part), "{error}");
    assert!(error.is_usage());
}

#[test]
fn o3_on_a_device_without_its_means_says_so_in_one_line() {
    let settings = on_cpu(&[("optimization_level", "3")]).unwrap();
    assert!(!settings.kernel.autotune.value);
    assert_eq!(settings.kernel.autotune.reason.as_deref(), Some("instead of true: cpu has no kernel variants to tune"));
    assert_eq!(
        settings.optimization_level.reason.as_deref(),
        Some("O3 does what O2 does here: kernel.autotune and kernel.persistent_decode cannot be had")
    );
    let settings = resolve(&said(&[("optimization_level", "3")]), &model("plain"), &device("capable")).unwrap();
    assert!(settings.kernel.autotune.value && settings.kernel.persistent_decode.value);
    assert_eq!(settings.optimization_level.reason, None);
}

#[test]
fn explicit_kernel_settings_that_the_device_lacks_are_refused() {
    refused(on_cpu(&[("kernel.autotune", "true")]), "kernel.autotune", "cpu has no kernel variants to tune");
    refused(on_cpu(&[("kernel.persistent_decode", "true")]), "kernel.persistent_decode", "resident program");
    assert!(on_cpu(&[("kernel.autotune", "false"), ("optimization_level", "3")]).is_ok());
}

#[test]
fn a_resident_decode_step_needs_recordings() {
    let on_capable = |values: &[(&str, &str)]| resolve(&said(values), &model("plain"), &device("capable"));
    let unrecorded = ("compilation.cudagraph_mode", "NONE");
    let lowered = on_capable(&[("optimization_level", "3"), unrecorded]).unwrap().kernel.persistent_decode;
    assert!(!lowered.value);
    let reason = lowered.reason.unwrap();
    assert!(
        reason.contains("nothing is recorded: compilation.cudagraph_mode is NONE (command line --comp"),
        "{reason}"
    );
    let asked = on_capable(&[("kernel.persistent_decode", "true"), unrecorded]);
    refused(
        asked,
        "kernel.persistent_decode",
        "choose another cudagraph_mode, or write kernel.persistent_decode=false",
    );
    // At O0 nothing is recorded unless somebody asks for it.
    let at_o0 = ("optimization_level", "0");
    let asked = on_capable(&[("kernel.persistent_decode", "true"), at_o0]);
    refused(asked, "kernel.persistent_decode", "nothing is recorded");
    let recorded = ("compilation.cudagraph_mode", "FULL");
    let asked = on_capable(&[("kernel.persistent_decode", "true"), at_o0, recorded]).unwrap();
    assert!(asked.kernel.persistent_decode.value);
}

/// A GPU: memory of its own, and no other layout of weights.
fn gpu(available_memory: u64) -> DeviceFacts {
    DeviceFacts { available_memory, dedicated_memory: true, repack_weights: false, ..device("capable") }
}

#[test]
fn weights_keep_their_layout_where_there_is_no_other() {
    let on_gpu = |values: &[(&str, &str)]| resolve(&said(values), &model("plain"), &gpu(64 << 30));
    let repack_weights = on_gpu(&[]).unwrap().kernel.repack_weights;
    assert!(!repack_weights.value);
    let reason = "instead of true: the kernels of capable read weights as they are stored";
    assert_eq!(repack_weights.reason.as_deref(), Some(reason));
    let asked = on_gpu(&[("kernel.repack_weights", "true")]);
    refused(asked, "kernel.repack_weights", "read weights as they are stored; write kernel.repack_weights=false");
    assert!(on_gpu(&[("kernel.repack_weights", "false")]).is_ok());
}

#[test]
fn on_a_gpu_the_kv_cache_gets_what_the_weights_leave() {
    // 1 MiB a token: no share holds 32 sequences of 8192 tokens.
    let heavy = |weight_bytes| ModelFacts { kv_bytes_per_token: 1 << 20, weight_bytes, ..model("plain") };
    let on_gpu = |values: &[(&str, &str)], weights| resolve(&said(values), &heavy(weights), &gpu(100 << 30));
    let cache = on_gpu(&[], 30 << 30).unwrap().cache.kv_cache_memory;
    assert_eq!(cache.value, 60 << 30);
    let reason = "what the weights leave of nine tenths of the free memory of capable";
    assert_eq!(cache.reason.as_deref(), Some(reason));
    assert!(on_gpu(&[("cache.kv_cache_memory", "70GiB")], 30 << 30).is_ok());
    let more = on_gpu(&[("cache.kv_cache_memory", "71GiB")], 30 << 30);
    refused(more, "cache.kv_cache_memory", "capable has 70 GiB available beside the weights; write at most");
    // Of a small model, all sequences fit, and no more is taken.
    let small = on_gpu(&[("scheduler.max_num_seqs", "2")], 1 << 30).unwrap().cache.kv_cache_memory;
    assert_eq!(small.value, 16 << 30);
}

/// Whatever does not fit without anybody's fault is an error of its own kind, so that another device can be taken.
#[test]
fn a_model_that_does_not_fit_a_gpu_is_nobodys_mistake() {
    let heavy = |weight_bytes| ModelFacts { kv_bytes_per_token: 1 << 20, weight_bytes, ..model("plain") };
    let on_gpu = |values: &[(&str, &str)], weights| resolve(&said(values), &heavy(weights), &gpu(100 << 30));
    let no_room = |values: &[(&str, &str)], weights, part: &str| {
        let error = on_gpu(values, weights).expect_err(part);
        assert!(matches!(error.problem(), Problem::NoRoom { .. }) && !error.is_usage(), "{error}");
        let text = error.to_string();
        assert!(text.contains("plain does not fit capable") && text.contains(part), "{part}: {text}");
    };
    no_room(&[], 100 << 30, "its weights take 100 GiB, and 100 GiB are free");
    no_room(&[("cache.kv_cache_memory", "1GiB")], 101 << 30, "its weights take 101 GiB");
    // Of nine tenths, the weights leave 1 GiB, and a sequence takes 2 at least.
    no_room(&[], 89 << 30, "the KV cache of one sequence of 2048 tokens 2 GiB");
    no_room(&[], 95 << 30, "the KV cache of one sequence of 2048 tokens 2 GiB");
    assert_eq!(on_gpu(&[], 88 << 30).unwrap().model.max_model_len.value, 2048);
    // What somebody asks for decides, where somebody does.
    let length = [("model.max_model_len", "1024")];
    assert_eq!(on_gpu(&length, 89 << 30).unwrap().cache.kv_cache_memory.value, 1 << 30);
    no_room(&[("model.max_model_len", "8192")], 93 << 30, "the KV cache of one sequence of 8192 tokens 8 GiB");
    // Settings that are wrong are so wherever the model fits.
    let asked = [("model.max_model_len", "8192"), ("cache.kv_cache_memory", "1GiB")];
    refused(on_gpu(&asked, 1 << 30), "model.max_model_len", "holds 1024 tokens");
    refused(on_gpu(&[("model.max_model_len", "999999")], 1 << 30), "model.max_model_len", "the context length of");
}

#[test]
fn keys_and_values_are_stored_as_the_device_can() {
    assert_eq!(kv_cache_dtype(&Options::new()).unwrap(), KvCacheDtype::Auto);
    for name in ["fp8", "FP8_E4M3"] {
        assert_eq!(kv_cache_dtype(&said(&[("cache.kv_cache_dtype", name)])).unwrap(), KvCacheDtype::Fp8);
    }
    for (unread, word) in [("fp8_e5m2", "E4M3"), ("bfloat16", "auto"), ("fp9", "fp8")] {
        let error = Options::new().set("cache.kv_cache_dtype", unread, Source::Builder).unwrap_err().to_string();
        assert!(error.contains("kv_cache_dtype") && error.contains(word), "{error}");
    }
    let fp8 = said(&[("cache.kv_cache_dtype", "fp8")]);
    let there = resolve(&fp8, &model("plain"), &device("capable")).unwrap();
    assert_eq!(there.cache.kv_cache_dtype.value, KvCacheDtype::Fp8);
    let without = DeviceFacts { fp8_kv_cache: false, ..device("capable") };
    let refusal = resolve(&fp8, &model("plain"), &without);
    refused(
        refusal,
        "cache.kv_cache_dtype",
        "has no attention over keys and values in FP8; write cache.kv_cache_dtype=auto",
    );
    let settings = resolve(&Options::new(), &model("plain"), &without).unwrap();
    assert_eq!(settings.cache.kv_cache_dtype.value, KvCacheDtype::Auto);
}

#[test]
fn where_weights_come_from_is_known_before_the_model() {
    assert_eq!(load_format(&Options::new()).unwrap().value, LoadFormat::Auto);
    for (said_as, meant) in
        [("DUMMY", LoadFormat::Dummy), ("safetensors", LoadFormat::Safetensors), ("hf", LoadFormat::Auto)]
    {
        assert_eq!(load_format(&said(&[("model.load_format", said_as)])).unwrap().value, meant);
    }
    for (unread, word) in [("pt", "pickle"), ("npcache", "pickle"), ("gguf", "GGUF"), ("dumy", "dummy")] {
        let error = Options::new().set("model.load_format", unread, Source::Builder).unwrap_err().to_string();
        assert!(error.contains("load_format") && error.contains(word), "{error}");
    }
}

#[test]
fn the_choice_of_a_device_is_known_before_the_device_is() {
    assert_eq!(device_choice(&Options::new()).unwrap().value, DeviceChoice::Auto);
    let choice = device_choice(&said(&[("device", "CUDA")])).unwrap();
    assert_eq!((choice.value, choice.source.to_string().as_str()), (DeviceChoice::Cuda, "command line --device"));
    let mut options = Options::new();
    let error = options.set("device", "gpu", Source::Builder).unwrap_err().to_string();
    assert!(error.contains("`device` cannot be `gpu`") && error.contains("cuda"), "{error}");
}

#[test]
fn a_pass_and_mode_none_contradict_each_other() {
    let error = on_cpu(&[("compilation.mode", "none"), ("compilation.pass_config.fuse_add_norm", "true")]);
    refused(error, "compilation.mode", "compilation.pass_config.fuse_add_norm=true (command line --compilation.pass");
    let error = on_cpu(&[("enforce_eager", "true"), ("compilation.pass_config.fuse_add_norm", "true")]);
    refused(error, "compilation.pass_config.fuse_add_norm", "enforce_eager is on (command line --enforce_eager)");
    let settings = on_cpu(&[("compilation.mode", "none"), ("compilation.pass_config.fuse_add_norm", "false")]).unwrap();
    assert!(!settings.compilation.pass_config.eliminate_noops.value);
    let reason = settings.compilation.pass_config.eliminate_noops.reason.clone().unwrap();
    assert!(reason.contains("compilation.mode is none (command line --compilation.mode)"), "{reason}");
}

#[test]
fn a_pass_that_is_asked_for_at_o0_runs_alone() {
    let settings = on_cpu(&[("optimization_level", "0"), ("compilation.pass_config.fuse_add_norm", "true")]).unwrap();
    assert_eq!(settings.compilation.mode.value, CompilationMode::Compile);
    assert!(settings.compilation.mode.reason.as_ref().is_some_and(|reason| reason.contains("fuse_add_norm=true")));
    assert!(settings.compilation.pass_config.fuse_add_norm.value);
    assert!(!settings.compilation.pass_config.fuse_act_mul.value);
    assert_eq!(settings.compilation.cudagraph_mode.value, GraphMode::None);
}

#[test]
fn enforce_eager_forces_and_leaves_the_rest() {
    let settings = on_cpu(&[("enforce_eager", "true")]).unwrap();
    assert_eq!(settings.compilation.mode.source, Source::Forced);
    assert_eq!(settings.compilation.cudagraph_mode.source, Source::Forced);
    assert!(settings.compilation.cudagraph_capture_sizes.is_empty());
    assert!(settings.kernel.repack_weights.value, "the level's");
    refused(
        on_cpu(&[("enforce_eager", "true"), ("compilation.cudagraph_mode", "FULL")]),
        "compilation.cudagraph_mode",
        "which forces NONE",
    );
    // What says the same is no contradiction.
    assert!(on_cpu(&[("enforce_eager", "true"), ("compilation.cudagraph_mode", "NONE")]).is_ok());
}

#[test]
fn graph_modes_are_lowered_by_default_and_refused_when_explicit() {
    let with = |support, values: &[(&str, &str)]| {
        let device = DeviceFacts { attention_graph_support: support, ..device("capable") };
        resolve(&said(values), &model("plain"), &device)
    };
    let lowered = with(AttentionGraphSupport::Never, &[]).unwrap();
    assert_eq!(lowered.compilation.cudagraph_mode.value, GraphMode::Piecewise);
    assert_eq!(lowered.compilation.cudagraph_mode.source, Source::Level(OptimizationLevel::O2));
    assert_eq!(
        lowered.compilation.cudagraph_mode.reason.as_deref(),
        Some("instead of FULL_AND_PIECEWISE: on capable attention can never be recorded")
    );
    refused(
        with(AttentionGraphSupport::UniformBatch, &[("compilation.cudagraph_mode", "FULL")]),
        "compilation.cudagraph_mode",
        "write compilation.cudagraph_mode=FULL_AND_PIECEWISE",
    );
    let held = with(AttentionGraphSupport::SingleTokenDecode, &[]).unwrap();
    assert_eq!(held.compilation.cudagraph_mode.value, GraphMode::FullAndPiecewise);
}

#[test]
fn pieces_with_attention_inside_need_attention_that_can_always_be_recorded() {
    use AttentionGraphSupport::{Always, Never, SingleTokenDecode, UniformBatch};
    const SPLITTING: &str = "compilation.splitting_ops";
    const MODE: &str = "compilation.cudagraph_mode";
    let with = |support, values: &[(&str, &str)]| {
        let device = DeviceFacts { attention_graph_support: support, ..device("capable") };
        resolve(&said(values), &model("plain"), &device)
    };
    // The rows without pieces of vLLM's table, and what the levels' defaults become.
    for (support, o1, o2) in [
        (Always, GraphMode::Piecewise, GraphMode::FullAndPiecewise),
        (UniformBatch, GraphMode::None, GraphMode::FullDecodeOnly),
        (SingleTokenDecode, GraphMode::None, GraphMode::FullDecodeOnly),
        (Never, GraphMode::None, GraphMode::None),
    ] {
        for splitting in ["[]", "linear"] {
            for (level, expected) in [("0", GraphMode::None), ("1", o1), ("2", o2), ("3", o2)] {
                let settings = with(support, &[("optimization_level", level), (SPLITTING, splitting)]).unwrap();
                assert_eq!(settings.compilation.cudagraph_mode.value, expected, "O{level} {splitting} {support:?}");
            }
            for (mode, possible) in [
                ("PIECEWISE", o1),
                ("FULL", if support == Always { GraphMode::Full } else { o2 }),
                ("FULL_DECODE_ONLY", if support == Never { GraphMode::None } else { GraphMode::FullDecodeOnly }),
                ("FULL_AND_PIECEWISE", o2),
            ] {
                let result = with(support, &[(MODE, mode), (SPLITTING, splitting)]);
                if possible.to_string() == mode {
                    assert_eq!(result.unwrap().compilation.cudagraph_mode.value, possible);
                    continue;
                }
                let message = result.as_ref().expect_err(mode).to_string();
                assert!(message.contains("compilation.splitting_ops (command line --compilation.splitting_ops)"));
                assert!(message.contains(&format!("write compilation.cudagraph_mode={possible}")), "{message}");
                refused(result, MODE, "leaves attention inside the pieces, and on capable attention can ");
            }
        }
        let among = with(support, &[(SPLITTING, "linear,attention"), ("optimization_level", "1")]).unwrap();
        assert_eq!(among.compilation.cudagraph_mode.value, GraphMode::Piecewise);
    }
    let lowered = with(UniformBatch, &[(SPLITTING, "[]")]).unwrap().compilation.cudagraph_mode;
    assert_eq!(lowered.source, Source::Level(OptimizationLevel::O2));
    assert_eq!(
        lowered.reason.as_deref(),
        Some(
            "instead of FULL_AND_PIECEWISE: compilation.splitting_ops (command line --compilation.splitting_ops) \
             leaves attention inside the pieces, and on capable attention can be recorded only for uniform batches"
        )
    );
    // What needs recordings is told why there are none.
    for values in [("require_graphs", "true"), ("compilation.cudagraph_capture_sizes", "1,2")] {
        refused(
            with(UniformBatch, &[(SPLITTING, "[]"), ("optimization_level", "1"), values]),
            values.0,
            "is NONE (level O1, instead of PIECEWISE: compilation.splitting_ops (command line ",
        );
    }
    // Adding attention helps only a mode that attention allows.
    let way_out = "or add attention to compilation.splitting_ops";
    refused(with(Never, &[(MODE, "PIECEWISE"), (SPLITTING, "[]")]), MODE, way_out);
    let full = with(UniformBatch, &[(MODE, "FULL"), (SPLITTING, "[]")]).expect_err("twice too much");
    assert!(!full.to_string().contains(way_out), "{full}");
}

#[test]
fn what_does_not_depend_on_the_device_assumes_none() {
    let settings = resolve_with(&said(&[("optimization_level", "1")]), None, None).unwrap();
    assert_eq!(settings.compilation.cudagraph_mode.value, GraphMode::Piecewise);
    assert_eq!(settings.compilation.cudagraph_mode.reason, None);
}

#[test]
fn recordings_that_are_required_or_sized_must_exist() {
    refused(on_cpu(&[("require_graphs", "true"), ("optimization_level", "0")]), "require_graphs", "level O0");
    assert!(on_cpu(&[("require_graphs", "true")]).is_ok());
    let sizes = "compilation.cudagraph_capture_sizes";
    refused(on_cpu(&[(sizes, "1,2"), ("optimization_level", "0")]), sizes, "nothing is recorded");
    let maximum = "compilation.max_cudagraph_capture_size";
    refused(on_cpu(&[(maximum, "8"), ("enforce_eager", "true")]), maximum, "nothing is recorded");
}

#[test]
fn sequences_and_tokens_of_a_step_fit_each_other() {
    let settings = on_cpu(&[("scheduler.max_num_seqs", "1024")]).unwrap();
    assert_eq!(settings.scheduler.max_num_batched_tokens.value, 1024);
    let settings = on_cpu(&[("scheduler.max_num_batched_tokens", "8")]).unwrap();
    assert_eq!(settings.scheduler.max_num_seqs.value, 8);
    refused(
        on_cpu(&[("scheduler.max_num_batched_tokens", "8"), ("scheduler.max_num_seqs", "9")]),
        "scheduler.max_num_seqs",
        "scheduler.max_num_batched_tokens is 8 (command line --scheduler.max_num_batched_tokens)",
    );
}

/// 16 KiB a token: a block of 16 tokens takes 256 KiB.
fn with_memory(available: u64, values: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let model = ModelFacts { context_length: 8192, kv_bytes_per_token: 16 << 10, ..model("plain") };
    let device = DeviceFacts { available_memory: available, ..device("cpu") };
    resolve(&said(values), &model, &device)
}

#[test]
fn the_kv_cache_takes_what_is_needed_and_no_more_than_its_share() {
    let cache = |settings: &Settings| settings.cache.kv_cache_memory.value;
    // 32 sequences of 8192 tokens take 4 GiB.
    assert_eq!(cache(&with_memory(1 << 40, &[]).unwrap()), 4 << 30);
    assert_eq!(cache(&with_memory(8 << 30, &[]).unwrap()), 2 << 30);
    assert_eq!(cache(&with_memory(1 << 40, &[("scheduler.max_num_seqs", "2")]).unwrap()), 256 << 20);
    assert_eq!(cache(&with_memory(1 << 40, &[("scheduler.max_num_seqs", "256")]).unwrap()), 4 << 30);
}

#[test]
fn a_context_that_the_kv_cache_cannot_hold_is_lowered_with_a_reason() {
    let settings = with_memory(64 << 20, &[]).unwrap();
    assert_eq!(settings.cache.kv_cache_memory.value, 16 << 20);
    assert_eq!(settings.model.max_model_len.value, 1024);
    let reason = settings.model.max_model_len.reason.clone().unwrap();
    assert_eq!(reason, "instead of 8192: cache.kv_cache_memory=16 MiB (device) holds 1024 tokens");
    // The default grows for a length that somebody asked for, where the device has the memory.
    let settings = with_memory(64 << 20, &[("model.max_model_len", "2048")]).unwrap();
    assert_eq!(settings.model.max_model_len.value, 2048);
    assert_eq!(settings.cache.kv_cache_memory.value, 32 << 20);
    refused(with_memory(64 << 20, &[("model.max_model_len", "8192")]), "model.max_model_len", "holds 1024 tokens");
    refused(
        with_memory(1 << 40, &[("model.max_model_len", "8192"), ("cache.kv_cache_memory", "1MiB")]),
        "model.max_model_len",
        "holds 64 tokens; write at most 64, or give cache.kv_cache_memory more",
    );
    refused(with_memory(1 << 40, &[("model.max_model_len", "8193")]), "model.max_model_len", "write at most 8192");
}

#[test]
fn what_changes_from_run_to_run_changes_no_reason_while_the_value_stays() {
    // 1 MiB a token: 32 sequences of 8192 tokens take more than any share.
    let heavy = ModelFacts { kv_bytes_per_token: 1 << 20, ..model("plain") };
    let cache = |available_memory| {
        let device = DeviceFacts { available_memory, ..device("cpu") };
        resolve(&Options::new(), &heavy, &device).unwrap().cache.kv_cache_memory
    };
    let (first, second) = (cache(40 << 30), cache((48 << 30) + 4096));
    assert_eq!((first.value, second.value), (4 << 30, 4 << 30));
    assert_eq!(first.reason.as_deref(), Some("a quarter of what is available, at most 4 GiB"));
    assert_eq!(first.reason, second.reason);
}

#[test]
fn memory_that_is_not_there_or_holds_nothing_is_refused() {
    refused(with_memory(1 << 30, &[("cache.kv_cache_memory", "2GiB")]), "cache.kv_cache_memory", "has 1 GiB available");
    refused(with_memory(1 << 30, &[("cache.kv_cache_memory", "1KiB")]), "cache.kv_cache_memory", "takes 256 KiB");
    // Not even a default can hold a block here, so nothing is left to lower it to.
    refused(with_memory(1 << 10, &[]), "cache.kv_cache_memory", "takes 256 KiB, and cpu has 1 KiB available");
    let settings = with_memory(256 << 10, &[]).unwrap();
    assert_eq!((settings.model.max_model_len.value, settings.cache.kv_cache_memory.value), (16, 256 << 10));
}

#[test]
fn absurd_facts_do_no_harm() {
    let device = DeviceFacts { parallelism: 0, available_memory: u64::MAX, ..device("cpu") };
    let endless = ModelFacts { context_length: usize::MAX, kv_bytes_per_token: 1, ..model("plain") };
    let settings = resolve(&Options::new(), &endless, &device).unwrap();
    assert_eq!(settings.cpu.threads.value, 1);
    assert_eq!(settings.model.max_model_len.value, 1 << 24);
    let heavy = ModelFacts { kv_bytes_per_token: usize::MAX, ..endless };
    refused(resolve(&Options::new(), &heavy, &device), "cache.kv_cache_memory", "one block of the KV cache takes");
    let nothing = ModelFacts { context_length: 0, kv_bytes_per_token: 0, ..model("plain") };
    let many = DeviceFacts { parallelism: usize::MAX, available_memory: 0, ..device };
    let settings = resolve(&Options::new(), &nothing, &many).unwrap();
    assert_eq!((settings.model.max_model_len.value, settings.cpu.threads.value), (1, 4096));
}

#[test]
fn settings_exist_without_model_and_device() {
    let settings = resolve_with(&said(&[("optimization_level", "3")]), None, None).unwrap();
    let reason = settings.compilation.pass_config.fuse_norm_quant.reason.clone().unwrap();
    assert_eq!(reason, "the model does not quantize activations (assumed: no model given)");
    assert!(settings.cpu.threads.reason.as_ref().is_some_and(|reason| reason.contains("assumed: no device given")));
    // Nothing is refused because of an assumption.
    let beyond = said(&[("model.max_model_len", "1000000"), ("cache.kv_cache_memory", "1TiB")]);
    let settings = resolve_with(&beyond, None, None).unwrap();
    assert_eq!(settings.model.max_model_len.value, 1_000_000);
    // Nor because of one that another setting rests on: here the default of the KV cache, on a device nobody named.
    let heavy = ModelFacts { kv_bytes_per_token: 16 << 20, ..model("plain") };
    assert!(resolve_with(&said(&[("model.max_model_len", "8192")]), Some(&heavy), None).is_ok());
    // What contradicts itself whatever the model and device still is.
    let contradiction = said(&[("enforce_eager", "true"), ("compilation.cudagraph_mode", "FULL")]);
    assert!(resolve_with(&contradiction, None, None).is_err());
}

#[test]
fn equality_ignores_where_values_come_from() {
    let by_level = on_cpu(&[]).unwrap();
    let explicit =
        on_cpu(&[("compilation.pass_config.fuse_add_norm", "true"), ("kernel.repack_weights", "on")]).unwrap();
    assert_eq!(by_level, explicit);
    assert_ne!(by_level, on_cpu(&[("kernel.repack_weights", "off")]).unwrap());
}

#[test]
fn norms_of_queries_and_keys_decide_their_fusion() {
    for (name, fused, reason) in
        [("plain", false, "the model has no q/k norms"), ("qk-norms", true, "the model has q/k norms")]
    {
        let settings = resolve(&Options::new(), &model(name), &device("cpu")).unwrap();
        let pass = &settings.compilation.pass_config.fuse_qk_norm_rope;
        assert_eq!((pass.value, pass.reason.as_deref()), (fused, Some(reason)));
        let settings = resolve(&said(&[("optimization_level", "1")]), &model(name), &device("cpu")).unwrap();
        assert!(!settings.compilation.pass_config.fuse_qk_norm_rope.value);
    }
}

#[test]
fn quantization_decides_its_fusions() {
    for (quantization, fuse_norm, fuse_attention) in [
        (ActivationQuantization::None, false, false),
        (ActivationQuantization::Dynamic, true, false),
        (ActivationQuantization::Static, true, true),
    ] {
        let model = ModelFacts { activation_quantization: quantization, ..model("plain") };
        let settings = resolve(&Options::new(), &model, &device("cpu")).unwrap();
        assert_eq!(settings.compilation.pass_config.fuse_norm_quant.value, fuse_norm, "{quantization:?}");
        assert_eq!(settings.compilation.pass_config.fuse_act_quant.value, fuse_norm, "{quantization:?}");
        assert_eq!(settings.compilation.pass_config.fuse_attn_quant.value, fuse_attention, "{quantization:?}");
    }
}
