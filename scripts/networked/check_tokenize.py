"""Ids and decoded text against tokenizers, sentencepiece and tiktoken."""

import base64
import os
import random
from pathlib import Path

import sentencepiece
import tiktoken
import tokenizers
from common import MODEL, REFERENCE, SEED, jsonl, same, texts
from official import LLAMA3


def compare(what, model, encode, decode, vocab, count=400):
    samples = texts(count)
    ours = [row["ids"] for row in jsonl("tokenize", model, [{"text": t} for t in samples], "--no-bos")]
    same(f"{what} encode", samples, ours, [encode(t) for t in samples])
    rng = random.Random(SEED)
    lists = ours[:100] + [[rng.randrange(vocab) for _ in range(rng.randint(1, 12))] for _ in range(100)]
    if decode:
        got = [row["text"] for row in jsonl("detokenize", model, [{"ids": ids} for ids in lists])]
        same(f"{what} decode", lists, got, [decode(ids) for ids in lists])


def hugging_face(what, path, model):
    official = tokenizers.Tokenizer.from_file(str(path))
    # Special tokens' names do not occur in the random texts.
    compare(
        what,
        model,
        lambda t: official.encode(t, add_special_tokens=False).ids,
        lambda ids: official.decode(ids, skip_special_tokens=False),
        official.get_vocab_size(),
    )


hugging_face("tokenizers, tiny", REFERENCE / "models/llama3/tokenizer.json", REFERENCE / "models/llama3/tokenizer.json")
hugging_face("tokenizers, tiny, through GGUF", REFERENCE / "models/llama3/tokenizer.json", REFERENCE / "gguf/llama3.f32.gguf")
hugging_face("tokenizers, SmolLM2", REFERENCE / "smollm2/tokenizer.json", MODEL)

spm = REFERENCE / "models/llama2_gqa/tokenizer.model"
official = sentencepiece.SentencePieceProcessor(model_file=str(spm))
compare("sentencepiece, tiny", spm, official.encode, None, official.vocab_size())
compare("sentencepiece, tiny, through GGUF", REFERENCE / "gguf/llama2_gqa.f32.gguf", official.encode, None, official.vocab_size())

folder = os.environ.get("PUNA_LLAMA_TOKENIZERS")
if folder:
    path = Path(folder) / "llama3.model"
    rows = [line.split() for line in path.read_bytes().splitlines() if line]
    ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
    llama3 = tiktoken.Encoding("llama3", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})
    compare("tiktoken, Llama 3", path, llama3.encode_ordinary, lambda ids: llama3.decode(ids, errors="replace"), len(ranks))
    hugging_face("tokenizers, Llama 2", Path(folder) / "llama2.json", Path(folder) / "llama2.json")
else:
    print("Llama tokenizers: not compared, PUNA_LLAMA_TOKENIZERS is not set")
