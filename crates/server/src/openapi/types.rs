//! The JSON types of what bodies may say: [`of`] is the one table, [`required`] says what a body
//! must have. The bounds of samplers are the engine's own.

use engine::SamplerParams;
use serde_json::{Value, json};

/// What a route cannot do without.
pub(super) fn required(path: &str) -> &'static [&'static str] {
    match path {
        "/v1/chat/completions" | "/apply-template" => &["messages"],
        "/v1/completions" => &["prompt"],
        "/v1/embeddings" => &["input"],
        "/tokenize" => &["content"],
        "/detokenize" => &["tokens"],
        "/v1/rerank" | "/rerank" => &["query", "documents"],
        "/v1/adapters" => &["name", "adapter"],
        "/lora-adapters" => &["id"],
        "/v1/load_lora_adapter" => &["lora_name", "lora_path"],
        "/v1/unload_lora_adapter" => &["lora_name"],
        _ => &[],
    }
}

/// The schema of a body with these fields.
pub(super) fn body(path: &str, fields: &[(&'static str, &'static str)]) -> Value {
    let mut properties = json!({});
    for (name, about) in fields {
        let mut schema = of(path, name);
        // Null is the same as leaving a name out.
        if !required(path).contains(name) {
            schema = or_null(schema);
        }
        schema["description"] = json!(about);
        properties[*name] = schema;
    }
    let mut schema = json!({ "type": "object", "properties": properties });
    if !required(path).is_empty() {
        schema["required"] = json!(required(path));
    }
    match path {
        "/infill" => {
            let one = |name: &str| json!({ "required": [name] });
            schema["anyOf"] = json!([one("input_prefix"), one("input_suffix")]);
        }
        "/lora-adapters" => schema = json!({ "type": "array", "items": schema, "maxItems": 8 }),
        _ => {}
    }
    schema
}

