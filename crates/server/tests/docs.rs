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
            Form::Histogram | Form::Counted(_) => "histogram",
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
    // Every name in a path, and every word that a query may have, once.
    let parameters = |path: &str, method: &str| -> Vec<(String, String, bool)> {
        let list = paths[path][method]["parameters"].as_array().unwrap().iter();
        list.map(|p| {
            let text = |name: &str| p[name].as_str().unwrap().to_owned();
            (text("name"), text("in"), p["required"] == true)
        })
        .collect()
    };
    for route in all() {
        let method = route.method.as_str().to_ascii_lowercase();
        let found = parameters(route.path, &method);
        let names: std::collections::HashSet<_> = found.iter().map(|p| &p.0).collect();
        assert_eq!(names.len(), found.len(), "{}: {found:?}", route.path);
        let inside = route.path.matches('{').count();
        let required = found.iter().filter(|p| p.1 == "path" && p.2).count();
        assert_eq!(required, inside, "{}: {found:?}", route.path);
        for (name, place, _) in &found {
            let named = route.path.contains(&format!("{{{name}}}"));
            assert_eq!(place == "path", named, "{}: {name}", route.path);
        }
    }
    let query = |path: &str, method: &str| {
        let all = parameters(path, method).into_iter();
        let names = all.filter(|p| p.1 == "query").map(|p| p.0);
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(query("/v1/adapters/{id}", "delete"), "model");
    assert_eq!(query("/lora-adapters", "get"), "model");
    assert_eq!(query("/lora-adapters", "post"), "model");
    assert_eq!(query("/admin/usage", "get"), "from to format");
    assert_eq!(query("/v1/models", "get"), "");
    let text = serde_json::to_string_pretty(&document).expect("JSON");
    is_the_file("openapi.json", &format!("{text}\n"));
}
