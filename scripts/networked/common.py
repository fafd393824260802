"""What the checks share: the command line, running Puna, random text."""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "tests/fixtures/reference"
SEED = int(os.environ.get("PUNA_CHECK_SEED") or "1")
PUNA, MODEL = (sys.argv[1:] + ["", ""])[:2]

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz ABC",
    "0123456789 .,-+%",
    " \t\n\r\u00a0\u2003",
    "'\"’sStTreEvVmMlLdD ",
    "äöüßéñçøåłžğ",
    "нейросеть языковая модель",
    "日本語中文字한국어テスト",
    "عربي नमस्ते עברית ไทย",
    "😀👩‍👩‍👧🏽🇵🇪\ufe0f\u200d",
    "{}[]()<>|\\/_=;:#@!?*&^~`",
    "\u0000\u0001\u007f\u0085\u2028\ufeff\ufffd",
]


def puna(*args, stdin=None):
    """Standard output of `puna ARGS`."""
    done = subprocess.run([PUNA, *map(str, args)], input=stdin, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"puna {' '.join(map(str, args))}: exit {done.returncode}\n{done.stderr.decode()}")
    return done.stdout.decode()


def jsonl(verb, model, rows, *options):
    """One answer for each row."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="ascii") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        answers = puna(verb, model, "--jsonl", file.name, "--format", "json", *options).splitlines()
    if len(answers) != len(rows):
        sys.exit(f"puna {verb}: {len(answers)} answers to {len(rows)} lines")
    return [json.loads(line) for line in answers]


def texts(count, longest=60, salt=0):
    """Random texts, each mixed from one to four alphabets."""
    rng = random.Random(SEED * 1000 + salt)
    found = ["", " ", "  ", "a", "\n\n", "Hello world"]
    while len(found) < count:
        pool = "".join(rng.sample(ALPHABETS, rng.randint(1, 4)))
        found.append("".join(rng.choice(pool) for _ in range(rng.randint(1, longest))))
    return found


def same(what, inputs, ours, theirs):
    """Exits at the first difference."""
    for one, got, want in zip(inputs, ours, theirs, strict=True):
        if got != want:
            sys.exit(f"{what}: for {one!r}\n  puna  {got!r}\n  other {want!r}")
    print(f"{what}: {len(inputs)} the same")
