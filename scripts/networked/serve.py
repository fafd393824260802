"""Starting `puna serve` for a check."""

import os
import re
import subprocess
import threading


def start(puna, model, home, *more):
    """A server on a free port, and its address."""
    server = subprocess.Popen(
        [puna, "serve", "-m", model, "--port", "0", *more],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PUNA_HOME": home, "PUNA_OFFLINE": "1"},
    )
    for line in server.stderr:
        if found := re.search(r"listening at (\S+)", line):
            # The log goes on; the server must not wait for a full pipe.
            threading.Thread(target=lambda: [None for _ in server.stderr], daemon=True).start()
            return server, found[1]
    raise SystemExit("the server did not start")
