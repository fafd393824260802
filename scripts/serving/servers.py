"""Servers that are measured: started on this machine's own address, looked at, ended."""

import asyncio
import os
import platform
import re
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from . import client

ROOT = Path(__file__).resolve().parents[2]
START = 300  # seconds that a server may take to load its model


class Broken(Exception):
    """A server did not start, or ended too early."""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def puna_binary(typed):
    """The binary that is measured."""
    path = Path(typed) if typed else ROOT / "target/release/puna"
    if not path.is_file():
        raise Broken(f"{path} is not there: `cargo build --release` makes it, --puna names another")
    return str(path.resolve())


class Server:
    """A running server. `address` is (host, port), `model` what it calls its model."""

    def __init__(self, name, process, address, folder):
        self.name, self.process, self.address, self.folder = name, process, address, folder
        self.model = ""

    def stop(self):
        """The exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self.folder.cleanup()

    def resident(self):
        """Bytes of memory in use."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) * 1024

    def busy(self, prefix):
        """Seconds that the threads of this name (its beginning) have computed."""
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            try:
                if (task / "comm").read_text().startswith(prefix):
                    total += int((task / "schedstat").read_text().split()[0])
            except OSError:
                continue  # it has ended meanwhile
        return total / 1e9

    async def get(self, path, key=""):
        return await client.ask(self.address, "GET", path, key=key)


async def answering(server, key=""):
    """Waits until the server names its model."""
    end = time.monotonic() + START
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise Broken(f"{server.name} ended with code {server.process.returncode}:\n{log_of(server)}")
        try:
            answer = await asyncio.wait_for(server.get("/v1/models", key), 60)
            if answer.status == 200:
                server.model = answer.json()["data"][0]["id"]
                return server
        except (OSError, EOFError, ValueError, TimeoutError, client.Closed):
            pass
        await asyncio.sleep(0.25)
    raise Broken(f"{server.name} did not answer within {START} s:\n{log_of(server)}")


def log_of(server):
    path = Path(server.folder.name) / "log"
    return path.read_text(errors="replace")[-2000:] if path.is_file() else ""


async def start_puna(puna, args, prepare=None):
    """`puna serve` at a port of its own, with a database of its own; `prepare` gets its path, and may return a key."""
    folder = tempfile.TemporaryDirectory()
    database = f"{folder.name}/server.sqlite"
    key = (prepare(database) if prepare else None) or ""
    state = ["--state", database, "--no-access-log"]
    process = subprocess.Popen(
        [puna, "serve", "--host", "127.0.0.1", "--port", "0", *state, *args],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"listening at http://([\d.]+):(\d+)", line):
            break
    else:
        raise Broken(f"puna serve did not start:\n{''.join(said)}")
    # The log goes on; nobody may be held up by a full pipe.
    threading.Thread(target=lambda: [None for _ in process.stderr], daemon=True).start()
    return await answering(Server("Puna", process, (found[1], int(found[2])), folder), key)


async def start_peer(name, command, values):
    """Another server, by its command with {model}, {port}, ... filled in."""
    folder, port = tempfile.TemporaryDirectory(), free_port()
    words = [word.format(port=port, **values) for word in shlex.split(command)]
    with open(Path(folder.name) / "log", "wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    server = Server(name, process, ("127.0.0.1", port), folder)
    try:
        return await answering(server)
    except Broken:
        server.stop()
        raise


def machine():
    """What a record of measurements begins with."""
    cpu = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        cpu = found[1] if found else cpu
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "load": round(os.getloadavg()[0], 2),
    }
