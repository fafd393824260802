//! Conversations, on a terminal of the test's own.
#![cfg(unix)]

mod common;

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Home, fixture, real_model};

/// A conversation under way.
struct Talk {
    pty: Arc<pty_process::blocking::Pty>,
    child: std::process::Child,
    seen: Arc<Mutex<Vec<u8>>>,
    /// Everything before this has been waited for.
    past: usize,
}

impl Talk {
    fn begin(home: &Home, term: &str, args: &[&str]) -> Talk {
        let (pty, pts) = pty_process::blocking::open().unwrap();
        pty.resize(pty_process::Size::new(24, 100)).unwrap();
        let plain = home.command(args);
        let mut command = pty_process::blocking::Command::new(plain.get_program());
        command = command
            .args(plain.get_args())
            .env_clear()
            .current_dir(home.dir.path());
        for (name, value) in plain.get_envs() {
            if let Some(value) = value {
                command = command.env(name, value);
            }
        }
        let child = command.env("TERM", term).spawn(pts).unwrap();
        let pty = Arc::new(pty);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (from, to) = (pty.clone(), seen.clone());
        std::thread::spawn(move || {
            let mut block = [0u8; 4096];
            while let Ok(n) = (&*from).read(&mut block) {
                if n == 0 {
                    break;
                }
                // As a terminal does: tell where the cursor is when asked.
                if block[..n].windows(4).any(|w| w == b"\x1b[6n") {
                    let _ = (&*from).write_all(b"\x1b[1;1R");
                }
                to.lock().unwrap().extend_from_slice(&block[..n]);
            }
        });
        Talk {
            pty,
            child,
            seen,
            past: 0,
        }
    }

    fn send(&mut self, text: &str) -> &mut Talk {
        (&*self.pty).write_all(text.as_bytes()).unwrap();
        self
    }

