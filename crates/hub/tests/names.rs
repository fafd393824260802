//! MODEL words, and the promise that nothing from outside names a place outside the store.

use std::path::{Component, Path, PathBuf};

use hub::{Spec, parse_name, safe_relative};
use proptest::prelude::*;

fn hf(repo: &str, rev: &str, file: Option<&str>) -> Spec {
    Spec::Hf {
        repo: repo.into(),
        rev: rev.into(),
        file_or_quant: file.map(Into::into),
    }
}

fn pip(name: &str, version: &str, member: Option<&str>) -> Spec {
    Spec::Pip {
        name: name.into(),
        version: version.into(),
        member: member.map(Into::into),
    }
}

fn name(name: &str, tag: &str) -> Spec {
    Spec::Name {
        name: name.into(),
        tag: tag.into(),
    }
}

#[test]
fn words_and_their_meaning() {
    let path = |text: &str| Spec::Path(PathBuf::from(text));
    for (word, spec) in [
        ("smollm2:135m", name("smollm2", "135m")),
        ("SmolLM2", name("smollm2", "latest")),
        ("org/model:Q4_K_M", name("org/model", "q4_k_m")),
        ("/abs/x", path("/abs/x")),
        ("./x", path("./x")),
        ("../x", path("../x")),
        (".", path(".")),
        ("x.gguf", path("x.gguf")),
        ("dir/Model.GGUF", path("dir/Model.GGUF")),
        ("a/b/c", path("a/b/c")),
        ("tokenizer.json", path("tokenizer.json")),
        ("stories15M.bin", path("stories15M.bin")),
        ("with space", path("with space")),
        ("pip", path("pip")),
        ("HF:x", path("HF:x")),
        ("hf/x", name("hf/x", "latest")),
        ("hf:org/repo", hf("org/repo", "main", None)),
        ("hf:Org/Re.po_1@v1.0", hf("Org/Re.po_1", "v1.0", None)),
        (
            "hf:org/repo@refs/pr/1:Q4_K_M",
            hf("org/repo", "refs/pr/1", Some("Q4_K_M")),
        ),
        (
            "hf:org/repo:sub/x.gguf",
            hf("org/repo", "main", Some("sub/x.gguf")),
        ),
        ("pip:a-b.c_d==1.0.post1", pip("a-b.c_d", "1.0.post1", None)),
        (
            "pip:x==1!2.0rc1+local:d/m.gguf",
            pip("x", "1!2.0rc1+local", Some("d/m.gguf")),
        ),
        (
            "https://h/x.gguf?a=b#frag",
            Spec::Url("https://h/x.gguf?a=b".into()),
        ),
        ("HTTPS://H/x", Spec::Url("https://h/x".into())),
    ] {
        assert_eq!(Spec::parse(word).unwrap(), spec, "{word}");
    }
}

#[test]
fn words_that_mean_nothing() {
    for word in [
        "",
        "\0",
        "a\nb",
        "hf:",
        "hf:repo",
        "hf:org/",
        "hf:/repo",
        "hf:a/b/c",
        "hf:../repo",
        "hf:org/..",
        "hf:-o/r",
        "hf:o--x/r",
        "hf:o/r..x",
        "hf:o/r@",
        "hf:o/r@../x",
        "hf:o/r@/x",
        "hf:o/r@x//y",
        "hf:o/r@-x",
        "hf:o/r@a b",
        "hf:o/r:",
        "hf:o/r:../x",
        "hf:o/r:/etc/passwd",
        "hf:o/r:a\\b",
        "hf:o/r:C:x",
        "hf:o/r:a/../b",
        "pip:",
        "pip:x",
        "pip:x==",
        "pip:==1",
        "pip:-x==1",
        "pip:--index-url==1",
        "pip:x==-1",
        "pip:x==1.*",
        "pip:x==1,<2",
        "pip:x[extra]==1",
        "pip:x @ file:///x==1",
        "pip:x==1 --pre",
        "pip:x==1;os",
        "pip:x==1:",
        "pip:x==1:../m",
        "pip:x==1:/m",
        "pip:./x==1",
        "pip:x/y==1",
        "ftp://x/y",
        "file:///etc/passwd",
        "https://",
        "https://user:pass@h/x",
        "https://user@h/x",
        "http://[::1",
        "javascript://x",
    ] {
        let parsed = Spec::parse(word);
        assert!(
            matches!(parsed, Err(hub::Error::Spec { .. })),
            "{word}: {parsed:?}"
        );
    }
    assert!(Spec::parse(&"a".repeat(5000)).is_err());
    // Short enough as it is typed, too long as it is kept.
    assert!(Spec::parse(&format!("https://h/{}", "}".repeat(1400))).is_err());
    let longest = Spec::parse(&format!("https://h/{}", "}".repeat(1362))).unwrap();
    assert_eq!(Spec::parse(&longest.canonical()).unwrap(), longest);
}

