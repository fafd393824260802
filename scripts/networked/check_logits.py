"""The file that `puna logits --out` writes, read by safetensors, against the reference fixtures."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from common import REFERENCE, puna
from safetensors.numpy import load_file

for name in ["llama1", "llama2_gqa", "llama3_1", "llama_bias", "llama_head_dim"]:
    want = load_file(REFERENCE / f"models/{name}/expected.safetensors")
    ids = want["seq2.input_ids"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.safetensors"
        flags = ["--compute", "f32", "--hidden", "--attention", "--out", out, "--format", "json"]
        puna("logits", REFERENCE / f"models/{name}", "--ids", ",".join(map(str, ids)), *flags)
        got = load_file(out)
    if got["ids"].dtype != np.int64 or not np.array_equal(got["ids"], ids):
        sys.exit(f"{name}: ids {got['ids']}, want {ids}")
    layers = max(int(key.split(".")[1]) for key in got if key.startswith("hidden."))
    pairs = {"logits": "seq2.logits", f"hidden.{layers}": "seq2.last_layer_out"}
    pairs |= {f"hidden.{i}": f"seq2.hidden.{i}" for i in range(layers)}
    for ours, theirs in pairs.items():
        if not np.allclose(got[ours], want[theirs], rtol=1e-4, atol=2e-4):
            sys.exit(f"{name}: {ours}: off by {np.abs(got[ours] - want[theirs]).max()}")
    for i in range(layers):
        if not np.allclose(got[f"attention.{i}"], want[f"seq2.attn.{i}"], rtol=0, atol=1e-5):
            sys.exit(f"{name}: attention.{i}: off by {np.abs(got[f'attention.{i}'] - want[f'seq2.attn.{i}']).max()}")
    print(f"safetensors, {name}: {len(got)} tensors hold")
