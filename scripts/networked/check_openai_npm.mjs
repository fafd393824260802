// OpenAI's client for JavaScript against `puna serve`.
//
//     check_openai_npm.mjs PUNA MODEL      (PUNA_NODE: the folder with node_modules)

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";

const OpenAI = createRequire(resolve(process.env.PUNA_NODE, "package.json"))("openai");
const [puna, path] = process.argv.slice(2);
const messages = [{ role: "user", content: "What is the capital of France?" }];

async function start(home) {
  const server = spawn(puna, ["serve", "-m", path, "--port", "0", "--strict", "--ctx", "1024"], {
    stdio: ["ignore", "ignore", "pipe"],
    env: { ...process.env, PUNA_HOME: home, PUNA_OFFLINE: "1" },
  });
  const lines = createInterface({ input: server.stderr });
  const address = await new Promise((found, failed) => {
    lines.on("line", (line) => {
      const at = /listening at (\S+)/.exec(line);
      if (at) found(`${at[1]}/v1`);
    });
    server.once("exit", (code) => failed(new Error(`the server ended with code ${code}`)));
  });
  return { server, address };
}

async function chat(client, model) {
  const asked = { model, messages, max_completion_tokens: 24, temperature: 0, seed: 1 };
  const whole = await client.chat.completions.create(asked);
  const text = whole.choices[0].message.content;
  assert(text && whole.usage.completion_tokens <= 24);
  const stream = await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } });
  let joined = "";
  let usage = null;
  for await (const chunk of stream) {
    joined += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(joined, text);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  // The client's own collector of chunks takes them for a whole answer.
  const final = await client.chat.completions.stream(asked).finalChatCompletion();
  assert.equal(final.choices[0].message.content, text);
  const several = await client.chat.completions.create({
    model, messages, max_tokens: 6, n: 3, temperature: 1, seed: 2, logprobs: true, top_logprobs: 2,
  });
  assert.deepEqual(several.choices.map((c) => c.index), [0, 1, 2]);
  assert(several.choices.every((c) => c.logprobs.content.every((t) => t.logprob <= 0 && t.top_logprobs.length === 2)));
}

async function leaving(client, model) {
  const stream = await client.chat.completions.create({ model, messages, max_tokens: 500, stream: true, logit_bias: { 2: -100 } });
  let seen = 0;
  for await (const _ of stream) {
    seen += 1;
    if (seen === 3) break;
  }
  assert.equal(seen, 3);
  assert((await client.chat.completions.create({ model, messages, max_tokens: 2 })).choices);
}

async function texts(client, model) {
  const asked = { model, prompt: "Once upon a time", max_tokens: 12, temperature: 0 };
  const whole = await client.completions.create(asked);
  let joined = "";
  for await (const chunk of await client.completions.create({ ...asked, stream: true })) joined += chunk.choices[0]?.text ?? "";
  assert.equal(joined, whole.choices[0].text);
}

async function embeddings(client, model) {
  // The client asks for base64 and unpacks it.
  const found = await client.embeddings.create({ model, input: ["one", "two"] });
  assert.equal(found.data.length, 2);
  const plain = await client.embeddings.create({ model, input: "one", encoding_format: "float" });
  assert.equal(plain.data[0].embedding.length, found.data[0].embedding.length);
  const length = plain.data[0].embedding.reduce((sum, x) => sum + x * x, 0);
  assert(Math.abs(length - 1) < 1e-4, `length ${length}`);
  plain.data[0].embedding.forEach((x, i) => assert(Math.abs(x - found.data[0].embedding[i]) < 1e-6));
}

async function errors(client, model) {
  const create = (more) => client.chat.completions.create({ model, messages, ...more });
  await assert.rejects(create({ model: "no-such" }), OpenAI.NotFoundError);
  await assert.rejects(create({ messages: [] }), OpenAI.BadRequestError);
  await assert.rejects(create({ heat: 1 }), (error) => error.status === 400 && error.param === "heat");
  const long = [{ role: "user", content: "a b ".repeat(20000) }];
  await assert.rejects(create({ messages: long }), (error) => error.code === "context_length_exceeded");
  const hasty = client.withOptions({ timeout: 1, maxRetries: 0 });
  await assert.rejects(hasty.chat.completions.create({ model, messages }), OpenAI.APIConnectionTimeoutError);
}

const home = mkdtempSync(join(tmpdir(), "puna-npm-"));
const { server, address } = await start(home);
try {
  const client = new OpenAI({ baseURL: address, apiKey: "none", maxRetries: 0 });
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  assert.equal((await client.models.retrieve(models[0])).id, models[0]);
  for (const check of [chat, leaving, texts, embeddings, errors]) {
    await check(client, models[0]);
    console.log("ok", check.name);
  }
} finally {
  server.removeAllListeners("exit");
  const ended = new Promise((done) => server.once("exit", done));
  server.kill("SIGTERM");
  assert.equal(await ended, 0);
  rmSync(home, { recursive: true });
}
