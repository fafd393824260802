#!/usr/bin/env python3
"""Makes the seeds of the targets of `engine`: small sound files, and some with one thing wrong.

The format stands in crates/engine/src/kl.rs.
"""

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


def main():
    folder = HERE / "seeds" / "kl_file"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in kl_files():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
