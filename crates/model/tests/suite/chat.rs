//! Chat templates: what they render, and what they may not do.

use std::time::{Duration, SystemTime};

use allotrope_model::{ChatTemplate, Message, ModelError, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::checkpoints::{Folder, assert_says, shipped};

fn conversation() -> Vec<Message> {
    vec![Message::new("system", "Be brief."), Message::new("user", "  Hi \n"), Message::new("assistant", "Hello!")]
}

fn open(template: &str) -> Result<ChatTemplate, ModelError> {
    let config =
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "chat_template": template});
    ChatTemplate::open(Folder::new().write_json("tokenizer_config.json", &config).path())
}

fn render(template: &str) -> Result<String, ModelError> {
    open(template)?.render(&conversation(), true)
}

#[test]
fn the_shipped_template_frames_the_messages() {
    let template = ChatTemplate::open(&shipped("tiny-chat")).unwrap();
    let messages = [Message::new("user", " What is 7 + 8? ")];
    let expected = "<|begin|><|start_header|>user<|end_header|>\nWhat is 7 + 8?<|eot|>\n";
    assert_eq!(template.render(&messages, false).unwrap(), expected);
    let prompt = template.render(&messages, true).unwrap();
    assert_eq!(prompt, format!("{expected}<|start_header|>assistant<|end_header|>\n"));
    let tokenizer = Tokenizer::open(&shipped("tiny-chat")).unwrap();
    let ids = tokenizer.encode(&prompt, false).unwrap();
    assert_eq!(ids.iter().filter(|id| tokenizer.is_special(**id)).count(), 6, "each mark is one token: {ids:?}");
}

