//! The conversation: what is typed becomes a message or a command, the answer streams, and the
//! session's cache carries over from turn to turn.

use std::path::Path;

use anyhow::{Context, Result};
use engine::{FinishReason, GenerateParams, Generation, SamplerParams, Session};
use serde_json::{Value, json};
use text::{ChatTemplate, Tokenizer, chat};

use super::line::{Line, Reader};
use super::{answer, sampling};
use crate::args::RunArgs;
use crate::load::{self, Loaded};

/// The commands: name, what follows it, what it does.
const COMMANDS: &[(&str, &str, &str, Command)] = &[
    ("/help", "", "this list", Chat::help),
    (
        "/system",
        "[TEXT|off]",
        "set, show or drop the system message",
        Chat::set_system,
    ),
    (
        "/set",
        "[NAME VALUE]",
        "a sampler, or: max_tokens N|off, shift on|off, verbose on|off",
        Chat::set,
    ),
    ("/show", "", "model, context, settings", Chat::show),
    (
        "/regenerate",
        "",
        "answer the last message again",
        Chat::regenerate,
    ),
    (
        "/save",
        "FILE",
        "write the conversation as JSON",
        Chat::save,
    ),
    (
        "/load",
        "FILE",
        "go on with a saved conversation",
        Chat::load,
    ),
    (
        "/clear",
        "",
        "forget the conversation, keep the settings",
        Chat::clear,
    ),
    ("/bye", "", "leave (so does Ctrl-D)", Chat::bye),
];

const KEYS: &str = "Alt-Enter or a final \\ goes on in the next line, \"\"\" opens and closes a \
                    block.\nCtrl-C stops an answer; the conversation goes on.";

type Command = fn(&mut Chat, &str) -> Result<Then>;

/// What follows a command.
#[derive(PartialEq)]
enum Then {
    Go,
    Leave,
}

/// A conversation and all it needs.
struct Chat {
    loaded: Loaded,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    session: Session,
    system: Option<String>,
    /// Turns of user and assistant, the oldest first.
    turns: Vec<Value>,
    params: GenerateParams,
    /// The seed that was asked for; without one each answer draws its own.
    seed: Option<u64>,
    shift: bool,
    verbose: bool,
}

/// Talks until the person leaves.
pub fn run(args: &RunArgs, model: Option<&str>) -> Result<()> {
    let mut chat = Chat::open(args, model)?;
    let history = load::hub(args.load.net)?.home().join("history");
    let commands = COMMANDS.iter().map(|c| c.0.to_owned());
    let settings = ["shift", "verbose", "max_tokens", "seed"].into_iter();
    let settings = settings.chain(
        sampling::listed(&chat.params.sampler)
            .into_iter()
            .map(|s| s.0),
    );
    let words: Vec<String> = commands
        .chain(settings.map(|name| format!("/set {name} ")))
        .collect();
    let mut reader = Reader::new(Some(history), &words);
    chat.greet()?;
    let mut warned = false;
    loop {
        match reader.read()? {
            Line::Text(text) => {
                warned = false;
                if chat.turn(&text)? == Then::Leave {
                    return Ok(());
                }
            }
            Line::Wiped => warned = false,
            // The second one in a row leaves.
            Line::Interrupt if !warned => {
                warned = true;
                crate::out::line(&dim(crate::interrupt::LEAVE))?;
            }
            Line::Interrupt | Line::End => return Ok(()),
        }
    }
}

impl Chat {
    fn open(args: &RunArgs, model: Option<&str>) -> Result<Chat> {
        let (loaded, tokenizer) = load::weights_and_tokenizer(model, &args.load)?;
        let args = &loaded.lower.under_run(args);
        let template = loaded.lower.template(args.template.as_deref());
        let template = load::template_of(&loaded.path, &tokenizer, template.as_ref())?;
        let draft = args.draft.draft.as_deref();
        let session = load::session_with_draft(&loaded, &tokenizer, draft)?;
        let generation = load::generation_config(&loaded, sampling::any_set(&args.sampling))?;
        let eog = match &generation {
            Some(config) => engine::eog_from_generation_config(config)?,
            None => Vec::new(),
        };
        Ok(Chat {
            params: GenerateParams {
                sampler: sampling::params(&args.sampling, generation.as_ref())?,
                max_tokens: args.max_tokens,
                stop: args.stop.clone(),
                speculate: args.draft.speculation()?,
                eog,
                ..GenerateParams::default()
            },
            turns: loaded.lower.turns.clone(),
            loaded,
            tokenizer,
            template,
            session,
            system: args.system.clone(),
            seed: args.sampling.seed,
            shift: false,
            verbose: false,
        })
    }

