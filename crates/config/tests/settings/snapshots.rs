//! What `explain` prints at every level, on several devices, for several models, with and without explicit settings.

use std::fmt::Write as _;

use allotrope_config::{
    AttentionGraphSupport, DeviceFacts, Format, OptimizationLevel, Options, Source, explain, resolve,
};

use crate::facts::model;

/// Facts of one kind of device each: what it can do is what the rules look at.
fn devices() -> [(&'static str, DeviceFacts); 3] {
    let facts = |name: &str, kind: &str, attention_graph_support, autotune, persistent_decode| DeviceFacts {
        name: name.to_owned(),
        kind: kind.to_owned(),
        attention_graph_support,
        parallelism: 8,
        available_memory: 64 << 30,
        dedicated_memory: kind == "cuda",
        repack_weights: kind == "cpu",
        fp8_kv_cache: kind == "cpu",
        autotune,
        persistent_decode,
        kernel_cache: Some("/cache/allotrope/kernels".into()),
    };
    [
        ("cpu", facts("CPU", "cpu", AttentionGraphSupport::Always, false, false)),
        ("cuda_8_0", facts("CUDA 8.0", "cuda", AttentionGraphSupport::UniformBatch, true, false)),
        ("cuda_9_0", facts("CUDA 9.0", "cuda", AttentionGraphSupport::Always, true, true)),
    ]
}

const EXPLICIT: [(&str, &str, &str); 4] = [
    ("compilation.pass_config.fuse_add_norm", "false", "-cc.pass_config.fuse_add_norm"),
    ("compilation.pass_config.fuse_norm_quant", "true", "-cc.pass_config.fuse_norm_quant"),
    ("scheduler.max_num_seqs", "100", "--max-num-seqs"),
    ("cache.kv_cache_memory", "128MiB", "--kv-cache-memory"),
];

#[test]
fn every_level_device_and_model() {
    for (device_name, device) in devices() {
        for model_name in ["plain", "fp8-static", "fp8-dynamic"] {
            for (said, values) in [("default", &[][..]), ("explicit", &EXPLICIT)] {
                let text = every_level(&device, model_name, values);
                insta::assert_snapshot!(format!("explain_{device_name}_{model_name}_{said}"), text);
            }
        }
    }
}

#[test]
fn a_model_with_norms_of_queries_and_keys() {
    let [(_, device), ..] = devices();
    insta::assert_snapshot!("explain_cpu_qk-norms_default", every_level(&device, "qk-norms", &[]));
}

#[test]
fn steps_cut_elsewhere_than_at_attention() {
    let [_, (_, device), _] = devices();
    let said = [
        ("compilation.splitting_ops", "linear", "-cc.splitting_ops"),
        ("compilation.debug_dump_path", "dump", "--debug-dump-path"),
        ("compilation.fuel", "12", "--fuel"),
    ];
    insta::assert_snapshot!("explain_cuda_8_0_plain_cut_elsewhere", every_level(&device, "plain", &said));
}

/// What `explain` prints at every level, with settings as path, value and flag.
fn every_level(device: &DeviceFacts, model_name: &str, said: &[(&str, &str, &str)]) -> String {
    let mut text = String::new();
    for level in OptimizationLevel::ALL {
        let mut options = Options::new();
        options.set_optimization_level(level, Source::CommandLine { flag: "-O".to_owned() });
        for (path, value, flag) in said {
            options.set(path, value, Source::CommandLine { flag: (*flag).to_owned() }).unwrap();
        }
        let settings = resolve(&options, &model(model_name), device).unwrap();
        let explained = explain(&settings, &[], None, &Format::Text { color: false }).unwrap();
        let _ = writeln!(text, "== {level} ==\n{explained}");
    }
    text
}
