#!/usr/bin/env python3
"""Makes a model with random weights of any supported family and shape, as a GGUF file or a Hugging Face folder, in seconds.

Needs numpy; GGUF also the `gguf` package.

  make_model.py out.gguf --family llama --type Q8_0
  make_model.py out_folder --family qwen2 --layers 2 --hidden 640 --heads 40 --kv-heads 8 --head-dim 16 --ffn 1728

The last has the shape of a 32B Qwen2, small.

Weights are a function of (seed, tensor name, index) alone: splitmix64 numbers, uniform, scaled so that activations keep their size. The C++
tests' src/model/random_model.h makes the same ones. The vocabulary is the 256 bytes, a few merges and ChatML's special tokens.
"""

import argparse
import json
import pathlib

import numpy as np

FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["the", "and", "ing", "er", "on", "in", "Ġthe", "Ġa", "Ġof", "Ġto", "Ġis", "Ġand", "hello", "Ġworld", "Ġcapital"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# ---- weights


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def uniform(seed, name, count):
    """`count` floats in [-1, 1) with 24 significant bits."""
    state = np.uint64((fnv1a(name) + seed * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
    with np.errstate(over="ignore"):
        z = state + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.int64) - (1 << 23)).astype(np.float32) / np.float32(1 << 23)


def tensors(a):
    """(canonical name, values): the scale of each is a float32, so that any language computes the same product."""
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim

    def matrix(name, rows, cols, gain=1.0):
        return name, uniform(a.seed, name, rows * cols).reshape(rows, cols) * np.float32(gain * (3.0 / cols) ** 0.5)

    def vector(name, size, base, spread):
        return name, np.float32(base) + uniform(a.seed, name, size) * np.float32(spread)

    yield matrix("embed", a.vocab, a.hidden, 3.0)
    if not a.tied:
        yield matrix("head", a.vocab, a.hidden, 3.0)
    yield vector("norm", a.hidden, 1.0, 0.25)
    inward = (1.0 / (2 * a.layers)) ** 0.5
    for i in range(a.layers):
        yield vector(f"layer.{i}.attn_norm", a.hidden, 1.0, 0.25)
        yield vector(f"layer.{i}.ffn_norm", a.hidden, 1.0, 0.25)
        yield matrix(f"layer.{i}.q", q, a.hidden, 2.0)
        yield matrix(f"layer.{i}.k", kv, a.hidden)
        yield matrix(f"layer.{i}.v", kv, a.hidden)
        yield matrix(f"layer.{i}.o", a.hidden, q, inward)
        yield matrix(f"layer.{i}.gate", a.ffn, a.hidden)
        yield matrix(f"layer.{i}.up", a.ffn, a.hidden)
        yield matrix(f"layer.{i}.down", a.hidden, a.ffn, inward)
        if a.family == "qwen2":
            for part, size in (("q", q), ("k", kv), ("v", kv)):
                yield vector(f"layer.{i}.{part}.bias", size, 0.0, 0.5)
        if a.family == "qwen3":
            yield vector(f"layer.{i}.q_norm", a.head_dim, 1.5, 0.5)
            yield vector(f"layer.{i}.k_norm", a.head_dim, 1.5, 0.5)


GGUF_NAMES = {"embed": "token_embd.weight", "head": "output.weight", "norm": "output_norm.weight"}
GGUF_PARTS = {"attn_norm": "attn_norm", "ffn_norm": "ffn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
              "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm"}  # fmt: skip
HF_NAMES = {"embed": "model.embed_tokens.weight", "head": "lm_head.weight", "norm": "model.norm.weight"}
HF_PARTS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj",
            "v": "self_attn.v_proj", "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
            "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}  # fmt: skip


def stored_name(canonical, names, parts, prefix):
    if canonical in names:
        return names[canonical]
    _, layer, part, *bias = canonical.split(".")
    return f"{prefix}.{layer}.{parts[part]}.{'bias' if bias else 'weight'}"


# ---- vocabulary


def byte_characters():
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, extra = {}, 0
    for byte in range(256):
        if byte in printable:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(256 + extra)
            extra += 1
    return [table[byte] for byte in range(256)]


def vocabulary(size):
    """(tokens, merges); special tokens come first, unused ones fill up."""
    tokens, merges = [*SPECIAL, *byte_characters()], []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    if size < len(tokens):
        raise SystemExit(f"--vocab {size} is too small; at least {len(tokens)}, or --no-tokenizer")
    return tokens + [f"<|unused_{i}|>" for i in range(size - len(tokens))], merges


def tokenizer_json(size):
    tokens, merges = vocabulary(size)
    added = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, t in enumerate(tokens)
        if t in SPECIAL or t.startswith("<|unused_")
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None, "pre_tokenizer": level,
        "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [" ".join(m) for m in merges]},
    }  # fmt: skip


# ---- containers


def to_bf16(values):
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path, named, dtype):
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, values in named:
        blob = {"F32": lambda v: v, "F16": lambda v: v.astype(np.float16), "BF16": to_bf16}[dtype](values).tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for blob in blobs:
            f.write(blob)


