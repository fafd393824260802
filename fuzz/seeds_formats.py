#!/usr/bin/env python3
"""Writes the seeds of the targets `torch`, `torch_pickle`, `llama2c` and `repack`: the hostile files
of their kinds, and small sound ones. Standard library only."""
import importlib.util
import json
import shutil
import struct
import sys
import zipfile
from io import BytesIO
from pathlib import Path

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "tests/fixtures"
LARGEST = 2048
sys.dont_write_bytecode = True
sys.path.insert(0, str(FIXTURES / "formats"))
import torchfile as tf  # noqa: E402


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def folder(name):
    path = HERE / "seeds" / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def torch():
    out, pickles = folder("torch"), folder("torch_pickle")
    turned = tf.Tensor(tf.Storage(tf.CLASSES["F32"], bytes(64), 4), 4, [2, 3], [1, 2])
    tensors = {"a": tf.tensor("BF16", [2, 2], bytes(8)), "b": turned, "c": tf.Parameter(turned)}
    (out / "sound").write_bytes(tf.checkpoint(tensors))
    (out / "sound-empty").write_bytes(tf.checkpoint({}))
    for path in sorted((FIXTURES / "hostile/torch").glob("*.pth")):
        if path.stat().st_size > LARGEST:
            continue
        if path.stem.startswith("pickle-"):
            data = path.read_bytes()
            pickle = zipfile.ZipFile(BytesIO(data)).read("m/data.pkl")
            (pickles / path.stem.removeprefix("pickle-")).write_bytes(pickle)
        elif path.stat().st_size:
            shutil.copyfile(path, out / path.stem)
    pickle, _ = tf.dump({"b": turned, "c": tf.Parameter(turned)})
    (pickles / "sound").write_bytes(pickle)


def llama2c():
    out = folder("llama2c")
    small = (4, 8, 1, 2, 1, 4, 8)
    numbers = 16 + 4 + 16 + 8 + 8 + 16 + 4 + 96 + 4 + 16
    config = struct.pack("<7i", *small)
    ones = lambda n: struct.pack("<f", 0.5) * n
    (out / "v0").write_bytes(config + ones(numbers))
    head = lambda version, tail: (b"24ka" + struct.pack("<i", version) + config + tail).ljust(256, b"\0")
    (out / "v1").write_bytes(head(1, b"\1") + ones(numbers - 16))
    matrices = [16, 16, 8, 8, 16, 32, 32, 32]
    body = b"".join(b"\1" * n + ones(n // 8) for n in matrices)
    (out / "v2").write_bytes(head(2, b"\1" + struct.pack("<i", 8)) + ones(12) + body)
    for path in sorted((FIXTURES / "hostile/llama2c").glob("*.bin")):
        if path.stat().st_size:
            shutil.copyfile(path, out / path.stem)


def repack():
    out = folder("repack")
    make = load("make_formats", FIXTURES / "formats/make.py")
    make.HERE = HERE / "seeds/repack/made"
    make.HERE.mkdir()
    # A model of a few kilobytes in each way.
    make.D, make.F, make.V, make.H, make.KV, make.HD = 32, 32, 4, 2, 1, 16
    make.IDS = [1]
    make.CONFIG |= {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 4}
    make.fp8()
    make.gptq()
    make.awq()
    make.bitsandbytes()
    for path in sorted(make.HERE.iterdir()):
        config = json.dumps(json.loads((path / "config.json").read_text())).encode()
        (out / path.name).write_bytes(config + b"\0" + (path / "model.safetensors").read_bytes())
    shutil.rmtree(make.HERE)


if __name__ == "__main__":
    torch()
    llama2c()
    repack()
