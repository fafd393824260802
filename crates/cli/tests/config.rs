//! `puna.toml`: where it is found, what it sets, and what beats it.

mod common;

use common::{Home, fixture};
use serde_json::Value;

/// A home with a `puna.toml` in the current directory.
fn home(text: &str) -> Home {
    let home = Home::new();
    std::fs::write(home.dir.path().join("puna.toml"), text).expect("written");
    home
}

/// (value, source) of a setting.
fn setting(report: &Value, name: &str) -> (String, String) {
    let settings = report["settings"].as_array().expect("a list");
    let found = settings
        .iter()
        .find(|s| s["name"] == name)
        .expect("a setting");
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    (text(&found["value"]), text(&found["source"]))
}

fn effective(home: &Home) -> Value {
    home.run(&["config", "--effective", "--format", "json"])
        .json()
}

#[test]
fn the_first_file_counts_alone() {
    let home = Home::new().env("XDG_CONFIG_HOME", "");
    let none = effective(&home);
    assert!(none["file"].is_null());
    assert_eq!(
        setting(&none, "model"),
        ("smollm2:135m".into(), "default".into())
    );
    assert_eq!(setting(&none, "ctx"), ("-".into(), "default".into()));
    let own = home.dir.path().join(".config/puna/puna.toml");
    std::fs::create_dir_all(own.parent().expect("a folder")).expect("made");
    std::fs::write(&own, "threads = 3\ntop_k = 7").expect("written");
    let report = effective(&home);
    let file = own.to_str().expect("UTF-8").to_owned();
    assert_eq!(setting(&report, "threads"), ("3".into(), file.clone()));
    assert_eq!(setting(&report, "top-k"), ("7".into(), file));
    std::fs::write(home.dir.path().join("puna.toml"), "model = \"x\"").expect("written");
    let report = effective(&home);
    assert_eq!(setting(&report, "model"), ("x".into(), "puna.toml".into()));
    assert_eq!(setting(&report, "top-k").1, "default");
    let other = home.dir.path().join("other.toml");
    std::fs::write(&other, "[serve]\nport = 99").expect("written");
    let home = home.env("PUNA_CONFIG", other.to_str().expect("UTF-8"));
    let home = home.env("PUNA_THREADS", "2");
    let report = effective(&home);
    assert_eq!(setting(&report, "serve.port").0, "99");
    assert_eq!(
        setting(&report, "threads"),
        ("2".into(), "PUNA_THREADS".into())
    );
    let said = home.run(&["config"]).succeeded().text();
    assert!(
        said.contains("PUNA_THREADS") && said.contains("other.toml"),
        "{said}"
    );
    Home::new()
        .env("PUNA_CONFIG", "none.toml")
        .run(&["list"])
        .failed(2, "none.toml");
}

#[test]
fn options_beat_it_and_models_have_their_own() {
    let file = fixture("gguf/llama3_1.f32.gguf");
    let home = home(&format!(
        "model = {file:?}\nmax-tokens = 3\ntemperature = 0\nthreads = 1\nctx = 64\nseed = 5\n\
         [models.\"mine\"]\nctx = 96"
    ));
    let run = |args: &[&str]| {
        home.run(&[&["run", "--format", "json"], args].concat())
            .json()
    };
    let own = run(&["Say something, please."]);
    assert_eq!(own["usage"]["completion_tokens"], 3);
    assert_eq!((&own["context"], &own["seed"]), (&64.into(), &5.into()));
    let typed = run(&[
        "-n",
        "1",
        "--ctx",
        "80",
        "--seed",
        "6",
        "Say something, please.",
    ]);
    assert_eq!(typed["usage"]["completion_tokens"], 1);
    assert_eq!((&typed["context"], &typed["seed"]), (&80.into(), &6.into()));
    let text =
        format!("FROM {file}\nPARAMETER num_predict 2\nPARAMETER num_ctx 128\nPARAMETER seed 9");
    home.run_with(&["create", "mine", "-f", "-"], text.as_bytes())
        .succeeded();
    let mine = run(&["-m", "mine", "hi"]);
    // Its section, then what it says itself, then what is said for all.
    assert_eq!((&mine["context"], &mine["seed"]), (&96.into(), &9.into()));
    assert_eq!(mine["usage"]["completion_tokens"], 2);
    let report = home.run(&["config", "mine", "--format", "json"]).json();
    assert_eq!(report["model"], "mine:latest");
    assert_eq!(
        setting(&report, "ctx"),
        ("96".into(), "puna.toml [models.\"mine\"]".into())
    );
    assert_eq!(
        setting(&report, "seed"),
        ("9".into(), "the model mine:latest".into())
    );
    assert_eq!(
        setting(&report, "temperature"),
        ("0".into(), "puna.toml".into())
    );
}

#[test]
fn what_is_wrong_is_named_and_help_is_given_all_the_same() {
    for (text, why) in [
        ("temprature = 1", "did you mean temperature?"),
        ("temperature = \"hot\"", "hot"),
        ("top-p = 3", "top_p"),
        ("threads = 0", "at least 1"),
        ("[models.x]\nheat = 1", "heat"),
        ("simd = \"mmx\"", "mmx"),
        ("x", "line 1"),
    ] {
        let home = home(text);
        let ran = home.run(&["list"]);
        assert!([Some(1), Some(2)].contains(&ran.code), "{ran:?}");
        assert!(
            ran.stderr.contains(why) && ran.stderr.contains("puna.toml"),
            "{ran:?}"
        );
        home.run(&["list", "--help"]).succeeded();
    }
    let offline = home("offline = true").env("PUNA_OFFLINE", "");
    offline.run(&["pull", "smollm2:135m"]).failed(3, "offline");
    // Help does not change with it.
    let with = home("threads = 3\ncompute = \"f32\"\noffline = true");
    let plain = Home::new().run(&["run", "--help"]).text();
    assert_eq!(with.run(&["run", "--help"]).succeeded().text(), plain);
}

