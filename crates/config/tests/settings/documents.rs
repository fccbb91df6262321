//! Documents, schemas and files that are made from the declarations.

use allotrope_config::environment::Environment;
use allotrope_config::{
    Format, Options, PassLine, Source, Sources, diff, explain, explanation_schema, initial_file, levels_markdown,
    load_from, resolve_with, schema, settings_markdown,
};
use serde_json::Value as Json;

fn settings() -> allotrope_config::Settings {
    resolve_with(&Options::new(), None, None).unwrap()
}

fn at(level: &str) -> allotrope_config::Settings {
    let mut options = Options::new();
    options.set("optimization_level", level, Source::Builder).unwrap();
    resolve_with(&options, None, None).unwrap()
}

#[test]
fn the_level_table() {
    insta::assert_snapshot!(levels_markdown());
}

#[test]
fn the_settings_page_has_every_setting() {
    let page = settings_markdown();
    for row in settings().rows() {
        assert!(page.contains(&format!("### `{}`\n", row.setting)), "{}", row.setting);
        let variable = format!("`ALLOTROPE_{}`", row.setting.replace('.', "__").to_uppercase());
        assert!(page.contains(&variable), "{variable}");
    }
    for shown in [
        "General settings:",
        "cache.block_size\n  Tokens in one block",
        "error: command line -cc.pass_config.fuse_add_nrm",
        "error: few.toml:2: ",
        "error: environment ALLOTROPE_CACHE__BLOCK_SIZE",
        "which forces NONE",
        "before",
    ] {
        assert!(page.contains(shown), "{shown}");
    }
}

#[test]
fn the_initial_file_is_a_settings_file_and_so_is_what_it_comments_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("allotrope.toml");
    let read = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let sources = Sources { config_file: Some(file.clone()), strict_environment: false };
        load_from(Options::new(), &sources, &Environment::default())
    };
    let text = initial_file();
    assert!(read(&text).unwrap().is_empty());
    let assignment =
        |line: &str| line.strip_prefix("# ").is_some_and(|rest| rest.contains(" = ") && !rest.contains(". "));
    let uncommented: Vec<&str> =
        text.lines().map(|line| if assignment(line) { line.trim_start_matches("# ") } else { line }).collect();
    let options = read(&uncommented.join("\n")).unwrap();
    for row in settings().rows() {
        assert_eq!(options.get(row.setting).map(|(value, _)| value.clone()), Some(row.value), "{}", row.setting);
    }
}

#[test]
fn the_schema_has_every_setting_with_its_documentation() {
    let schema = schema();
    for row in settings().rows() {
        let pointer = format!("/properties/{}", row.setting.replace('.', "/properties/"));
        let of = schema.pointer(&pointer).unwrap_or_else(|| panic!("{pointer}"));
        let description = of.get("description").and_then(Json::as_str).unwrap();
        assert!(description.contains("Default: "), "{description}");
    }
    let closed = schema.pointer("/properties/compilation/properties/pass_config/additionalProperties");
    assert_eq!(closed, Some(&Json::Bool(false)));
}

#[test]
fn the_explanation_has_the_form_of_its_schema() {
    let passes = [PassLine {
        name: "fuse-add-norm".to_owned(),
        setting: "compilation.pass_config.fuse_add_norm".to_owned(),
        matches: Some(32),
        note: None,
        left_alone: Vec::new(),
    }];
    let text = explain(&settings(), &passes, None, &Format::Json).unwrap();
    let explanation: Json = serde_json::from_str(&text).unwrap();
    let schema = explanation_schema();
    let keys = |json: &Json| json.as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>();
    let required: Vec<&str> =
        schema.get("required").and_then(Json::as_array).unwrap().iter().filter_map(Json::as_str).collect();
    assert_eq!(keys(&explanation), required.iter().map(|key| (*key).to_owned()).collect());
    assert!(keys(schema.get("properties").unwrap()).is_superset(&keys(&explanation)));
    let forms = schema.pointer("/properties/settings/items/oneOf").and_then(Json::as_array).unwrap();
    let rows = explanation.get("settings").and_then(Json::as_array).unwrap();
    assert_eq!(rows.len(), forms.len());
    for (row, form) in rows.iter().zip(forms) {
        assert_eq!(row.get("setting"), form.pointer("/properties/setting/const"));
        let known = keys(schema.pointer("/properties/settings/items/properties/source/properties").unwrap());
        assert!(keys(row.get("source").unwrap()).is_subset(&known), "{row}");
        assert!(fits(&row["value"], form.pointer("/properties/value").unwrap()), "{row} {form}");
    }
    let pass = explanation.pointer("/passes/0").unwrap();
    assert_eq!(keys(pass), keys(schema.pointer("/properties/passes/items/properties").unwrap()));
    assert_eq!(pass["on"], Json::Bool(true));
    assert_eq!(pass["matches"], 32);
}

