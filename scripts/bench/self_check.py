"""The harness without peers and network: are its sums and Puna's outputs right? Times decide nothing."""

import json
import os
import types

import report
from measure import find_pair, run
from works import ONE_B, WORKS

# An engine with 8-bit activations is held to this by tests/fixtures/reference/smollm2/README.md.
NEAR = 0.4


def need(condition, text):
    if not condition:
        raise SystemExit(f"self-check: {text}")


def run_puna(puna, *args):
    return json.loads(run([puna, *args, "--offline", "--format", "json"], 300, {"PUNA_HOME": os.environ.get("PUNA_HOME", "")}).out)


def sums():
    """Pairs, medians and verdicts of made-up measurements."""
    near, far, mixed = ({"state": s, "values": {}} for s in ("near", "far", "mixed"))
    need(find_pair([near], [far], False) is None, "unequal states made a pair")
    need(find_pair([mixed], [mixed], False) is None, "mixed states made a pair")
    need(find_pair([near, far], [far], False) == (far, far), "the equal states were not found")
    need(find_pair([near], [far], True) is not None, "a state mattered where it must not")
    work = next(w for w in WORKS if w.family == "depth-4096")
    sample = lambda engine, tg: {"engine": engine, "state": "near", "values": {"tg": tg, "tg_of_limit": 0.5}}
    turns = types.SimpleNamespace(work=work, settings={}, missing={"b": "broken"}, retries=1)
    turns.samples = [sample("puna", 40.0), sample("a", 20.0), sample("puna", 44.0), sample("b", 50.0)]
    turns.pairs = {"llama.cpp": [pair(40, 20), pair(44, 20), pair(90, 20)], "a": [pair(40, 25)], "b": []}
    rows = report.rows_of(turns, None)
    need(rows[0]["ratios"]["llama.cpp"]["median"] == 2.2 and "b" not in rows[0]["ratios"], "a median of ratios is wrong")
    need(report.hardest(rows[0]) == "a", "the peer that is hardest to beat was not found")
    need(report.unpaired_lead(rows[0]) == ["b"], "a faster peer without a pair was not seen")
    said = {(v["target"], v["against"]): v["verdict"] for v in report.verdicts(rows)}
    need(said["decode at depth 4096", "llama.cpp"] == "pass", "2.2x did not pass 1.8x")
    need(said["decode at depth 4096", "fastest"] == "not measured", "a faster peer without a pair did not count")
    need(said["prompt 512", "llama.cpp"] == "not measured", "a row was made up")
    need(report.ratio(pair(1, 2, "first"), "first") == 2, "less is better, for times")
    need(report.judge(True, [1], [1, 2])["verdict"] == "incomplete", "half the rows passed for all")
    need(len({w.key for w in WORKS}) == len(WORKS) and ONE_B, "two works have one name")


def pair(ours, theirs, measure="tg"):
    return {"puna": {measure: ours}, "peer": {measure: theirs}, "state": "near"}


def tables(puna, root):
    """The report of `puna bench` has what the harness reads, for one thread and two, deep and together."""
    model = root / "tests/fixtures/reference/gguf/q256.Q8_0.gguf"
    for more in (["--threads", "1"], ["--threads", "2", "--depth", "40", "--parallel", "3"]):
        answer = run_puna(puna, "bench", model, "-p", "16", "-n", "4", "--repeat", "1", "--limits", *more)
        rows = {r["test"]: r for r in answer["results"]}
        need(set(rows) == {"pp16", "tg4"}, f"bench measured {sorted(rows)}")
        need(all(r["tokens_per_second"]["median"] > 0 and r["fraction_of_limit"] > 0 for r in rows.values()), "bench measured nothing")
    answer = run_puna(puna, "bench", "-p", "0", "-n", "0", "--limits")
    need(answer["results"] == [] and answer["limits"]["read_gbps"] > 0, "the probe says nothing")


def outputs(puna, root, model):
    """On fixed prompts of the real model: the likeliest token is that of the reference, or nearly as likely; with two threads
    and a prompt in pieces every number is the same."""
    with open(root / "tests/fixtures/reference/smollm2/generation.json") as file:
        prompts = json.load(file)["prompts"]
    same = 0
    for p in prompts:
        ids = ",".join(map(str, p["ids"]))
        ask = lambda *more: run_puna(puna, "logits", model, "--ids", ids, *more)["top"]
        got = ask("--threads", "1")
        need(got == ask("--threads", "2", "--chunk", "3"), f"threads or chunks change the numbers after {p['text']!r}")
        (best, logprob), right = got[-1][0], dict(p["transformers"]["steps"][0]["top"])
        first = p["transformers"]["ids"][0]
        same += best == first
        need(best in right and right[first] - right[best] < NEAR, f"after {p['text']!r} came token {best}, not {first}")
        need(abs(logprob - right[best]) < NEAR, f"token {best} after {p['text']!r} has {logprob}, not {right[best]}")
    return same, len(prompts)


def check(puna, root):
    sums()
    tables(puna, root)
    model = os.environ.get("PUNA_TEST_MODEL")
    if not model:
        need(not os.environ.get("CI"), "PUNA_TEST_MODEL names no model")
        print("self-check: the real model was NOT CHECKED: PUNA_TEST_MODEL names none")
        return 0
    same, of = outputs(puna, root, model)
    print(f"self-check: good; the reference's own token first on {same} of {of} prompts, the others nearly as likely")
    return 0
