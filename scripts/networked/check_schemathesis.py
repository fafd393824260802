"""Requests made up from /openapi.json by Schemathesis: none gets an answer of 500 or more, but 503.

    check_schemathesis.py PUNA MODEL
"""

import collections
import itertools
import os
import tempfile

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", tempfile.mkdtemp())  # else it writes where it is called from
import schemathesis  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies

from common import MODEL, PUNA, SEED
from serve import start

EXAMPLES = int(os.environ.get("PUNA_SCHEMA_EXAMPLES") or "150")
# Fields without which a body is refused before anything else is looked at.
NEEDED = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
    "/infill": {"input_prefix": "Hi", "max_tokens": 2},
    "/v1/embeddings": {"input": "Hi"},
    "/v1/rerank": {"query": "Hi", "documents": ["a", "b"]},
    "/rerank": {"query": "Hi", "documents": ["a", "b"]},
    "/tokenize": {"content": "Hi"},
    "/detokenize": {"tokens": [1, 2]},
    "/apply-template": {"messages": [{"role": "user", "content": "Hi"}]},
}


def try_all(operation, key, seen):
    """So many requests to one route, good ones and bad ones."""

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    @given(case=operation.as_strategy(), sense=strategies.booleans())
    def one(case, sense):
        if sense and isinstance(case.body, dict):
            # All that is needed, and one field at most that may be wrong.
            case.body = dict(itertools.islice(case.body.items(), 1)) | NEEDED.get(operation.path, {})
        if "max_tokens" in NEEDED.get(operation.path, {}) and isinstance(case.body, dict):
            # What fits the document would be answered to the end of the context.
            case.body["max_tokens"] = 2
            case.body.pop("max_completion_tokens", None)
        answer = case.call(headers={"Authorization": f"Bearer {key}"}, timeout=120)
        seen[answer.status_code] += 1
        assert answer.status_code < 500 or answer.status_code == 503, f"{answer.status_code} {answer.text[:300]}\n{case.as_curl_command()}"
        if answer.status_code >= 400:
            error = answer.json()["error"]
            assert {"message", "type", "param", "code"} <= error.keys(), answer.text

    one()


def main():
    with tempfile.TemporaryDirectory() as home:
        key = "key-of-the-schema-check"
        with open(f"{home}/keys", "w") as file:
            file.write(f"{key} checker inference,admin,metrics\n")
        server, address = start(PUNA, MODEL, home, "--ctx", "256", "--api-key-file", f"{home}/keys")
        try:
            schema = schemathesis.openapi.from_url(address + "/openapi.json", headers={"Authorization": f"Bearer {key}"})
            for result in schema.get_all_operations():
                operation, seen = result.ok(), collections.Counter()
                try_all(operation, key, seen)
                print(operation.method.upper(), operation.path, dict(sorted(seen.items())))
        finally:
            server.terminate()
            assert server.wait(60) == 0


main()
