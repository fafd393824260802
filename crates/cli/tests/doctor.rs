//! `puna doctor`: what it says is there, offline and with a forced level.

mod common;

use common::{Home, puna};

#[test]
fn one_object() {
    let home = Home::new();
    let answer = home.run(&["doctor", "--format", "json"]).json();
    assert!(
        answer["cpu"]["levels"]
            .as_array()
            .expect("a list")
            .contains(&"scalar".into())
    );
    assert!(
        answer["cpu"]["levels"]
            .as_array()
            .expect("a list")
            .contains(&answer["cpu"]["level"])
    );
    assert!(answer["threads"]["used"].as_u64().expect("a number") >= 1);
    let store = home.dir.path().join(".local/share/puna");
    assert_eq!(answer["store"]["path"], store.to_str().expect("UTF-8"));
    assert_eq!(
        (&answer["store"]["exists"], &answer["store"]["writable"]),
        (&false.into(), &true.into())
    );
    assert_eq!(answer["store"]["models"], 0);
    assert!(answer["sources"].is_null(), "offline: nobody is asked");
    assert!(
        std::fs::read_dir(home.dir.path())
            .expect("there")
            .next()
            .is_none(),
        "nothing is left behind"
    );
}

#[test]
fn what_is_slow_is_named() {
    let answer = puna(&[
        "doctor",
        "--simd",
        "scalar",
        "--compute",
        "f32",
        "--format",
        "json",
    ])
    .json();
    assert_eq!(
        (&answer["cpu"]["level"], &answer["cpu"]["compute"]),
        (&"scalar".into(), &"f32".into())
    );
    let notes = answer["notes"].to_string();
    assert!(notes.contains("scalar"), "{notes}");
    assert!(notes.contains("reference mode"), "{notes}");
}

#[test]
fn text_names_the_parts() {
    let said = puna(&["doctor"]).succeeded().text();
    for part in [
        "cpu ",
        "level ",
        "threads ",
        "memory ",
        "store ",
        "sources  not asked",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[test]
fn a_store_that_cannot_be_written_is_named() {
    let home = Home::new();
    let file = home.dir.path().join("file");
    std::fs::write(&file, "").expect("written");
    let place = file.join("store");
    let home = home.env("PUNA_HOME", place.to_str().expect("UTF-8"));
    let answer = home.run(&["doctor", "--format", "json"]).json();
    assert_eq!(answer["store"]["exists"], false);
}
