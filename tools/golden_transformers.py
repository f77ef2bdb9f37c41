#!/usr/bin/env python3
"""Makes or checks the goldens of the default model with transformers in float32, on the GGUF file's weights dequantised.

    python3 -m venv .venv && .venv/bin/pip install torch transformers accelerate gguf jinja2 tokenizers numpy      # torch is 2.6 GB
    .venv/bin/python tools/golden_transformers.py SmolLM2-135M-Instruct.Q4_1.gguf            # writes tests/golden/decoder_smollm2.json
    .venv/bin/python tools/golden_transformers.py SmolLM2-135M-Instruct.Q4_1.gguf --check    # compares with what is committed

Prompts: tests/golden/prompts.jsonl under the model's chat template; 64 greedy tokens each, end-of-sequence tokens like any other. What is
committed was made with transformers 5.23.0 and torch 2.15.0 on a CPU; the numpy reference (golden_decoder.py --check) has the same five
digits but for the last.
"""

import argparse
import pathlib
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import golden_decoder
import reference


def load(path):
    """The model in transformers' own classes; rows of Q and K from GGUF's order to transformers'."""
    config, weights = reference.load_gguf(path)
    hidden = weights["embed"].shape[1]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=weights["embed"].shape[0], hidden_size=hidden, intermediate_size=weights["0.gate"].shape[0],
            num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.context, rms_norm_eps=config.eps, rope_theta=config.theta,
            tie_word_embeddings="head" not in weights,
            attn_implementation="eager",
        )
    )  # fmt: skip
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "q": "self_attn.q_proj",
             "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
             "down": "mlp.down_proj"}  # fmt: skip
    state = {"model.embed_tokens.weight": weights["embed"], "model.norm.weight": weights["norm"]}
    state["lm_head.weight"] = weights.get("head", weights["embed"])
    for i in range(config.layers):
        for ours, theirs in names.items():
            values = weights[f"{i}.{ours}"]
            if ours in ("q", "k"):
                values = values.reshape(-1, config.head_dim // 2, 2, hidden).swapaxes(1, 2).reshape(values.shape)
            state[f"model.layers.{i}.{theirs}.weight"] = values
    model.load_state_dict({name: torch.tensor(values, dtype=torch.float32) for name, values in state.items()})
    frequencies = torch.tensor(reference.inverse_frequencies(config)[0], dtype=torch.float32)
    assert torch.allclose(model.model.rotary_emb.inv_freq, frequencies), "this version of transformers takes the RoPE base elsewhere"
    return model.float().eval()


@torch.no_grad()
def run(model, ids, tokens):
    """The prompt continued greedily, and the logits of every continued position."""
    out, cache, step = list(ids), None, torch.tensor([ids])
    for _ in range(tokens):
        answer = model(step, past_key_values=cache, use_cache=True)
        cache = answer.past_key_values
        out.append(int(answer.logits[0, -1].argmax()))
        step = torch.tensor([[out[-1]]])
    return out, model(torch.tensor([out[:-1]])).logits[0, len(ids) - 1 :].numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--check", action="store_true")
    a = parser.parse_args()
    model, entries = load(a.model), []
    if a.check:
        with torch.no_grad():
            golden_decoder.compare(
                golden_decoder.default_model_goldens(), lambda ids, first: model(torch.tensor([ids])).logits[0, first:].numpy()
            )
        return
    for name, ids in golden_decoder.prompts(a.model):
        whole, logits = run(model, ids, a.tokens)
        entries.append(golden_decoder.entry(name, whole[:-1], len(ids) - 1, logits, 5))
        print(name, len(ids), file=sys.stderr)
    golden_decoder.write("decoder_smollm2.json", entries)


if __name__ == "__main__":
    main()
