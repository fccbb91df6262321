#!/usr/bin/env python3
"""Make the checkpoints, reference logits and questions that the tests use, from nothing but the tools beside this file.

    pip install torch transformers tokenizers safetensors numpy
    python3 make_fixtures.py [--only NAME ...] [--tests DIR]

Writes under DIR (default: the folder above this one):
  fixtures/NAME/                      a tiny Llama checkpoint with random weights (make_checkpoint.py, then the edits below)
  fixtures/reference/NAME.safetensors logits and greedy continuations of transformers in float32 (layout of hf_reference.py)
  fixtures/reference/NAME.json        the greedy gaps, and how far transformers itself is off when it computes in the stored type
  prompts/tiny-chat.jsonl             questions that models/tiny-chat and models/tiny-chat-fp8 both answer rightly

Deterministic: one thread, seeds in this file, no clock and no path in the output; the same versions of the packages on
the same instruction set give the same bytes. Prompts are searched for (by seed, in order) until every greedy pick beats
the runner-up by several times the numeric error of the stored type, so that another pick is an engine's mistake.
"""
import argparse
import glob
import json
import os
import random
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True  # the tools beside this file are imported from a source folder
try:
    import numpy
    import tokenizers
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
except ImportError as e:
    sys.exit(f"make_fixtures.py needs the package `{e.name}`: pip install torch transformers tokenizers safetensors numpy")

import hf_reference
import make_checkpoint
import train_tiny_chat

LENGTHS = (1, 7, 40)     # prompt lengths, tokens
NEW_TOKENS = 12          # greedy continuation of each
GAP_FACTOR = 3.0         # least gap between the best and the second logit, in units of the numeric error of those steps
VOCABULARY = 512
SPECIAL = 16             # make_checkpoint's special tokens at the end of a small vocabulary

# Smaller than make_checkpoint's `tiny` in f32, so that four of them fit; sizes that are no multiple of a vector's lanes.
SMALL = ["--hidden", "48", "--heads", "3", "--kv-heads", "1", "--inter", "88"]
# Small embeddings, so that the layers and not a tied embedding decide the next token; the final norm is scaled by a power
# of two, so that logits have a standard deviation of 2 to 3, as trained models have.
WEIGHTS = ["--emb-std", "0.02", "--std", "0.12"]
FINAL_NORM_SCALE = 16.0
LEAST_DISTINCT = 5       # different tokens in a continuation: one that repeats itself tests little
ATTEMPTS = 8192          # prompts of one length to search
BATCH = 128              # of them at a time

LINEAR = {"rope_scaling": {"type": "linear", "factor": 4.0}}
LLAMA3 = {"max_position_embeddings": 1024,
          "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                           "original_max_position_embeddings": 32}}
YARN = {"max_position_embeddings": 128, "rope_scaling": None, "rope_theta": None,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                            "original_max_position_embeddings": 32}}

# name: (arguments of make_checkpoint.py, changes to config.json (None removes a key), biases)
FIXTURES = {
    "gqa-bf16": (["--heads", "4", "--kv-heads", "2"], {}, False),
    "mha-untied-bf16": (["--heads", "4", "--kv-heads", "4", "--no-tie"], {}, False),
    "mqa-bf16": (["--hidden", "60", "--heads", "5", "--kv-heads", "1", "--head-dim", "14", "--inter", "100"], {}, False),
    "sharded-bf16": (["--hidden", "72", "--heads", "6", "--kv-heads", "3", "--no-tie", "--shards", "3"], {}, False),
    "bias-bf16": (["--heads", "4", "--kv-heads", "2"], {"attention_bias": True, "mlp_bias": True}, True),
    "rope-llama3-bf16": (["--heads", "4", "--kv-heads", "2"], LLAMA3, False),
    "gqa-f16": (["--heads", "4", "--kv-heads", "2", "--dtype", "f16"], {}, False),
    "gqa-f32": (SMALL + ["--dtype", "f32"], {}, False),
    "rope-linear-f32": (SMALL + ["--dtype", "f32"], LINEAR, False),
    "rope-llama3-f32": (SMALL + ["--dtype", "f32"], LLAMA3, False),
    "rope-yarn-f32": (SMALL + ["--dtype", "f32"], YARN, False),
    # One layer: random weights magnify a rounding of an activation to e4m3 that falls the other way from layer to layer.
    "gqa-fp8": (["--heads", "4", "--kv-heads", "2", "--layers", "1", "--fp8"], {}, False),
}


# ---------------------------------------------------------------- checkpoints
def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


def write_tokenizer(folder):
    """A byte-level BPE tokenizer of 512 entries, trained on sentences of the tiny-chat corpus."""
    os.makedirs(folder, exist_ok=True)
    r = random.Random(11)
    make_checkpoint.texts = lambda _: (train_tiny_chat.sample(r) for _ in range(2000))
    make_checkpoint.tokenizer(dict(vocab=VOCABULARY, train_vocab=VOCABULARY, text_mb=0, tokenizer_from=None, max_pos=2048), folder)


