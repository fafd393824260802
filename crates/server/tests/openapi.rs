//! What `/openapi.json` says of bodies, statuses and types of content is what the server does.

mod common;

use common::models::{filler, post, send};
use common::{Answer, Server, bearer, logged};
use serde_json::{Map, Value, json};
use server::api::table::{PARAMS, Treat};
use server::{Access, NewKey, Quotas, Route, Scope, Settings, all, document};

const BOSS: &str = "0123456789abcdef";

/// A server where [`BOSS`] may do everything.
fn start() -> Server {
    let keys = format!("{BOSS} boss inference,admin,metrics");
    filler(Settings {
        api_keys: server::parse_file(&keys, 0).expect("good keys"),
        ..logged().0
    })
}

fn of<'d>(document: &'d Value, route: &Route) -> &'d Value {
    &document["paths"][route.path][route.method.as_str().to_ascii_lowercase()]
}

fn schema<'d>(document: &'d Value, route: &Route) -> &'d Value {
    &of(document, route)["requestBody"]["content"]["application/json"]["schema"]
}

/// `METHOD /path`, with the model's name in it.
fn line(route: &Route) -> String {
    let path = route.path.replace("{model}", "tiny").replace("{id}", "x");
    format!("{} {path}", route.method)
}

/// Asks, and finds the answer's status and type of content in the document.
fn ask(server: &Server, document: &Value, route: &Route, key: &str, body: &Value) -> Answer {
    let answer = send(server, &line(route), key, body);
    let responses = &of(document, route)["responses"];
    let status = &responses[answer.status.to_string()];
    assert!(status.is_object(), "{}: {answer:?}", line(route));
    if answer.status == 200 {
        let media = answer.header("content-type").expect("a type");
        let media = media.split(';').next().expect("a word");
        let known = &status["content"][media];
        assert!(known.is_object(), "{}: {media}", line(route));
    } else {
        assert_eq!(status["$ref"], "#/components/responses/Error");
    }
    answer
}

/// Whether a schema takes values of the JSON type that this one has.
fn takes(schema: &Value, value: &Value) -> bool {
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|one| takes(one, value));
    }
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is no type"),
    };
    match &schema["type"] {
        Value::String(one) => is(one),
        Value::Array(any) => any.iter().any(|one| is(one.as_str().expect("a name"))),
        _ => panic!("no type: {schema}"),
    }
}

/// A value that fits.
fn sample(schema: &Value) -> Value {
    let first = |list: &Value| list.as_array().map(|l| l[0].clone());
    if let Some(value) = first(&schema["examples"]).or(first(&schema["enum"])) {
        return value;
    }
    if let Some(one) = first(&schema["anyOf"]) {
        return sample(&one);
    }
    if schema.get("const").is_some() {
        return schema["const"].clone();
    }
    let ty = first(&schema["type"]).unwrap_or(schema["type"].clone());
    match ty.as_str().expect("a type") {
        "boolean" => json!(true),
        "integer" => json!(schema["minimum"].as_i64().unwrap_or(1)),
        "number" => json!(schema["minimum"].as_f64().unwrap_or(0.0).max(0.5)),
        "string" => json!("x"),
        "array" => match schema["minItems"].as_u64() {
            Some(_) => json!([sample(&schema["items"])]),
            None => json!([]),
        },
        _ => {
            let needed = schema["required"].as_array().into_iter().flatten();
            let one = |name: &Value| {
                let name = name.as_str().expect("a name");
                (name.to_owned(), sample(&schema["properties"][name]))
            };
            Value::Object(needed.map(one).collect())
        }
    }
}

/// The least that a body must have, by its schema.
fn least(schema: &Value) -> Map<String, Value> {
    if schema.is_null() {
        return Map::new();
    }
    let one = schema["anyOf"].as_array().and_then(|any| any.first());
    let mut all = match one {
        Some(one) => sample(&json!({
            "type": "object", "required": one["required"], "properties": schema["properties"],
        })),
        None => sample(schema),
    };
    for (name, word) in [
        ("adapter", "made-1"),
        ("lora_path", "made-1"),
        ("lora_name", "y"),
    ] {
        if all.get(name).is_some() {
            all[name] = json!(word);
        }
    }
    all.as_object().cloned().unwrap_or_default()
}

