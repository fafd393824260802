#!/usr/bin/env python3
"""Writes GGUF files of exact Llama shapes with random weights: models.py OUT SHAPE TYPE VOCABULARY

The weights are windows into one pool of numbers from N(0, 0.02), quantised once: speed depends on shapes and types and not
on what the weights say. VOCABULARY is Llama 3's rank file; BPE merges are recomputed from the ranks. Needs numpy and gguf.
"""

import base64
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

POOL = 65_521  # blocks of 256 weights; a prime, so that rows of a matrix do not repeat

SHAPES = {
    # hidden, layers, heads, kv heads, feed-forward, context, tied, factor of the llama3 rope scaling (0: none)
    "llama-3.2-1b": (2048, 16, 32, 8, 8192, 131_072, True, 32.0),
    "llama-3-8b": (4096, 32, 32, 8, 14_336, 8192, False, 0.0),
}
TYPES = {
    # of most matrices, of the head (and of tied embeddings), of half of attn_v and ffn_down; GGUF's number of the mix
    "Q4_0": (T.Q4_0, T.Q6_K, T.Q4_0, 2),
    "Q4_K_M": (T.Q4_K, T.Q6_K, T.Q6_K, 15),
    "Q8_0": (T.Q8_0, T.Q8_0, T.Q8_0, 7),
    "BF16": (T.BF16, T.BF16, T.BF16, 32),
}
VOCAB, ROPE, NORM = 128_256, 500_000.0, 1e-5
BOS, END, EOT = 128_000, 128_001, 128_009


def q4_k(x):
    """8 runs of 32 weights: 4-bit weights, 6-bit scale and minimum for each run, two f16 for all of them."""
    x = x.reshape(-1, 8, 32)
    low, high = np.minimum(x.min(2), 0), x.max(2)
    scale, least = (high - low) / 15, -low
    d, dmin = (s.max(1, keepdims=True).astype(np.float16) / np.float16(63) for s in (scale, least))
    sc, mn = (np.clip(np.rint(s / np.float32(t)), 0, 63).astype(np.uint8) for s, t in ((scale, d), (least, dmin)))
    step, off = (np.float32(t) * s.astype(np.float32) for s, t in ((sc, d), (mn, dmin)))
    q = np.clip(np.rint((x + off[..., None]) / np.maximum(step, 1e-9)[..., None]), 0, 15).astype(np.uint8)
    packed = np.concatenate(
        [
            sc[:, :4] | (sc[:, 4:] >> 4 << 6),
            mn[:, :4] | (mn[:, 4:] >> 4 << 6),
            (sc[:, 4:] & 15) | ((mn[:, 4:] & 15) << 4),
        ],
        axis=1,
    )
    nibbles = (q[:, 0::2] | (q[:, 1::2] << 4)).reshape(len(x), 128)
    return np.concatenate([d.view(np.uint8), dmin.view(np.uint8), packed, nibbles], axis=1)


