#!/usr/bin/env python3
"""What `cargo xtask compare` runs transformers with, on PyTorch's CPU device.

    transformers_driver.py CHECKPOINT THREADS PROMPTS NEW_TOKENS MODE
    transformers_driver.py info

PROMPTS has token ids, one prompt on a line. Tokens are chosen greedily, and the end of a text ends nothing. Answers have the form
of `allotrope generate --format json`, each written as soon as it is there.
  MODE  each: one prompt after the other; together: all as one batch; logits: those after the first prompt, f32
  info  says what the library uses
"""
import json
import os
import pathlib
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import transformers


def forward(model, ids, cache):
    """The likeliest next token of each row, `[rows, 1]`; the cache grows."""
    out = model(ids, cache=cache, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1].argmax(-1, keepdim=True)


def answer(model, prompts, new_tokens):
    """Answers prompts of one length together and prints each answer."""
    cache = transformers.DynamicCache()
    last = time.perf_counter()
    token = forward(model, torch.tensor(prompts), cache)
    rows, seconds = [token.flatten().tolist()], []
    for _ in range(new_tokens - 1):
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
        token = forward(model, token, cache)
        rows.append(token.flatten().tolist())
    seconds.append(time.perf_counter() - last)
    timings = {"prefill_seconds": seconds[0], "inter_token_seconds": seconds[1:]}
    for prompt, tokens in zip(prompts, zip(*rows)):
        print(json.dumps({"tokens": tokens, "prompt_tokens": len(prompt), "timings": timings}), flush=True)


def main():
    if sys.argv[1:] == ["info"]:
        print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.backends.cpu.get_cpu_capability()}")
        return
    checkpoint, threads, path, new_tokens, mode = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    prompts = [[int(word) for word in line.split()] for line in pathlib.Path(path).read_text().splitlines()]
    with torch.inference_mode():
        if mode == "logits":
            logits = model(torch.tensor(prompts[:1]), logits_to_keep=1).logits[0, -1]
            sys.stdout.buffer.write(logits.float().numpy().tobytes())
        elif mode == "together":
            answer(model, prompts, int(new_tokens))
        else:
            for prompt in prompts:
                answer(model, [prompt], int(new_tokens))


if __name__ == "__main__":
    main()
