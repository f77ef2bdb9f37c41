#!/usr/bin/env python3
"""Writes src/device/testdata/golden_quants.inc: blocks of each GGUF weight format and what the PyPI package `gguf` expands them to.

Needs: pip install gguf numpy. Run from the repository's root; the result is committed, so that the tests need no Python.
"""
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

BLOCKS = 2
# Byte offsets of the half-precision numbers in a block: random bits there would mostly be huge or NaN.
HALVES = {T.Q8_0: [0], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}


def blocks(kind, rng):
    raw = rng.integers(0, 256, (BLOCKS, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for at in HALVES[kind]:
        raw[:, at:at + 2] = rng.normal(0, 0.05, (BLOCKS, 1)).astype(np.float16).view(np.uint8)
    return raw


def plain(kind, rng):
    values = np.concatenate([rng.normal(0, 1, 24), [0.0, -0.0, 1.0, -2.5, 6e-8, 65504.0, 1e-5, -3e-5]]).astype(np.float32)
    if kind == T.F32:
        return values.view(np.uint8)
    if kind == T.F16:
        return values.astype(np.float16).view(np.uint8)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def rows(values, per_line):
    return "".join("    " + ", ".join(values[i:i + per_line]) + ",\n" for i in range(0, len(values), per_line))


def main():
    rng = np.random.default_rng(20240607)
    out = ["// Made by tools/golden_quants.py from PyPI's gguf; do not edit.\n"]
    kinds = [T.F32, T.F16, T.BF16, *HALVES]
    for kind in kinds:
        raw = blocks(kind, rng) if kind in HALVES else plain(kind, rng)
        bits = np.ascontiguousarray(dequantize(raw, kind), dtype=np.float32).view(np.uint32).reshape(-1)
        out.append(f"constexpr std::uint8_t k{kind.name}Blocks[] = {{\n{rows([f'0x{b:02x}' for b in raw.reshape(-1)], 22)}}};\n")
        out.append(f"constexpr std::uint32_t k{kind.name}Floats[] = {{\n{rows([f'0x{b:08x}' for b in bits], 11)}}};\n")
    pathlib.Path("src/device/testdata/golden_quants.inc").write_text("".join(out))


if __name__ == "__main__":
    main()