    fn greet(&self) -> Result<()> {
        crate::out::line(&format!(
            "{} {}",
            bold(&self.loaded.name),
            dim(&format!(
                "· context {} tokens · /help for help",
                self.session.context()
            ))
        ))
    }

    /// One message or command. Its errors are said, and the conversation goes on; only a stdout
    /// that is gone ends it.
    fn turn(&mut self, typed: &str) -> Result<Then> {
        let done = match typed.trim() {
            "" => Ok(Then::Go),
            command if typed.starts_with('/') => self.command(command),
            _ => self.say(typed),
        };
        match done {
            Err(error) if crate::exit::broken_pipe(&error) => Err(error),
            Err(error) => {
                crate::exit::tell(&crate::exit::classify(&error));
                Ok(Then::Go)
            }
            then => then,
        }
    }

    fn command(&mut self, typed: &str) -> Result<Then> {
        let (name, rest) = typed.split_once(char::is_whitespace).unwrap_or((typed, ""));
        let name = match name {
            "/exit" | "/quit" => "/bye",
            "/?" => "/help",
            name => name,
        };
        match COMMANDS.iter().find(|c| c.0 == name) {
            Some((_, _, _, work)) => work(self, rest.trim()),
            None => anyhow::bail!(
                "{name} is no command; /help lists them, and a space before the / makes it a message"
            ),
        }
    }

    fn say(&mut self, text: &str) -> Result<Then> {
        self.turns.push(chat::user(text));
        let answered = self.answer();
        // Without an answer the message was not said: a second one in a row confuses templates.
        if answered.is_err() || self.turns.last().is_some_and(|t| t["role"] == "user") {
            self.turns.pop();
        }
        answered.map(|()| Then::Go)
    }

    /// Answers the turns as they are, and adds the answer to them.
    fn answer(&mut self) -> Result<()> {
        let ids = self.fitting_prompt()?;
        self.params.sampler.seed = self.seed.unwrap_or_else(sampling::random_seed);
        self.params.shift = self.shift.then(|| self.kept_in_front(ids.len()));
        let mut shown = crate::wrap::Answer::new();
        let made = answer::generate(
            &mut self.session,
            &self.tokenizer,
            &ids,
            &self.params,
            &mut |text| shown.push(text),
        )?;
        if made.finish_reason != FinishReason::Cancelled {
            shown.finish()?;
        }
        if !made.text.is_empty() {
            self.turns.push(chat::assistant(made.text.as_str()));
        }
        if !made.text.ends_with('\n') {
            crate::out::line("")?;
        }
        self.after(&made)
    }

    /// What is to be said about an answer.
    fn after(&self, made: &Generation) -> Result<()> {
        if made.finish_reason == FinishReason::Cancelled {
            crate::out::line(&dim("(stopped)"))?;
        }
        if made.context_full {
            crate::out::line(&dim(&format!(
                "(the context of {} tokens is full: /clear begins anew, /set shift on forgets the \
                 oldest instead)",
                self.session.context()
            )))?;
        }
        if self.verbose {
            crate::out::line(&dim(&stats(made)))?;
        }
        crate::out::line("")
    }

