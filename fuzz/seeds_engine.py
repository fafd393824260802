#!/usr/bin/env python3
"""Makes the seeds of the targets of `engine`: small sound files, and some with one thing wrong.

The formats stand in crates/engine/src/kl.rs and block_file.rs.
"""

import hmac
import math
import shutil
import struct
from pathlib import Path

HERE = Path(__file__).parent


def u32s(*numbers):
    return struct.pack(f"<{len(numbers)}I", *numbers)


def saved(storage=1, vocab=3, ctx=3, chunks=1, rows=None, version=1, magic=b"PUNALOGP"):
    """A file of saved log-probabilities; `rows` are pairs of the best token and the values."""
    scored = ctx - 1 - ctx // 2
    even = (0, [-math.log(vocab)] * vocab)
    data = magic + u32s(version, storage, vocab, ctx, chunks)
    data += u32s(*(i % vocab for i in range(ctx * chunks)))
    for top, values in rows or [even] * (scored * chunks):
        data += u32s(top) + struct.pack(f"<{len(values)}{'fe'[storage]}", *values)
    return data


def kl_files():
    yield "sound-f16", saved()
    yield "sound-f32", saved(storage=0)
    yield "sound-chunks", saved(vocab=5, ctx=6, chunks=3)
    yield "impossible-tokens", saved(rows=[(1, [-math.inf, 0.0, -math.inf])])
    yield "nothing-possible", saved(rows=[(0, [-math.inf] * 3)])
    yield "nan", saved(rows=[(0, [math.nan, -1.0, -1.0])])
    yield "above-one", saved(storage=0, rows=[(0, [0.5, -1.0, -1.0])])
    yield "top-beyond", saved(rows=[(3, [-1.0, -1.0, -1.0])])
    yield "version-2", saved(version=2)
    yield "other-magic", saved(magic=b"_logits_")
    yield "cut", saved()[:-1]
    yield "longer", saved() + b"\0"
    yield "header-only", saved()[:28]
    yield "huge", b"PUNALOGP" + u32s(1, 1, 2**32 - 1, 2**32 - 1, 2**32 - 1)


def block(tokens=(1, 2, 3), count=None, bytes=b"keys and values", magic=b"PUNAKV01"):
    """A file of a kept block without its seal."""
    count = len(tokens) if count is None else count
    return magic + b"n" * 32 + u32s(count, *tokens) + bytes


def block_files():
    def sealed(data):
        return data + hmac.digest(b"\7" * 32, data, "sha256")

    yield "sealed", sealed(block())
    # The target seals what it gets as well.
    yield "sound", block()
    yield "empty", block(tokens=(), bytes=b"")
    yield "page", block(tokens=range(32), bytes=bytes(256))
    yield "other-seal", block() + b"s" * 32
    yield "other-magic", block(magic=b"PUNAKV02")
    yield "too-many", block(count=8)
    yield "huge", block(count=2**32 - 1)
    yield "cut", sealed(block())[:-1]
    yield "head-only", block()[:43]


def main():
    for target, files in (("kl_file", kl_files), ("block_file", block_files)):
        folder = HERE / "seeds" / target
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, data in files():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
