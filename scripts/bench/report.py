"""From measurements to rows, verdicts, Markdown."""

from measure import geometric_mean, median
from works import BANDWIDTH, CONTEXT, LESS_IS_BETTER, LIMITS, MEMORY_MB, MODELS, TARGETS, UNITS, WORKS

PUNA = "puna"


def ratio(pair, measure):
    """How many times faster Puna was."""
    a, b = pair["puna"][measure], pair["peer"][measure]
    return b / a if measure in LESS_IS_BETTER else a / b


def rows_of(turns, models):
    """The rows of one work: medians, ratios to each peer, fraction of the limit."""
    work, rows = turns.work, []
    for measure in work.measures:
        of = {}
        for s in turns.samples:
            if measure in s["values"]:
                of.setdefault(s["engine"], []).append(s["values"])
        ours = of.get(PUNA, [])
        share = [v[f"{measure}_of_limit"] for v in ours if f"{measure}_of_limit" in v]
        row = {
            "work": work.key,
            "family": work.family,
            "model": work.model.name,
            "kind": work.model.kind,
            "measure": measure,
            "row": work.row(measure),
            "unit": UNITS[measure],
            "engines": {name: spread([v[measure] for v in values]) for name, values in of.items()},
            "settings": {n: " ".join(s) for (n, m), s in turns.settings.items() if m == measure and s},
            "ratios": {},
            "fraction_of_limit": median(share) if share else None,
            "missing": turns.missing,
            "retries": turns.retries,
        }
        for name, pairs in turns.pairs.items():
            if pairs:
                ratios = [ratio(p, measure) for p in pairs]
                states = sorted({p["state"] for p in pairs})
                row["ratios"][name] = spread(ratios) | {"pairs": len(ratios), "states": states}
        if measure == "rss":
            file = (models / f"{work.model.name}.gguf").stat().st_size
            row["limit_mb"] = file / 1e6 + work.model.cache * CONTEXT / 1e6 + MEMORY_MB
        rows.append(row)
    return rows


def spread(values):
    return {"median": median(values), "min": min(values), "max": max(values), "n": len(values)}


def hardest(row):
    """The peer that Puna leads by least in a row."""
    return min(row["ratios"], key=lambda name: row["ratios"][name]["median"], default=None)


def verdicts(rows):
    """Each target with what was reached: pass, FAIL, or how many of its rows were measured."""
    out = [verdict(target, rows) for target in TARGETS]
    for text, measure, models, share in LIMITS:
        names = [m.name for m in models]
        some = [r for r in rows if r["family"] == "main" and r["measure"] == measure and r["model"] in names]
        some = [r for r in some if r["fraction_of_limit"] is not None]
        least = min(some, key=lambda r: r["fraction_of_limit"], default=None)
        reached = f"{least['fraction_of_limit']:.0%} at least ({least['model']})" if least else ""
        good = least is not None and least["fraction_of_limit"] >= share
        out.append({"target": text, "against": "the machine", "needs": f"{share:.0%} each", "reached": reached} | judge(good, some, names))
    some = [r for r in rows if r["measure"] == "rss" and PUNA in r["engines"]]
    over = {r["model"]: r["engines"][PUNA]["max"] - r["limit_mb"] for r in some}
    worst = max(over, key=over.get, default=None)
    needs = f"file + cache + {MEMORY_MB} MB"
    reached = f"{over[worst]:+.0f} MB at most ({worst})" if worst else ""
    good = all(x <= 0 for x in over.values())
    out.append({"target": "peak memory at load", "against": "the file", "needs": needs, "reached": reached} | judge(good, some, MODELS))
    return out


def unpaired_lead(row):
    """The peers that look harder to beat than `hardest` but have no pair: without them "fastest" would flatter."""
    best = hardest(row)
    medians = {n: s["median"] for n, s in row["engines"].items() if n != PUNA}
    if best is None or row["measure"] in LESS_IS_BETTER:
        return []
    return [n for n, x in medians.items() if n not in row["ratios"] and x > medians[best]]


def judge(good, measured, wanted):
    """A target holds only if all its rows were measured; it fails as soon as one does not reach it."""
    rows = f"{len(measured)} of {len(wanted)}"
    word = "not measured" if not measured else "FAIL" if not good else "pass" if len(measured) == len(wanted) else "incomplete"
    return {"rows": rows, "verdict": word}