fn or_null(mut schema: Value) -> Value {
    if let Some(Value::Array(list)) = schema.get_mut("enum") {
        list.push(Value::Null);
    }
    if let Some(Value::Array(list)) = schema.get_mut("anyOf") {
        list.push(json!({ "type": "null" }));
    }
    match schema.get_mut("type") {
        Some(Value::Array(list)) => list.push(json!("null")),
        Some(one) => *one = json!([one, "null"]),
        None => {}
    }
    schema
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn number() -> Value {
    json!({ "type": "number" })
}

/// A parameter of the sampler, within the engine's limits; any number, if it is none.
fn real(name: &str) -> Value {
    let name = match name {
        "repetition_penalty" => "repeat_penalty",
        name => name,
    };
    // As it is written: 0.001, and not the f32 nearest to it.
    let plain = |x: f32| x.to_string().parse::<f64>().unwrap_or(f64::from(x));
    let mut schema = number();
    if let Some((_, low, high)) = SamplerParams::limits().find(|limit| limit.0 == name) {
        schema["minimum"] = json!(plain(low));
        schema["maximum"] = json!(plain(high));
    }
    schema
}

fn whole() -> Value {
    json!({ "type": "integer" })
}

fn from(low: i64) -> Value {
    json!({ "type": "integer", "minimum": low })
}

fn within(low: i64, high: i64) -> Value {
    json!({ "type": "integer", "minimum": low, "maximum": high })
}

fn word(words: &[&str]) -> Value {
    json!({ "type": "string", "enum": words })
}

fn list(of: Value) -> Value {
    json!({ "type": "array", "items": of })
}

fn either(schemas: &[Value]) -> Value {
    json!({ "anyOf": schemas })
}

fn ids() -> Value {
    list(from(0))
}

/// An adapter's name or number.
fn adapter() -> Value {
    json!({ "type": ["string", "integer"], "minimum": 0 })
}

fn adapters() -> Value {
    let properties = json!({ "id": adapter(), "scale": { "type": ["number", "null"] } });
    let one = json!({
        "type": "object", "required": ["id"], "properties": properties, "additionalProperties": false,
    });
    json!({ "type": "array", "items": one, "maxItems": 8 })
}

/// A text, texts, token ids, or lists of token ids.
fn prompts() -> Value {
    let mut many = list(either(&[text(), ids()]));
    many["minItems"] = json!(1);
    many["maxItems"] = json!(128);
    let mut one = ids();
    one["minItems"] = json!(1);
    either(&[text(), one, many])
}

fn messages() -> Value {
    let part = json!({
        "type": "object", "required": ["type", "text"],
        "properties": { "type": { "const": "text" }, "text": text() },
    });
    let message = json!({
        "type": "object", "required": ["role", "content"],
        "properties": {
            "role": word(&["system", "developer", "user", "assistant"]),
            "content": either(&[text(), list(part)]),
            "name": {},
        },
    });
    json!({ "type": "array", "items": message, "minItems": 1 })
}

fn biases() -> Value {
    let bias = json!({ "anyOf": [number(), { "const": false }] });
    let pair = json!({
        "type": "array", "prefixItems": [from(0), bias], "minItems": 2, "maxItems": 2,
    });
    either(&[
        json!({ "type": "object", "additionalProperties": bias, "maxProperties": 1024 }),
        json!({ "type": "array", "items": pair, "maxItems": 1024 }),
    ])
}

/// Other files, for `/infill`.
fn files() -> Value {
    let file = json!({
        "type": "object", "required": ["text"],
        "properties": { "filename": text(), "text": text() },
    });
    json!({ "type": "array", "items": file, "maxItems": 256 })
}

fn documents() -> Value {
    let object =
        json!({ "type": "object", "required": ["text"], "properties": { "text": text() } });
    json!({ "type": "array", "items": either(&[text(), object]), "minItems": 1, "maxItems": 1000 })
}

/// The type of a field of a route; `{}`, which is any, of a field that is not in the table.
fn of(path: &str, name: &str) -> Value {
    match (path, name) {
        ("/v1/completions", "prompt") | (_, "input") => prompts(),
        ("/v1/completions", "logprobs") => within(0, 5),
        ("/lora-adapters", "id") => adapter(),
        (_, "messages") => messages(),
        (_, "documents") => documents(),
        (_, "adapters" | "lora") => adapters(),
        (_, "input_extra") => files(),
        (_, "logit_bias") => biases(),
        (_, "tokens") => ids(),
        (_, "tools") => list(json!({ "type": "object" })),
        (_, "stop_token_ids") => {
            json!({ "type": "array", "items": from(0), "maxItems": 64 })
        }
        (_, "stop") => either(&[
            json!({ "type": "string", "minLength": 1, "maxLength": 256 }),
            json!({ "type": "array", "items": text(), "maxItems": 16 }),
        ]),
        (_, "dry_sequence_breakers") => either(&[text(), list(text())]),
        (_, "keep_alive") => json!({ "type": ["string", "number"], "examples": ["5m", 300, -1] }),
        (_, "stream_options") => json!({
            "type": "object", "properties": { "include_usage": { "type": ["boolean", "null"] } },
        }),
        (_, "chat_template_kwargs" | "metadata") => json!({ "type": "object" }),
        (_, "cache_scope") => word(&["key", "shared"]),
        (_, "encoding_format") => word(&["float", "base64"]),
        (_, "pooling") => word(&["mean", "last", "cls"]),
        (_, "method") => word(&["embeddings", "likelihood"]),
        (_, "speculative") => word(&engine::Speculation::NAMES),
        (_, "query") => json!({ "type": "string", "minLength": 1, "maxLength": 65536 }),
        (_, "cache_salt") => json!({ "type": "string", "maxLength": 256 }),
        (_, "n") => within(1, 16),
        (_, "priority") => within(-100, 100),
        (_, "timeout_ms") => json!({
            "type": "integer", "minimum": 1, "maximum": 86_400_000, "examples": [60_000],
        }),
        (_, "top_logprobs") => within(0, 20),
        (_, "speculative.n_max") => within(0, 64),
        (_, "n_predict" | "repeat_last_n" | "dry_penalty_last_n") => from(-1),
        (_, "dimensions" | "top_n") => from(1),
        (_, "mirostat") => within(0, 2),
        (_, "max_tokens" | "max_completion_tokens" | "min_keep" | "dry_allowed_length") => from(0),
        (_, "top_k" | "seed" | "id_slot" | "n_keep" | "n_discard" | "n_cache_reuse") => whole(),
        (
            _,
            "scale" | "temperature" | "top_p" | "min_p" | "typical_p" | "top_n_sigma"
            | "repeat_penalty" | "repetition_penalty" | "presence_penalty" | "frequency_penalty"
            | "dry_multiplier" | "dry_base" | "xtc_probability" | "xtc_threshold"
            | "dynatemp_range" | "dynatemp_exponent" | "mirostat_tau" | "mirostat_eta",
        ) => real(name),
        (
            _,
            "stream"
            | "echo"
            | "logprobs"
            | "ignore_eos"
            | "normalize"
            | "add_special"
            | "parse_special"
            | "with_pieces"
            | "add_generation_prompt"
            | "return_documents"
            | "store"
            | "cache_prompt"
            | "parallel_tool_calls",
        ) => json!({ "type": "boolean" }),
        (
            _,
            "model"
            | "prompt"
            | "suffix"
            | "input_prefix"
            | "input_suffix"
            | "content"
            | "name"
            | "adapter"
            | "lora_name"
            | "lora_path"
            | "user"
            | "safety_identifier"
            | "service_tier"
            | "prompt_cache_key"
            | "prompt_cache_retention",
        ) => text(),
        _ => json!({}),
    }
}
