#!/usr/bin/env python3
"""Writes the seeds of the targets `config`, `generation_config`, `model` and `gguf_vocab`:
configurations, a GGUF model of a few kilobytes for each of some storage types, and small
vocabularies of both kinds. Standard library only."""
import math
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
    return struct.pack("<Q", len(s.encode())) + s.encode()


def uint(key, value):
    return string(key) + struct.pack("<II", 4, value)


def real(key, value):
    return string(key) + struct.pack("<If", 6, value)


EXPERTS = 3


def mlp(experts, shared):
    """(part, shape) of an MLP, or of experts in its place."""
    if not experts:
        yield from [("ffn_gate", [F, D]), ("ffn_up", [F, D]), ("ffn_down", [D, F])]
        return
    yield "ffn_gate_inp", [EXPERTS, D]
    yield from [("ffn_gate_exps", [EXPERTS, F, D]), ("ffn_up_exps", [EXPERTS, F, D]), ("ffn_down_exps", [EXPERTS, D, F])]
    if shared:
        yield from [("ffn_gate_shexp", [F, D]), ("ffn_up_shexp", [F, D]), ("ffn_down_shexp", [D, F])]


def model(name, arch="llama", experts=False):
    code, per, size = TYPES[name]
    rnd = random.Random(name)
    attention = [("attn_q", [D, D]), ("attn_k", [D // 2, D]), ("attn_v", [D // 2, D]), ("attn_output", [D, D])]
    shapes = [("token_embd", [V, D])]
    shapes += [(f"blk.0.{part}", shape) for part, shape in attention + list(mlp(experts, arch == "llama4"))]
    norms = ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"]
    keys = [
        string("general.architecture") + struct.pack("<I", 8) + string(arch),
        uint(f"{arch}.block_count", 1), uint(f"{arch}.context_length", 64), uint(f"{arch}.embedding_length", D),
        uint(f"{arch}.feed_forward_length", F), uint(f"{arch}.attention.head_count", HEADS),
        uint(f"{arch}.attention.head_count_kv", KV), real(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5),
    ]
    if experts:
        keys += [uint(f"{arch}.expert_count", EXPERTS), uint(f"{arch}.expert_used_count", 2)]
    if arch == "llama4":
        keys += [uint(f"{arch}.interleave_moe_layer_step", 1), uint(f"{arch}.expert_feed_forward_length", F)]
    infos, data = b"", b""

    def add(tensor, dims, code, payload):
        nonlocal infos, data
        infos += string(tensor) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        infos += struct.pack("<IQ", code, len(data))
        data += payload + bytes(-len(payload) % 32)

    for tensor, shape in shapes:
        blocks = math.prod(shape) // per
        # Small bytes keep the halves that scale a block small as well.
        payload = bytes(rnd.randrange(1, 32) for _ in range(blocks * size))
        add(f"{tensor}.weight", shape[::-1], code, payload)
    for tensor in norms:
        add(f"{tensor}.weight", [D], 0, struct.pack(f"<{D}f", *[1.0] * D))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes) + len(norms), len(keys)) + b"".join(keys) + infos
    return head + bytes(-len(head) % 32) + data


for name in TYPES:
    (HERE / f"seeds/model/{name}.gguf").write_bytes(model(name))
for arch in ["llama", "llama4"]:
    (HERE / f"seeds/model/{arch}_experts.gguf").write_bytes(model("q8_0", arch, True))
for folder in ["llama1", "llama3_1", "llama_bias", "llama4_text", "galactica", "opt"]:
    for form in ["config", "config.v5"]:
        shutil.copyfile(FIXTURES / folder / f"{form}.json", HERE / f"seeds/config/{folder}.{form}.json")

SAMPLERS = {
    "plain": '{"bos_token_id": 1, "eos_token_id": [2, 3], "temperature": 0.6, "top_p": 0.9}',
    "greedy": '{"do_sample": false, "repetition_penalty": 1.1, "top_k": 50, "min_p": 0.05, "typical_p": 1.0}',
}
(HERE / "seeds/generation_config").mkdir(parents=True, exist_ok=True)
for name, text in SAMPLERS.items():
    (HERE / f"seeds/generation_config/{name}.json").write_text(text + "\n")


def strings(key, items):
    return string(key) + struct.pack("<IIQ", 9, 8, len(items)) + b"".join(map(string, items))


def numbers(key, code, form, items):
    return string(key) + struct.pack("<IIQ", 9, code, len(items)) + struct.pack(f"<{len(items)}{form}", *items)


def text_key(key, value):
    return string(key) + struct.pack("<I", 8) + string(value)


def vocabulary(keys):
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + b"".join(keys)


T = "tokenizer.ggml."
spm = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + ["\u2581", "A", "b", "Ab", "\u2581Ab", "1", "2"]
kinds = [2, 3, 3] + [6] * 256 + [1] * 7
bpe = ["<s>", "</s>", "A", "b", "\u0120", "1", "2", "Ab", "\u0120Ab", "<", "s", ">"]
(HERE / "seeds/gguf_vocab").mkdir(parents=True, exist_ok=True)
for name, keys in {
    "spm": [text_key(T + "model", "llama"), strings(T + "tokens", spm), numbers(T + "token_type", 5, "i", kinds),
            numbers(T + "scores", 6, "f", [-float(i) for i in range(len(spm))]), uint(T + "bos_token_id", 1)],
    "bpe": [text_key(T + "model", "gpt2"), text_key(T + "pre", "llama-bpe"), strings(T + "tokens", bpe),
            strings(T + "merges", ["A b", "\u0120 Ab"]), numbers(T + "token_type", 5, "i", [3, 3] + [1] * 10)],
}.items():
    (HERE / f"seeds/gguf_vocab/{name}.gguf").write_bytes(vocabulary(keys))
