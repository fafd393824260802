"""Puna and its peers: how each is asked for a work, and what it answers."""

import json
import re
import statistics
from pathlib import Path

from measure import Missing, run, run_for_memory
from works import CONTEXT

HERE = Path(__file__).resolve().parent
PROMPT = "Long before the first railway came to the valley, people walked over the hills to market each week and carried home salt, cloth and news of the distant sea."
PROCESSES = 5  # of a time to the first token, which is short: their median


def last_json(text):
    """The last line that is an object: some programs log to standard output."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if not lines:
        raise Missing("its output holds no result")
    return json.loads(lines[-1])


class Engine:
    """`measure` answers {measure: value} of a work; `settings` are ways to run it, of which the fastest is taken."""

    version = ""
    note = ""

    def __init__(self, name, context):
        self.name, self.context = name, context

    def settings(self, work):
        return []

    def run(self, command, env=None):
        return run(command, self.context.timeout, env, self.context.fifo, self.context.scratch)

    def path(self, work):
        return self.context.models / f"{work.model.name}.gguf"

    def only(self, work, families):
        if work.family not in families:
            raise Missing(f"{work.family}: not asked of it")

    def whole_process(self, command, work):
        """Seconds of a process that ends with its first token, or its peak memory."""
        if work.family == "memory":
            return {"rss": run_for_memory(command, self.context.timeout, self.context.fifo, self.context.scratch).rss_mb}
        return {"first": statistics.median(self.run(command).seconds for _ in range(PROCESSES))}


class Puna(Engine):
    def measure(self, work, setting, measures):
        threads = ["--threads", work.threads, "--compute", "fast", "--cache-type", "f16", "--offline"]
        if work.family in ("first-token", "memory"):
            ask = ["run", "-m", self.path(work), "--raw", "-n", 1, "--temperature", 0, "--ctx", CONTEXT, *threads, PROMPT]
            return self.whole_process([self.context.puna, *ask], work)
        ask = ["bench", self.path(work), "-p", work.prompt, "-n", work.generate, "--depth", work.depth]
        ask += ["--parallel", work.parallel, "--repeat", 1, "--limits", "--format", "json", *threads]
        answer = json.loads(self.run([self.context.puna, *ask]).out)
        values = {"limits": answer["limits"]}
        self.version, self.note = answer["machine"]["puna"], answer["machine"]["simd"]
        for row in answer["results"]:
            measure = row["test"][:2]
            values[measure] = row["tokens_per_second"]["median"]
            values[f"{measure}_of_limit"] = row["fraction_of_limit"]
        return values


class LlamaBench(Engine):
    """llama.cpp's tools, and those of its forks: `bench` and what lies beside it."""

    def __init__(self, name, context, bench, flags=()):
        super().__init__(name, context)
        self.bench, self.flags = Path(bench), tuple(flags)
        if not self.bench.is_file():
            raise Missing(f"there is no {self.bench}")
        done = run([self.bench, "--help"], 60)
        self.help = done.out + done.err
        self.note = " ".join(self.flags)

    def has(self, flag):
        return re.search(rf"(^|[\s,]){re.escape(flag)}\b", self.help) is not None

    def settings(self, work):
        if self.flags:
            return [self.flags]
        if work.family in ("first-token", "memory"):
            return [(), ("-fit", "off")]
        if work.family == "together":
            return [("-fa", "on"), ("-fa", "off")]
        attention = [("-fa", "1"), ("-fa", "0")]
        # Weights read into memory instead of mapped: pages may be larger.
        unmapped = ("-lm", "none") if self.has("-lm") else ("-mmp", "0")
        return attention + ([("-fa", "1", *unmapped)] if work.family in ("main", "one-thread") else [])

    def beside(self, name):
        tool = self.bench.with_name(name)
        if not tool.is_file():
            raise Missing(f"there is no {name} beside its llama-bench")
        return tool

    def measure(self, work, setting, measures):
        if work.family == "together":
            return self.together(work, setting)
        if work.family in ("first-token", "memory"):
            ask = [self.beside("llama-completion"), "-m", self.path(work), "-p", PROMPT, "-n", 1, "-c", CONTEXT, "-t", work.threads]
            return self.whole_process([*ask, "--temp", 0, "-no-cnv", "--no-display-prompt", "--no-warmup", *setting], work)
        ask = ["-m", self.path(work), "-t", work.threads, "-r", 1, "-o", "json", *setting]
        if "-fa" not in setting:
            ask += ["-fa", 1]
        ask += ["-p", work.prompt if "pp" in measures else 0]
        n = work.generate if "tg" in measures else 0
        if work.depth and not self.has("--n-depth"):
            if not self.has("-gp"):
                raise Missing("this llama-bench measures at no depth")
            ask += ["-n", 0, "-gp", f"{work.depth},{n}"]
        else:
            ask += ["-n", n, *(["-d", work.depth] if work.depth else [])]
        if work.prompt > 512:
            ask += ["--no-warmup"] if self.has("--no-warmup") else ["-w", 0]
        done = self.run([self.bench, *ask])
        values = {}
        for row in json.loads(done.out[done.out.index("[") :]):
            self.version = self.version or str(row.get("build_commit", ""))
            values["tg" if row["n_gen"] else "pp"] = row["avg_ts"]
        return values

    def together(self, work, setting):
        words = {("-rtr", "1"): ["-rtr"], ("-rtr", "0"): [], ("-mmp", "0"): ["--no-mmap"], ("-mmp", "1"): []}
        flags, rest = [], list(setting)
        while rest:
            pair = tuple(rest[:2])
            flags += words.get(pair, list(pair))
            rest = rest[2:]
        if "-fa" not in flags:
            flags += ["-fa", "on"]
        ask = [self.beside("llama-batched-bench"), "-m", self.path(work), "-c", 4096, "-b", 2048, "-ub", 512]
        ask += ["-npp", work.depth, "-ntg", work.generate, "-npl", work.parallel, "-t", work.threads, *flags]
        done = self.run(ask)
        # | PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | T s | S t/s |
        rows = re.findall(r"^\|((?:\s*[\d.]+\s*\|){10})\s*$", done.out + "\n" + done.err, re.M)
        if not rows:
            raise Missing("llama-batched-bench printed no row")
        return {"tg": float(rows[-1].split("|")[7])}


