//! Reading what a person types: an editor with history on a terminal that can, else plain lines.
//!
//! A message may have several lines: a line that ends in a backslash goes on, Alt-Enter breaks a
//! line, and `"""` opens a block that the next `"""` closes.

use std::borrow::Cow;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use nu_ansi_term::Style;
use reedline::{
    DefaultHinter, Emacs, FileBackedHistory, Hinter, History, KeyCode, KeyModifiers, Prompt,
    PromptEditMode, PromptHistorySearch, Reedline, ReedlineEvent, Signal, ValidationResult,
    Validator, default_emacs_keybindings,
};

/// What a new message begins with, and its further lines.
const PROMPT: &str = ">>> ";
const MORE: &str = "... ";

/// How many messages the history keeps.
const HISTORY: usize = 1000;

/// What was typed.
pub enum Line {
    Text(String),
    /// Ctrl-C, which wiped something.
    Wiped,
    /// Ctrl-C at an empty prompt.
    Interrupt,
    /// Ctrl-D, or the input's end.
    End,
}

/// Where messages come from.
pub enum Reader {
    Editor {
        editor: Box<Reedline>,
        /// Is there something in the line that is being edited?
        typed: Arc<AtomicBool>,
    },
    Plain,
}

impl Reader {
    /// An editor if this terminal understands one; its history lies in `history`, if it can be
    /// kept. `words` are the commands that Tab completes.
    pub fn new(history: Option<PathBuf>, words: &[String]) -> Reader {
        if crate::env::dumb() || !std::io::stdout().is_terminal() {
            return Reader::Plain;
        }
        let mut keys = default_emacs_keybindings();
        keys.add_binding(
            KeyModifiers::NONE,
            KeyCode::Tab,
            ReedlineEvent::UntilFound(vec![ReedlineEvent::HistoryHintComplete]),
        );
        let mut editor = Reedline::create()
            .with_edit_mode(Box::new(Emacs::new(keys)))
            .with_validator(Box::new(Whole))
            .with_ansi_colors(crate::env::colour())
            .use_bracketed_paste(true);
        let typed = Arc::new(AtomicBool::new(false));
        editor = editor.with_hinter(Box::new(Hints::new(words.to_vec(), typed.clone())));
        match history.map(|path| kept(&path)) {
            Some(Ok(history)) => editor = editor.with_history(Box::new(history)),
            Some(Err(error)) => tracing::warn!("no history: {error:#}"),
            None => {}
        }
        let editor = Box::new(editor);
        Reader::Editor { editor, typed }
    }

    /// The next message.
    pub fn read(&mut self) -> Result<Line> {
        match self {
            Reader::Editor { editor, typed } => {
                typed.store(false, Ordering::Relaxed);
                Ok(match editor.read_line(&Marks)? {
                    Signal::Success(text) => Line::Text(unwrapped(&text)),
                    Signal::CtrlC if typed.load(Ordering::Relaxed) => Line::Wiped,
                    Signal::CtrlC => Line::Interrupt,
                    _ => Line::End,
                })
            }
            Reader::Plain => plain(),
        }
    }
}

/// The history file, readable by its owner only: it holds what was said.
fn kept(path: &Path) -> Result<FileBackedHistory> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
        options.mode(0o600);
        let file = options.open(path)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    }
    #[cfg(not(unix))]
    options.open(path)?;
    Ok(FileBackedHistory::with_file(HISTORY, path.to_path_buf())?)
}

/// Lines without any editing: a dumb terminal, or stdout that is a file.
fn plain() -> Result<Line> {
    let mut text = String::new();
    loop {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(if text.is_empty() { PROMPT } else { MORE }.as_bytes())?;
        stdout.flush()?;
        drop(stdout);
        let before = text.len();
        crate::interrupt::at_prompt(|| read_line(&mut text))?;
        if text.len() == before {
            return Ok(Line::End);
        }
        if whole(text.trim_end_matches(['\n', '\r'])) {
            return Ok(Line::Text(unwrapped(text.trim_end_matches(['\n', '\r']))));
        }
    }
}

/// Bytes that are not UTF-8 become U+FFFD: a stray byte must not end a conversation.
fn read_line(text: &mut String) -> Result<()> {
    let mut line = Vec::new();
    std::io::stdin().lock().read_until(b'\n', &mut line)?;
    text.push_str(&String::from_utf8_lossy(&line));
    Ok(())
}

const BLOCK: &str = "\"\"\"";