    /// Waits until this stands in what came since the last wait.
    fn wait(&mut self, text: &str) -> &mut Talk {
        let begin = Instant::now();
        loop {
            let new = self.seen.lock().unwrap()[self.past..].to_vec();
            if let Some(at) = new.windows(text.len()).position(|w| w == text.as_bytes()) {
                self.past += at + text.len();
                return self;
            }
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "no {text:?} in {:?}",
                String::from_utf8_lossy(&new)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn end(&mut self) -> (Option<i32>, String) {
        let begin = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if begin.elapsed() > Duration::from_secs(60) => {
                    let _ = self.child.kill();
                    panic!("it does not end: {:?}", self.seen.lock().unwrap());
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        std::thread::sleep(Duration::from_millis(100));
        let seen = self.seen.lock().unwrap();
        (status.code(), String::from_utf8_lossy(&seen).into_owned())
    }
}

fn args(model: &str) -> Vec<&str> {
    vec!["run", model, "-n", "6", "--seed", "1"]
}

#[test]
fn a_dumb_terminal_gets_no_escapes() {
    let home = Home::new();
    let model = fixture("models/llama3");
    let mut talk = Talk::begin(&home, "dumb", &args(&model));
    talk.wait("context 256 tokens")
        .wait(">>> ")
        .send("hello\n")
        .wait(">>> ");
    talk.send("one\\\n").wait("... ").send("two\n").wait(">>> ");
    talk.send("/show\n").wait("messages       4").wait(">>> ");
    talk.send("/nonsense\n").wait("is no command").wait(">>> ");
    talk.send("/set temperature 0.25\n/show\n")
        .wait("temperature    0.25")
        .wait(">>> ");
    talk.send("/set top_p 9\n").wait("error: ").wait(">>> ");
    talk.send("/help\n").wait("/regenerate").wait(">>> ");
    let (code, seen) = talk.send("/bye\n").end();
    assert_eq!(code, Some(0), "{seen}");
    assert!(!seen.contains('\x1b'), "{seen:?}");
}

#[test]
fn ctrl_c_at_an_empty_prompt_leaves_the_second_time() {
    let home = Home::new();
    let model = fixture("models/llama3");
    for (term, code) in [("dumb", Some(130)), ("xterm", Some(0))] {
        let mut talk = Talk::begin(&home, term, &args(&model));
        talk.wait(">>> ").send("\x03").wait("Ctrl-C again");
        std::thread::sleep(Duration::from_millis(300));
        if term == "xterm" {
            // Wiping what is typed is no step towards leaving.
            talk.send("abc").wait("abc").send("\x03").wait(">>> ");
            talk.send("\x03").wait("Ctrl-C again").wait(">>> ");
        }
        let (ended, seen) = talk.send("\x03").end();
        assert_eq!(ended, code, "{seen:?}");
        let mut talk = Talk::begin(&home, term, &args(&model));
        talk.wait(">>> ");
        assert_eq!(talk.send("\x04").end().0, Some(0));
    }
}

#[test]
fn an_editor_with_history_and_several_lines() {
    let home = Home::new();
    let model = fixture("models/llama3");
    let mut talk = Talk::begin(&home, "xterm", &args(&model));
    talk.wait("context 256 tokens").wait(">>> ");
    talk.send("hello there\r").wait("\n").wait(">>> ");
    talk.send("\"\"\"\rline one\rline two\r\"\"\"\r")
        .wait(">>> ");
    talk.send("/save talk.json\r")
        .wait("4 messages")
        .wait(">>> ");
    talk.send("/clear\r").wait("forgotten").wait(">>> ");
    talk.send("/load talk.json\r")
        .wait("4 messages")
        .wait(">>> ");
    talk.send("/regenerate\r").wait("\n").wait(">>> ");
    talk.send("/system Be kind.\r")
        .wait(">>> ")
        .send("/system\r")
        .wait("Be kind.")
        .wait(">>> ");
    let (code, seen) = talk.send("/bye\r").end();
    assert_eq!(code, Some(0), "{seen}");
    let saved = std::fs::read_to_string(home.dir.path().join("talk.json")).unwrap();
    let saved: serde_json::Value = serde_json::from_str(&saved).unwrap();
    assert_eq!(saved["messages"][0]["content"], "hello there");
    assert_eq!(saved["messages"][2]["content"], "line one\nline two");
    let history = home.dir.path().join(".local/share/puna/history");
    assert!(
        std::fs::read_to_string(&history)
            .unwrap()
            .contains("hello there")
    );
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        std::fs::metadata(&history).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // The next conversation remembers.
    let mut talk = Talk::begin(&home, "xterm", &args(&model));
    talk.wait(">>> ")
        .send("hello")
        .wait(" there")
        .send("\x03")
        .wait(">>> ");
    talk.send("/bye\r").end();
}

#[test]
fn no_colour_means_none() {
    let home = Home::new().env("NO_COLOR", "1");
    let model = fixture("models/llama3");
    let mut talk = Talk::begin(&home, "xterm", &args(&model));
    talk.wait(">>> ").send("/bye\r");
    let (_, seen) = talk.end();
    assert!(
        !seen.contains("\x1b[1m") && !seen.contains("\x1b[2m"),
        "{seen:?}"
    );
}

#[test]
fn a_full_context_is_said_and_shift_forgets_the_oldest() {
    let home = Home::new();
    let model = fixture("models/llama3");
    let mut talk = Talk::begin(
        &home,
        "dumb",
        &[
            "run",
            &model,
            "--ctx",
            "64",
            "-n",
            "8",
            "--seed",
            "1",
            "--logit-bias",
            "505:-inf",
        ],
    );
    talk.wait(">>> ")
        .send("some words to begin with\n")
        .wait(">>> ");
    talk.send("and here are some more of them, quite a number of them\n")
        .wait("error: ")
        .wait("hint: /clear");
    talk.wait(">>> ").send("/set shift on\n").wait(">>> ");
    talk.send("and here are some more of them, quite a number of them\n")
        .wait("forgotten")
        .wait(">>> ");
    assert_eq!(talk.send("/bye\n").end().0, Some(0));
}

#[test]
fn conversations_have_no_json_form() {
    let home = Home::new();
    let model = fixture("models/llama3");
    for option in [&["--format", "json"][..], &["--raw"], &["--suffix", "x"]] {
        let args = [&["run", &model], option].concat();
        let (code, seen) = Talk::begin(&home, "xterm", &args).end();
        assert_eq!(code, Some(2), "{seen}");
        assert!(
            seen.contains(option[0]) && seen.contains("hint: "),
            "{seen}"
        );
    }
}

#[test]
fn ctrl_c_stops_an_answer_and_the_conversation_goes_on() {
    let Some(model) = real_model() else {
        return;
    };
    let home = Home::new();
    for term in ["xterm", "dumb"] {
        let enter = if term == "dumb" { "\n" } else { "\r" };
        let mut talk = Talk::begin(
            &home,
            term,
            &[
                "run",
                model.to_str().unwrap(),
                "--seed",
                "1",
                "--logit-bias",
                "2:-inf",
                "--logit-bias",
                "0:-inf",
            ],
        );
        talk.wait(">>> ")
            .send(&format!("Tell me a very long story.{enter}"));
        std::thread::sleep(Duration::from_secs(3));
        talk.send("\x03").wait("(stopped)").wait(">>> ");
        talk.send(&format!("/show{enter}"))
            .wait("messages       2")
            .wait(">>> ");
        assert_eq!(talk.send(&format!("/bye{enter}")).end().0, Some(0));
    }
}