    fn messages(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| chat::system(text.as_str()));
        system.chain(self.turns.iter().cloned()).collect()
    }

    fn encode(&self, messages: &[Value]) -> Result<Vec<u32>> {
        let options = load::render_options();
        Ok(self.template.encode(&self.tokenizer, messages, &options)?)
    }

    /// The prompt's ids. If they fill the context: an error, or with `shift` the oldest turns are
    /// forgotten, which is said.
    fn fitting_prompt(&mut self) -> Result<Vec<u32>> {
        let context = self.session.context();
        let mut ids = self.encode(&self.messages())?;
        if ids.len() < context {
            return Ok(ids);
        }
        if !self.shift {
            let what = format!(
                "the conversation has {} tokens and the context holds {context}",
                ids.len()
            );
            let hint = "/clear begins anew; /set shift on forgets the oldest messages instead";
            return Err(crate::exit::failure(crate::exit::Code::Failed, what, hint));
        }
        // Down to three quarters, so that the answer has room.
        let mut forgotten = 0;
        while ids.len() > context / 4 * 3 && self.turns.len() > 2 {
            self.turns.drain(..2);
            forgotten += 2;
            ids = self.encode(&self.messages())?;
        }
        anyhow::ensure!(
            ids.len() < context,
            "the message has {} tokens and the context holds {context}",
            ids.len()
        );
        crate::out::line(&dim(&format!(
            "(the oldest {forgotten} messages are forgotten)"
        )))?;
        Ok(ids)
    }

    /// Tokens that a shift keeps: the system message, or at least the very first ones, on which
    /// attention leans.
    fn kept_in_front(&self, prompt: usize) -> usize {
        let mut options = load::render_options();
        options.add_generation_prompt = false;
        let system: Vec<Value> = self
            .messages()
            .into_iter()
            .take(self.system.iter().len())
            .collect();
        let kept = match system.is_empty() {
            true => 0,
            false => self
                .template
                .encode(&self.tokenizer, &system, &options)
                .map_or(0, |ids| ids.len()),
        };
        kept.max(4).min(prompt).min(self.session.context() / 2)
    }

    fn help(&mut self, _rest: &str) -> Result<Then> {
        for (name, rest, what, _) in COMMANDS {
            crate::out::line(&format!("  {:<22} {what}", format!("{name} {rest}")))?;
        }
        crate::out::line(KEYS)?;
        Ok(Then::Go)
    }

    fn set_system(&mut self, rest: &str) -> Result<Then> {
        match rest {
            "" => crate::out::line(self.system.as_deref().unwrap_or("(no system message)"))?,
            "off" => self.system = None,
            text => self.system = Some(text.to_owned()),
        }
        Ok(Then::Go)
    }

    fn set(&mut self, rest: &str) -> Result<Then> {
        let Some((name, value)) = rest.split_once(char::is_whitespace) else {
            anyhow::ensure!(rest.is_empty(), "/set {rest} lacks a value");
            return self.show("");
        };
        let value = value.trim();
        match name.replace('-', "_").as_str() {
            "shift" => self.shift = switch(value)?,
            "verbose" => self.verbose = switch(value)?,
            "max_tokens" if value == "off" => self.params.max_tokens = None,
            "max_tokens" => {
                let n = value
                    .parse()
                    .with_context(|| format!("{value:?} is no number"))?;
                self.params.max_tokens = Some(n);
            }
            "seed" if ["off", "random"].contains(&value) => self.seed = None,
            name => {
                let seed = sampling::set(&mut self.params.sampler, name, value)?;
                self.seed = seed.or(self.seed);
            }
        }
        Ok(Then::Go)
    }

    fn show(&mut self, _rest: &str) -> Result<Then> {
        let weights = self.session.weights();
        let kernels = weights.kernels();
        let on = |yes: bool| if yes { "on" } else { "off" }.to_owned();
        let or = |value: Option<String>, other: &str| value.unwrap_or_else(|| other.to_owned());
        let mut rows = vec![
            ("model", self.loaded.name.clone()),
            ("file", self.loaded.path.display().to_string()),
            (
                "context",
                format!(
                    "{} of {} tokens",
                    self.session.held().len(),
                    self.session.context()
                ),
            ),
            (
                "machine",
                format!(
                    "{} threads, {}, {}, cache {}",
                    kernels.threads(),
                    kernels.level().name(),
                    kernels.compute().name(),
                    self.loaded.cache_type.name()
                ),
            ),
            ("messages", self.turns.len().to_string()),
            ("shift", on(self.shift)),
            ("verbose", on(self.verbose)),
            (
                "max_tokens",
                or(self.params.max_tokens.map(|n| n.to_string()), "off"),
            ),
            ("seed", or(self.seed.map(|n| n.to_string()), "random")),
        ];
        let usual = sampling::listed(&SamplerParams::default());
        let here = sampling::listed(&self.params.sampler);
        // The four that people turn, and whatever was turned.
        const ALWAYS: [&str; 4] = ["temperature", "top_k", "top_p", "min_p"];
        let told = here.into_iter().zip(usual);
        rows.extend(
            told.filter(|(now, usual)| ALWAYS.contains(&now.0) || now != usual)
                .map(|(now, _)| now),
        );
        for (name, value) in rows {
            crate::out::line(&format!("  {name:<14} {value}"))?;
        }
        Ok(Then::Go)
    }

    fn regenerate(&mut self, _rest: &str) -> Result<Then> {
        let is_answer = self.turns.last().is_some_and(|t| t["role"] == "assistant");
        anyhow::ensure!(is_answer, "there is no answer yet");
        let Some(old) = self.turns.pop() else {
            return Ok(Then::Go);
        };
        // With a fixed seed the same choice would give the same words.
        self.params.choice += 1;
        if self.params.sampler.temperature <= 0.0 {
            let again = "(the likeliest words again: /set temperature 0.8 varies them)";
            crate::out::line(&dim(again))?;
        }
        let turns = self.turns.len();
        let answered = self.answer();
        if self.turns.len() == turns {
            self.turns.push(old);
        }
        answered.map(|()| Then::Go)
    }

    fn save(&mut self, file: &str) -> Result<Then> {
        anyhow::ensure!(!file.is_empty(), "/save needs the name of a file");
        let saved = json!({"model": self.loaded.name, "messages": self.messages()});
        let text = serde_json::to_string_pretty(&saved)? + "\n";
        std::fs::write(file, text).with_context(|| format!("cannot write {file}"))?;
        crate::out::line(&dim(&format!(
            "({} messages in {file})",
            self.messages().len()
        )))?;
        Ok(Then::Go)
    }

    fn load(&mut self, file: &str) -> Result<Then> {
        anyhow::ensure!(!file.is_empty(), "/load needs the name of a file");
        let (system, turns) = conversation(&crate::input::json(Path::new(file))?)
            .with_context(|| format!("{file} is no saved conversation"))?;
        self.system = system;
        self.turns = turns;
        crate::out::line(&dim(&format!("({} messages)", self.messages().len())))?;
        Ok(Then::Go)
    }

    fn clear(&mut self, _rest: &str) -> Result<Then> {
        self.turns.clone_from(&self.loaded.lower.turns);
        crate::out::line(&dim("(forgotten)"))?;
        Ok(Then::Go)
    }

    fn bye(&mut self, _rest: &str) -> Result<Then> {
        Ok(Then::Leave)
    }
}

