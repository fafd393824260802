#!/usr/bin/env python3
"""Writes the seeds of the targets `gguf`, `safetensors`, `detect` and `imatrix` into seeds/.

Run it in this folder: `python3 seeds.py`. The seeds are the hostile files of
tests/fixtures/hostile, as far as they are small, and some sound files, so that the fuzzer gets
past the first checks.
"""

import importlib.util
import shutil
from pathlib import Path

HERE = Path(__file__).parent
HOSTILE = HERE.parent / "tests/fixtures/hostile"
LARGEST = 1024

spec = importlib.util.spec_from_file_location("make", HOSTILE / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


def sound_gguf():
    """A file with every value type and several number types, and an empty one."""
    key, u32, u64, text = make.key, make.u32, make.u64, make.text
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    numbers = [key(f"n{kind}", kind, b"\1" + bytes(size - 1)) for kind, size in sizes.items()]
    arrays = [key(f"a{kind}", make.ARRAY, u32(kind) + u64(2) + b"\1" * 2 * size) for kind, size in sizes.items()]
    words = key("words", make.ARRAY, u32(make.STRING) + u64(3) + text("a") + text("") + text("κόσμε"))
    inner = u32(make.U8) + u64(2) + b"\1\2"
    nested = key("nested", make.ARRAY, u32(make.ARRAY) + u64(2) + inner + inner)
    align = key("general.alignment", make.U32, u32(64))
    tensors = [make.tensor("w", [8, 2]), make.tensor("q", [32, 2], 8, 64), make.tensor("k", [256], 12, 192)]
    yield "sound-empty", make.gguf()
    yield "sound-values", make.gguf([make.ARCH, *numbers])
    yield "sound-arrays", make.gguf([make.ARCH, *arrays, words, nested])
    yield "sound-tensors", make.gguf([make.ARCH, align], tensors, bytes(192 + 144), align=64)
    yield "sound-version-2", make.gguf([words], [make.tensor("w", [8])], make.EIGHT, version=2)


def sound_safetensors():
    """A file of several types with notes, and an empty one."""
    notes = {"__metadata__": {"format": "pt"}}
    several = {
        **notes,
        "a": make.f32s(0, 24, [2, 3]),
        "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
        "c": {"dtype": "BOOL", "shape": [0, 4], "data_offsets": [26, 26]},
    }
    yield "sound-empty", make.header({})
    yield "sound-several", make.header(several) + bytes(26)


def heads():
    """The beginnings of other kinds of file. (The first eight bytes of an input are a length.)"""
    config = b"".join(make.u32(n) for n in (64, 172, 5, 8, 4, 512, 512))
    starts = {
        "tokenizer": b'{"version":"1.0","added_tokens":[]}',
        "sentencepiece": b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02",
        "tiktoken": b"IQ== 0\nIg== 1\n",
        "lfs": b"version https://git-lfs.github.com/spec/v1\n",
        "html": b"<!DOCTYPE html>",
        "pickle": b"\x80\x02\x8a\x0a",
        "llama2c": config,
        "safetensors": make.header({}),
    }
    for name, start in starts.items():
        yield name, make.u64(len(start)) + start


def imatrices():
    """The old form of importance matrices: sound, without its end, and with counts that lie."""
    u32 = make.u32
    name = lambda text: u32(len(text)) + text
    entry = lambda text, values: name(text) + u32(3) + u32(values) + b"\0\0\x80\x3f" * values
    body = u32(2) + entry(b"blk.0.ffn_down.weight", 3) + entry(b"b", 1)
    yield "sound", body + u32(3) + name(b"text.txt")
    yield "old", body
    yield "huge-entries", u32(0x7FFFFFFF) + body[4:]
    yield "huge-name", u32(1) + u32(0x7FFFFFFF)
    yield "huge-values", u32(1) + name(b"a") + u32(1) + u32(0x7FFFFFFF)
    yield "cut", body[:-2]


def main():
    for target, files in (
        ("gguf", sound_gguf()),
        ("safetensors", sound_safetensors()),
        ("detect", heads()),
        ("imatrix", imatrices()),
    ):
        folder = HERE / "seeds" / target
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, data in files:
            (folder / name).write_bytes(data)
        for path in sorted((HOSTILE / target).glob("*")):
            if 0 < path.stat().st_size <= LARGEST:
                shutil.copyfile(path, folder / path.stem)


if __name__ == "__main__":
    main()
