//! Progress on stderr: a bar on a terminal, now and then a plain line elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::machine::size;

/// How often a log that is no terminal gets a line.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// What the hub reports, shown to a person or a log.
pub struct Shown {
    /// Does stderr understand a line that is drawn again and again?
    bars: bool,
    now: Option<Transfer>,
}

struct Transfer {
    label: String,
    total: Option<u64>,
    done: u64,
    began: Instant,
    spoke: Instant,
    bar: Option<ProgressBar>,
}

impl Shown {
    /// On this process's stderr.
    pub fn new() -> Shown {
        Shown {
            bars: std::io::stderr().is_terminal() && !crate::env::dumb(),
            now: None,
        }
    }

    fn say(&self, line: &str) {
        match self.now.as_ref().and_then(|t| t.bar.as_ref()) {
            Some(bar) => bar.suspend(|| crate::out::note(line)),
            None => crate::out::note(line),
        }
    }
}

/// A bar, or a spinner where the size is unknown.
fn bar(total: Option<u64>, label: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    let colour = if crate::env::colour() { ".cyan" } else { "" };
    let template = match total {
        Some(_) => format!(
            "{{msg}} {{bar:30{colour}}} {{decimal_bytes}}/{{decimal_total_bytes}} \
             {{decimal_bytes_per_sec}} {{eta}}"
        ),
        None => "{msg} {spinner} {decimal_bytes} {decimal_bytes_per_sec}".to_owned(),
    };
    match ProgressStyle::with_template(&template) {
        Ok(style) => bar.set_style(style.progress_chars("━━─")),
        Err(error) => tracing::debug!("progress style: {error}"),
    }
    bar.set_message(short(label));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A label that leaves room for the bar: of a long path the end tells more.
fn short(label: &str) -> String {
    const ROOM: usize = 36;
    match label.char_indices().rev().nth(ROOM) {
        Some((at, c)) => format!("…{}", &label[at + c.len_utf8()..]),
        None => label.to_owned(),
    }
}

impl hub::Progress for Shown {
    fn start(&mut self, label: &str, total: Option<u64>) {
        // A transfer that was given up leaves its bar: a new one starts clean.
        if let Some(old) = self.now.take().and_then(|t| t.bar) {
            old.finish_and_clear();
        }
        let began = Instant::now();
        let bar = self.bars.then(|| bar(total, label));
        if bar.is_none() {
            match total {
                Some(total) => crate::out::note(&format!("{label}: {}", size(total))),
                None => crate::out::note(label),
            }
        }
        self.now = Some(Transfer {
            label: label.to_owned(),
            total,
            done: 0,
            began,
            spoke: began,
            bar,
        });
    }

    fn advance(&mut self, bytes_done: u64) {
        let Some(t) = &mut self.now else { return };
        t.done = bytes_done;
        if let Some(bar) = &t.bar {
            bar.set_position(bytes_done);
        } else if t.spoke.elapsed() >= PLAIN_EVERY {
            t.spoke = Instant::now();
            let part = match t.total {
                Some(total) if total > 0 => format!(
                    "{} of {} ({} %)",
                    size(bytes_done),
                    size(total),
                    u128::from(bytes_done) * 100 / u128::from(total)
                ),
                _ => size(bytes_done),
            };
            crate::out::note(&format!("{}: {part}", t.label));
        }
    }

    fn finish(&mut self) {
        let Some(t) = self.now.take() else { return };
        if let Some(bar) = &t.bar {
            bar.finish_and_clear();
        }
        let bytes = t.total.unwrap_or(t.done);
        crate::out::note(&format!(
            "{}: {} in {:.1} s",
            t.label,
            size(bytes),
            t.began.elapsed().as_secs_f64()
        ));
    }

    fn note(&mut self, line: &str) {
        self.say(line);
    }

    fn cancelled(&self) -> bool {
        crate::interrupt::asked()
    }
}

impl Drop for Shown {
    /// An error message must not land behind a half-drawn bar.
    fn drop(&mut self) {
        if let Some(bar) = self.now.take().and_then(|t| t.bar) {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_labels_lose_their_beginning() {
        assert_eq!(short("a.gguf"), "a.gguf");
        let long = short("unpacking é/SmolLM2-135M-Instruct.Q4_1.gguf");
        assert_eq!(long, "…ng é/SmolLM2-135M-Instruct.Q4_1.gguf");
    }
}
