"""What users of the official `openai` package do, against a running server of tests/models/tiny-chat.

    python openai_client.py http://127.0.0.1:8000 API_KEY

Every check is an assertion; the last line is the number of checks that ran.
"""

import concurrent.futures
import json
import sys
import time
import urllib.error
import urllib.request

import openai

QUESTION = [{"role": "user", "content": "What is 7 + 8?"}]
ANSWER = "7 + 8 = 15."
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def refused(error, status, call):
    try:
        call()
    except error as found:
        assert found.status_code == status, found
        assert isinstance(found.body, dict) and found.body["message"], found.body
        return found
    raise AssertionError(f"not refused with {error}")


def models(client, model):
    listed = client.models.list().data
    assert [entry.id for entry in listed] == [model], listed
    assert listed[0].max_model_len == 1024


def chat(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0)
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role) == (ANSWER, "assistant"), choice
    assert choice.finish_reason == "stop" and answer.object == "chat.completion"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    parts = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": [{"type": "text", "text": "What is 7 + 8?"}]}], temperature=0
    )
    assert parts.choices[0].message.content == ANSWER


def chat_stream(client, model):
    stream = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == ANSWER, text
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def completions(client, model):
    first = client.completions.create(model=model, prompt="Once upon a time", max_tokens=12, temperature=0)
    again = client.completions.create(model=model, prompt="Once upon a time", max_tokens=12, temperature=0)
    assert first.choices[0].text and first.choices[0].text == again.choices[0].text
    assert first.choices[0].finish_reason == "length" and first.usage.completion_tokens == 12
    several = client.completions.create(
        model=model, prompt=["The fox", "The owl"], n=2, temperature=1.0, seed=3, max_tokens=5
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    stream = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=12, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == first.choices[0].text


def seeds(client, model):
    ask = lambda seed: client.completions.create(
        model=model, prompt="Tell me", max_tokens=16, temperature=1.0, seed=seed
    ).choices[0].text
    assert ask(11) == ask(11)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(ask, [11] * 16))
    assert set(texts) == {ask(11)}, "a seed gives the same text alone and in company"


def logprobs(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert "".join(token.token for token in content if not token.token.startswith("<|")) == ANSWER
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob, "greedy takes the likeliest"
    scored = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=1, logprobs=1, echo=True, temperature=0
    )
    found = scored.choices[0].logprobs
    assert found.token_logprobs[0] is None and all(value <= 0 for value in found.token_logprobs[1:])
    assert scored.choices[0].text.startswith("Once upon a time")
    assert found.text_offset[0] == 0 and len(found.tokens) == len(found.text_offset) == len(found.token_logprobs)


def stop_and_bias(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, stop=[" ="])
    assert answer.choices[0].message.content == "7 + 8" and answer.choices[0].finish_reason == "stop"
    banned = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, extra_body={"bad_words": ["15"]})
    assert "15" not in banned.choices[0].message.content


def structured(client, model):
    schema = {"type": "object", "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["sum"]}
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=64, temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "sum", "schema": schema | {"additionalProperties": False}}},
    )
    assert isinstance(json.loads(answer.choices[0].message.content)["sum"], int)
    choice = client.chat.completions.create(
        model=model, messages=QUESTION, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
    )
    assert choice.choices[0].message.content in ("yes", "no")
    pattern = client.completions.create(
        model=model, prompt="A number:", max_tokens=16, extra_body={"structured_outputs": {"regex": "[0-9]{3}"}}
    )
    assert len(pattern.choices[0].text) == 3 and pattern.choices[0].text.isdigit()