/// Every option of `serve` that the environment has stands there, with where it comes from.
#[test]
fn settings_of_the_server() {
    let home = home("[serve]\nkeep-alive = \"10m\"\nhost = \"0.0.0.0\"");
    let home = home
        .env("PUNA_SERVE_ON_DEMAND", "true")
        .env("PUNA_API_KEY_FILE", "keys");
    let report = effective(&home);
    let said = |name: &str| setting(&report, &format!("serve.{name}"));
    let of = |value: &str, source: &str| (value.to_owned(), source.to_owned());
    assert_eq!(said("keep-alive"), of("10m", "puna.toml [serve]"));
    assert_eq!(said("host"), of("0.0.0.0", "puna.toml [serve]"));
    assert_eq!(said("on-demand"), of("true", "PUNA_SERVE_ON_DEMAND"));
    assert_eq!(said("api-key-file"), of("keys", "PUNA_API_KEY_FILE"));
    assert_eq!(said("port"), of("7862", "default"));
    assert_eq!(said("no-auth"), of("false", "default"));
    let help = home.run(&["serve", "--help"]).succeeded().text();
    let variables = help.match_indices("[env: PUNA_").map(|(at, _)| {
        let rest = &help[at + "[env: ".len()..];
        rest[..rest.find([']', '=']).expect("an end")].to_owned()
    });
    for variable in variables {
        let home = Home::new().env(&variable, "1");
        let report = effective(&home);
        let shown = report["settings"].as_array().expect("a list").iter();
        let found = shown.filter(|s| s["source"] == variable.as_str()).count();
        assert_eq!(found, 1, "{variable}");
    }
}

/// Every option of `serve` stands there, with the default that its help has; so do the limits that
/// no option changes.
#[test]
fn limits_of_the_server() {
    let home = Home::new();
    let report = effective(&home);
    let help = home.run(&["serve", "--help"]).succeeded().text();
    let mut options = 0;
    for line in help.lines() {
        let Some((_, rest)) = line.split_once(" --") else {
            continue;
        };
        let name = rest.split([' ', '\n']).next().expect("a name");
        if !line.trim_start().starts_with('-') || name == "help" {
            continue;
        }
        options += 1;
        let of = |name: &str| {
            let all = report["settings"].as_array().expect("a list").iter();
            all.filter(|s| s["name"] == name).count()
        };
        let full = format!("serve.{name}");
        assert_eq!(of(name) + of(&full), 1, "{name}");
        let default = rest.rsplit_once("[default: ");
        let default = default.and_then(|(_, d)| d.split_once(']')).map(|(d, _)| d);
        if let Some(number) = default.filter(|d| d.parse::<u64>().is_ok() && of(&full) == 1) {
            assert_eq!(setting(&report, &full), (number.into(), "default".into()));
        }
    }
    assert!(options > 30, "{help}");
    for (name, value, source) in [
        ("strict", "false", "default"),
        ("parallel", "4", "default"),
        ("max-body", "4194304", "default"),
        ("max-connections", "1000", "default"),
        ("max-requests", "256", "default"),
        ("grace", "30", "default"),
        ("max-head", "32768", "fixed"),
        ("header-timeout", "30s", "fixed"),
        ("body-timeout", "60s", "fixed"),
        ("write-timeout", "60s", "fixed"),
        ("model-queue", "256", "fixed"),
        ("audit-queue", "4096", "fixed"),
        ("load-timeout", "60s", "fixed"),
    ] {
        let said = setting(&report, &format!("serve.{name}"));
        assert_eq!(said, (value.into(), source.into()), "{name}");
    }
    assert_eq!(setting(&report, "memory").0, "-");
    let less = Home::new().env("PUNA_MEMORY", "2G");
    let memory = ("2G".into(), "PUNA_MEMORY".into());
    assert_eq!(setting(&effective(&less), "memory"), memory);
    let state = setting(&report, "serve.state").0;
    assert!(state.ends_with("server.sqlite"), "{state}");
}

/// What a model recommends lies under everything else.
#[test]
fn what_a_model_recommends_is_shown() {
    let home = home("top-k = 7");
    let from = fixture("models/llama3");
    let model = home.dir.path().join("m");
    std::fs::create_dir(&model).expect("made");
    for file in std::fs::read_dir(&from).expect("read") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), model.join(file.file_name())).expect("copied");
    }
    let text = "{\"do_sample\": true, \"temperature\": 0.35, \"top_k\": 3, \"top_p\": 0.95}";
    std::fs::write(model.join("generation_config.json"), text).expect("written");
    let report = home.run(&["config", "./m", "--format", "json"]).json();
    let source = "./m/generation_config.json".to_owned();
    assert_eq!(
        setting(&report, "temperature"),
        ("0.35".into(), source.clone())
    );
    assert_eq!(setting(&report, "top-p"), ("0.95".into(), source));
    assert_eq!(setting(&report, "top-k"), ("7".into(), "puna.toml".into()));
    assert_eq!(setting(&report, "min-p").1, "default");
    std::fs::write(model.join("generation_config.json"), "[").expect("written");
    home.run(&["config", "./m"])
        .failed(1, "generation_config.json");
}
