//! The documents name what the tables name: `docs/serve.md` and `docs/openapi.json`, renewed with
//! `PUNA_BLESS=1`.

use std::path::{Path, PathBuf};

use server::metrics::{Form, METRICS};
use server::{Access, KINDS, all, document};

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(name)
}

fn is_the_file(name: &str, wanted: &str) {
    let file = docs(name);
    if std::env::var_os("PUNA_BLESS").is_some() {
        std::fs::write(&file, wanted).expect("the file can be written");
    }
    let there = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        there == wanted,
        "docs/{name} differs from what it is made of; PUNA_BLESS=1 renews it"
    );
}

/// The page with the text between `<!-- name -->` and `<!-- /name -->` replaced.
fn with_table(page: &str, name: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = page.split_once(&begin).expect("the table's beginning");
    let (_, after) = rest.split_once(&end).expect("the table's end");
    format!("{before}{begin}{table}{end}{after}")
}

#[test]
fn the_page_of_serving() {
    let mut errors = "| status | type | code |\n|---|---|---|\n".to_owned();
    for (_, status, ty, code) in KINDS {
        errors.push_str(&format!("| {status} | `{ty}` | `{code}` |\n"));
    }
    let mut paths = "| method | path | needs | what |\n|---|---|---|---|\n".to_owned();
    for route in all() {
        let needs = match route.access {
            Access::Anyone => "nothing",
            Access::Known => "a key",
            Access::Needs(scope) => scope.name(),
        };
        paths.push_str(&format!(
            "| {} | `{}` | {needs} | {} |\n",
            route.method, route.path, route.about
        ));
    }
    let mut metrics = "| metric | kind | labels | what |\n|---|---|---|---|\n".to_owned();
    for (_, name, form, labels, help) in METRICS {
        let form = match form {
            Form::Counter => "counter",
            Form::Gauge => "gauge",
            Form::Histogram(_) | Form::Sizes => "histogram",
        };
        metrics.push_str(&format!(
            "| `{name}` | {form} | {} | {help} |\n",
            labels.join(", ")
        ));
    }
    let page = std::fs::read_to_string(docs("serve.md")).expect("docs/serve.md");
    let page = with_table(&page, "errors", &errors);
    let page = with_table(&page, "routes", &paths);
    is_the_file("serve.md", &with_table(&page, "metrics", &metrics));
}

#[test]
fn the_openapi_document() {
    let document = document();
    let paths = document["paths"].as_object().expect("paths");
    let operations: usize = paths.values().map(|p| p.as_object().unwrap().len()).sum();
    assert_eq!(operations, all().len(), "a route is there twice");
    for route in all() {
        let operation = &paths[route.path][route.method.as_str().to_ascii_lowercase()];
        assert_eq!(operation["summary"], route.about);
        let open = operation["security"].as_array().unwrap().is_empty();
        assert_eq!(open, route.access == Access::Anyone, "{}", route.path);
    }
    let text = serde_json::to_string_pretty(&document).expect("JSON");
    is_the_file("openapi.json", &format!("{text}\n"));
}
