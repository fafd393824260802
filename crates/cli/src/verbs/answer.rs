//! One answer from the engine: its text as it comes, Ctrl-C as a request to stop, and a sign of
//! life while a long prompt is read.

use std::io::{IsTerminal, Write};

use anyhow::Result;
use engine::{Event, Flow, GenerateParams, Generation, Session};
use text::Tokenizer;

/// A prompt of more tokens than this gets a line that counts them.
const LONG: usize = 512;

/// Generates; `show` gets each piece of text. An error of `show` stops the answer and is returned.
pub fn generate(
    session: &mut Session,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    params: &GenerateParams,
    show: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Generation> {
    let mut reading = Reading::default();
    let mut trouble = None;
    let (generation, _) = crate::interrupt::listen(|| {
        session.generate(tokenizer, prompt, params, &mut |event| {
            let shown = match event {
                Event::Prompt(progress) => {
                    reading.show(progress.done, progress.total);
                    Ok(())
                }
                Event::Token { text, .. } | Event::Text(text) => {
                    reading.clear();
                    match text {
                        "" => Ok(()),
                        text => show(text),
                    }
                }
                Event::Shift { kept, of } => {
                    reading.clear();
                    tracing::warn!(
                        "the context is full: the model goes on with {kept} of its {of} tokens"
                    );
                    Ok(())
                }
            };
            match shown {
                Ok(()) if crate::interrupt::asked() => Flow::Stop,
                Ok(()) => Flow::Continue,
                Err(error) => {
                    trouble = Some(error);
                    Flow::Stop
                }
            }
        })
    });
    reading.clear();
    match trouble {
        Some(error) => Err(error),
        None => Ok(generation?),
    }
}

/// `reading the prompt: 512 of 2048 tokens`, on a terminal, drawn over itself.
#[derive(Default)]
struct Reading {
    drawn: bool,
}

impl Reading {
    fn show(&mut self, done: usize, total: usize) {
        let mut stderr = std::io::stderr();
        if total - done <= LONG && !self.drawn || crate::env::dumb() || !stderr.is_terminal() {
            return;
        }
        let _ = write!(stderr, "\rreading the prompt: {done} of {total} tokens");
        let _ = stderr.flush();
        self.drawn = true;
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let mut stderr = std::io::stderr();
            let _ = write!(stderr, "\r\x1b[K");
            let _ = stderr.flush();
        }
    }
}
