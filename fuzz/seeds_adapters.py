#!/usr/bin/env python3
"""Writes the seeds of the targets `adapter` and `adapter_gguf`: small adapters of the model in
tests/fixtures/reference/training, sound and lying, and control vectors. Standard library only."""
import json
import shutil
import struct
from pathlib import Path

HERE = Path(__file__).parent
HIDDEN, KV, FFN, VOCAB = 64, 32, 128, 320
LAYER = "base_model.model.model.layers.1."


def safetensors(shapes):
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4
        for n in shape:
            size *= n
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    numbers = b"".join(struct.pack("<f", (i % 7 - 3) / 8) for i in range(at // 4))
    return struct.pack("<Q", len(head)) + head + numbers


def pair(module, inp, out, r=1):
    return {f"{module}.lora_A.weight": [r, inp], f"{module}.lora_B.weight": [out, r]}


def peft(settings, shapes):
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 2} | settings
    return json.dumps(settings).encode() + b"\0" + safetensors(shapes)


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def gguf(words, tensors):
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(words) + 1)
    for key, value in words.items():
        out += text(key) + struct.pack("<I", 8) + text(value)
    out += text("adapter.lora.alpha") + struct.pack("<If", 6, 2.0)
    data = b""
    for name, dims in tensors.items():
        out += text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", n) for n in dims)
        out += struct.pack("<IQ", 0, len(data))
        size = 1
        for n in dims:
            size *= n
        data += b"".join(struct.pack("<f", (i % 5 - 2) / 8) for i in range(size))
        data += bytes(-len(data) % 32)
    return out + bytes(-len(out) % 32) + data


Q, K, DOWN = (LAYER + name for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"))
SEEDS = {
    "adapter": {
        "sound": peft({}, pair(Q, HIDDEN, HIDDEN) | pair(K, HIDDEN, KV)),
        "rslora": peft({"use_rslora": True, "r": 2}, pair(DOWN, FFN, HIDDEN, 2)),
        "dora": peft({"use_dora": True}, pair(K, HIDDEN, KV) | {f"{K}.lora_magnitude_vector": [KV]}),
        "patterns": peft({"rank_pattern": {r"layers\.\d+\.mlp.*": 2}, "alpha_pattern": {"q_proj": 0.5}}, pair(Q, HIDDEN, HIDDEN) | pair(DOWN, FFN, HIDDEN, 2)),
        "head": peft({"target_modules": ["lm_head"]}, pair("base_model.model.lm_head", HIDDEN, VOCAB)),
        "embed": peft({}, {"base_model.model.model.embed_tokens.lora_embedding_A": [1, VOCAB], "base_model.model.model.embed_tokens.lora_embedding_B": [HIDDEN, 1]}),
        "rank-zero": peft({"r": 0}, {}),
        "turned": peft({}, {f"{Q}.lora_A.weight": [HIDDEN, 1], f"{Q}.lora_B.weight": [1, HIDDEN]}),
        "half": peft({}, {f"{Q}.lora_A.weight": [1, HIDDEN]}),
        "hungry-pattern": peft({"rank_pattern": {"(a{1000}){1000}": 1}}, {}),
    },
    "adapter_gguf": {
        "sound": gguf(
            {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"},
            {"blk.0.attn_k.weight.lora_a": [HIDDEN, 1], "blk.0.attn_k.weight.lora_b": [1, KV]},
        ),
        "turned": gguf(
            {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"},
            {"blk.0.attn_k.weight.lora_a": [1, HIDDEN], "blk.0.attn_k.weight.lora_b": [KV, 1]},
        ),
        "control": gguf({"general.architecture": "controlvector"}, {"direction.1": [HIDDEN]}),
        "control-zero": gguf({"general.architecture": "controlvector"}, {"direction.0": [HIDDEN]}),
        "control-wide": gguf({"general.architecture": "controlvector"}, {"direction.1": [HIDDEN + 1]}),
    },
}

for target, seeds in SEEDS.items():
    folder = HERE / "seeds" / target
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in seeds.items():
        (folder / name).write_bytes(data)