class OpenVino(Engine):
    note = "f16 cache, else its defaults"

    def measure(self, work, setting, measures):
        self.only(work, ("main", "one-thread", "depth-4096", "together", "prompt-8192", "depth-16384"))
        ask = [self.context.python, HERE / "openvino_worker.py", self.path(work)]
        return last_json(self.run([*ask, work.threads, work.prompt, work.generate, work.depth, work.parallel]).out)


class MistralRs(Engine):
    note = "f16 cache, prompts as text of nearly that length"

    def measure(self, work, setting, measures):
        self.only(work, ("main", "one-thread", "depth-4096", "prompt-8192", "depth-16384"))
        ask = [self.context.python, HERE / "mistralrs_worker.py", self.path(work), work.prompt, work.generate, work.depth]
        return last_json(self.run(ask, {"RAYON_NUM_THREADS": str(work.threads)}).out)


class Candle(Engine):
    note = "f32 cache: it has no other"

    def measure(self, work, setting, measures):
        self.only(work, ("main", "one-thread"))
        ask = [self.context.candle, self.path(work), work.prompt, work.generate, work.depth]
        return last_json(self.run(ask, {"RAYON_NUM_THREADS": str(work.threads)}).out)


def agreement(puna, context, completion, prompts):
    """Whether Puna and llama.cpp put the same token first, for each prompt of the real model: rows of a table."""
    model, rows = context.models / "smollm2-135m.q4_1.gguf", []
    for prompt in prompts:
        ask = ["run", "-m", model, "--raw", "-n", 1, "--temperature", 0, "--offline", "--format", "json", prompt]
        ours = json.loads(run([puna, *ask], 60).out)["text"]
        ask = ["-m", model, "-p", prompt, "-n", 1, "-c", 512, "--temp", 0, "-no-cnv", "--no-display-prompt", "--no-escape"]
        theirs = run([completion, *ask], 120, cwd=context.scratch).out.replace("[end of text]", "").rstrip("\n")
        rows.append({"prompt": prompt, "puna": ours, "llama.cpp": theirs, "same": ours.strip() == theirs.strip()})
    return rows
