"""The official tokenizers, each as a function from a list of texts to their ids, without special tokens."""

import base64
import struct

import gguf
import sentencepiece
import tiktoken
import tokenizers

CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LLAMA4 = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTION}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + TAIL
)


def hugging_face(path):
    official = tokenizers.Tokenizer.from_file(str(path))
    return lambda batch: [e.ids for e in official.encode_batch_fast(batch, add_special_tokens=False)]


def rank_file(path, pattern):
    """Meta's own tokenizers without their special tokens."""
    rows = [line.split() for line in path.read_bytes().splitlines() if line]
    ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
    official = tiktoken.Encoding(path.stem, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda batch: official.encode_ordinary_batch(batch, num_threads=1)


def field(number, content):
    """A length-delimited field of a Protocol Buffers message."""
    size, n = b"", len(content)
    while n >= 128:
        size, n = size + bytes([n & 127 | 128]), n >> 7
    return bytes([number << 3 | 2]) + size + bytes([n]) + content


def pieces_of(path):
    """Llama 2's own tokenizer.model is in no package: sentencepiece gets its pieces and settings from the GGUF."""
    fields = gguf.GGUFReader(path).fields
    column = lambda name: [fields[f"tokenizer.ggml.{name}"].parts[i] for i in fields[f"tokenizer.ggml.{name}"].data]
    model = b""
    for token, score, kind in zip(column("tokens"), column("scores"), column("token_type"), strict=True):
        score = struct.pack("<f", float(score[0]))
        model += field(1, field(1, bytes(token)) + b"\x15" + score + bytes([3 << 3, int(kind[0])]))
    # BPE with byte fallback; a space in front, none collapsed.
    model += field(2, bytes([3 << 3, 2, 0x98, 0x02, 1])) + field(3, field(1, b"identity") + bytes([3 << 3, 1, 4 << 3, 0]))
    official = sentencepiece.SentencePieceProcessor(model_proto=model)
    return lambda batch: [official.encode(t) for t in batch]
