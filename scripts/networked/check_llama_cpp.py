"""What Puna writes against llama-cpp-python: every tiny model in every type loads there and answers alike.

GGUF adapters, merged models, then each text model of the reference as `puna convert` and `puna quantize` export it:
logits, the tokens of a greedy answer, the ids of texts, the chat template.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import REFERENCE, jsonl, puna
from llama_cpp import Llama
from safetensors.numpy import load_file

ADAPTERS = REFERENCE.parent / "adapters"
IDS = [1, 7, 250, 33, 91, 4, 200, 18, 60, 111, 5, 9]
EXPORTED = [
    *["llama1", "llama2_gqa", "llama2_linear_rope", "llama3", "llama3_1", "llama3_2_tied"],
    *["llama_bf16_sharded", "llama_bias", "llama_head_dim"],
]
CONVERTED = ["f32", "f16", "bf16", "q8_0"]
QUANTIZED = """Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS MXFP4_MOE Q3_K_L Q3_K_M Q3_K_S IQ3_M
IQ3_S IQ3_XS IQ3_XXS Q2_K Q2_K_S IQ2_M IQ2_S IQ2_XS IQ2_XXS Q2_0 TQ2_0 IQ1_M TQ1_0 IQ1_S Q1_0""".split()
# How far logits may be apart, as a share of their size: llama.cpp rounds what it multiplies by a matrix to the
# precision that goes with the matrix's type. In f32 only the order of sums differs.
EXACT, ROUNDED = 1e-4, {"f32": 1e-4, "f16": 5e-3, "bf16": 3e-2}
BLOCKS = 6e-2
TEXTS = ["Hello world, 123: it's  here.\n", "naïve café 東京 🦙 x²", " a\tb\r\n  def f(x): return x**2"]
F32 = 0


def ours(folder, model, *flags, ids=IDS, mode="f32"):
    out = Path(folder) / "out.safetensors"
    ids = ",".join(map(str, ids))
    puna("logits", model, "--ids", ids, "--compute", mode, "--out", out, "--format", "json", *flags)
    return load_file(out)["logits"]


def opened(model, **options):
    exact = {"type_k": F32, "type_v": F32, "flash_attn": False}
    if b"tokenizer.ggml.model" not in Path(model).read_bytes():
        # llama.cpp wants to be told that there is none.
        exact["kv_overrides"] = {"tokenizer.ggml.model": "none"}
    return Llama(str(model), n_ctx=64, n_threads=1, logits_all=True, verbose=False, **exact, **options)


def theirs(llama, ids=IDS):
    llama.reset()
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)])


def close(what, got, want, limit):
    off = np.linalg.norm(got - want) / np.linalg.norm(want)
    if not off <= limit:
        sys.exit(f"{what}: logits off by {off:.1e} of their size")
    return off


def chosen_alike(what, folder, model, want):
    """For models with experts: what rounding turns the choice between two experts that are nearly alike, which is
    another result for that token, and for what attends to it. Puna's fast mode rounds nearly as llama.cpp does, its
    other not at all: half of the tokens at least are as one of them has them. Unquantised all must be."""
    apart = lambda got: np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
    rows = np.sort(np.minimum(*[apart(ours(folder, model, mode=mode)) for mode in ["f32", "fast"]]))
    kept = rows[: (len(rows) + 1) // 2]
    if not kept.max() <= BLOCKS:
        sys.exit(f"{what}: logits of too many tokens off: {rows} of their size")
    return kept.max()


def greedy(llama, count=16):
    ids = list(IDS)
    for _ in range(count):
        ids.append(int(theirs(llama, ids)[-1].argmax()))
    return ids


def answers(what, folder, model, llama, limit):
    """Each token of llama.cpp's greedy answer is Puna's too, unless two are as near as the logits are."""
    ids = greedy(llama)
    got = ours(folder, model, ids=ids)
    close(what, got, theirs(llama, ids), limit)
    near = 2 * limit * np.linalg.norm(got, axis=1) / np.sqrt(got.shape[1]) * 4
    for at in range(len(IDS) - 1, len(ids) - 1):
        if got[at].max() - got[at][ids[at + 1]] > near[at]:
            sys.exit(f"{what}: after {ids[: at + 1]} puna takes {got[at].argmax()}, llama.cpp {ids[at + 1]}")


def tokens(name, model, llama):
    got = [row["ids"] for row in jsonl("tokenize", model, [{"text": text} for text in TEXTS], "--no-bos")]
    want = [llama.tokenize(text.encode(), add_bos=False, special=False) for text in TEXTS]
    if got != want:
        sys.exit(f"{name}: tokens {got}, llama.cpp {want}")


def template(name, model, llama):
    """The template of the directory, or of the GGUF, that was converted."""
    path = model / "chat_template.jinja"
    want = path.read_text() if path.exists() else None
    if model.is_file():
        want = opened(model).metadata.get("tokenizer.chat_template")
    if llama.metadata.get("tokenizer.chat_template") != want:
        sys.exit(f"{name}: another chat template")


def exported(folder, name, model, experts=False):
    """One model in every type; `model` is what `puna convert` takes."""
    whole = Path(folder) / "whole.gguf"
    puna("convert", model, whole, "--type", "f32")
    llama = opened(whole)
    if "tokenizer.ggml.model" in llama.metadata:
        tokens(name, whole, llama)
        template(name, model, llama)
    farthest = 0.0
    for ty in CONVERTED:
        out = Path(folder) / "out.gguf"
        puna("convert", model, out, "--type", ty)
        answers(f"{name} in {ty}", folder, out, opened(out), ROUNDED.get(ty, BLOCKS))
    matrix = Path(folder) / "imatrix.gguf"
    text = REFERENCE / "smollm2/ppl.txt"
    weighed = "tokenizer.ggml.model" in llama.metadata
    if weighed:
        puna("imatrix", whole, text, matrix, "--ctx", "64", "--chunks", "4")
    for ty in QUANTIZED:
        out = Path(folder) / "out.gguf"
        puna("quantize", whole, out, ty, *(["--imatrix", matrix] if weighed else []))
        llama = opened(out)
        what = f"{name} in {ty}"
        if experts:
            farthest = max(farthest, chosen_alike(what, folder, out, theirs(llama)))
        else:
            farthest = max(farthest, close(what, ours(folder, out), theirs(llama), BLOCKS))
    print(f"llama.cpp, {name}: {len(CONVERTED) + len(QUANTIZED)} types alike (at most {farthest:.1e} apart)", flush=True)


def releases_attention(folder):
    """Llama 4 as its releases are: GGUF has no keys for chunks and temperatures of another length."""
    base = REFERENCE / "models/llama4_text"
    changed = Path(folder) / "llama4"
    changed.mkdir()
    for file in base.iterdir():
        if not file.name.startswith("config"):
            (changed / file.name).symlink_to(file.resolve())
    config = json.loads((base / "config.json").read_text())
    config |= {"attention_chunk_size": 8192, "floor_scale": 8192}
    (changed / "config.json").write_text(json.dumps(config))
    return changed


with tempfile.TemporaryDirectory() as folder:
    base = REFERENCE / "gguf/llama2_gqa.f32.gguf"
    adapter = ADAPTERS / "patterns/adapter.gguf"
    want = theirs(opened(base, lora_path=str(adapter)))
    close("llama.cpp, an adapter", ours(folder, base, "--adapter", adapter), want, EXACT)
    merged = Path(folder) / "merged.gguf"
    puna("convert", REFERENCE / "models/llama2_gqa", merged, "--adapter", ADAPTERS / "patterns")
    close("llama.cpp, the adapter merged", theirs(opened(merged)), want, EXACT)
    print("llama.cpp, an adapter beside and merged: the same logits", flush=True)
    for name in EXPORTED:
        exported(folder, name, REFERENCE / "models" / name)
    exported(folder, "llama4_text", releases_attention(folder), experts=True)
    exported(folder, "mixtral", REFERENCE.parent / "experts/mixtral", experts=True)
    exported(folder, "q256", REFERENCE / "gguf/q256.F32.gguf")
