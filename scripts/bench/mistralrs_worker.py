#!/usr/bin/env python3
"""mistral.rs on one GGUF file: mistralrs_worker.py MODEL PROMPT GENERATE DEPTH. One line of JSON, with the tokens it counted.

It takes prompts as text alone, so that their lengths are near, not equal, and reports its own speeds. No prefix cache.
Threads come from RAYON_NUM_THREADS.
"""

import json
import os
import random
import sys

from mistralrs import CompletionRequest, Runner, Which

model, (prompt, generate, depth) = sys.argv[1], map(int, sys.argv[2:])
folder, file = os.path.split(os.path.abspath(model))
runner = Runner(which=Which.GGUF(quantized_model_id=folder, quantized_filename=file), prefix_cache_n=0, max_seqs=1)
rng = random.Random(1)
WORDS = "time year people way day man thing woman life child world school state family student group country hand part place".split()


def run(read, make):
    """Its usage after a prompt of about `read` tokens, each word being one."""
    text = " ".join(rng.choice(WORDS) for _ in range(read - 1))
    request = CompletionRequest(prompt=text, model="default", max_tokens=make, temperature=0.0, ignore_eos=True)
    return runner.send_completion_request(request).usage


run(min(max(prompt, depth, 16), 512), 2)
speeds = {}
if prompt:
    usage = run(prompt, 1)
    speeds |= {"pp": usage.avg_prompt_tok_per_sec, "pp_tokens": usage.prompt_tokens}
if generate:
    usage = run(max(depth, 16), generate + 1)
    speeds |= {"tg": usage.avg_compl_tok_per_sec, "tg_tokens": usage.completion_tokens}
print(json.dumps(speeds))
