"""OpenAI's Python client and LangChain against `puna serve`.

    check_openai.py PUNA MODEL
"""

import base64
import struct
import sys
import tempfile
import threading
import time

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from serve import start

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def chat(client, model):
    whole = client.chat.completions.create(model=model, messages=QUESTION, max_completion_tokens=24, seed=1, temperature=0)
    text = whole.choices[0].message.content
    assert text and whole.usage.completion_tokens <= 24 and whole.choices[0].finish_reason in ("stop", "length")
    chunks = list(client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=24, seed=1, temperature=0, stream=True, stream_options={"include_usage": True},
    ))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    several = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=8, n=3, temperature=1, seed=2, logprobs=True, top_logprobs=2,
        logit_bias={"0": -100}, presence_penalty=0.1, frequency_penalty=0.1, user="somebody",
    )
    assert [c.index for c in several.choices] == [0, 1, 2]
    for choice in several.choices:
        for token in choice.logprobs.content:
            assert token.logprob <= 0 and len(token.top_logprobs) == 2 and bytes(token.bytes or b"") is not None
    parts = [{"role": "system", "content": "Be short."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert client.chat.completions.create(model=model, messages=parts, max_tokens=4, stop=["\n"]).choices


def completions(client, model):
    whole = client.completions.create(model=model, prompt="Once upon a time", max_tokens=12, temperature=0, logprobs=2)
    stream = client.completions.create(model=model, prompt="Once upon a time", max_tokens=12, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in stream if c.choices) == whole.choices[0].text
    assert len(whole.choices[0].logprobs.tokens) == 12
    two = client.completions.create(model=model, prompt=["a", "b"], max_tokens=2, n=2)
    assert [c.index for c in two.choices] == [0, 1, 2, 3]


def embeddings(client, model):
    found = client.embeddings.create(model=model, input=["one", "two"])
    vector = found.data[0].embedding
    assert len(found.data) == 2 and abs(sum(x * x for x in vector) - 1) < 1e-4
    raw = client.embeddings.with_raw_response.create(model=model, input="one", encoding_format="base64").http_response.json()
    packed = base64.b64decode(raw["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(vector)}f", packed)) == vector


def errors(client, model):
    def refused(kind, status, call):
        try:
            call()
        except kind as error:
            assert error.status_code == status and error.body["message"], error
            return error
        raise AssertionError(f"not refused with {status}")

    create = client.chat.completions.create
    refused(openai.NotFoundError, 404, lambda: create(model="no-such", messages=QUESTION))
    refused(openai.BadRequestError, 400, lambda: create(model=model, messages=[]))
    wrong = refused(openai.BadRequestError, 400, lambda: create(model=model, messages=QUESTION, extra_body={"heat": 1}))
    assert wrong.param == "heat", wrong
    long = refused(openai.BadRequestError, 400, lambda: create(model=model, messages=[{"role": "user", "content": "a b " * 20000}]))
    assert long.code == "context_length_exceeded", long
    refused(openai.BadRequestError, 400, lambda: create(model=model, messages=QUESTION, tools=[
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]))
    try:
        client.with_options(timeout=0.001, max_retries=0).chat.completions.create(model=model, messages=QUESTION)
        raise AssertionError("no timeout")
    except openai.APITimeoutError:
        pass


def langchain(address, model):
    llm = ChatOpenAI(base_url=address, api_key="none", model=model, max_tokens=12, temperature=0)
    whole = llm.invoke("What is the capital of France?").content
    assert whole == "".join(c.content for c in llm.stream("What is the capital of France?"))
    vectors = OpenAIEmbeddings(base_url=address, api_key="none", model=model, check_embedding_ctx_length=False)
    assert len(vectors.embed_documents(["one", "two"])) == 2


def patience(address, model):
    """While the one place is taken, requests get 503 with Retry-After: clients that try again get their answer."""
    client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
    long = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=3500, stream=True, extra_body={"ignore_eos": True})
    next(iter(long))
    create = {"model": model, "messages": QUESTION, "max_tokens": 4}
    try:
        client.chat.completions.create(**create)
        raise AssertionError("there was room for two")
    except openai.InternalServerError as error:
        assert error.status_code == 503 and error.code == "overloaded" and error.response.headers["retry-after"] == "1", error
    leaving = threading.Timer(2, long.close)
    leaving.start()
    began = time.monotonic()
    assert client.with_options(max_retries=8).chat.completions.create(**create).choices
    assert time.monotonic() - began >= 1.5, "it was let in while the place was taken"
    leaving.join()
    # The same through LangChain, and a time that is too short.
    long = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=3500, stream=True, extra_body={"ignore_eos": True})
    next(iter(long))
    threading.Timer(1, long.close).start()
    llm = {"base_url": address, "api_key": "none", "model": model, "max_tokens": 4}
    assert ChatOpenAI(max_retries=8, **llm).invoke("Hi").content
    try:
        ChatOpenAI(max_retries=0, timeout=0.001, **llm).invoke("Hi")
        raise AssertionError("no timeout")
    except openai.APITimeoutError:
        pass


def served(puna, path, more, checks):
    """Runs the checks against a server with these options."""
    with tempfile.TemporaryDirectory() as home:
        server, address = start(puna, path, home, *more)
        try:
            checks(address + "/v1")
        finally:
            server.terminate()
            assert server.wait(30) == 0


def main():
    puna, path = sys.argv[1:3]

    def all_but_patience(address):
        client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
        model = client.models.list().data[0].id
        assert client.models.retrieve(model).id == model
        for check in (chat, completions, embeddings, errors):
            check(client, model)
            print("ok", check.__name__)
        langchain(address, model)
        print("ok langchain")

    def only_patience(address):
        patience(address, openai.OpenAI(base_url=address, api_key="none").models.list().data[0].id)
        print("ok patience")

    served(puna, path, ["--strict"], all_but_patience)
    served(puna, path, ["--strict", "--ctx", "4096", "--max-requests", "1"], only_patience)


main()