/// Is the message complete?
fn whole(text: &str) -> bool {
    match text.trim_start().strip_prefix(BLOCK) {
        Some(rest) => rest.contains(BLOCK),
        None => !text.ends_with('\\'),
    }
}

/// The message without the signs that only join its lines.
fn unwrapped(text: &str) -> String {
    let text = text.replace("\r\n", "\n");
    match text.trim_start().strip_prefix(BLOCK) {
        Some(rest) => {
            let inside = rest.replacen(BLOCK, "", 1);
            inside.trim_matches('\n').to_owned()
        }
        None => text.replace("\\\n", "\n"),
    }
}

/// Enter ends a message only if it is whole.
struct Whole;

impl Validator for Whole {
    fn validate(&self, line: &str) -> ValidationResult {
        match whole(line) {
            true => ValidationResult::Complete,
            false => ValidationResult::Incomplete,
        }
    }
}

/// What may follow, in dim type behind what is typed: a command, else the last message that began
/// in the same way. Tab and the right arrow take it. The editor shows it every state of the line:
/// from here comes `typed` too.
struct Hints {
    typed: Arc<AtomicBool>,
    words: Vec<String>,
    history: DefaultHinter,
    /// The rest of a command; `None`: the history's hint counts.
    command: Option<String>,
}

impl Hints {
    fn new(words: Vec<String>, typed: Arc<AtomicBool>) -> Hints {
        Hints {
            typed,
            words,
            history: DefaultHinter::default().with_style(Style::new().dimmed()),
            command: None,
        }
    }
}

/// The rest of the first command that begins in this way.
fn rest_of_command<'w>(words: &'w [String], line: &str) -> Option<&'w str> {
    let line = Some(line).filter(|line| line.len() > 1 && line.starts_with('/'))?;
    let mut rests = words.iter().filter_map(|word| word.strip_prefix(line));
    rests.find(|rest| !rest.is_empty())
}

impl Hinter for Hints {
    fn handle(
        &mut self,
        line: &str,
        pos: usize,
        history: &dyn History,
        ansi: bool,
        cwd: &str,
    ) -> String {
        self.typed.store(!line.is_empty(), Ordering::Relaxed);
        // Without dim type a hint would look like something typed.
        if !ansi {
            return String::new();
        }
        self.command = rest_of_command(&self.words, line).map(str::to_owned);
        match &self.command {
            Some(rest) => Style::new().dimmed().paint(rest).to_string(),
            None => self.history.handle(line, pos, history, ansi, cwd),
        }
    }

    fn complete_hint(&self) -> String {
        match &self.command {
            Some(rest) => rest.clone(),
            None => self.history.complete_hint(),
        }
    }

    fn next_hint_token(&self) -> String {
        match &self.command {
            Some(rest) => rest.clone(),
            None => self.history.next_hint_token(),
        }
    }
}

/// The prompt's signs.
struct Marks;

impl Prompt for Marks {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_indicator(&self, _mode: PromptEditMode) -> Cow<'_, str> {
        Cow::Borrowed(PROMPT)
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        Cow::Borrowed(MORE)
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        Cow::Owned(format!("(search: {}) ", search.term))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_several_lines() {
        for (typed, is_whole, means) in [
            ("hello", true, "hello"),
            ("one\\", false, "one\\"),
            ("one\\\ntwo", true, "one\ntwo"),
            ("one\ntwo", true, "one\ntwo"),
            ("\"\"\"one", false, "one"),
            ("\"\"\"\none\ntwo\n\"\"\"", true, "one\ntwo"),
            ("\"\"\"one\\\ntwo\"\"\"", true, "one\\\ntwo"),
            ("say \"\"\"", true, "say \"\"\""),
            ("", true, ""),
        ] {
            assert_eq!(whole(typed), is_whole, "{typed:?}");
            assert_eq!(unwrapped(typed), means, "{typed:?}");
        }
    }

    #[test]
    fn commands_are_completed() {
        let words = ["/set", "/set temperature ", "/system"].map(String::from);
        for (typed, rest) in [
            ("/s", Some("et")),
            ("/set", Some(" temperature ")),
            ("/set t", Some("emperature ")),
            ("/sy", Some("stem")),
            ("/", None),
            ("/x", None),
            ("s", None),
        ] {
            assert_eq!(rest_of_command(&words, typed), rest, "{typed}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn the_history_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/history");
        drop(kept(&path).unwrap());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
