"""GGUF adapters, merged files and `puna convert`'s GGUF against llama-cpp-python."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from common import REFERENCE, puna
from llama_cpp import Llama
from safetensors.numpy import load_file

ADAPTERS = REFERENCE.parent / "adapters"
IDS = [1, 7, 250, 33, 91, 4, 200, 18, 60, 111, 5, 9]


def ours(folder, model, *flags):
    out = Path(folder) / "out.safetensors"
    ids = ",".join(map(str, IDS))
    puna("logits", model, "--ids", ids, "--compute", "f32", "--out", out, "--format", "json", *flags)
    return load_file(out)["logits"]


def theirs(model, **options):
    llama = Llama(str(model), n_ctx=64, n_threads=1, logits_all=True, verbose=False, **options)
    llama.eval(IDS)
    return np.array(llama.scores[: len(IDS)])


def same(what, got, want):
    if not np.allclose(got, want, rtol=1e-3, atol=2e-3):
        sys.exit(f"{what}: logits off by {np.abs(got - want).max()}")
    print(f"{what}: the same logits")


with tempfile.TemporaryDirectory() as folder:
    base = REFERENCE / "gguf/llama2_gqa.f32.gguf"
    adapter = ADAPTERS / "patterns/adapter.gguf"
    want = theirs(base, lora_path=str(adapter))
    same("llama.cpp, an adapter", ours(folder, base, "--adapter", adapter), want)
    merged = Path(folder) / "merged.gguf"
    puna("convert", REFERENCE / "models/llama2_gqa", merged, "--adapter", ADAPTERS / "patterns")
    same("llama.cpp, the adapter merged", theirs(merged), want)
    for name in ["llama1", "llama2_gqa", "llama3", "llama3_1", "llama_bias", "llama_head_dim"]:
        out = Path(folder) / f"{name}.gguf"
        puna("convert", REFERENCE / "models" / name, out)
        same(f"llama.cpp, {name} exported", ours(folder, out), theirs(out))
