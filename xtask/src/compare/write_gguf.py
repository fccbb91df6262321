#!/usr/bin/env python3
"""Writes a Llama checkpoint in bf16 as a GGUF file, for llama.cpp: the same numbers in the file format it reads.

    write_gguf.py CHECKPOINT OUT.gguf

Matrices stay bf16, and norms become f32, as llama.cpp has them. It rotates pairs of neighbours in RoPE where the checkpoint
has them half a head apart, so the rows of the query and key projections change places. The frequencies' factors of Llama 3
are a tensor of their own. There is no tokenizer: prompts are token ids. Needs gguf and numpy.
"""
import argparse
import json
import math
import pathlib
import struct
import sys

import gguf
import numpy as np


def tensors(folder):
    """Name and bf16 bits of every tensor, as uint16 arrays that are read on use."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        data = np.memmap(path, np.uint8, "r", offset=8 + length)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "BF16":
                sys.exit(f"{path}: {name} is {entry['dtype']}; only checkpoints in bf16 can be compared")
            begin, end = entry["data_offsets"]
            yield name, data[begin:end].view(np.uint16).reshape(entry["shape"])


def neighbours(weight, heads):
    """Rows of halves of heads, interleaved."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.transpose(0, 2, 1, 3)).reshape(rows, columns)


def frequency_factors(theta, head_dim, scaling):
    """What each frequency of RoPE is divided by, after "The Llama 3 Herd of Models" as transformers has it: long waves by
    `factor`, short ones by 1, those between by a blend."""
    frequencies = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - blend) / scaling["factor"] + blend)).astype(np.float32)


def names(layers):
    """GGUF's names of a Llama's tensors."""
    table = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    parts = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for layer in range(layers):
        table |= {f"model.layers.{layer}.{theirs}.weight": f"blk.{layer}.{ours}.weight" for theirs, ours in parts.items()}
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    arguments = parser.parse_args()
    config = json.loads((arguments.checkpoint / "config.json").read_text())
    if config["model_type"] != "llama":
        sys.exit(f"{arguments.checkpoint}: model_type is {config['model_type']}; only a llama can be compared")
    layers, heads, kv_heads = (config[name] for name in ["num_hidden_layers", "num_attention_heads", "num_key_value_heads"])
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    theta, scaling = config["rope_theta"], config.get("rope_scaling")

    partial = arguments.out.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")
    if scaling:
        if scaling.get("rope_type") != "llama3":
            sys.exit(f"{arguments.checkpoint}: rope_type {scaling.get('rope_type')} is not known here")
        writer.add_tensor("rope_freqs.weight", frequency_factors(theta, head_dim, scaling))
    known = names(layers)
    for name, weight in tensors(arguments.checkpoint):
        if name not in known:
            sys.exit(f"{arguments.checkpoint}: {name} is no tensor of a llama")
        if weight.ndim == 1:
            writer.add_tensor(known[name], (weight.astype(np.uint32) << 16).view(np.float32))
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = neighbours(weight, heads if name.endswith("q_proj.weight") else kv_heads)
        writer.add_tensor(known[name], weight.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(arguments.out)


if __name__ == "__main__":
    main()