def write_folder(a):
    a.out.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": [FAMILIES[a.family]], "model_type": a.family, "hidden_act": "silu", "hidden_size": a.hidden,
        "intermediate_size": a.ffn, "num_hidden_layers": a.layers, "num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim, "vocab_size": a.vocab, "max_position_embeddings": a.context, "rms_norm_eps": a.eps,
        "rope_theta": a.rope_theta, "tie_word_embeddings": a.tied,
        "torch_dtype": {"F32": "float32", "F16": "float16"}.get(a.type, "bfloat16"),
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if a.rope_scaling:
        config["rope_scaling"] = a.rope_scaling
    named = [(stored_name(n, HF_NAMES, HF_PARTS, "model.layers"), v) for n, v in tensors(a)]
    if a.shards == 1:
        write_safetensors(a.out / "model.safetensors", named, a.type)
    else:
        index = {}
        for s in range(a.shards):
            file = f"model-{s + 1:05}-of-{a.shards:05}.safetensors"
            write_safetensors(a.out / file, named[s :: a.shards], a.type)
            index.update({name: file for name, _ in named[s :: a.shards]})
        (a.out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}, indent=1))
    (a.out / "config.json").write_text(json.dumps(config, indent=1))
    (a.out / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [2, 0]}, indent=1))
    if a.tokenizer:
        (a.out / "tokenizer.json").write_text(json.dumps(tokenizer_json(a.vocab), ensure_ascii=False))
        token_config = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "chat_template": CHAT_TEMPLATE,
                        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}  # fmt: skip
        (a.out / "tokenizer_config.json").write_text(json.dumps(token_config, indent=1))


def write_gguf(a):
    import gguf

    writer = gguf.GGUFWriter(str(a.out), a.family)
    writer.add_name(f"random {a.family}")
    writer.add_block_count(a.layers)
    writer.add_context_length(a.context)
    writer.add_embedding_length(a.hidden)
    writer.add_feed_forward_length(a.ffn)
    writer.add_head_count(a.heads)
    writer.add_head_count_kv(a.kv_heads)
    writer.add_key_length(a.head_dim)
    writer.add_value_length(a.head_dim)
    writer.add_rope_dimension_count(a.head_dim)
    writer.add_rope_freq_base(a.rope_theta)
    writer.add_layer_norm_rms_eps(a.eps)
    writer.add_vocab_size(a.vocab)
    kind = a.rope_scaling.get("rope_type") if a.rope_scaling else None
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(a.rope_scaling["factor"])
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(a.rope_scaling["original_max_position_embeddings"])
    elif kind == "llama3":  # the converters put it in a tensor of factors
        import reference

        config = reference.Config(head_dim=a.head_dim, theta=a.rope_theta, scaling=a.rope_scaling, context=a.context)
        scaled = reference.inverse_frequencies(config)[0]
        config.scaling = {}
        writer.add_tensor("rope_freqs.weight", (reference.inverse_frequencies(config)[0] / scaled).astype(np.float32))
    if a.tokenizer:
        tokens, merges = vocabulary(a.vocab)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_types([3 if t in SPECIAL or t.startswith("<|unused_") else 1 for t in tokens])
        writer.add_token_merges([" ".join(m) for m in merges])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(False)
        writer.add_chat_template(CHAT_TEMPLATE)
    for canonical, values in tensors(a):
        name = stored_name(canonical, GGUF_NAMES, GGUF_PARTS, "blk")
        part = canonical.removesuffix(".bias").rsplit(".", 1)[-1]
        if a.family == "llama" and part in ("q", "k"):  # neighbours rotate together in GGUF
            values = values.reshape(-1, 2, a.head_dim // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        kind = gguf.GGMLQuantizationType[a.type] if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        if kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values, dtype=np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=pathlib.Path, help="a .gguf file, or a folder to make")
    p.add_argument("--family", choices=FAMILIES, default="llama")
    p.add_argument("--layers", type=int, default=2)
    p.add_argument("--hidden", type=int, default=256)
    p.add_argument("--ffn", type=int, default=512)
    p.add_argument("--heads", type=int, default=8)
    p.add_argument("--kv-heads", type=int, default=2)
    p.add_argument("--head-dim", type=int, default=0, help="hidden / heads if not given")
    p.add_argument("--vocab", type=int, default=512)
    p.add_argument("--context", type=int, default=4096)
    p.add_argument("--eps", type=float, default=1e-5)
    p.add_argument("--rope-theta", type=float, default=10000.0)
    p.add_argument("--rope-scaling", type=json.loads, help="""JSON as in config.json, e.g. '{"rope_type": "linear", "factor": 2}'""")
    p.add_argument("--tied", action="store_true", help="one matrix for embedding and head")
    p.add_argument("--type", default="BF16", help="F32, F16, BF16; GGUF also Q8_0, Q5_0, Q5_1, Q4_0, Q4_1")
    p.add_argument("--shards", type=int, default=1, help="safetensors files")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--no-tokenizer", dest="tokenizer", action="store_false")
    a = p.parse_args()
    a.head_dim = a.head_dim or a.hidden // a.heads
    if a.heads % a.kv_heads or a.head_dim % 2:
        p.error("--kv-heads must divide --heads, and the head dimension must be even")
    if a.out.suffix == ".gguf":
        a.out.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(a)
    else:
        write_folder(a)


if __name__ == "__main__":
    main()