def tools(client, model):
    for choice in ["required", {"type": "function", "function": {"name": "get_weather"}}]:
        answer = client.chat.completions.create(
            model=model, messages=QUESTION, tools=[WEATHER], tool_choice=choice, max_tokens=200, temperature=0
        )
        call = answer.choices[0].message.tool_calls[0]
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "get_weather" and arguments["city"] in ("Rome", "Oslo"), call
        assert isinstance(arguments["days"], int) and call.id
        chunks = client.chat.completions.create(
            model=model, messages=QUESTION, tools=[WEATHER], tool_choice=choice, max_tokens=200, temperature=0, stream=True
        )
        deltas = [d for chunk in chunks if chunk.choices for d in chunk.choices[0].delta.tool_calls or []]
        assert deltas[0].function.name == "get_weather" and deltas[0].id
        streamed = json.loads("".join(delta.function.arguments or "" for delta in deltas if delta.index == 0))
        assert streamed["city"] in ("Rome", "Oslo")
        followed = client.chat.completions.create(
            model=model,
            messages=QUESTION + [answer.choices[0].message.model_dump(exclude_none=True),
                                 {"role": "tool", "tool_call_id": call.id, "content": "sunny"}],
            tools=[WEATHER], tool_choice="none", max_tokens=8,
        )
        assert not followed.choices[0].message.tool_calls
    free = client.chat.completions.create(model=model, messages=QUESTION, tools=[WEATHER], tool_choice="none", temperature=0)
    assert not free.choices[0].message.tool_calls and free.choices[0].message.content


def errors(client, model):
    create = client.chat.completions.create
    bad, missing = openai.BadRequestError, openai.NotFoundError
    assert refused(bad, 400, lambda: create(model=model, messages=[])).param == "messages"
    assert refused(bad, 400, lambda: create(model=model, messages=QUESTION, temperature=3)).param == "temperature"
    assert refused(bad, 400, lambda: create(model=model, messages=QUESTION, n=0)).param == "n"
    refused(missing, 404, lambda: create(model="gpt-4", messages=QUESTION))
    refused(missing, 404, lambda: client.embeddings.create(model=model, input="x", encoding_format="float"))
    long = refused(bad, 400, lambda: client.completions.create(model=model, prompt=[5] * 5000))
    assert "maximum context length" in long.message
    image = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]
    refused(bad, 400, lambda: create(model=model, messages=[{"role": "user", "content": image}]))
    stranger = openai.OpenAI(base_url=client.base_url, api_key="wrong", max_retries=0)
    refused(openai.AuthenticationError, 401, lambda: stranger.models.list())


def cancelled(client, model):
    """200 requests that nobody waits for must not keep a new one from its answer."""
    hasty = client.with_options(timeout=0.3, max_retries=0)

    def give_up(_):
        try:
            hasty.completions.create(model=model, prompt="Once", max_tokens=900, extra_body={"ignore_eos": True})
        except openai.APITimeoutError:
            return True
        return False

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(give_up, range(200))) > 100
    started = time.monotonic()
    chat(client, model)
    assert time.monotonic() - started < 5
    with client.completions.create(
        model=model, prompt="Once", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        next(iter(stream))
    for _ in range(100):
        metrics = fetch(client, "/metrics")
        if gauge(metrics, "num_requests_running") == 0 and gauge(metrics, "num_requests_waiting") == 0:
            return
        time.sleep(0.05)
    raise AssertionError("requests of clients that are gone still run")


def fetch(client, path):
    url = str(client.base_url).removesuffix("/v1/") + path
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {client.api_key}"})
    with urllib.request.urlopen(request) as answer:
        return answer.read().decode()


def gauge(metrics, name):
    for line in metrics.splitlines():
        if line.startswith(f"vllm:{name}"):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no metric {name}")


def other_routes(client, model):
    assert fetch(client, "/health") == ""
    assert "version" in json.loads(fetch(client, "/version"))
    assert gauge(fetch(client, "/metrics"), "generation_tokens_total") > 0
    assert "/v1/chat/completions" in json.loads(fetch(client, "/openapi.json"))["paths"]
    try:
        fetch(client, "/v1/nothing")
    except urllib.error.HTTPError as error:
        assert error.code == 404 and json.loads(error.read())["error"]["message"]
    else:
        raise AssertionError("an unknown route answers")


CHECKS = [models, chat, chat_stream, completions, seeds, logprobs, stop_and_bias, structured, tools, errors, cancelled, other_routes]


def main():
    url, key = sys.argv[1:]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    model = client.models.list().data[0].id
    for check in CHECKS:
        check(client, model)
        print(f"ok {check.__name__}")
    print(f"{len(CHECKS)} checks passed")


if __name__ == "__main__":
    main()
