"""A small HTTP/1.1 client that notes when things come: asyncio, a connection a request."""

import asyncio
import json
import time
from dataclasses import dataclass, field

LONGEST = 1 << 22  # the longest line or chunk, in bytes
PATIENCE = 600  # seconds for a whole answer


@dataclass
class Answer:
    status: int = 0
    headers: dict = field(default_factory=dict)
    body: bytes = b""

    def json(self):
        return json.loads(self.body)


@dataclass
class Stream:
    """A streamed answer: when it was asked for, when each piece of text came, what was used."""

    sent: float = 0.0
    times: list = field(default_factory=list)
    status: int = 0
    usage: dict | None = None
    done: bool = False  # it ended as it should
    left: bool = False  # we walked away
    error: str = ""

    def tokens(self):
        """As the server counted; else pieces of text, of which a token gives one at most."""
        return self.usage["completion_tokens"] if self.usage else len(self.times)


class Closed(Exception):
    """The other side did not speak HTTP to the end."""


async def begin(address, method, path, body, key):
    """Sends a request; reader, writer, status and headers of its answer."""
    reader, writer = await asyncio.open_connection(*address, limit=LONGEST)
    data = b"" if body is None else json.dumps(body).encode()
    head = [f"{method} {path} HTTP/1.1", f"Host: {address[0]}:{address[1]}", "Connection: close"]
    if body is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    if key:
        head.append(f"Authorization: Bearer {key}")
    writer.write("\r\n".join([*head, "", ""]).encode() + data)
    await writer.drain()
    words = (await reader.readline()).split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        writer.close()
        raise Closed("no status line")
    headers = {}
    while (line := (await reader.readline()).strip()) and len(headers) < 100:
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return reader, writer, int(words[1]), headers


async def pieces(reader, headers):
    """The body as it comes."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
            if size > LONGEST:
                raise Closed("a chunk of an absurd size")
            yield (await reader.readexactly(size + 2))[:-2]
    elif "content-length" in headers:
        yield await reader.readexactly(min(int(headers["content-length"]), 64 * LONGEST))
    else:
        while some := await reader.read(1 << 16):
            yield some


async def ask(address, method, path, body=None, key=""):
    """A whole answer."""
    async with asyncio.timeout(PATIENCE):
        reader, writer, status, headers = await begin(address, method, path, body, key)
        try:
            return Answer(status, headers, b"".join([piece async for piece in pieces(reader, headers)]))
        finally:
            writer.close()


def take(stream, data):
    """One event; true if it was the last."""
    if data == b"[DONE]":
        stream.done = True
        return True
    event = json.loads(data)
    if error := event.get("error"):
        stream.error = str(error)
        return True
    stream.usage = event.get("usage") or stream.usage
    for choice in event.get("choices") or []:
        if choice.get("text") or (choice.get("delta") or {}).get("content"):
            stream.times.append(time.perf_counter())
    return False


async def listen(stream, reader, headers, leave_after):
    rest = b""
    async for piece in pieces(reader, headers):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and take(stream, line[5:].strip()):
                return
        if leave_after and len(stream.times) >= leave_after:
            stream.left = True
            return


async def stream(address, path, body, key="", leave_after=0):
    """A streamed answer, or as much of it as we stay for. What goes wrong stands in `error`."""
    got = Stream(sent=time.perf_counter())
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer, got.status, headers = await begin(address, "POST", path, body, key)
            try:
                if got.status != 200:
                    said = b"".join([piece async for piece in pieces(reader, headers)])
                    got.error = f"{got.status} {said[:300].decode(errors='replace')}"
                else:
                    await listen(got, reader, headers, leave_after)
                    if not (got.done or got.left or got.error):
                        got.error = "the stream broke off"
            finally:
                writer.close()
    except (OSError, ValueError, EOFError, TimeoutError, Closed) as error:
        got.error = got.error or f"{type(error).__name__}: {error}"
    return got