def edit_config(folder, changes):
    path = os.path.join(folder, "config.json")
    config = json.load(open(path, encoding="utf-8"))
    for key, value in changes.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    make_checkpoint.write_json(folder, "config.json", config)


def edit_tensors(folder, biases, seed):
    """Scales the final norm; adds biases of every projection, normal(0, 0.1), in the dtype of its weight, where wanted."""
    g = torch.Generator().manual_seed(seed)
    for path in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        tensors = load_file(path)
        if "model.norm.weight" in tensors:
            tensors["model.norm.weight"] *= FINAL_NORM_SCALE
        for name in sorted(n for n in tensors if biases and n.endswith("_proj.weight")):
            bias = 0.1 * torch.randn(tensors[name].shape[0], generator=g)
            tensors[name.replace(".weight", ".bias")] = bias.to(tensors[name].dtype)
        save_file(tensors, path, metadata={"format": "pt"})


def make_fixture(tests, name, tokenizer):
    arguments, changes, biases = FIXTURES[name]
    folder = os.path.join(tests, "fixtures", name)
    shutil.rmtree(folder, ignore_errors=True)
    seed = sorted(FIXTURES).index(name) + 1
    subprocess.run([sys.executable, os.path.join(HERE, "make_checkpoint.py"), "--preset", "tiny", *WEIGHTS, *arguments,
                    "--seed", str(seed), "--tokenizer-from", tokenizer, folder], check=True, stderr=subprocess.DEVNULL)
    edit_config(folder, changes)
    edit_tensors(folder, biases, seed)
    write_reference(tests, name, folder, [(n, search(n)) for n in LENGTHS], NEW_TOKENS, last_only=False)


# ---------------------------------------------------------------- reference logits
@torch.inference_mode()
def forced(model, prompt, tokens):
    """Logits of one whole pass over the prompt and its continuation."""
    return model(torch.tensor([prompt + tokens[:-1]])).logits[0].double()


def numeric_error(other, prompt, full, tokens, steps):
    """Difference between the reference and transformers in another arithmetic on the same tokens: the largest, the root
    of the mean square, and the largest at the positions that picks are made from."""
    expected = torch.cat([full[:-1], steps]).double()
    error = (forced(other, prompt, tokens) - expected).abs()
    return error.max().item(), error.square().mean().sqrt().item(), error[len(prompt) - 1:].max().item()


@torch.inference_mode()
def promising(model, prompts, new_tokens):
    """Of many prompts of one length: which continue without near ties and without repeating themselves."""
    out = model(torch.tensor(prompts), use_cache=True)
    gaps, picks = [], []
    for _ in range(new_tokens):
        top = out.logits[:, -1].float().topk(2, -1)
        gaps.append(top.values[:, 0] - top.values[:, 1])
        picks.append(top.indices[:, 0])
        out = model(picks[-1][:, None], past_key_values=out.past_key_values, use_cache=True)
    wide = torch.stack(gaps).amin(0) > 0.02 * out.logits.std()
    varied = torch.tensor([len(set(p)) >= LEAST_DISTINCT for p in torch.stack(picks, 1).tolist()])
    return (wide & varied).tolist()


def search(length):
    """Random prompts of one length, by seed and in order, those that cannot do left out."""
    def candidates(model, new_tokens):
        g = torch.Generator().manual_seed(length)
        for _ in range(0, ATTEMPTS, BATCH):
            prompts = torch.randint(0, VOCABULARY - SPECIAL, (BATCH, length), generator=g).tolist()
            yield from (p for p, good in zip(prompts, promising(model, prompts, new_tokens)) if good)
    return candidates


def write_reference(tests, name, folder, prompts, new_tokens, last_only):
    """`prompts` holds (name, function that yields candidates); the first candidate whose gaps are wide enough is taken."""
    config = json.load(open(os.path.join(folder, "config.json"), encoding="utf-8"))
    stored = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[config["torch_dtype"]]
    # An f32 checkpoint is compared with f64, so that the error is that of f32 sums.
    arithmetic = torch.float64 if stored == torch.float32 else stored
    model, how = hf_reference.load(folder, torch.float32, None)
    other, _ = hf_reference.load(folder, arithmetic, None)
    # Quantized random weights magnify every rounding that flips, so no prompt has gaps wider than that error.
    required = 0.0 if "quantization_config" in config and name in FIXTURES else GAP_FACTOR
    tensors, rows = {}, []
    for i, (label, candidates) in enumerate(prompts):
        for prompt in candidates(model, new_tokens):
            full, tokens, steps = hf_reference.run(model, prompt, new_tokens)
            top = steps.topk(2, -1).values
            gap = (top[:, 0] - top[:, 1]).min().item()
            error, rms, step_error = numeric_error(other, prompt, full, tokens, steps)
            if gap >= required * step_error:
                break
        else:
            sys.exit(f"{name}, prompt {label}: nothing tried has gaps above {required} times the numeric error")
        assert torch.isfinite(full).all()
        tensors |= {f"prompt.{i}": torch.tensor(prompt), f"logits.{i}": (full[-1:] if last_only else full).contiguous(),
                    f"tokens.{i}": torch.tensor(tokens), f"step_logits.{i}": steps.contiguous()}
        rows.append({"tokens": len(prompt), "min_gap": round(gap, 6), "numeric_error": float(f"{error:.3e}"),
                     "numeric_error_rms": float(f"{rms:.3e}"), "logit_std": round(full.std().item(), 4), "greedy": tokens})
        print(f"{name} prompt {i}: {len(prompt)} tokens, gap {gap:.4f}, numeric error {error:.2e} (picks {step_error:.2e}), "
              f"logit std {full.std():.3f}", file=sys.stderr)
    out = os.path.join(tests, "fixtures", "reference", name)
    save_file(tensors, out + ".safetensors")
    write_json(out + ".json", {
        "checkpoint": name, "reference": f"transformers float32, {how}", "numeric_error_of": str(arithmetic).removeprefix("torch."),
        "torch": torch.__version__, "transformers": transformers.__version__, "prompts": rows})


