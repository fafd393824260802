"""Rendered conversations against Jinja2, set up as transformers does."""

import json
import random
import sys
import tempfile
from datetime import datetime

from common import MODEL, REFERENCE, SEED, puna, same, texts
from gguf import GGUFReader
from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


def official(source):
    def refuse(message):
        raise TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return env.from_string(source)


def conversation(rng, contents):
    found = [{"role": "system", "content": rng.choice(contents)}] if rng.random() < 0.4 else []
    for _ in range(rng.randint(1, 3)):
        found.append({"role": "user", "content": rng.choice(contents)})
        found.append({"role": "assistant", "content": rng.choice(contents)})
    return found[: rng.randint(2, len(found))]


def compare(what, source, bos, eos):
    template, rng, contents = official(source), random.Random(SEED), texts(60)
    asked, ours, theirs = [], [], []
    with tempfile.NamedTemporaryFile("w", suffix=".jinja") as file:
        file.write(source)
        file.flush()
        for _ in range(60):
            messages = conversation(rng, contents)
            asked.append(messages)
            flags = ["--template", file.name, "--bos-token", bos, "--eos-token", eos, "--messages", "-", "--format", "json"]
            ours.append(json.loads(puna("template", *flags, stdin=json.dumps(messages).encode()))["text"])
            theirs.append(
                template.render(
                    messages=messages, tools=None, documents=None, add_generation_prompt=True, bos_token=bos, eos_token=eos
                )
            )
    same(what, asked, ours, theirs)


field = GGUFReader(MODEL).fields["tokenizer.chat_template"]
compare("Jinja2, the default model's template", bytes(field.parts[field.data[0]]).decode(), "<|im_start|>", "<|im_end|>")
for path in sorted((REFERENCE / "models").glob("*/chat_template.jinja")):
    compare(f"Jinja2, {path.parent.name}", path.read_text(), "<s>", "</s>")
sys.exit(0)
