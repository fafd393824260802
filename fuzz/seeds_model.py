#!/usr/bin/env python3
"""Writes the seeds of the targets `config` and `model`: configurations of the fixtures, and a GGUF
model of a few kilobytes for each of some storage types. Standard library only."""
import pathlib
import random
import shutil
import struct

HERE = pathlib.Path(__file__).parent
FIXTURES = HERE.parent / "tests/fixtures/reference/models"
# storage type: (id, values a block, bytes a block)
TYPES = {"f32": (0, 1, 4), "f16": (1, 1, 2), "q4_1": (3, 32, 20), "q8_0": (8, 32, 34), "iq4_nl": (20, 32, 18)}
D, F, V, HEADS, KV = 32, 64, 8, 2, 1


def string(s):
    return struct.pack("<Q", len(s)) + s.encode()


def uint(key, value):
    return string(key) + struct.pack("<II", 4, value)


def real(key, value):
    return string(key) + struct.pack("<If", 6, value)


def model(name):
    code, per, size = TYPES[name]
    rnd = random.Random(name)
    shapes = [("token_embd", V, D)]
    for part, rows, cols in [("attn_q", D, D), ("attn_k", D // 2, D), ("attn_v", D // 2, D), ("attn_output", D, D),
                             ("ffn_gate", F, D), ("ffn_up", F, D), ("ffn_down", D, F)]:
        shapes.append((f"blk.0.{part}", rows, cols))
    norms = ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"]
    keys = [
        string("general.architecture") + struct.pack("<I", 8) + string("llama"),
        uint("llama.block_count", 1), uint("llama.context_length", 64), uint("llama.embedding_length", D),
        uint("llama.feed_forward_length", F), uint("llama.attention.head_count", HEADS),
        uint("llama.attention.head_count_kv", KV), real("llama.attention.layer_norm_rms_epsilon", 1e-5),
    ]
    infos, data = b"", b""

    def add(tensor, dims, code, payload):
        nonlocal infos, data
        infos += string(tensor) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        infos += struct.pack("<IQ", code, len(data))
        data += payload + bytes(-len(payload) % 32)

    for tensor, rows, cols in shapes:
        blocks = rows * cols // per
        # Small bytes keep the halves that scale a block small as well.
        payload = bytes(rnd.randrange(1, 32) for _ in range(blocks * size))
        add(f"{tensor}.weight", [cols, rows], code, payload)
    for tensor in norms:
        add(f"{tensor}.weight", [D], 0, struct.pack(f"<{D}f", *[1.0] * D))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes) + len(norms), len(keys)) + b"".join(keys) + infos
    return head + bytes(-len(head) % 32) + data


for name in TYPES:
    (HERE / f"seeds/model/{name}.gguf").write_bytes(model(name))
for folder in ["llama1", "llama3_1", "llama_bias"]:
    for form in ["config", "config.v5"]:
        shutil.copyfile(FIXTURES / folder / f"{form}.json", HERE / f"seeds/config/{folder}.{form}.json")
