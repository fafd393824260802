#!/usr/bin/env python3
"""OpenVINO GenAI on one GGUF file: openvino_worker.py MODEL THREADS PROMPT GENERATE DEPTH PARALLEL. One line of JSON.

Keys and values are f16, as Puna's; the rest of its settings are its own. The first call, which is slower, does not count, and
every prompt is different, so that no prefix is found again.
"""

import json
import random
import sys

import numpy as np
import openvino as ov
import openvino_genai as genai

model, (threads, prompt, generate, depth, parallel) = sys.argv[1], map(int, sys.argv[2:])
options = {"INFERENCE_NUM_THREADS": threads, "KV_CACHE_PRECISION": ov.Type.f16}
pipe = genai.LLMPipeline(model, "CPU", **options)
rng = random.Random(1)


def run(read, make, rows=1):
    """Seconds until the first token, and in all."""
    ids = np.array([[rng.randrange(1000, 30_000) for _ in range(read)] for _ in range(rows)], np.int64)
    inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
    done = pipe.generate(inputs, max_new_tokens=make, ignore_eos=True, do_sample=False)
    metrics = done.perf_metrics
    return metrics.get_ttft().mean / 1e3, metrics.get_generate_duration().mean / 1e3


run(min(max(prompt, depth, 16), 512), 2)
speeds = {}
if prompt:
    speeds["pp"] = prompt / run(prompt, 1)[0]
if generate:
    # One token more: the first one comes with the prompt.
    first, whole = run(max(depth, 16), generate + 1, parallel)
    speeds["tg"] = parallel * generate / (whole - first)
print(json.dumps(speeds))