def q6_k(x):
    """16 runs of 16 weights: 6-bit weights in a low and a high part, 8-bit scale for each run, one f16 for all of them."""
    x = x.reshape(-1, 16, 16)
    scale = np.abs(x).max(2) / 31
    d = (scale.max(1, keepdims=True) / 127).astype(np.float16)
    sc = np.clip(np.rint(scale / np.float32(d)), 1, 127).astype(np.int8)
    step = np.float32(d) * sc.astype(np.float32)
    q = (np.clip(np.rint(x / step[..., None]), -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = np.concatenate([(q[:, :, :2] & 15) | ((q[:, :, 2:] & 15) << 4)], axis=2).reshape(len(x), 128)
    high = (q >> 4 << np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]).sum(2, dtype=np.uint8).reshape(len(x), 64)
    return np.concatenate([low, high, sc.view(np.uint8), d.view(np.uint8)], axis=1)


class Pool:
    """Random weights in each type, as rows of the bytes of 256 weights."""

    def __init__(self):
        self.weights = np.random.default_rng(1).standard_normal(POOL * 256, dtype=np.float32) * np.float32(0.02)
        self.blocks, self.at = {}, 0

    def of(self, kind):
        if kind not in self.blocks:
            own = {T.Q4_K: q4_k, T.Q6_K: q6_k}.get(kind)
            done = own(self.weights) if own else gguf.quants.quantize(self.weights, kind).view(np.uint8)
            self.blocks[kind] = np.ascontiguousarray(done).reshape(POOL, -1)
        return self.blocks[kind]

    def tensor(self, kind, elements):
        """The bytes of a tensor: a window of the pool that goes round."""
        blocks, n = self.of(kind), elements // 256
        start, self.at = self.at, (self.at + 7919) % POOL
        turns = -(-(start + n) // POOL)
        return np.concatenate([blocks] * turns)[start : start + n].reshape(-1) if turns > 1 else blocks[start : start + n]


def more_bits(layer, layers):
    """llama.cpp's rule for the layers whose attn_v and ffn_down get the larger type."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def tensors(shape, types):
    """(name, shape, type) in the order of the file."""
    hidden, layers, heads, kv_heads, ffn, _, tied, factor = SHAPES[shape]
    most, head, larger, _ = types
    kv = hidden // heads * kv_heads
    if factor:
        yield "rope_freqs.weight", (hidden // heads // 2,), T.F32
    yield "token_embd.weight", (VOCAB, hidden), head if tied else most
    for i in range(layers):
        some = larger if more_bits(i, layers) else most
        for name, size, kind in [
            ("attn_norm", (hidden,), T.F32),
            ("attn_q", (hidden, hidden), most),
            ("attn_k", (kv, hidden), most),
            ("attn_v", (kv, hidden), some),
            ("attn_output", (hidden, hidden), most),
            ("ffn_norm", (hidden,), T.F32),
            ("ffn_gate", (ffn, hidden), most),
            ("ffn_up", (ffn, hidden), most),
            ("ffn_down", (hidden, ffn), some),
        ]:
            yield f"blk.{i}.{name}.weight", size, kind
    yield "output_norm.weight", (hidden,), T.F32
    if not tied:
        yield "output.weight", (VOCAB, hidden), head


def rope_factors(half, factor):
    """What llama3's scaling divides each frequency by (transformers' modeling_rope_utils: low 1, high 4, original 8192)."""
    wavelength = 2 * np.pi * ROPE ** (np.arange(half) / half)
    smooth = np.clip((8192 / wavelength - 1) / (4 - 1), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def byte_letters():
    """GPT-2's printable letter for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = (b for b in range(256) if b not in plain)
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(spare)}}


def merge_of(token, ranks):
    """The two parts that merging with lower ranks alone leaves of a token, or None if there are more."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [(ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))]
        rank, i = min(pairs)
        if rank >= ranks[token]:
            return None
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def vocabulary(path):
    """(tokens, their types, merges) of a rank file and Llama 3's special tokens."""
    lines = open(path, "rb").read().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    letters = byte_letters()
    spell = lambda part: "".join(letters[b] for b in part)
    tokens = [spell(token) for token in sorted(ranks, key=ranks.get)]
    merges = [m for token in sorted(ranks, key=ranks.get) if len(token) > 1 and (m := merge_of(token, ranks))]
    named = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
    specials = [f"<|{named.get(i, f'reserved_special_token_{i}')}|>" for i in range(VOCAB - len(tokens))]
    kinds = [1] * len(tokens) + [3] * len(specials)
    return tokens + specials, kinds, [f"{spell(a)} {spell(b)}" for a, b in merges]


def write(out, shape, mix, vocabulary_path):
    hidden, layers, heads, kv_heads, ffn, context, _, factor = SHAPES[shape]
    w = gguf.GGUFWriter(out, "llama")
    w.add_name(f"{shape} {mix}, random weights")
    w.add_file_type(TYPES[mix][3])
    w.add_quantization_version(2)
    w.add_block_count(layers)
    w.add_context_length(context)
    w.add_embedding_length(hidden)
    w.add_feed_forward_length(ffn)
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_key_length(hidden // heads)
    w.add_value_length(hidden // heads)
    w.add_layer_norm_rms_eps(NORM)
    w.add_rope_freq_base(ROPE)
    w.add_rope_dimension_count(hidden // heads)
    w.add_vocab_size(VOCAB)
    tokens, kinds, merges = vocabulary(vocabulary_path)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("llama-bpe")
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    w.add_token_merges(merges)
    w.add_bos_token_id(BOS)
    w.add_eos_token_id(EOT)
    w.add_add_bos_token(True)
    w.add_chat_template("{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    plan = list(tensors(shape, TYPES[mix]))
    for name, size, kind in plan:
        per_block, bytes_of = gguf.GGML_QUANT_SIZES[kind]
        w.add_tensor_info(name, size, np.dtype(np.float32), int(np.prod(size)) // per_block * bytes_of, kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    pool = Pool()
    for name, size, kind in plan:
        if name.startswith("rope"):
            data = rope_factors(size[0], factor)
        elif kind == T.F32:
            data = np.ones(size, np.float32)
        else:
            data = pool.tensor(kind, int(np.prod(size)))
        w.write_tensor_data(data)
    w.close()


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__.splitlines()[0])
    write(*sys.argv[1:])