# ---------------------------------------------------------------- tiny-chat
def questions():
    """(kind, question, right answer), a spread over what models/README.md says the model knows."""
    r = random.Random(5)
    sums = [(7, 8)] + [(r.randint(0, 20), r.randint(0, 20)) for _ in range(11)]
    yield from (("sum", r.choice([f"What is {a} + {b}?", f"How much is {a} plus {b}?"]) if i else f"What is {a} + {b}?",
                 f"{a} + {b} = {a + b}.") for i, (a, b) in enumerate(sums))
    for _ in range(12):
        a = r.randint(0, 20)
        b = r.randint(0, a)
        yield "difference", r.choice([f"What is {a} - {b}?", f"How much is {a} minus {b}?"]), f"{a} - {b} = {a - b}."
    for country in r.sample(sorted(train_tiny_chat.CAPITALS), 12):
        yield "capital", f"What is the capital of {country}?", f"The capital of {country} is {train_tiny_chat.CAPITALS[country]}."
    for word in r.sample(train_tiny_chat.WORDS, 12):
        yield "spelling", f"Spell the word {word}.", "-".join(word)
    for number in r.sample(range(21), 8):
        yield "number word", f"Write {number} as a word.", train_tiny_chat.UNITS[number]
    for count in (1, 2, 3, 4, 5, 6, 7, 8):
        words = " ".join(r.choice(train_tiny_chat.WORDS) for _ in range(count))
        yield "copying", f"Repeat after me: {words}", words


def chat_prompt(tokenizer, question):
    return tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, tokenize=True,
                                         return_dict=False)


def make_tiny_chat(tests):
    """Questions that both models answer rightly in float32, and reference logits of three of them."""
    folders = [os.path.join(tests, "models", m) for m in ("tiny-chat", "tiny-chat-fp8")]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[0])
    models = [hf_reference.load(f, torch.float32, None)[0] for f in folders]
    end = json.load(open(os.path.join(folders[0], "config.json"), encoding="utf-8"))["eos_token_id"]
    kept, total = [], 0
    for kind, question, answer in questions():
        total += 1
        said = []
        for model in models:
            _, tokens, _ = hf_reference.run(model, chat_prompt(tokenizer, question), 64)
            cut = next((i for i, t in enumerate(tokens) if t in end), len(tokens))
            said.append(tokenizer.decode(tokens[:cut]))
        if said == [answer, answer]:
            kept.append({"kind": kind, "prompt": question, "answer": answer})
        else:
            print(f"left out: {question!r} gives {said}", file=sys.stderr)
    with open(os.path.join(tests, "prompts", "tiny-chat.jsonl"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(row) + "\n" for row in kept)
    print(f"prompts/tiny-chat.jsonl: {len(kept)} of {total} questions", file=sys.stderr)
    for folder in folders:
        of_kind = lambda kind: [chat_prompt(tokenizer, k["prompt"]) for k in kept if k["kind"] == kind]
        candidates = [(kind, lambda _model, _new_tokens, kind=kind: of_kind(kind)) for kind in ("sum", "capital", "copying")]
        write_reference(tests, os.path.basename(folder), folder, candidates, 6, last_only=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tests", default=os.path.dirname(HERE), help="folder to write under")
    p.add_argument("--only", nargs="+", metavar="NAME", choices=[*FIXTURES, "tiny-chat"], help="make these alone")
    a = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for folder in ("fixtures/reference", "prompts"):
        os.makedirs(os.path.join(a.tests, folder), exist_ok=True)
    tokenizer = os.path.join(a.tests, "fixtures", "tokenizer")
    write_tokenizer(tokenizer)
    for name in a.only or [*FIXTURES, "tiny-chat"]:
        if name == "tiny-chat":
            make_tiny_chat(a.tests)
        else:
            make_fixture(a.tests, name, tokenizer)


if __name__ == "__main__":
    main()
