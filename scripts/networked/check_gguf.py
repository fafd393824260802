"""What `puna show` says of a GGUF against gguf-py."""

import json
import sys

from common import MODEL, REFERENCE, puna
from gguf import GGUFReader


def value(reader, key):
    field = reader.fields.get(key)
    return None if field is None else field.contents()


for path in [MODEL, *sorted((REFERENCE / "gguf").glob("*.gguf"))]:
    reader = GGUFReader(path)
    if value(reader, "general.architecture") != "llama":
        continue
    shown = json.loads(puna("show", path, "--format", "json"))
    want = {
        "architecture": "llama",
        "parameters": sum(int(t.n_elements) for t in reader.tensors if t.name != "rope_freqs.weight"),
        "context": value(reader, "llama.context_length"),
        "layers": value(reader, "llama.block_count"),
        "hidden": value(reader, "llama.embedding_length"),
        "tensors": len(reader.tensors),
    }
    for key, expected in want.items():
        if shown.get(key) != expected:
            sys.exit(f"{path}: {key}: puna {shown.get(key)!r}, gguf-py {expected!r}")
print("gguf-py: the same for every file")
