//! Tiny models behind a server, and requests to them.

use std::path::Path;
use std::sync::Arc;

use engine::{SamplerParams, Scheduler, SchedulerParams};
use kernels::{Compute, Kernels, KvType, Level};
use model::{Adapter, Target};
use serde_json::Value;
use server::{Adapters, ApiError, Kind, Model, Served, Settings};
use text::{ChatTemplate, Tokenizer};

use super::{Answer, Server, bearer, logged};

const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}\
    {% if add_generation_prompt %}[assistant] {% endif %}";

/// Four sequences at once of a random Llama.
pub fn tiny(context: usize) -> Model {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/reference/models/llama3");
    with_tokenizer(context, Tokenizer::open(&path).unwrap())
}

/// The same behind another vocabulary, no larger than its own.
pub fn with_tokenizer(context: usize, tokenizer: Tokenizer) -> Model {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/reference/models/llama3");
    let kernels = Arc::new(Kernels::new(Level::best(), Compute::F32, 2).unwrap());
    let weights = Arc::new(model::open(&path, kernels).unwrap());
    let params = SchedulerParams::new(KvType::F32, context, 4);
    Model {
        id: "tiny".into(),
        created: 1,
        scheduler: Scheduler::start(weights, Arc::new(tokenizer), params).unwrap(),
        template: Some(ChatTemplate::new(TEMPLATE, "", "").unwrap()),
        sampler: SamplerParams::default(),
        speculation: engine::Speculation::default(),
        eog: Vec::new(),
        stop: Vec::new(),
        system: None,
        turns: Vec::new(),
        seed: None,
        max_tokens: None,
        adaptation: engine::Adaptation::default(),
        adapters: Adapters::new(Arc::new(made)),
    }
}

/// The tiny model behind a vocabulary that has marks for infill.
pub fn filler(settings: Settings) -> Server {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/reference/models/llama3/tokenizer.json");
    let mut json = std::fs::read_to_string(path).unwrap();
    for (old, new) in [
        ("<|image|>", "<|fim_prefix|>"),
        ("<|r0|>", "<|fim_suffix|>"),
        ("<|r1|>", "<|fim_middle|>"),
    ] {
        assert!(json.contains(old));
        json = json.replace(old, new);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    std::fs::write(&file, json).unwrap();
    let model = with_tokenizer(512, Tokenizer::open(&file).unwrap());
    serve_models(vec![model], false, settings)
}

/// `made-N` is an adapter of random numbers, no two alike.
pub fn made(scheduler: &Scheduler, word: &str) -> Result<(Adapter, f32), ApiError> {
    let seed: Option<u32> = word.strip_prefix("made-").and_then(|n| n.parse().ok());
    let seed = seed.ok_or_else(|| ApiError::new(Kind::Adapter, format!("there is no {word}")))?;
    let weights = scheduler.weights();
    let hidden = weights.config.hidden;
    let numbers = |n: usize, salt: u32| -> Vec<f32> {
        let mut x = seed.wrapping_mul(2_654_435_761).wrapping_add(salt) | 1;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as f32 / u32::MAX as f32 - 0.5
        };
        (0..n).map(|_| next()).collect()
    };
    let mut adapter = Adapter::new();
    let place = (0, Target::O);
    let inner = weights.config.heads * weights.config.head_dim;
    let (a, b) = (numbers(2 * inner, 1), numbers(hidden * 2, 2));
    adapter
        .insert(weights, place, 2, (&a, &b), 1.0)
        .map_err(|e| ApiError::new(Kind::Invalid, e.to_string()))?;
    Ok((adapter, 1.0))
}

pub fn serve_models(models: Vec<Model>, strict: bool, settings: Settings) -> Server {
    let served = Served::new(models, strict);
    let mut routes = server::routes();
    routes.extend(server::api(&served));
    let server = Server::start(settings, routes);
    served.watch(&server.state);
    server
}

pub fn serve(context: usize, strict: bool) -> Server {
    serve_models(vec![tiny(context)], strict, logged().0)
}

pub fn send(server: &Server, line: &str, key: &str, body: &Value) -> Answer {
    let mut headers = bearer(key);
    headers.push("Content-Type: application/json");
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    server.ask(line, &headers, &body)
}

pub fn post(server: &Server, path: &str, body: &Value) -> Answer {
    send(server, &format!("POST {path}"), "", body)
}

pub fn ok(server: &Server, path: &str, body: &Value) -> Value {
    let answer = post(server, path, body);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// The bodies of a stream's events, without `data: `; the transfer's own lines left out.
pub fn events(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let lines = answer.body.lines();
    lines
        .filter_map(|line| line.strip_prefix("data: ").map(str::to_owned))
        .collect()
}

/// Those of a stream that ends well.
pub fn chunks(answer: &Answer) -> Vec<Value> {
    let events = events(answer);
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    chunks
        .iter()
        .map(|c| serde_json::from_str(c).unwrap())
        .collect()
}
