#!/usr/bin/env python3
"""A small reference forward pass in numpy for the Llama, Qwen2 and Qwen3 families: slow, plain, and sharing no code with the program.

Reads a GGUF file (dequantised by the `gguf` package) or a Hugging Face folder (safetensors). Needs numpy, gguf; folders need nothing more.

  reference.py MODEL generate --ids 1,2,3 --tokens 16
  reference.py MODEL goldens --prompts prompts.json --tokens 8 --top 5 --out goldens.json
      prompts.json: [{"name": "...", "ids": [..]}, ..]. Continues each greedily by --tokens, then writes for every position the ids and
      logits of the most likely tokens.
"""

import argparse
import json
import pathlib
import sys

import numpy as np


class Config:
    def __init__(self, **fields):
        self.__dict__.update(fields)


# ---- reading


def read_safetensors(path):
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    length = int(raw[:8].view("<u8")[0])
    header = json.loads(bytes(raw[8 : 8 + length]))
    tensors = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        data = np.array(raw[8 + length + begin : 8 + length + end])
        if info["dtype"] == "BF16":
            values = (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = data.view({"F32": "<f4", "F16": "<f2"}[info["dtype"]]).astype(np.float32)
        tensors[name] = values.reshape(info["shape"])
    return tensors


def load_folder(folder):
    c = json.loads((folder / "config.json").read_text())
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(read_safetensors(path))
    scaling = c.get("rope_parameters") or c.get("rope_scaling") or {}
    config = Config(
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        kv_heads=c.get("num_key_value_heads") or c["num_attention_heads"],
        head_dim=c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
        eps=c.get("rms_norm_eps", 1e-6),
        theta=scaling.get("rope_theta", c.get("rope_theta", 10000.0)),
        scaling=scaling,
        context=c["max_position_embeddings"],
        interleaved=False,
    )
    rename = {"model.embed_tokens.weight": "embed", "model.norm.weight": "norm", "lm_head.weight": "head"}
    parts = {
        "input_layernorm.weight": "attn_norm", "post_attention_layernorm.weight": "ffn_norm",
        "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj.weight": "o",
        "self_attn.q_norm.weight": "q_norm", "self_attn.k_norm.weight": "k_norm",
        "mlp.gate_proj.weight": "gate", "mlp.up_proj.weight": "up", "mlp.down_proj.weight": "down",
    }  # fmt: skip
    weights = {}
    for name, values in tensors.items():
        if name in rename:
            weights[rename[name]] = values
            continue
        layer, rest = name.removeprefix("model.layers.").split(".", 1)
        for theirs, ours in parts.items():
            if rest == theirs or rest == theirs + ".weight":
                weights[f"{layer}.{ours}"] = values
            elif rest == theirs + ".bias":
                weights[f"{layer}.{ours}.bias"] = values
    if c.get("tie_word_embeddings", False):
        weights.pop("head", None)
    return config, weights


def load_gguf(path):
    import gguf

    reader = gguf.GGUFReader(path)

    def field(key, otherwise=None):
        f = reader.get_field(key)
        return otherwise if f is None else f.contents()

    arch = field("general.architecture")
    heads = field(f"{arch}.attention.head_count")
    scaling = {"rope_type": field(f"{arch}.rope.scaling.type", "default")}
    if scaling["rope_type"] in ("linear", "yarn"):
        scaling["factor"] = field(f"{arch}.rope.scaling.factor")
        scaling["original_max_position_embeddings"] = field(f"{arch}.rope.scaling.original_context_length")
    config = Config(
        layers=field(f"{arch}.block_count"),
        heads=heads,
        kv_heads=field(f"{arch}.attention.head_count_kv", heads),
        head_dim=field(f"{arch}.attention.key_length", field(f"{arch}.embedding_length") // heads),
        eps=field(f"{arch}.attention.layer_norm_rms_epsilon"),
        theta=field(f"{arch}.rope.freq_base", 10000.0),
        scaling=scaling,
        context=field(f"{arch}.context_length"),
        interleaved=arch == "llama",
    )
    rename = {"token_embd.weight": "embed", "output_norm.weight": "norm", "output.weight": "head", "rope_freqs.weight": "rope_freqs"}
    parts = {"attn_norm": "attn_norm", "ffn_norm": "ffn_norm", "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o",
             "attn_q_norm": "q_norm", "attn_k_norm": "k_norm", "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down"}  # fmt: skip
    weights = {}
    for t in reader.tensors:
        values = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32).reshape(tuple(reversed(t.shape.tolist())))
        if t.name in rename:
            weights[rename[t.name]] = values
        else:
            _, layer, part, kind = t.name.split(".")
            weights[f"{layer}.{parts[part]}" + (".bias" if kind == "bias" else "")] = values
    return config, weights


# ---- computing


def inverse_frequencies(config, factors=None):
    """As transformers defines them (modeling_rope_utils.py), plus GGUF's per-frequency factors."""
    dim, base, s = config.head_dim, float(config.theta), config.scaling
    freq = base ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    scale = 1.0
    kind = s.get("rope_type", s.get("type", "default"))
    if kind == "linear":
        freq = freq / s["factor"]
    elif kind == "llama3":
        old = s["original_max_position_embeddings"]
        wavelen = 2 * np.pi / freq
        smooth = (old / wavelen - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
        blended = (1 - smooth) * freq / s["factor"] + smooth * freq
        scaled = np.where(wavelen > old / s["low_freq_factor"], freq / s["factor"], freq)
        medium = (wavelen >= old / s["high_freq_factor"]) & (wavelen <= old / s["low_freq_factor"])
        freq = np.where(medium, blended, scaled)
    elif kind == "yarn":
        old = s.get("original_max_position_embeddings") or config.context
        factor = s.get("factor") or config.context / old

        def correction(rotations):
            return dim * np.log(old / (rotations * 2 * np.pi)) / (2 * np.log(base))

        low = max(np.floor(correction(s.get("beta_fast") or 32)), 0)
        high = min(np.ceil(correction(s.get("beta_slow") or 1)), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / ((high - low) or 0.001), 0, 1)
        freq = freq / factor * ramp + freq * (1 - ramp)
        scale = s.get("attention_factor") or (0.1 * np.log(factor) + 1.0 if factor > 1 else 1.0)
    elif kind not in ("default", "none"):
        raise SystemExit(f"RoPE scaling {kind} is not known")
    if factors is not None:
        freq = freq / factors.astype(np.float64)
    return freq, scale


class Model:
    def __init__(self, path, dtype=np.float32):
        path = pathlib.Path(path)
        self.config, weights = load_folder(path) if path.is_dir() else load_gguf(path)
        self.w = {name: values.astype(dtype) for name, values in weights.items()}
        self.w.setdefault("head", self.w["embed"])
        self.dtype = dtype
        self.freq, self.rope_scale = inverse_frequencies(self.config, weights.get("rope_freqs"))

    def norm(self, x, weight):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True, dtype=self.dtype) + self.dtype(self.config.eps)) * weight

    def rope(self, x, positions):  # [T, heads, D]
        angle = positions[:, None] * self.freq[None, :]
        cos = (np.cos(angle) * self.rope_scale).astype(self.dtype)[:, None, :]
        sin = (np.sin(angle) * self.rope_scale).astype(self.dtype)[:, None, :]
        # GGUF keeps Llama's Q and K so that neighbours rotate together, instead of the two halves.
        half = x.shape[-1] // 2
        first, second = (x[..., 0::2], x[..., 1::2]) if self.config.interleaved else (x[..., :half], x[..., half:])
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def forward(self, ids, cache=None, first=0):
        """Logits [len(ids) - first, vocab]; `cache` is a list that grows with the context, for calls that continue."""
        c, w = self.config, self.w
        cache = [] if cache is None else cache
        start = cache[0][0].shape[0] if cache else 0
        positions = np.arange(start, start + len(ids), dtype=np.float64)
        x = w["embed"][np.asarray(ids)]
        for i in range(c.layers):
            g = lambda name: w.get(f"{i}.{name}")
            n = self.norm(x, g("attn_norm"))

            def project(name, heads):
                y = n @ g(name).T
                if g(name + ".bias") is not None:
                    y = y + g(name + ".bias")
                return y.reshape(len(ids), heads, c.head_dim)

            q, k, v = project("q", c.heads), project("k", c.kv_heads), project("v", c.kv_heads)
            if g("q_norm") is not None:
                q, k = self.norm(q, g("q_norm")), self.norm(k, g("k_norm"))
            q, k = self.rope(q, positions), self.rope(k, positions)
            if i < len(cache):
                k, v = np.concatenate([cache[i][0], k]), np.concatenate([cache[i][1], v])
                cache[i] = (k, v)
            else:
                cache.append((k, v))
            allowed = np.arange(k.shape[0])[None, :] <= positions[:, None]
            heads = []
            for h in range(c.heads):
                group = h // (c.heads // c.kv_heads)
                scores = (q[:, h] @ k[:, group].T) / self.dtype(np.sqrt(c.head_dim))
                scores = np.where(allowed, scores, -np.inf)
                scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
                heads.append((scores / scores.sum(axis=-1, keepdims=True)) @ v[:, group])
            x = x + np.concatenate(heads, axis=-1) @ g("o").T
            n = self.norm(x, g("ffn_norm"))
            gate = n @ g("gate").T
            x = x + (gate / (1 + np.exp(-gate)) * (n @ g("up").T)) @ g("down").T
        return self.norm(x[first:], w["norm"]) @ w["head"].T

    def generate(self, ids, tokens):
        cache, out = [], []
        logits = self.forward(ids, cache, len(ids) - 1)
        for _ in range(tokens):
            out.append(int(np.argmax(logits[-1])))
            if len(out) < tokens:
                logits = self.forward(out[-1:], cache)
        return out


def top(logits, k):
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    return order, np.take_along_axis(logits, order, axis=-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("command", choices=["generate", "goldens"])
    parser.add_argument("--ids")
    parser.add_argument("--prompts", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--float64", action="store_true")
    a = parser.parse_args()
    model = Model(a.model, np.float64 if a.float64 else np.float32)
    if a.command == "generate":
        print(json.dumps(model.generate([int(i) for i in a.ids.split(",")], a.tokens)))
        return
    lines = []
    for prompt in json.loads(a.prompts.read_text()):
        ids = prompt["ids"] + model.generate(prompt["ids"], a.tokens)
        indices, values = top(model.forward(ids), a.top)
        entry = {"name": prompt["name"], "prompt": len(prompt["ids"]), "ids": ids, "top": indices.tolist(),
                 "logits": [[round(float(v), 5) for v in row] for row in values]}  # fmt: skip
        lines.append(json.dumps(entry, separators=(",", ":")))
        print(prompt["name"], len(ids), file=sys.stderr)
    a.out.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
