"""Adapters and exports against PEFT and transformers: the same adapter, and what `puna convert` makes."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import REFERENCE, puna
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ADAPTERS = REFERENCE.parent / "adapters"
# folder: base
SAVED = {"patterns": "llama2_gqa", "tables": "llama1", "bias": "llama_bias", "tied": "llama3_2_tied", "opt": "opt", "llama4": "llama4_text"}
TRAINED = ["lora", "rslora_qv", "dora"]
EXPORTED = ["llama1", "llama2_gqa", "llama3", "llama3_1", "llama3_2_tied", "llama_bias", "llama_head_dim"]
IDS = [1, 7, 250, 33, 91, 4, 200, 18, 60, 111, 5, 9]


def ours(folder, model, *flags):
    out = Path(folder) / "out.safetensors"
    ids = ",".join(map(str, IDS))
    puna("logits", model, "--ids", ids, "--compute", "f32", "--out", out, "--format", "json", *flags)
    return load_file(out)["logits"]


def opened(path):
    return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32).eval()


def theirs(model):
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


def same(what, got, want):
    if not np.allclose(got, want, rtol=1e-4, atol=2e-4):
        sys.exit(f"{what}: logits off by {np.abs(got - want).max()}")
    print(f"{what}: the same logits")


with tempfile.TemporaryDirectory() as folder:
    pairs = [(ADAPTERS / name, REFERENCE / "models" / base) for name, base in SAVED.items()]
    pairs += [(REFERENCE / "training" / name / "final", REFERENCE / "training/model") for name in TRAINED]
    for adapter, base in pairs:
        name = adapter.name if adapter.name != "final" else adapter.parent.name
        want = theirs(PeftModel.from_pretrained(opened(base), adapter).eval())
        same(f"peft, {name}", ours(folder, base, "--adapter", adapter), want)
        if name in ("opt", "llama4", "tied"):
            continue  # not converted, or no directory of its own to read
        merged = Path(folder) / name
        puna("convert", base, merged, "--adapter", adapter)
        same(f"transformers, {name} merged", theirs(opened(merged)), want)
    for name in EXPORTED:
        base = REFERENCE / "models" / name
        gguf, back = Path(folder) / f"{name}.gguf", Path(folder) / f"{name}-back"
        puna("convert", base, gguf)
        puna("convert", gguf, back)
        want = theirs(opened(base))
        same(f"transformers, {name} exported", theirs(opened(back)), want)
        same(f"puna, {name} exported", ours(folder, gguf), want)
        text = "Hello world, 123: it's  here.\n"
        got = AutoTokenizer.from_pretrained(back)(text)["input_ids"]
        if got != AutoTokenizer.from_pretrained(base)(text)["input_ids"]:
            sys.exit(f"transformers, {name} exported: other tokens")
    mixtral = Path(folder) / "mixtral.gguf"
    puna("convert", REFERENCE.parent / "experts/mixtral", mixtral)
    for name, gguf in [("mixtral", mixtral), ("llama4", REFERENCE / "gguf/llama4_text.f32.gguf")]:
        back = Path(folder) / f"{name}-directory"
        puna("convert", gguf, back)
        same(f"transformers, {name} from a GGUF", theirs(opened(back)), ours(folder, gguf))
