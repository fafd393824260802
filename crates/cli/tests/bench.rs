//! `puna bench` on a small synthetic model: the report's shape, not the machine's speed.

mod common;

use common::{fixture, puna};
use serde_json::Value;

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

fn row_is_sound(row: &Value) {
    let speed = &row["tokens_per_second"];
    let (min, median, max) = (
        number(&speed["min"]),
        number(&speed["median"]),
        number(&speed["max"]),
    );
    assert!(0.0 < min && min <= median && median <= max, "{row}");
}

#[test]
fn a_synthetic_model() {
    let args = [
        "bench",
        "--shape",
        "smollm2-135m",
        "--type",
        "Q4_0",
        "--threads",
        "2",
    ];
    let args = [
        &args[..],
        &["-p", "5", "-n", "3", "--repeat", "2", "--format", "json"],
    ]
    .concat();
    let answer = puna(&args).json();
    let rows = answer["results"].as_array().expect("rows");
    let tests: Vec<&str> = rows.iter().filter_map(|row| row["test"].as_str()).collect();
    assert_eq!(tests, ["pp5", "tg3"]);
    for row in rows {
        row_is_sound(row);
        assert_eq!(row["model"], "smollm2-135m");
        assert_eq!(row["type"], "Q4_0");
        assert_eq!(
            (&row["threads"], &row["depth"], &row["parallel"]),
            (&2.into(), &0.into(), &1.into())
        );
        assert!(row.get("fraction_of_limit").is_none());
    }
    assert!(answer.get("limits").is_none());
    assert_eq!(answer["machine"]["threads"], 2);
}

#[test]
fn limits_depth_and_parallel() {
    let model = fixture("gguf/q256.Q8_0.gguf");
    let args = [
        "bench",
        &model,
        "-p",
        "4",
        "-n",
        "2",
        "--repeat",
        "1",
        "--depth",
        "9",
        "--parallel",
        "3",
    ];
    let answer = puna(&[&args[..], &["--limits", "--format", "json"]].concat()).json();
    let rows = answer["results"].as_array().expect("rows");
    assert_eq!(rows.len(), 2, "the filling of the depth is no row");
    for row in rows {
        row_is_sound(row);
        assert_eq!((&row["depth"], &row["parallel"]), (&9.into(), &3.into()));
        assert_eq!(row["type"], "Q8_0");
        assert!(number(&row["fraction_of_limit"]) > 0.0);
    }
    assert!(number(&answer["limits"]["read_gbps"]) > 0.1);
    assert!(number(&answer["limits"]["f32_gflops"]) > 0.1);
    let (read, limit) = (
        number(&rows[1]["read_gbps"]),
        number(&answer["limits"]["read_gbps"]),
    );
    let fraction = number(&rows[1]["fraction_of_limit"]);
    assert!(
        (fraction - read / limit).abs() < 1e-6 * fraction.max(1e-3),
        "{answer}"
    );
}

#[test]
fn a_test_of_no_tokens_is_left_out() {
    let model = fixture("gguf/llama3.f32.gguf");
    let one = |p: &str, n: &str| {
        let args = [
            "bench", &model, "-p", p, "-n", n, "--repeat", "1", "--format", "json",
        ];
        let answer = puna(&args).json();
        answer["results"]
            .as_array()
            .expect("rows")
            .iter()
            .map(|row| row["test"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(one("0", "2"), ["tg2"]);
    assert_eq!(one("2", "0"), ["pp2"]);
    let table = puna(&["bench", &model, "-p", "2", "-n", "2", "--repeat", "1"])
        .succeeded()
        .text();
    assert!(
        table.contains("pp2") && table.contains("tg2") && table.contains("tokens/s"),
        "{table}"
    );
}

#[test]
fn limits_alone() {
    let answer = puna(&[
        "bench", "-p", "0", "-n", "0", "--limits", "--format", "json",
    ])
    .json();
    assert_eq!(answer["results"].as_array().map(Vec::len), Some(0));
    let limits = &answer["limits"];
    assert!(number(&limits["read_gbps"]) > 0.1 && number(&limits["f32_gflops"]) > 0.1);
    let far = &limits["ping_pong_ns"];
    assert!(far.is_null() || number(far) > 0.0, "{limits}");
    let text = puna(&["bench", "-p", "0", "-n", "0", "--limits"])
        .succeeded()
        .text();
    assert!(
        text.contains("limits: read") && !text.contains("tokens/s"),
        "{text}"
    );
}

#[test]
fn refusals() {
    let model = fixture("gguf/llama3.f32.gguf");
    puna(&["bench", &model, "-p", "0", "-n", "0"]).failed(2, "nothing to measure");
    puna(&["bench", &model, "-p", "0", "-n", "0", "--limits"]).failed(2, "nothing to measure");
    puna(&["bench", &model, "--type", "Q8_0"]).failed(2, "a model has its own");
    puna(&["bench", "--type", "Q8_0"]).failed(2, "--shape");
    puna(&["bench", "--shape", "llama-9"]).failed(2, "llama-9");
    puna(&["bench", "--shape", "smollm2-135m", "--type", "Q9"]).failed(2, "Q9");
    puna(&["bench", &model, "--repeat", "0"]).failed(2, "at least 1");
    puna(&["bench", &model, "--shape", "llama-2-7b"]).failed(2, "cannot be used with");
    puna(&[
        "bench",
        &model,
        "--depth",
        "1000000000",
        "--parallel",
        "1000000",
    ])
    .failed(5, "are free");
    puna(&["bench", &model, "--depth", "18446744073709551615"]).failed(2, "too many");
}