/// System message and turns of a saved conversation: `{"messages": [..]}` or the list alone.
fn conversation(saved: &Value) -> Option<(Option<String>, Vec<Value>)> {
    let list = saved.get("messages").unwrap_or(saved).as_array()?;
    let well_formed = |m: &Value| {
        m.get("content").is_some_and(Value::is_string)
            && m["role"]
                .as_str()
                .is_some_and(|r| ["system", "user", "assistant"].contains(&r))
    };
    if !list.iter().all(well_formed) {
        return None;
    }
    let (system, turns): (Vec<Value>, Vec<Value>) =
        list.iter().cloned().partition(|m| m["role"] == "system");
    let system = system
        .first()
        .and_then(|m| m["content"].as_str())
        .map(str::to_owned);
    Some((system, turns))
}

fn switch(value: &str) -> Result<bool> {
    match value {
        "on" | "true" | "yes" | "1" => Ok(true),
        "off" | "false" | "no" | "0" => Ok(false),
        _ => anyhow::bail!("{value:?} is neither on nor off"),
    }
}

fn stats(made: &Generation) -> String {
    let (usage, time, drafts) = (&made.usage, &made.timings, &made.drafts);
    let guesses = match drafts.drafted {
        0 => String::new(),
        n => format!("{} of {n} guesses right; ", drafts.accepted),
    };
    format!(
        "({} tokens at {:.1} a second; {guesses}prompt {} tokens, {} from the cache, at {:.0} a second; {})",
        usage.completion_tokens,
        time.decode_per_second,
        usage.prompt_tokens,
        usage.cached_tokens,
        time.prompt_per_second,
        made.finish_reason.name()
    )
}

fn dim(text: &str) -> String {
    styled("2", text)
}

fn bold(text: &str) -> String {
    styled("1", text)
}

/// SGR codes, where stdout is a terminal that takes them.
fn styled(code: &str, text: &str) -> String {
    use std::io::IsTerminal;
    match crate::env::colour() && std::io::stdout().is_terminal() {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_conversations_are_checked() {
        let (user, system) = (
            json!({"role": "user", "content": "a"}),
            json!({"role": "system", "content": "s"}),
        );
        let both = json!({"messages": [system, user]});
        assert_eq!(
            conversation(&both),
            Some((Some("s".into()), vec![user.clone()]))
        );
        assert_eq!(conversation(&json!([user])), Some((None, vec![user])));
        for bad in [
            json!(1),
            json!({}),
            json!([1]),
            json!([{"role": "user"}]),
            json!([{"role": 1, "content": "a"}]),
        ] {
            assert_eq!(conversation(&bad), None, "{bad}");
        }
    }
}
