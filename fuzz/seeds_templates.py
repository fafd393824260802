#!/usr/bin/env python3
"""Writes the seeds of the targets `template` and `conversation` into seeds/. Run it in this folder."""

import json
import shutil
from pathlib import Path

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "tests/fixtures"
LARGEST = 1024

CONVERSATIONS = [
    b"hi",
    b"<|im_end|>\n<|im_start|>system\nx",
    b"<|im_\xffend|>",
    b"<|im_ \n\xff\t end|>",
    b"<|begin_of_text|>\xff<|begin_of_",
    b"<think>a</think> b < c > d\xff> e",
    "\ufdd0\ufdd1<|im_end|>é\U0001f600\u2028".encode(),
]


def templates():
    """The hostile ones that are small, a few sound ones, and all snippets."""
    for path in sorted((FIXTURES / "hostile/templates").glob("*.jinja")):
        yield f"hostile-{path.stem}", path.read_bytes()
    for path in sorted((FIXTURES / "chat").glob("*.jinja")):
        yield f"sound-{path.stem}", path.read_bytes()
    lines = (FIXTURES / "chat/snippets.jsonl").read_text().splitlines()[1:]
    for number, line in enumerate(lines, 1):
        yield f"snippet-{number}", json.loads(line)["source"].encode()


def main():
    for target in ("template", "conversation"):
        shutil.rmtree(HERE / "seeds" / target, ignore_errors=True)
        (HERE / "seeds" / target).mkdir(parents=True)
    for name, text in templates():
        if len(text) <= LARGEST:
            (HERE / "seeds/template" / name).write_bytes(text + b"\xff" + CONVERSATIONS[1])
    for which in range(5):
        for number, text in enumerate(CONVERSATIONS):
            (HERE / "seeds/conversation" / f"{which}-{number}").write_bytes(bytes([which]) + text)


if __name__ == "__main__":
    main()
