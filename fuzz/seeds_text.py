#!/usr/bin/env python3
"""Makes the seeds of the tokenizer targets of `text`: small sound files, and some with one thing wrong.

Run it in this folder: `python3 seeds_text.py`.
"""

import base64
import json
import shutil
import struct
from pathlib import Path

HERE = Path(__file__).parent


def varint(n):
    out = b""
    while n >= 0x80:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def piece(text, score, kind):
    return field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))


def sentencepiece(pieces, trainer=b"\x18\x02\x98\x02\x01", normalizer=b"\x18\x01\x20\x00"):
    return b"".join(piece(*p) for p in pieces) + field(2, trainer) + field(3, field(1, b"identity") + normalizer)


MARKERS = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3)]
BYTES = [(f"<0x{b:02X}>", 0, 6) for b in range(256)]
WORDS = [("▁", -3, 1), ("a", -4, 1), ("b", -5, 1), ("ab", -1, 1), ("▁a", -2, 1), ("aab", -6, 5), ("Hello", -7, 4)]


def spm():
    sound = sentencepiece(MARKERS + WORDS)
    yield "sound", sound
    yield "bytes", sentencepiece(MARKERS + BYTES + WORDS)
    yield "no-fallback", sentencepiece(MARKERS + WORDS, b"\x18\x02")
    yield "strip", sentencepiece(MARKERS + WORDS, normalizer=b"\x18\x01\x20\x01")
    yield "unescaped", sentencepiece(MARKERS + WORDS, normalizer=b"\x28\x00")
    yield "space-inside", sentencepiece(MARKERS + WORDS + [("a▁a", 1, 1)])
    yield "unigram", sentencepiece(MARKERS + WORDS, b"\x18\x01")
    yield "character-map", sentencepiece(MARKERS, normalizer=b"\x12\x01\x00")
    yield "twice", sentencepiece(MARKERS + WORDS + WORDS[:1])
    yield "infinite", sentencepiece([("a", float("inf"), 1), ("b", float("-inf"), 1), ("ab", float("-inf"), 1)])
    yield "cut", sound[:-3]


def ranks(tokens):
    lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    return b"".join(lines)


def tiktoken():
    some = [b"a", b"b", b" ", b"ab", b" ab", b"aab"]
    yield "sound", ranks(some)
    yield "every-byte", ranks([bytes([b]) for b in range(256)] + [b"ab", b"ba", b"abba", b"  "])
    yield "twice", ranks(some + [b"a"])
    yield "gap", ranks(some).replace(b" 3\n", b" 9\n")
    yield "no-rank", b"YQ== \n"
    yield "windows", ranks(some).replace(b"\n", b"\r\n")


def tokenizer_json():
    added = [{"id": 5, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": True, "normalized": False, "special": True}]
    vocab = {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġab": 4}
    model = {"type": "BPE", "vocab": vocab, "merges": [["a", "b"], ["Ġ", "ab"]], "ignore_merges": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    sound = {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level, "model": model}
    pattern = {"type": "Split", "pattern": {"Regex": r"\s+(?!\S)|\p{L}+"}, "behavior": "Isolated", "invert": False}
    marker = {"type": "Split", "pattern": {"String": f"SPL{1}T-TH{1}S-Pl3A5E"}, "behavior": "Removed", "invert": False}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}},
    }
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    spm = {"vocab": {"<unk>": 0, "▁": 1, "a": 2, "<0x62>": 3}, "merges": [], "type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
    llama = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    strip = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    strip.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    variants = {
        "sound": {},
        "split": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [pattern, byte_level]}},
        "template": {"post_processor": template},
        "metaspace": {"pre_tokenizer": metaspace, "decoder": metaspace, "model": spm},
        "llama": {"normalizer": llama, "pre_tokenizer": None, "decoder": {"type": "Sequence", "decoders": strip}, "model": spm},
        "unigram": {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False}},
        "wordlevel": {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}},
        "nfkc": {"normalizer": {"type": "NFKC"}},
        # Galactica's, which cuts where the model's own library has put a marker.
        "sequences": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [marker, byte_level]}},
    }
    for name, change in variants.items():
        yield name, json.dumps(sound | change, ensure_ascii=False, separators=(",", ":")).encode()


def encode():
    yield "english", b"Hello, world! It's 1234 o'clock.\n\n  Yes.\t\n"
    yield "scripts", "日本語 русский नमस्ते 🦙👩‍💻 é\u0301 ǅ ſ'ſ K\u00a0\u3000".encode()
    yield "specials", "<|begin_of_text|><s></s><unk><0x0A><|im_end|> ▁a▁ <|".encode()
    yield "not-utf8", b"\xff\xc0\x80abc\xe2\x96"
    yield "long", b"a" * 200 + b" " * 200 + b"\n" * 20


def main():
    targets = {"spm_model": spm, "tiktoken_model": tiktoken, "tokenizer_json": tokenizer_json, "encode": encode}
    for target, seeds in targets.items():
        folder = HERE / "seeds" / target
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, content in seeds():
            (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
