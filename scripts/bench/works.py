"""What is measured: models, works, and what the results must reach. Tables only."""

from dataclasses import dataclass
from fnmatch import fnmatch


@dataclass(frozen=True)
class Model:
    name: str  # also the file's name, with .gguf
    kind: str  # storage of most weights
    cache: int  # bytes of keys and values a token in f16
    synthetic: tuple | None = None  # shape and type for models.py


SMOL, SMOL8 = Model("smollm2-135m.q4_1", "Q4_1", 23_040), Model("smollm2-135m.q8_0", "Q8_0", 23_040)
ONE_B = [
    Model(f"llama-3.2-1b.{kind.lower()}", kind, 32_768, ("llama-3.2-1b", kind)) for kind in ("Q4_0", "Q4_K_M", "Q8_0", "BF16")
]
EIGHT_B = Model("llama-3-8b.q4_k_m", "Q4_K_M", 131_072, ("llama-3-8b", "Q4_K_M"))
MODELS = [SMOL, SMOL8, *ONE_B, EIGHT_B]
K_QUANT = ONE_B[1]


@dataclass(frozen=True)
class Work:
    family: str
    model: Model
    measures: tuple  # pp and tg in tokens/s; first in seconds, rss in MB: less is better
    prompt: int = 0
    generate: int = 0
    depth: int = 0
    parallel: int = 1
    threads: int = 2
    everyone: bool = True  # else llama.cpp alone is the measure

    @property
    def key(self):
        return f"{self.family}/{self.model.name}"

    def row(self, measure):
        n = {"pp": f"pp{self.prompt}", "tg": f"tg{self.generate}"}.get(measure, measure)
        more = f" depth {self.depth}" if self.depth else ""
        more += f" x {self.parallel}" if self.parallel > 1 else ""
        return n + more + (f", {self.threads} thread" + "s" * (self.threads > 1))


LESS_IS_BETTER = {"first", "rss"}
UNITS = {"pp": "tokens/s", "tg": "tokens/s", "first": "s", "rss": "MB"}

WORKS = [
    *(Work("main", m, ("pp", "tg"), prompt=512, generate=128) for m in MODELS),
    *(Work("one-thread", m, ("tg",), generate=128, threads=1, everyone=False) for m in MODELS),
    Work("depth-4096", K_QUANT, ("tg",), generate=32, depth=4096),
    Work("together", K_QUANT, ("tg",), generate=32, depth=64, parallel=16),
    Work("first-token", SMOL, ("first",), prompt=32, everyone=False),
    *(Work("memory", m, ("rss",), prompt=32, everyone=False) for m in MODELS),
    Work("prompt-8192", K_QUANT, ("pp",), prompt=8192, everyone=False),
    Work("depth-16384", K_QUANT, ("tg",), generate=32, depth=16384, everyone=False),
]
# Small enough for a look at the harness itself: nothing in it holds the results to anything.
QUICK = ["main/smollm2-135m.q4_1", "main/llama-3.2-1b.q4_k_m", "first-token", "memory/smollm2-135m.q4_1"]


def chosen(patterns):
    """The works that a family, a key or a pattern names."""
    unknown = [p for p in patterns if not any(fnmatch(w.key, p) or w.family == p for w in WORKS)]
    if unknown:
        families = dict.fromkeys(w.family for w in WORKS)
        raise SystemExit(f"no such work: {', '.join(unknown)}\nthere are {', '.join(families)}, or e.g. main/{SMOL.name}")
    return [w for w in WORKS if any(fnmatch(w.key, p) or w.family == p for p in patterns)]


@dataclass(frozen=True)
class Target:
    """What the geometric mean of the ratios of some rows must reach, and each of them."""

    text: str
    family: str
    measure: str
    against: str  # llama.cpp, or fastest: of the peers the one that is hardest to beat in that row
    mean: float
    each: float = 0.0
    model: str = ""  # all models of the family without one


TARGETS = [
    Target("prompt 512", "main", "pp", "llama.cpp", 3.2, 1.7),
    Target("prompt 512", "main", "pp", "fastest", 1.25, 1.0),
    Target("decode 128", "main", "tg", "llama.cpp", 1.3, 1.1),
    Target("decode 128", "main", "tg", "fastest", 1.1),
    Target("decode 128, 1 thread", "one-thread", "tg", "llama.cpp", 1.5),
    Target("decode at depth 4096", "depth-4096", "tg", "llama.cpp", 1.8),
    Target("decode at depth 4096", "depth-4096", "tg", "fastest", 1.5),
    Target("decode at depth 16384", "depth-16384", "tg", "llama.cpp", 2.8),
    Target("prompt 8192", "prompt-8192", "pp", "llama.cpp", 2.5),
    Target("16 sequences together", "together", "tg", "llama.cpp", 2.0),
    Target("16 sequences together", "together", "tg", "fastest", 2.0),
    Target("prompt 512, the default model", "main", "pp", "llama.cpp", 7.0, model=SMOL.name),
    Target("decode 128, the default model", "main", "tg", "llama.cpp", 2.3, model=SMOL.name),
    Target("prompt 512, the default model", "main", "pp", "fastest", 1.15, model=SMOL.name),
    Target("decode 128, the default model", "main", "tg", "fastest", 1.2, model=SMOL.name),
    Target("time to the first token", "first-token", "first", "llama.cpp", 2.0),
]
# A decode row is also good at this share of the read bandwidth just before and after it.
BANDWIDTH = 0.9
# Shares of the machine's limit: what, measure, models, share.
LIMITS = [
    ("decode, share of read bandwidth", "tg", [*ONE_B, EIGHT_B], BANDWIDTH),
    ("prompt 512, share of the int8 peak", "pp", ONE_B[:3], 0.52),
    ("prompt 512, share of the bf16 peak", "pp", ONE_B[3:], 0.88),
]
# Peak memory: the file, the cache of CONTEXT tokens, and so many MB.
CONTEXT, MEMORY_MB = 2048, 150