#[test]
fn store_names_read_well() {
    for (word, nice) in [
        (
            "hf:bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M",
            "bartowski/llama-3.2-1b-instruct-gguf:q4_k_m",
        ),
        ("hf:org/repo", "org/repo:latest"),
        ("hf:org/repo@v2:sub/M.gguf", "org/repo:m-v2"),
        ("hf:org/repo@refs/pr/1", "org/repo:refs-pr-1"),
        ("pip:Some_Package==1.0+cpu:x/y.gguf", "some_package:1.0-cpu"),
        ("https://h/dir/My%20Model.gguf?x=1", "my-20model:latest"),
        ("https://h/", "model:latest"),
        ("smollm2:135m", "smollm2:135m"),
        // The words of schemes are no names.
        ("https://h/PIP.gguf", "pip-model:latest"),
        ("pip:pip==1.0", "pip-model:1.0"),
    ] {
        let (name, tag) = Spec::parse(word).unwrap().store_names()[0].clone();
        assert_eq!(format!("{name}:{tag}"), nice);
    }
    assert!(Spec::parse("./x").unwrap().store_names().is_empty());
}

/// Every name that a spec would be kept under passes the store's grammar, and its file lies
/// where it must.
fn names_are_safe(spec: &Spec) {
    for (name, tag) in spec.store_names() {
        assert_eq!(
            parse_name(&format!("{name}:{tag}")),
            Some((name.clone(), tag.clone()))
        );
        let file = format!("names/{}/{tag}.json", name.replace('/', "+"));
        let parts: Vec<_> = Path::new(&file).components().collect();
        assert_eq!(parts.len(), 3, "{file}");
        assert!(
            parts
                .iter()
                .all(|part| matches!(part, Component::Normal(_))),
            "{file}"
        );
        assert!(
            parts.iter().all(|part| part.as_os_str().len() < 250),
            "{file}"
        );
    }
}

fn is_inside(name: &str) -> bool {
    Path::new(name)
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
}

proptest! {
    #[test]
    fn any_word(word in any::<String>()) {
        if let Ok(spec) = Spec::parse(&word) {
            names_are_safe(&spec);
        }
    }

    #[test]
    fn words_with_a_scheme(scheme in "hf:|pip:|https://|", rest in "[a-zA-Z0-9./:@=_%?# -]{0,80}") {
        if let Ok(spec) = Spec::parse(&format!("{scheme}{rest}")) {
            names_are_safe(&spec);
            // What a spec says of itself means the same again.
            if !matches!(spec, Spec::Path(_)) {
                prop_assert_eq!(Spec::parse(&spec.canonical()).unwrap(), spec.clone());
            }
            match &spec {
                Spec::Hf { repo, rev, file_or_quant } => {
                    prop_assert!(is_inside(repo) && is_inside(rev));
                    prop_assert!(file_or_quant.as_deref().is_none_or(is_inside));
                    prop_assert_eq!(repo.matches('/').count(), 1);
                }
                Spec::Pip { name, version, member } => {
                    prop_assert!(!name.starts_with('-') && !version.starts_with('-'));
                    prop_assert!(!name.contains(['/', ' ', '=']) && !version.contains(['/', ' ', '=']));
                    prop_assert!(member.as_deref().is_none_or(is_inside));
                }
                _ => {}
            }
        }
    }

    #[test]
    fn safe_relative_names_stay_inside(name in "[a-zA-Z0-9./\\\\: \u{0}-]{0,40}") {
        if safe_relative(&name).is_ok() {
            prop_assert!(is_inside(&name));
            prop_assert_eq!(Path::new(&name).components().count(), name.split('/').count());
        }
    }

    #[test]
    fn different_words_have_different_keys(a in "[a-z:/@]{1,12}", b in "[a-z:/@]{1,12}") {
        // Paths are not pulled, and compare by their components: `x/` equals `x`.
        let parse = |word| Spec::parse(word).ok().filter(|spec| !matches!(spec, Spec::Path(_)));
        if let (Some(a), Some(b)) = (parse(&a), parse(&b)) {
            prop_assert_eq!(a == b, a.key() == b.key());
        }
    }
}
