//! Ctrl-C. While an answer is being made it stops the answer; at a prompt it says how to leave; at
//! any other time, and the second time, it ends the process with code 130.

use std::sync::atomic::{AtomicU8, Ordering};

/// Nobody is listening: Ctrl-C ends the process.
const IDLE: u8 = 0;
/// An answer is being made: Ctrl-C asks it to stop.
const LISTENING: u8 = 1;
/// It has been asked.
const ASKED: u8 = 2;
/// A person is at a plain prompt: the first Ctrl-C says how to leave, the second leaves.
const PROMPT: u8 = 3;

/// Said after a first Ctrl-C at the prompt.
pub const LEAVE: &str = "(Ctrl-C again, Ctrl-D or /bye leaves)";

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// Takes over Ctrl-C for the process.
pub fn install() {
    let handler = || {
        let change = |from, to| {
            STATE
                .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        };
        if change(PROMPT, IDLE) {
            crate::out::note(&format!("\n{LEAVE}"));
        } else if !change(LISTENING, ASKED) {
            std::process::exit(crate::exit::Code::Interrupted as i32);
        }
    };
    // Without a handler the signal's own action ends the process: no reason to refuse work.
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::debug!("no Ctrl-C handler: {error}");
    }
}

/// Runs `work` with Ctrl-C as a request to stop, which `work` reads with [`asked`]. Returns what
/// `work` returns and whether it was asked to stop.
pub fn listen<T>(work: impl FnOnce() -> T) -> (T, bool) {
    STATE.store(LISTENING, Ordering::SeqCst);
    let result = work();
    (result, STATE.swap(IDLE, Ordering::SeqCst) == ASKED)
}

/// Runs `read` at a plain prompt, where the first Ctrl-C only says how to leave.
pub fn at_prompt<T>(read: impl FnOnce() -> T) -> T {
    STATE.store(PROMPT, Ordering::SeqCst);
    let result = read();
    STATE.store(IDLE, Ordering::SeqCst);
    result
}

/// Has Ctrl-C been pressed since [`listen`] began?
pub fn asked() -> bool {
    STATE.load(Ordering::SeqCst) == ASKED
}