fn posts() -> Vec<Route> {
    let all = all().into_iter();
    // What comes in lists has a test of its own.
    all.filter(|r| r.method == "POST" && r.path != "/lora-adapters")
        .collect()
}

/// Fields that nobody looks at: any value does.
fn ignored(name: &str) -> bool {
    let mut all = PARAMS.iter();
    all.any(|(known, _, treat, _)| *known == name && matches!(treat, Treat::Accepted))
}

/// What is said to be needed is enough, and all of it is needed.
#[test]
fn what_is_required_is_enough() {
    let (server, document) = (start(), document());
    for route in posts() {
        let schema = schema(&document, &route);
        let body = least(schema);
        for name in body.keys() {
            let mut without = body.clone();
            without.remove(name);
            let answer = ask(&server, &document, &route, BOSS, &json!(without));
            assert_eq!(answer.status, 400, "{} without {name}", route.path);
        }
        if route.path.ends_with("unload") {
            continue; // needs --on-demand
        }
        let answer = ask(&server, &document, &route, BOSS, &json!(body));
        assert_eq!(answer.status, 200, "{}: {answer:?}", route.path);
    }
}

/// A value of another type is refused, one of the type is taken, and null is as good as nothing.
#[test]
fn fields_have_their_types() {
    let (server, document) = (start(), document());
    let hidden = json!({ "input": "x" });
    let hidden = send(&server, "POST /v1/embeddings", BOSS, &hidden).json();
    let hidden = hidden["data"][0]["embedding"].as_array().map(Vec::len);
    let kinds = [
        json!(true),
        json!(7),
        json!(1.5),
        json!("%"),
        json!([[true]]),
        json!({ "%": true }),
    ];
    for route in posts() {
        let schema = schema(&document, &route);
        let mut body = least(schema);
        if schema["properties"].get("max_tokens").is_some() {
            body.insert("max_tokens".into(), json!(2));
        }
        let needed = schema["required"].as_array().cloned().unwrap_or_default();
        for (name, of) in schema["properties"].as_object().expect("fields") {
            let with = |value: &Value| {
                let mut body = body.clone();
                if ["max_completion_tokens", "n_predict"].contains(&name.as_str()) {
                    body.remove("max_tokens"); // which would count
                }
                body.insert(name.clone(), value.clone());
                json!(body)
            };
            let what = |value: &Value| format!("{} {name} {value}", route.path);
            for value in kinds.iter().filter(|value| !takes(of, value)) {
                let answer = ask(&server, &document, &route, BOSS, &with(value));
                let wanted = if ignored(name) { 200 } else { 400 };
                assert_eq!(answer.status, wanted, "{}: {answer:?}", what(value));
            }
            // These name things that there are not twice.
            if route.access != Access::Needs(Scope::Inference) {
                continue;
            }
            let mut fits = vec![match name.as_str() {
                "model" => json!("tiny"),
                "dimensions" => json!(hidden),
                _ => sample(of),
            }];
            if !needed.contains(&json!(name)) {
                assert!(takes(of, &Value::Null), "{}", what(of));
                fits.push(Value::Null);
            }
            for value in fits {
                let answer = ask(&server, &document, &route, BOSS, &with(&value));
                let wanted = if body.contains_key(name) && value.is_null() && name != "max_tokens" {
                    400
                } else {
                    200
                };
                assert_eq!(answer.status, wanted, "{}: {answer:?}", what(&value));
            }
        }
    }
}