def verdict(target, rows):
    """The geometric mean of Puna's leads over a peer, and the least of them."""
    wanted = [w for w in WORKS if w.family == target.family and target.model in ("", w.model.name)]
    found = [r for r in rows if r["family"] == target.family and r["measure"] == target.measure]
    found = [r for r in found if target.model in ("", r["model"])]
    peer = {r["model"]: hardest(r) if target.against == "fastest" else target.against for r in found}
    some = [r for r in found if peer[r["model"]] in r["ratios"]]
    if target.against == "fastest":
        some = [r for r in some if not unpaired_lead(r)]
    out = {"target": target.text, "against": target.against, "reached": ""}
    out["needs"] = f"{target.mean}x" + (f", each {target.each}x" if target.each else "")
    if not some:
        return out | judge(False, some, wanted)
    lead = {r["model"]: r["ratios"][peer[r["model"]]]["median"] for r in some}
    at_limit = {r["model"] for r in some if r["measure"] == "tg" and (r["fraction_of_limit"] or 0) >= BANDWIDTH}
    mean, least = geometric_mean(lead.values()), min(lead, key=lead.get)
    out["reached"] = f"{mean:.2f}x" + (f", least {lead[least]:.2f}x ({least})" if len(lead) > 1 else "")
    if target.against == "fastest":
        out["reached"] += f", {peer[least]}"
    if at_limit:
        out["reached"] += f"; {len(at_limit)} at {BANDWIDTH:.0%} of read bandwidth"
    good = mean >= target.mean or len(at_limit) == len(some)
    good = good and all(x >= target.each or model in at_limit for model, x in lead.items())
    return out | judge(good, some, wanted)


def number(x):
    return f"{x:.3f}" if x < 1 else f"{x:.1f}" if x < 1000 else f"{x:,.0f}"


def cell(s):
    return f"{number(s['median'])} [{number(s['min'])}-{number(s['max'])}]"


def table(heads, lines):
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * len(heads)
    for line in lines:
        yield "| " + " | ".join(str(x).replace("|", "/") for x in line) + " |"


def markdown(report):
    """The report as text."""
    m, engines = report["machine"], report["engines"]
    yield f"{m['cpu']}, {m['cores']} cores, Linux {m['kernel']}, {m['memory_bytes'] / 1e9:.0f} GB; Puna {report['commit']}; {report['date']}"
    yield ""
    yield f"{report['rounds']} rounds; load average at the start {report['load_at_start'][0]:.2f}; memory states of the probes: " + (
        ", ".join(f"{n} {state}" for state, n in report["states"].items()) or "none"
    )
    for warning in report["warnings"]:
        yield f"\n**{warning}**"
    yield "\n## Peers\n"
    lines = [(n, e["version"], e["note"]) for n, e in engines.items()] + [(n, "MISSING", why) for n, why in report["missing"].items()]
    yield from table(("engine", "version", "note"), lines)
    for measure, title in (("pp", "Prompt"), ("tg", "Decode"), ("first", "Time to the first token"), ("rss", "Peak memory")):
        rows = [r for r in report["rows"] if r["measure"] == measure]
        if rows:
            yield f"\n## {title}, {UNITS[measure]}: median [min-max], and how many times better Puna is (median of paired ratios)\n"
            yield from speeds(rows, measure)
    yield "\n## Targets\n"
    lines = [(v["target"], v["against"], v["needs"], v["reached"], v["rows"], v["verdict"]) for v in report["verdicts"]]
    yield from table(("work", "against", "needs", "reached", "rows", "verdict"), lines)
    if report["agreement"]:
        same = sum(r["same"] for r in report["agreement"])
        yield f"\nSame first token as llama.cpp on {same} of {len(report['agreement'])} prompts of the real model."
        for r in report["agreement"]:
            if not r["same"]:
                yield f"- {r['prompt']!r}: puna {r['puna']!r}, llama.cpp {r['llama.cpp']!r}"
    settings = [(r["work"], r["measure"], n, s) for r in report["rows"] for n, s in r["settings"].items()]
    if settings:
        yield "\n## Fastest settings\n"
        yield from table(("work", "measure", "engine", "flags"), settings)
    retries = sum({r["work"]: r["retries"] for r in report["rows"]}.values())
    yield f"\nMeasured again because the memory states of a pair were unequal: {retries}."
    failures = [(r["work"], name, why) for r in report["rows"] for name, why in r["missing"].items()]
    if failures:
        yield "\n## Not run\n"
        yield from table(("work", "engine", "why"), list(dict.fromkeys(failures)))


def speeds(rows, measure):
    names = [n for n in dict.fromkeys(n for r in rows for n in [*r["engines"], *r["ratios"]]) if n != PUNA]
    heads = ["model", "test", "puna", "file + cache + 150" if measure == "rss" else "of limit"]
    for name in names:
        heads += [name, f"puna / {name}"]
    lines = []
    for r in rows:
        share = r["fraction_of_limit"]
        limit = number(r["limit_mb"]) if measure == "rss" else "" if share is None else f"{share:.0%}"
        line = [r["model"], r["row"], cell(r["engines"][PUNA]) if PUNA in r["engines"] else "-", limit]
        for name in names:
            pairs = r["ratios"].get(name)
            line.append(cell(r["engines"][name]) if name in r["engines"] else "-")
            line.append(f"{pairs['median']:.2f}x (n={pairs['pairs']}, {'+'.join(pairs['states'])})" if pairs else "-")
        lines.append(line)
    yield from table(heads, lines)
