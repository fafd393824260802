//! Pulls a model and prints what the hub says: `cargo run -p hub --example pull [MODEL] [--dry-run]`.

use std::time::Instant;

use hub::{Hub, Progress, PullOptions};

/// One line a second on standard error.
struct Lines {
    label: String,
    total: Option<u64>,
    last: Instant,
}

impl Progress for Lines {
    fn start(&mut self, label: &str, total: Option<u64>) {
        eprintln!("{label}: start, {total:?} bytes");
        (self.label, self.total) = (label.to_owned(), total);
    }

    fn advance(&mut self, bytes_done: u64) {
        if self.last.elapsed().as_secs_f32() > 1.0 {
            self.last = Instant::now();
            eprintln!("{}: {bytes_done} of {:?}", self.label, self.total);
        }
    }

    fn finish(&mut self) {
        eprintln!("{}: done", self.label);
    }

    fn note(&mut self, line: &str) {
        eprintln!("note: {line}");
    }
}

fn main() -> Result<(), hub::Error> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let hub = Hub::from_env(false)?;
    let word = words.iter().find(|word| !word.starts_with("--"));
    let word = word.map_or(hub.default_model(), String::as_str);
    let options = PullOptions {
        dry_run: words.iter().any(|word| word == "--dry-run"),
        force: words.iter().any(|word| word == "--force"),
    };
    let mut progress = Lines {
        label: String::new(),
        total: None,
        last: Instant::now(),
    };
    let start = Instant::now();
    match hub.pull(word, options, &mut progress) {
        Ok(report) => println!("{report:#?}\nin {:.2} s", start.elapsed().as_secs_f32()),
        Err(e) => {
            eprintln!("error: {e}");
            if let Some(hint) = e.hint() {
                eprintln!("hint: {hint}");
            }
            std::process::exit(if e.is_not_found() { 3 } else { 1 });
        }
    }
    Ok(())
}