#[test]
fn scales_have_their_types() {
    let (server, document) = (start(), document());
    let mut all = all().into_iter();
    let route = all.find(|r| r.method == "POST" && r.path == "/lora-adapters");
    let route = route.expect("the route");
    let load = json!({ "name": "a", "adapter": "made-1" });
    assert_eq!(send(&server, "POST /v1/adapters", BOSS, &load).status, 200);
    let schema = schema(&document, &route);
    assert_eq!(schema["items"]["required"], json!(["id"]));
    for (body, status) in [
        (json!([]), 200),
        (json!([{ "id": "a" }]), 200),
        (json!([{ "id": 0, "scale": 0.5 }]), 200),
        (json!([{ "id": "a", "scale": null }]), 200),
        (json!([{ "scale": 0.5 }]), 400),
        (json!([{ "id": 0.5 }]), 400),
        (json!([{ "id": "a", "scale": "1" }]), 400),
        (json!({ "id": "a" }), 400),
        (json!(vec![json!({ "id": "a" }); 9]), 400),
        (json!([{ "id": "b" }]), 404),
    ] {
        let answer = ask(&server, &document, &route, BOSS, &body);
        assert_eq!(answer.status, status, "{body}: {answer:?}");
    }
}

/// Every route has the statuses that it says: those that can be had of any are asked for.
#[test]
fn statuses_are_those_of_the_document() {
    let (server, document) = (start(), document());
    let new = NewKey {
        name: "one a minute".into(),
        scopes: Scope::parse("inference,admin,metrics").expect("scopes"),
        quotas: Quotas {
            rpm: Some(1),
            ..Quotas::default()
        },
        expires: None,
    };
    let (key, slow) = new.make(1).expect("a key");
    server.store().add_key(&key).expect("it is kept");
    post(&server, "/tokenize", &json!({})).refused(401, "invalid_api_key");
    let body = json!({ "content": "x" });
    assert_eq!(send(&server, "POST /tokenize", &slow, &body).status, 200);
    let long = format!("Content-Length: {}", 5 << 20);
    for route in all() {
        let line = line(&route);
        let known = |status: u16| of(&document, &route)["responses"].get(status.to_string());
        let see = |answer: Answer, status: u16, can: bool| {
            let seen = answer.status == status;
            assert_eq!(seen, can, "{line}: {status}: {answer:?}");
            assert_eq!(known(status).is_some(), can, "{line}: {status}");
        };
        let json = "Content-Type: application/json";
        let with = |header| [&bearer(BOSS)[..], &[json, header]].concat();
        let posts = route.method == "POST";
        ask(&server, &document, &route, "", &Value::Null);
        see(
            server.ask(&line, &[json], ""),
            401,
            route.access != Access::Anyone,
        );
        let twice = [with("Origin: a"), vec!["Origin: b"]].concat();
        see(server.ask(&line, &twice, ""), 400, true);
        see(
            server.ask(&line, &with("Origin: http://evil.example"), ""),
            403,
            true,
        );
        let inference = route.access == Access::Needs(Scope::Inference);
        see(send(&server, &line, &slow, &json!({})), 429, inference);
        if posts {
            see(server.ask(&line, &with(&long), ""), 413, true);
            see(server.ask(&line, &bearer(BOSS), ""), 415, true);
        }
        assert_eq!(
            known(413).is_some() && known(415).is_some(),
            posts,
            "{line}"
        );
        let body = posts && !route.path.starts_with("/v1/models/");
        assert_eq!(known(408).is_some(), body, "{line}");
        assert!(known(200).is_some() && known(500).is_none(), "{line}");
        if !posts && route.method == "GET" {
            let answer = ask(&server, &document, &route, BOSS, &Value::Null);
            let wanted = if route.path.ends_with("{id}") {
                404
            } else {
                200
            };
            assert_eq!(answer.status, wanted, "{line}: {answer:?}");
        }
        // A model or an adapter that there is not.
        let missing = line.replace("tiny", "none");
        let missing = missing.replace("POST /lora-adapters", "POST /lora-adapters?model=none");
        let mut body = least(schema(&document, &route));
        body.insert("model".into(), json!("none"));
        let body = if missing.contains('?') {
            json!([])
        } else {
            json!(body)
        };
        let answer = send(
            &server,
            &missing,
            BOSS,
            if posts { &body } else { &Value::Null },
        );
        see(answer, 404, known(404).is_some());
    }
    let csv = server.get("/admin/usage?format=csv", BOSS);
    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8"));
    let media = &document["paths"]["/admin/usage"]["get"]["responses"]["200"]["content"];
    assert!(media["text/csv"].is_object(), "{media}");
}
