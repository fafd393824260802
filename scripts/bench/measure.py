"""Measuring in turns: probes, memory states, pairs."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

from works import LESS_IS_BETTER


class Missing(Exception):
    """A peer cannot be had, or cannot do a work: says why."""


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Run:
    """A finished program: output, seconds, peak memory in MB (10^6 bytes)."""

    def __init__(self, out, err, seconds, rss_mb):
        self.out, self.err, self.seconds, self.rss_mb = out, err, seconds, rss_mb


def available_bytes():
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))


def run(command, timeout, env=None, fifo=False, cwd=None):
    """Runs a program alone, kept from taking the memory that others need. Raises Missing with its last words."""

    def prepare():
        limit = max(available_bytes() - (1 << 30), 1 << 30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        if fifo:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PUNA_", "LLAMA_", "GGML_", "OMP_"))}
    began = time.monotonic()
    child = subprocess.Popen(
        [str(c) for c in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean | (env or {}),
        preexec_fn=prepare,
        cwd=cwd,
    )
    try:
        out, err = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise Missing(f"took more than {timeout} s") from None
    except BaseException:
        child.kill()
        child.communicate()
        raise
    seconds = time.monotonic() - began
    out, err = out.decode(errors="replace"), err.decode(errors="replace")
    if child.returncode != 0:
        words = [line.strip() for line in (out + "\n" + err).splitlines() if line.strip()]
        telling = [w for w in words if any(s in w.lower() for s in ("error", "panick", "fail", "exception", "not supported"))]
        last = dict.fromkeys(w[:200] for w in [*telling[-1:], *words[-1:]]) or ["no output"]
        raise Missing(f"exit {child.returncode}: {'; '.join(last)}")
    return Run(out, err, seconds, 0.0)


def run_for_memory(command, timeout, fifo=False, cwd=None):
    """As `run`, with the peak memory of the program: a small Python is its parent and reads it from the system."""
    watch = (
        "import resource,subprocess,sys;"
        "code=subprocess.call(sys.argv[1:]);"
        "print('\\nrss_kib',resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,file=sys.stderr);"
        "sys.exit(code)"
    )
    done = run([sys.executable, "-c", watch, *command], timeout, None, fifo, cwd)
    done.rss_mb = int(done.err.rsplit("rss_kib", 1)[1].split()[0]) * 1024 / 1e6
    return done


class Probe:
    """This machine now: what it reads a second, and how far its cores are apart."""

    def __init__(self, puna, threads, fifo, boundary_ns):
        self.command = [puna, "bench", "-p", "0", "-n", "0", "--limits", "--threads", threads, "--format", "json"]
        self.fifo, self.boundary_ns = fifo, boundary_ns

    def take(self):
        answer = json.loads(run(self.command, 60, fifo=self.fifo).out)
        limits = answer["limits"]
        return {"read_gbps": limits["read_gbps"], "ping_pong_ns": limits["ping_pong_ns"]}

    def state(self, probe):
        """near (the cores share a cache: slow memory, cheap barriers), far (fast memory, dear barriers), or unknown."""
        ns = probe["ping_pong_ns"]
        return "unknown" if ns is None else "near" if ns < self.boundary_ns else "far"

    def state_of(self, before, after):
        a, b = self.state(before), self.state(after)
        return a if a == b else "mixed"


def equal_states(a, b):
    return a["state"] == b["state"] in ("near", "far")


def ask(engine, work, setting, measures):
    """What an engine answers; an answer that cannot be read is a missing one."""
    try:
        values = engine.measure(work, setting, measures)
    except (ValueError, KeyError, IndexError) as reason:
        raise Missing(f"its output cannot be read: {reason!r}"[:200]) from None
    if not all(values.get(m, 0) > 0 for m in measures):
        raise Missing("its output holds no result")
    return values


def find_pair(ours, theirs, any_state):
    """The latest two measurements, one of each, that may be compared."""
    for mine in reversed(ours):
        for other in reversed(theirs):
            if any_state or equal_states(mine, other):
                return mine, other
    return None


class Turns:
    """One work by Puna and its peers, in turns."""

    def __init__(self, work, puna, peers, probe, options):
        self.work, self.puna, self.peers, self.probe, self.options = work, puna, list(peers), probe, options
        # With one thread there is no second core to be near or far; nor is there on a machine of one core.
        self.any_state = work.threads == 1 or os.cpu_count() == 1 or work.family in ("first-token", "memory")
        self.samples, self.pairs, self.missing, self.retries = [], {p.name: [] for p in peers}, {}, 0
        self.settings, self.last = {}, None

    def sample(self, engine, round_number):
        """One measurement between two probes. A peer that fails leaves the work."""
        before = self.last or self.probe.take()
        values = {}
        by_setting = {}
        for measure in self.work.measures:
            by_setting.setdefault(self.settings.get((engine.name, measure), ()), []).append(measure)
        for setting, measures in by_setting.items():
            values |= ask(engine, self.work, setting, tuple(measures))
        self.last = self.probe.take()
        done = {
            "engine": engine.name,
            "round": round_number,
            "values": values,
            "before": before,
            "after": self.last,
            "state": self.probe.state_of(before, self.last),
        }
        self.samples.append(done)
        shown = ", ".join(f"{k} {v:.4g}" for k, v in values.items() if k in self.work.measures)
        say(f"  {round_number} {engine.name:<16} {shown}  ({done['state']}, {before['read_gbps']:.0f}/{self.last['read_gbps']:.0f} GB/s)")
        return done

    def attempt(self, engine, round_number):
        try:
            return self.sample(engine, round_number)
        except Missing as reason:
            self.last = None
            say(f"  {round_number} {engine.name}: MISSING: {reason}")
            self.missing[engine.name] = str(reason)
            self.peers = [p for p in self.peers if p.name != engine.name]
            return None

    def calibrate(self):
        """The fastest setting of each peer for each measure, by one run of each."""
        for peer in list(self.peers):
            settings = peer.settings(self.work)
            if len(settings) < 2:
                for measure in self.work.measures:
                    self.settings[peer.name, measure] = settings[0] if settings else ()
                continue
            tried, reasons = [], []
            for setting in settings:
                try:
                    tried.append((setting, ask(peer, self.work, setting, self.work.measures)))
                except Missing as reason:
                    reasons.append(f"{' '.join(setting)}: {reason}")
            if not tried:
                self.missing[peer.name] = "; ".join(reasons)
                self.peers.remove(peer)
                say(f"  {peer.name}: MISSING: {self.missing[peer.name]}")
                continue
            for measure in self.work.measures:
                sign = -1 if measure in LESS_IS_BETTER else 1
                self.settings[peer.name, measure] = max(tried, key=lambda t: sign * t[1][measure])[0]
            say(f"  {peer.name}: fastest with " + "; ".join(f"{m}: {' '.join(self.settings[peer.name, m])}" for m in self.work.measures))

    def go(self):
        say(f"{self.work.key}: {', '.join(map(self.work.row, self.work.measures))}")
        self.calibrate()
        self.last = None
        for number in range(1, self.options.rounds + 1):
            order = [self.puna, *self.peers]
            taken = {p.name: [] for p in order}
            for engine in order if number % 2 else reversed(order):
                done = self.attempt(engine, number)
                if done:
                    taken[engine.name].append(done)
                elif engine is self.puna:
                    return
            for peer in list(self.peers):
                self.pair(peer, taken, number)

    def pair(self, peer, taken, number):
        """A pair in equal states, measured again a bounded number of times: first what has no clear state, then in turns."""
        ours, theirs = taken[self.puna.name], taken[peer.name]
        for retry in range(self.options.retries + 1):
            found = find_pair(ours, theirs, self.any_state)
            if found:
                state = "any state" if self.any_state else found[0]["state"]
                self.pairs[peer.name].append({"puna": found[0]["values"], "peer": found[1]["values"], "state": state})
                return
            if retry == self.options.retries:
                say(f"  {number} {peer.name}: no pair in equal memory states after {retry} retries")
                return
            self.retries += 1
            clear = lambda samples: any(s["state"] in ("near", "far") for s in samples)
            engine = self.puna if not clear(ours) or (clear(theirs) and retry % 2) else peer
            done = self.attempt(engine, number)
            if not done:
                return
            taken[engine.name].append(done)


def machine():
    cpu = "unknown"
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) * 1024
    return {"cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release(), "arch": platform.machine(), "memory_bytes": memory}


def median(values):
    return statistics.median(values)


def geometric_mean(values):
    return statistics.geometric_mean(values)