/// Whether a value has one of the forms that its schema allows.
fn fits(value: &Json, schema: &Json) -> bool {
    if let Some(any) = schema.get("anyOf").and_then(Json::as_array) {
        return any.iter().any(|schema| fits(value, schema));
    }
    match schema.get("type").and_then(Json::as_str) {
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_u64(),
        Some("string") => value.is_string(),
        Some("array") => value.as_array().is_some_and(|items| items.iter().all(|item| fits(item, &schema["items"]))),
        _ => schema["enum"].as_array().unwrap().contains(value),
    }
}

#[test]
fn a_setting_without_a_value_is_null_in_json_and_a_word_elsewhere() {
    let text = settings().to_toml();
    for line in ["debug_dump_path = \"none\"\n", "fuel = \"unlimited\"\n", "splitting_ops = [\"attention\"]\n"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    for (path, word) in [("compilation.debug_dump_path", "none"), ("compilation.fuel", "unlimited")] {
        let row = settings().row(path).unwrap();
        assert_eq!((row.value, row.shown.as_str()), (Json::Null, word));
        assert!(initial_file().contains(&format!(" = \"{word}\"\n")));
    }
}

#[test]
fn the_difference_of_two_levels() {
    let text = diff(&at("1"), &at("2"), &Format::Text { color: false });
    let changed: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(
        changed,
        [
            "optimization_level",
            "compilation.cudagraph_mode",
            "compilation.pass_config.fuse_qkv_proj",
            "compilation.pass_config.fuse_gate_up_proj",
            "compilation.pass_config.fuse_rope_kvcache",
            "compilation.pass_config.fuse_gemm_prologue",
            "compilation.pass_config.fuse_gemm_epilogue",
            "kernel.repack_weights",
        ]
    );
    assert_eq!(diff(&at("1"), &at("1"), &Format::Text { color: false }), "No setting differs.\n");
    let json: Json = serde_json::from_str(&diff(&at("1"), &at("2"), &Format::Json)).unwrap();
    assert_eq!(json["changed"][1]["before"]["value"], "PIECEWISE");
    assert_eq!(json["changed"][1]["after"]["source"]["level"], "O2");
}

#[test]
fn an_explanation_of_a_part_shows_that_part() {
    let passes = |setting: &str, matches| PassLine {
        name: setting.rsplit('.').next().unwrap().to_owned(),
        setting: setting.to_owned(),
        matches,
        note: Some("a note".to_owned()),
        left_alone: vec!["its operand is another (%x)".to_owned()],
    };
    let lines = [
        passes("compilation.pass_config.fuse_add_norm", Some(0)),
        passes("compilation.pass_config.fuse_norm_quant", None),
    ];
    let plain = Format::Text { color: false };
    let text = explain(&settings(), &lines, Some("compilation.pass_config"), &plain).unwrap();
    assert!(!text.contains("cudagraph_mode") && text.contains("fuse_qkv_proj"), "{text}");
    assert!(text.contains("nothing to match in this model; a note"), "{text}");
    assert!(
        text.contains("level O2: the model does not quantize activations (assumed: no model given); a note"),
        "{text}"
    );
    assert!(text.contains("a note\n    left alone: its operand is another (%x)\n"), "{text}");
    let kernel = explain(&settings(), &lines, Some("kernel"), &plain).unwrap();
    assert!(kernel.contains("repack_weights") && !kernel.contains("matches"), "{kernel}");
    let error = explain(&settings(), &lines, Some("kernels"), &plain).expect_err("no such group");
    assert!(error.is_usage() && error.to_string().contains("--only"), "{error}");
    let colored = explain(&settings(), &lines, None, &Format::Text { color: true }).unwrap();
    assert!(colored.contains("\u{1b}[1m[compilation]\u{1b}[0m"));
    assert!(!text.contains('\u{1b}'));
}
