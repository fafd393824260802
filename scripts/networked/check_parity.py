"""100,000 random texts of mixed scripts: the ids of every tokenizer against the official implementation.

PUNA_PARITY_COUNT changes the number. `check_parity.py PUNA MODEL --sample FILE` also writes some hundred of the texts
with the official ids: tests/fixtures/tokenizers/parity.jsonl, to which crates/text/tests/tokenizer_reference.rs holds.
"""

import json
import os
import random
import sys
import tempfile
from pathlib import Path

from common import ALPHABETS, MODEL, REFERENCE, SEED, jsonl, same
from official import LLAMA3, LLAMA4, hugging_face, pieces_of, rank_file

COUNT = int(os.environ.get("PUNA_PARITY_COUNT") or "100000")
SAMPLE = 300
BATCH = 10_000
WORDS = """the of and to in is that for it was on are as with they be at one have this from or had by hot but some what
there we can out other were all your when up use word how said an each she which do their time if will way about many
then them would write like so these her long make thing see him two has look more day could go come did my sound no most
number who over know water than call first people may down side been now find International tokenization McDonald's
don't WE'LL I've unhappily 12,345.67 1999 e.g. https://example.org/a?b=c&d=%20 foo_bar camelCase #include <stdio.h>
def f(x): return x**2 наука языка größe façade señor 東京都 学習する 안녕하세요 สวัสดี नमस्ते مرحبا שלום 🦙🦙 👩‍💻 e\u0301 ½ ² Ⅷ""".split()


def text(rng):
    """Words, characters of some alphabets, or both."""
    pool = "".join(rng.sample(ALPHABETS, rng.randint(1, 4)))
    parts = []
    for _ in range(rng.randint(1, 6)):
        kind = rng.randrange(4)
        if kind == 0:
            parts.append("".join(rng.choice(pool) for _ in range(rng.randint(1, 24))))
        elif kind == 1:
            parts.append(rng.choice(" \n\t'") * rng.randint(1, 5))
        else:
            parts.append(rng.choice(["", " "]) + " ".join(rng.choices(WORDS, k=rng.randint(1, 8))))
    return "".join(parts)


def compare(what, model, encode):
    """`encode` takes a list of texts; in batches, so that memory stays small."""
    for start in range(0, len(TEXTS), BATCH):
        batch = TEXTS[start : start + BATCH]
        ours = [row["ids"] for row in jsonl("tokenize", model, [{"text": t} for t in batch], "--no-bos")]
        same(f"{what}, from {start}", batch, ours, encode(batch))
    print(f"{what}: {len(TEXTS)} texts", flush=True)


def gpt2(path, folder):
    """GPT-2's splitting over another vocabulary: its own is in no package."""
    file = json.loads(Path(path).read_text())
    file["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    written = Path(folder) / "tokenizer.json"
    written.write_text(json.dumps(file))
    return written


rng = random.Random(SEED * 7919)
# The tokenizers library reads Llama 2's special tokens where a text happens to spell them; Puna takes text as text.
TEXTS = [text(rng).replace("<s>", "<t>").replace("</s>", "</t>") for _ in range(COUNT)]
smollm2 = REFERENCE / "smollm2/tokenizer.json"
checks = {"smollm2": ("tokenizers, SmolLM2, from GGUF", MODEL, hugging_face(smollm2))}
more = [("tokenizers, SmolLM2, from tokenizer.json", smollm2, hugging_face(smollm2))]
folder = os.environ.get("PUNA_LLAMA_TOKENIZERS")
if folder:
    folder = Path(folder)
    checks["llama2"] = ("sentencepiece, Llama 2", folder / "llama-spm.gguf", pieces_of(folder / "llama-spm.gguf"))
    checks["llama3"] = ("tiktoken, Llama 3", folder / "llama3.model", rank_file(folder / "llama3.model", LLAMA3))
    checks["llama4"] = ("tiktoken, Llama 4", folder / "llama4.model", rank_file(folder / "llama4.model", LLAMA4))
    more.append(("tiktoken, Llama 3, from GGUF", folder / "llama-bpe.gguf", checks["llama3"][2]))
    more.append(("tokenizers, Llama 2, from tokenizer.json", folder / "llama2.json", hugging_face(folder / "llama2.json")))
else:
    print("Llama tokenizers: not compared, PUNA_LLAMA_TOKENIZERS is not set")

if "--sample" in sys.argv:
    sample = TEXTS[:SAMPLE]
    ids = {name: encode(sample) for name, (_, _, encode) in checks.items()}
    with open(sys.argv[sys.argv.index("--sample") + 1], "w", encoding="ascii") as file:
        for i, one in enumerate(sample):
            row = {"text": one} | {name: rows[i] for name, rows in ids.items()}
            file.write(json.dumps(row, separators=(",", ":")) + "\n")

with tempfile.TemporaryDirectory() as scratch:
    file = gpt2(smollm2, scratch)
    more.append(("tokenizers, GPT-2's splitting", file, hugging_face(file)))
    for check in [*checks.values(), *more]:
        compare(*check)
