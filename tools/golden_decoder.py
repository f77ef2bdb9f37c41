#!/usr/bin/env python3
"""Makes the goldens of random models (tests/golden/decoder_random.json) with the numpy reference of tools/reference.py.

    python3 -m venv .venv && .venv/bin/pip install numpy gguf jinja2 tokenizers
    .venv/bin/python tools/golden_decoder.py                       # writes them
    .venv/bin/python tools/golden_decoder.py --check FILE.gguf     # the numpy reference against decoder_smollm2.json (some minutes)

The goldens are committed; ctest needs neither Python nor these packages. Each entry is a token sequence, and for the positions from `first`
on the most likely next tokens with their logits: teacher-forced, so one near-tie does not spoil what follows. Those of the default model
(decoder_smollm2.json) come from transformers: tools/golden_transformers.py.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

import reference

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
SHAPE = {"layers": 2, "hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocab": 96, "context": 512}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
RANDOM = [
    {"name": "llama", "family": "llama"},
    {"name": "llama_tied", "family": "llama", "tied": True, "seed": 1},
    {"name": "llama3_rope", "family": "llama", "rope_scaling": LLAMA3, "head_dim": 32, "context": 256},
    {"name": "llama_linear_rope", "family": "llama", "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    {"name": "qwen2", "family": "qwen2", "heads": 10, "kv_heads": 2},
    {"name": "qwen2_one_kv_head", "family": "qwen2", "heads": 3, "kv_heads": 1, "layers": 3},
    {"name": "qwen3", "family": "qwen3", "head_dim": 32, "heads": 6, "kv_heads": 3},
    {"name": "llama_q8_0", "family": "llama", "type": "Q8_0"},
    {"name": "qwen2_q8_0", "family": "qwen2", "type": "Q8_0", "heads": 10, "kv_heads": 2},
]


def entry(name, ids, first, logits, top, **more):
    indices, values = reference.top(logits, top)
    return {"name": name, **more, "ids": ids, "first": first, "top": indices.tolist(),
            "logits": [[round(float(v), 5) for v in row] for row in values]}  # fmt: skip


def write(name, entries):
    (GOLDEN / name).write_text("[\n" + ",\n".join(json.dumps(e, separators=(",", ":")) for e in entries) + "\n]\n")


def random_models():
    entries = []
    for spec in RANDOM:
        model = {**SHAPE, "type": "F32", "tied": False, "seed": 0, **{k: v for k, v in spec.items() if k != "name"}}
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/m" + (".gguf" if model["type"] == "Q8_0" else "")
            args = [f"--{k.replace('_', '-')}={json.dumps(v) if isinstance(v, dict) else v}" for k, v in model.items() if k != "tied"]
            args += ["--tied"] * model["tied"]
            subprocess.run([sys.executable, ROOT / "tools" / "make_model.py", path, "--no-tokenizer", *args], check=True)
            loaded = reference.Model(path, np.float64)
        # 140 tokens: more than a block of KV and more than a tile of attention.
        ids = np.random.default_rng(model["seed"]).integers(0, model["vocab"], 140).tolist()
        rows = [0, 1, 2, 15, 16, 31, 32, 33, 63, 64, 65, 100, 127, 128, 139]
        entries.append(entry(spec["name"], ids, 0, loaded.forward(ids)[rows], 12, rows=rows, model=model))
    write("decoder_random.json", entries)


def prompts(path):
    """(name, ids) of tests/golden/prompts.jsonl under the model's chat template."""
    import golden_text
    import jinja2

    tokenizer, template = golden_text.smollm2(path)
    template = jinja2.Environment().from_string(template)
    for line in (GOLDEN / "prompts.jsonl").read_text().splitlines():
        prompt = json.loads(line)
        yield prompt["name"], tokenizer.encode(template.render(messages=prompt["messages"], add_generation_prompt=True)).ids


def compare(goldens, logits_of):
    """Prints how `logits_of(ids, first)` differs from the goldens."""
    worst, same, positions = 0.0, 0, 0
    for e in goldens:
        for row, top, values in zip(logits_of(e["ids"], e["first"]), e["top"], e["logits"]):
            worst = max(worst, *(abs(float(row[i]) - v) for i, v in zip(top, values)))
            same += int(row.argmax()) == top[0]
            positions += 1
    print(f"{positions} positions: top-1 equal at {same} ({100 * same / positions:.2f} %), worst logit difference {worst:.5f}")


def default_model_goldens():
    return json.loads((GOLDEN / "decoder_smollm2.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", help="SmolLM2-135M-Instruct.Q4_1.gguf")
    a = parser.parse_args()
    if a.check:
        model = reference.Model(a.check)
        compare(default_model_goldens(), lambda ids, first: model.forward(ids, first=first))
    else:
        random_models()


if __name__ == "__main__":
    main()
