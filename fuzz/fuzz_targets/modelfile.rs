//! Modelfiles, and the small layers of ollama's store: a recipe that prints as itself, or an error.
#![no_main]

use hub::{parse_modelfile, print_modelfile, read_layers};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let (first, second) = text.split_once('\0').unwrap_or((text, "[]"));
    let _ = read_layers(first, second);
    let Ok(recipe) = parse_modelfile(text) else {
        return;
    };
    let printed = print_modelfile(&recipe);
    let again = parse_modelfile(&printed).expect("what is printed can be read");
    if !printed.contains("no quotation can hold") {
        assert_eq!(again, recipe);
    }
});
