//! Conversations with tools, documents and more variables, and messages that are continued.

use allotrope_model::{ChatTemplate, Conversation, Message, ModelError};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::checkpoints::{Folder, assert_says};

/// Lists tools as JSON lines, and writes calls as objects with `parameters`, in the manner of Llama 3.1.
const LLAMA_LIKE: &str = r#"{{- bos_token }}
{%- if tools is defined and tools is not none %}
    {{- "[system]\nFunctions:\n" }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- "\n" }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("One call at a time!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '[assistant]\n{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}' }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "[result]\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
    {%- else %}
        {{- '[' + message['role'] + ']\n' + message['content'] | trim }}
    {%- endif %}
    {{- eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "[assistant]\n" }}
{%- endif %}"#;

/// Tags around tools, calls and results, in the manner of Hermes.
const HERMES_LIKE: &str = r#"{%- if tools %}
    {{- '<|system|>' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n' }}{%- endif %}
    {{- '<tools>' }}
    {%- for tool in tools %}{{- '\n' ~ tool | tojson }}{%- endfor %}
    {{- '\n</tools><|end|>' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|system|>' + messages[0].content + '<|end|>' }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
    {{- '<|' + message.role + '|>' }}
    {%- if message.role == 'tool' %}
        {{- '<tool_response>' + message.content + '</tool_response>' }}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {%- if call.function %}{% set call = call.function %}{% endif %}
        {{- '\n<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' ~ call.arguments | tojson ~ '}\n</tool_call>' }}
    {%- endfor %}
    {{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think></think>' }}{%- endif %}
{%- endif %}"#;

fn open(template: &str) -> Result<ChatTemplate, ModelError> {
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template});
    ChatTemplate::open(Folder::new().write_json("tokenizer_config.json", &config).path())
}

fn render(template: &str, conversation: &Conversation<'_>) -> Result<String, ModelError> {
    open(template)?.render_conversation(conversation)
}

fn clock() -> Value {
    json!({"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}})
}

fn called() -> Vec<Value> {
    vec![
        json!({"role": "system", "content": "Be brief."}),
        json!({"role": "user", "content": "Time?"}),
        json!({"role": "assistant", "content": "", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": {"zone": "é<", "n": 1.5}}},
        ]}),
        json!({"role": "tool", "tool_call_id": "call_1", "content": "12:00"}),
    ]
}

const CLOCK: &str = r#"{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}"#;

#[test]
fn tools_calls_and_results_reach_a_template_like_that_of_llama() {
    let (messages, tools) = (called(), [clock()]);
    let conversation = Conversation { tools: &tools, add_generation_prompt: true, ..Conversation::new(&messages) };
    let expected = format!(
        "<s>[system]\nFunctions:\n{CLOCK}\n[system]\nBe brief.</s>[user]\nTime?</s>[assistant]\n{{\"name\": \"clock\", \"parameters\": {{\"zone\": \"é<\", \"n\": 1.5}}}}</s>[result]\n12:00</s>[assistant]\n"
    );
    assert_eq!(render(LLAMA_LIKE, &conversation).unwrap(), expected);
    let mut messages = called();
    let call = messages[2]["tool_calls"][0].clone();
    messages[2]["tool_calls"] = json!([call, call]);
    assert_says(render(LLAMA_LIKE, &Conversation::new(&messages)), &["One call at a time!"]);
}

#[test]
fn tools_calls_and_results_reach_a_template_like_that_of_hermes() {
    let (messages, tools) = (called(), [clock()]);
    let mut arguments = Map::new();
    arguments.insert("enable_thinking".to_owned(), json!(false));
    let conversation = Conversation {
        tools: &tools,
        arguments: Some(&arguments),
        add_generation_prompt: true,
        ..Conversation::new(&messages)
    };
    let expected = format!(
        "<|system|>Be brief.\n<tools>\n{CLOCK}\n</tools><|end|><|user|>Time?<|end|><|assistant|>\n<tool_call>\n{{\"name\": \"clock\", \"arguments\": {{\"zone\": \"é<\", \"n\": 1.5}}}}\n</tool_call><|end|><|tool|><tool_response>12:00</tool_response><|end|><|assistant|><think></think>"
    );
    assert_eq!(render(HERMES_LIKE, &conversation).unwrap(), expected);
    let plain = render(HERMES_LIKE, &Conversation::new(&messages[..2])).unwrap();
    assert_eq!(plain, "<|system|>Be brief.<|end|><|user|>Time?<|end|>");
}

#[test]
fn a_template_says_whether_it_takes_tools() {
    for (template, takes) in
        [(LLAMA_LIKE, true), (HERMES_LIKE, true), ("{{ messages[0].content }}", false), ("{{ my_tools }}", false)]
    {
        assert_eq!(open(template).unwrap().takes_tools(), takes, "{template}");
    }
}

#[test]
fn both_entry_points_render_alike() {
    let template = open(HERMES_LIKE).unwrap();
    let messages = [Message::new("system", "A"), Message::new("user", "é")];
    let values = [json!({"role": "system", "content": "A"}), json!({"role": "user", "content": "é"})];
    let conversation = Conversation { add_generation_prompt: true, ..Conversation::new(&values) };
    assert_eq!(template.render(&messages, true).unwrap(), template.render_conversation(&conversation).unwrap());
}

#[test]
fn documents_and_variables_arrive_and_take_no_one_elses_place() {
    let template = "{{ documents | tojson }}{{ x }}{{ bos_token }}{{ pad_token is defined }}{{ tools is none }}{{ messages | length }}{{ add_generation_prompt }}{% if y %}{{ raise_exception('no') }}{% endif %}";
    let messages = [json!({"role": "user", "content": "a"})];
    let documents = [json!({"title": "t", "text": "d"})];
    let given = json!({
        "x": "given", "bos_token": "EVIL", "pad_token": "EVIL", "tools": "EVIL", "messages": "EVIL",
        "add_generation_prompt": "EVIL", "documents": "EVIL", "raise_exception": "EVIL",
    });
    let arguments = given.as_object();
    let conversation = Conversation { documents: &documents, arguments, ..Conversation::new(&messages) };
    assert_eq!(render(template, &conversation).unwrap(), r#"[{"title": "t", "text": "d"}]given<s>FalseTrue1False"#);
    let none = render("{{ documents is none }}", &Conversation::new(&messages)).unwrap();
    assert_eq!(none, "True");
    let given = json!({"y": true, "raise_exception": 1});
    let conversation = Conversation { arguments: given.as_object(), ..Conversation::new(&messages) };
    assert_says(render(template, &conversation), &["no"]);
}

#[test]
fn the_last_message_can_be_continued() {
    let continued = |template: &str, content: Value| {
        let messages = [json!({"role": "user", "content": "Sky?"}), json!({"role": "assistant", "content": content})];
        render(template, &Conversation { continue_final_message: true, ..Conversation::new(&messages) })
    };
    assert_eq!(continued(LLAMA_LIKE, json!("It is ")).unwrap(), "<s>[user]\nSky?</s>[assistant]\nIt is ");
    assert_eq!(continued(HERMES_LIKE, json!("Sky?")).unwrap(), "<|user|>Sky?<|end|><|assistant|>Sky?");
    assert_eq!(continued(HERMES_LIKE, json!("")).unwrap(), "<|user|>Sky?<|end|><|assistant|>");
    let twice = "{{ messages[-1].content }}|{{ messages[-1].content }}|end";
    assert_eq!(continued(twice, json!("x")).unwrap(), "x|x");
    assert_says(continued("{{ messages[0].content }}", json!("x")), &["does not write the last message"]);
    assert_says(continued(twice, json!(["x"])), &["no text that could be continued"]);
    let nothing = Conversation { continue_final_message: true, ..Conversation::new(&[]) };
    assert_says(render(twice, &nothing), &["no text that could be continued"]);
}

#[test]
fn a_template_of_a_request_has_the_same_tokens_and_bounds() {
    let template = open("x").unwrap();
    let messages = [json!({"role": "user", "content": "a"})];
    let other = template.with_source("{{ bos_token }}{{ messages[0].content }}").unwrap();
    assert_eq!(other.render_conversation(&Conversation::new(&messages)).unwrap(), "<s>a");
    assert_says(template.with_source("{% if %}"), &["chat_template of the request", "line 1"]);
    assert_says(template.with_source(&" ".repeat((4 << 20) + 1)), &["more than 4194304"]);
    let endless = template.with_source("{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}");
    assert_says(endless.unwrap().render_conversation(&Conversation::new(&messages)), &["steps"]);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let key = prop_oneof![Just("role"), Just("content"), Just("tool_calls"), Just("function"), Just("name")];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4).prop_map(|entries| {
                Value::Object(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_is_rendered_or_refused(
        messages in prop::collection::vec(any_json(), 0..3),
        tools in prop::collection::vec(any_json(), 0..2),
        continue_final_message in any::<bool>(),
    ) {
        let conversation = Conversation { tools: &tools, continue_final_message, ..Conversation::new(&messages) };
        for template in [LLAMA_LIKE, HERMES_LIKE] {
            let _ = open(template).unwrap().render_conversation(&conversation);
        }
    }
}

#[test]
fn a_source_takes_the_place_of_a_template_that_is_broken_or_not_there() {
    let config = json!({"bos_token": "<s>", "chat_template": "{% if %}"});
    let folder = Folder::new();
    let folder = folder.write_json("tokenizer_config.json", &config);
    assert!(ChatTemplate::open(folder.path()).is_err());
    let source = "{{ bos_token }}{{ messages[0].content }}";
    let template = ChatTemplate::open_with_source(folder.path(), source).unwrap();
    assert_eq!(template.render(&[Message::new("user", "Hi")], true).unwrap(), "<s>Hi");
    assert_eq!(template.source(), source);
    assert_says(ChatTemplate::open_with_source(folder.path(), "{% if %}"), &["that was given", "line 1"]);
    let bare = ChatTemplate::open_with_source(Folder::new().path(), source).unwrap();
    assert_eq!(bare.render(&[Message::new("user", "Hi")], true).unwrap(), "Hi");
}