/// A template in the manner of Llama 3: a date, a system message set apart, checks on roles, loop controls.
const HEADERS: &str = r#"{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 Jan 2000" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set instructions = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set instructions = "" %}
{%- endif %}
{{- "[system]\nToday: " + date_string + "\n" + instructions + eos_token }}
{%- if tools is not none %}
    {{- raise_exception("no tools here") }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ["user", "assistant"] %}
        {{- raise_exception("Unknown role: " + message.role) }}
    {%- endif %}
    {%- if not message.content %}{% continue %}{% endif %}
    {{- '[' + message['role'] + ']\n' + message['content'] | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[assistant]\n' }}
{%- endif %}
"#;

#[test]
fn a_template_in_the_manner_of_llama_3_renders() {
    let template = open(HEADERS).unwrap();
    let day = SystemTime::UNIX_EPOCH + Duration::from_secs(1_721_000_000); // 14 July 2024, 23:33 UTC
    let mut messages = conversation();
    messages.push(Message::new("user", ""));
    let expected = "<s>[system]\nToday: 14 Jul 2024\nBe brief.</s>[user]\nHi</s>[assistant]\nHello!</s>[assistant]\n";
    assert_eq!(template.render_at(&messages, true, day).unwrap(), expected);
    let result = template.render(&[Message::new("user", "a"), Message::new("critic", "b")], true);
    assert_says(result, &["tokenizer_config.json", "chat template, line 21", "Unknown role: critic"]);
}

#[test]
fn blocks_are_trimmed_as_the_hugging_face_library_trims_them() {
    assert_eq!(render("a\n  {% if true %}\nb\n  {% endif %}\nc\n").unwrap(), "a\nb\nc");
    assert_eq!(render("{% for m in messages %}\n{{ m.role }}\n{% endfor %}\n").unwrap(), "system\nuser\nassistant\n");
    assert_eq!(render("{% generation %}\nx{%- endgeneration -%} \ny").unwrap(), "xy");
}

#[test]
fn functions_and_methods_of_python_templates_are_there() {
    let rendered = |template: &str| render(template).unwrap();
    assert_eq!(rendered("{{ messages[0] | tojson }}"), r#"{"role": "system", "content": "Be brief."}"#);
    assert_eq!(
        rendered("{{ {'a': [1, 2.5, none, true], 'é<&>': \"'\"} | tojson }}"),
        r#"{"a": [1, 2.5, null, true], "é<&>": "'"}"#
    );
    assert_eq!(rendered("{{ {'a': [1]} | tojson(indent=2) }}"), "{\n  \"a\": [\n    1\n  ]\n}");
    assert_eq!(
        rendered("{{ ' x '.strip() }}{{ 'a,b'.split(',')[1] }}{{ 'abc'.startswith('ab') }}{{ 'x'.upper() }}"),
        "xbTrueX"
    );
    assert_eq!(rendered("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}"), "a=1");
    assert_eq!(
        rendered(
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if ns.n == 2 %}{% break %}{% endif %}{% endfor %}{{ ns.n }}"
        ),
        "2"
    );
    assert_eq!(rendered("{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ tools is none }}"), "<s></s>True");
    assert_eq!(
        rendered(
            "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('a') }}{{ messages | length }}{{ messages[-1].content }}"
        ),
        "<a>3Hello!"
    );
}

#[test]
fn the_template_file_wins_and_named_templates_are_found() {
    let folder = Folder::new();
    let named =
        json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default {{ bos_token }}"}]);
    folder.write_json("tokenizer_config.json", &json!({"bos_token": "<s>", "chat_template": named}));
    assert_eq!(ChatTemplate::open(folder.path()).unwrap().render(&[], false).unwrap(), "default <s>");
    folder.write("chat_template.jinja", "file {{ bos_token }}\n");
    assert_eq!(ChatTemplate::open(folder.path()).unwrap().render(&[], false).unwrap(), "file <s>");
    folder.write("chat_template.jinja", "one\ntwo {{ 1 + }}\n");
    assert_says(ChatTemplate::open(folder.path()), &["chat_template.jinja", "chat template, line 2"]);
    folder.write("chat_template.jinja", [0xff]);
    assert_says(ChatTemplate::open(folder.path()), &["chat_template.jinja", "UTF-8"]);
}

#[test]
fn missing_and_malformed_templates_are_refused() {
    let folder = Folder::new();
    assert_says(ChatTemplate::open(folder.path()), &["no chat template", "chat_template.jinja"]);
    folder.write_json("tokenizer_config.json", &json!({"bos_token": "<s>"}));
    assert_says(ChatTemplate::open(folder.path()), &["no chat template", "tokenizer_config.json"]);
    for (field, value) in [
        ("chat_template", json!(5)),
        ("chat_template", json!([{"name": "rag", "template": "x"}])),
        ("chat_template", json!([5])),
        ("bos_token", json!(5)),
        ("eos_token", json!({"text": "x"})),
    ] {
        let mut config = json!({"chat_template": "x"});
        config[field] = value;
        folder.write_json("tokenizer_config.json", &config);
        assert_says(ChatTemplate::open(folder.path()), &["tokenizer_config.json", &format!("`{field}` is")]);
    }
    folder.write("tokenizer_config.json", "{\"a\":");
    assert_says(ChatTemplate::open(folder.path()), &["tokenizer_config.json", "line 1"]);
}

#[test]
fn errors_name_the_line() {
    for (template, words) in [
        ("{{ x", ["line 1", "template"]),
        ("a\n{% if %}\n", ["line 2", "template"]),
        ("a\nb\n{{ messages.no_such_method() }}", ["line 3", "no_such_method"]),
        ("\n{{ nothing.role }}", ["line 2", "template"]),
        ("{{ raise_exception('roles must alternate') }}", ["line 1", "roles must alternate"]),
        ("{{ strftime_now('%!') }}", ["line 1", "strftime_now"]),
        ("{% include 'secrets.txt' %}", ["line 1", "secrets.txt"]),
    ] {
        assert_says(render(template), &["tokenizer_config.json", words[0], words[1]]);
    }
}

#[test]
fn templates_without_end_are_stopped() {
    for template in [
        "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for x in [messages] recursive %}{{ loop([x]) }}{% endfor %}",
        "{% for a in range(10000) %}{{ 'x' * 100000 }}{% endfor %}",
        "{{ 'x' * 1000000000000 }}",
        "{{ range(10 ** 18) | list }}",
    ] {
        assert_says(render(template), &["chat template"]);
    }
    assert_says(open(&"{% if true %}".repeat(100_000)), &["chat template"]);
    assert_says(open(&format!("{{{{ {} }}}}", "(".repeat(100_000))), &["chat template"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn messages_are_data_never_template(role in "\\PC{0,10}", content in "(\\PC|[{}%#\\n]){0,40}") {
        let rendered = open("{% for m in messages %}{{ m.role }}|{{ m.content }}{% endfor %}").unwrap();
        let text = rendered.render(&[Message::new(role.clone(), content.clone())], false).unwrap();
        prop_assert_eq!(text, format!("{role}|{content}"));
    }

    #[test]
    fn changed_templates_give_an_error_or_text(changes in prop::collection::vec((any::<prop::sample::Index>(), "[ -~]"), 1..5)) {
        let mut characters: Vec<String> = HEADERS.chars().map(String::from).collect();
        for (place, character) in changes {
            let place = place.index(characters.len());
            characters[place] = character;
        }
        match render(&characters.concat()) {
            Ok(_) => {}
            Err(error) => prop_assert!(error.to_string().contains("chat template"), "{}", error),
        }
    }

    #[test]
    fn any_tokenizer_configuration_gives_a_template_or_an_error(value in prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), any::<f64>().prop_map(Value::from), "\\PC{0,30}".prop_map(Value::from)]) {
        let folder = Folder::new();
        folder.write_json("tokenizer_config.json", &json!({"chat_template": value, "bos_token": value}));
        if let Ok(template) = ChatTemplate::open(folder.path()) {
            let _ = template.render(&conversation(), true);
        }
    }
}
