//! MODEL words: whatever is accepted gets a name of the store, and nothing in it leads out.
#![no_main]

use std::path::{Component, Path};

use hub::{Spec, parse_name, safe_relative};

fn inside(name: &str) -> bool {
    Path::new(name)
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
}

libfuzzer_sys::fuzz_target!(|word: &str| {
    assert!(safe_relative(word).is_err() || inside(word));
    let Ok(spec) = Spec::parse(word) else {
        return;
    };
    for (name, tag) in spec.store_names() {
        assert_eq!(
            parse_name(&format!("{name}:{tag}")),
            Some((name.clone(), tag.clone()))
        );
        assert!(inside(&name) && inside(&tag) && !tag.contains('/'));
    }
    if !matches!(spec, Spec::Path(_)) {
        assert_eq!(Spec::parse(&spec.canonical()).as_ref().ok(), Some(&spec));
    }
    match &spec {
        Spec::Hf {
            repo,
            rev,
            file_or_quant,
        } => {
            assert!(inside(repo) && inside(rev) && file_or_quant.as_deref().is_none_or(inside));
        }
        Spec::Pip {
            name,
            version,
            member,
        } => {
            assert!(!name.starts_with('-') && inside(name) && inside(version));
            assert!(member.as_deref().is_none_or(inside));
        }
        _ => {}
    }
});
