//! Expressions of chat templates, rewritten where the engine answers differently from Jinja2 or does not meter.
//!
//! `a ~ b ~ c` becomes a call with all operands, `a + b` too where strings may be safe, and a list in brackets that
//! `*` repeats passes through a filter. It knows how these operators bind, and that everything else binds either
//! tighter or looser.

use crate::source::{ADD, CONCAT, KEEP};
use crate::tokens::{Kind, Token, Tokens};

/// The source from `from` to `to`, rewritten; `safe`: the template marks strings as safe.
pub(crate) fn expression(src: &str, tokens: &Tokens, from: usize, to: usize, safe: bool) -> String {
    let next = tokens.list.partition_point(|t| t.start < from);
    let mut rewriter = Rewriter {
        src,
        tokens: &tokens.list,
        next,
        safe,
    };
    rewriter.group(from, to)
}

/// Rewrites one bracket's content at a time, from the inside out.
struct Rewriter<'a> {
    src: &'a str,
    tokens: &'a [Token],
    next: usize,
    safe: bool,
}

/// The parts of an expression on their way: the sums between two boundaries, the chains of `~` between two `+`.
#[derive(Default)]
struct Parts {
    done: String,
    /// Finished operands of `+` and `-`, each with the operator before it.
    sum: Vec<(String, char)>,
    /// Finished operands of `~`.
    chain: Vec<String>,
    /// The operand that is being read.
    operand: String,
    /// Whether an operator may stand here, not a sign.
    has_value: bool,
    sign: char,
}

impl Rewriter<'_> {
    /// Whether the `*` at `at` may repeat a list that a bracket before it has made: repeated lists are made on
    /// demand, and lists of them would be larger than anything fuel meters.
    fn repeats(&self, at: usize) -> bool {
        let star = |i: usize| {
            self.tokens
                .get(i)
                .is_some_and(|t| &self.src[t.start..t.end] == "*")
        };
        at > 0 && self.tokens[at - 1].kind == Kind::Close && !star(at + 1)
    }

    /// The content of a bracket, or of the whole tag, that ends at `to`.
    fn group(&mut self, from: usize, to: usize) -> String {
        let mut parts = Parts::default();
        let mut copied = from;
        while let Some(&token) = self.tokens.get(self.next).filter(|t| t.start < to) {
            if token.kind == Kind::Close {
                break;
            }
            self.next += 1;
            parts.operand.push_str(&self.src[copied..token.start]);
            copied = token.end;
            let text = &self.src[token.start..token.end];
            match token.kind {
                Kind::Open => copied = self.bracket(token, to, &mut parts),
                Kind::Boundary | Kind::Assign => {
                    parts.end_sum(self.safe);
                    parts.done.push_str(text);
                }
                Kind::Plus | Kind::Minus if parts.has_value => {
                    parts.end_chain();
                    parts.sign = if token.kind == Kind::Plus { '+' } else { '-' };
                }
                Kind::Tilde => parts.end_operand(),
                Kind::Operator if text == "*" && self.repeats(self.next - 1) => {
                    parts.operand.push_str(&format!("|{KEEP} *"));
                    parts.has_value = false;
                }
                kind => {
                    parts.operand.push_str(text);
                    parts.has_value = kind == Kind::Operand;
                }
            }
        }
        let end = self.tokens.get(self.next).map_or(to, |t| t.start.min(to));
        parts.operand.push_str(&self.src[copied..end]);
        parts.end_sum(self.safe);
        parts.done
    }
}

impl Rewriter<'_> {
    /// A bracket and what is in it, as a part of an operand; returns where it ends.
    fn bracket(&mut self, open: Token, to: usize, parts: &mut Parts) -> usize {
        let repeated = parts.operand.trim_end().ends_with('*');
        parts.operand.push_str(&self.src[open.start..open.end]);
        let content = self.group(open.end, to);
        parts.operand.push_str(&content);
        parts.has_value = true;
        let Some(&close) = self.tokens.get(self.next).filter(|t| t.start < to) else {
            return to;
        };
        self.next += 1;
        parts.operand.push_str(&self.src[close.start..close.end]);
        let next = self.tokens.get(self.next).map(|t| &self.src[t.start..]);
        if repeated && !next.is_some_and(|n| n.starts_with(['.', '[', '(', '|'])) {
            parts.operand.push_str(&format!("|{KEEP}"));
        }
        close.end
    }
}

impl Parts {
    fn end_operand(&mut self) {
        self.chain.push(std::mem::take(&mut self.operand));
        self.has_value = false;
    }

    /// Ends a chain of `~`: an operand of a sum.
    fn end_chain(&mut self) {
        let sign = std::mem::replace(&mut self.sign, '+');
        self.end_operand();
        let chain = std::mem::take(&mut self.chain);
        self.sum.push((call(CONCAT, chain), sign));
    }

    /// Ends a sum, and with it everything that binds tighter than a boundary.
    fn end_sum(&mut self, safe: bool) {
        self.end_chain();
        let sum = std::mem::take(&mut self.sum);
        self.sign = '+';
        if safe && sum.iter().all(|(_, sign)| *sign != '-') {
            self.done
                .push_str(&call(ADD, sum.into_iter().map(|(text, _)| text).collect()));
            return;
        }
        for (i, (text, sign)) in sum.iter().enumerate() {
            if i > 0 {
                self.done.push(*sign);
            }
            self.done.push_str(text);
        }
    }
}

/// A call of `function` with the operands of a chain; a single operand as it is.
fn call(function: &str, mut operands: Vec<String>) -> String {
    match operands.len() {
        1 => operands.pop().unwrap_or_default(),
        _ => format!(" {function}({})", operands.join(",")),
    }
}
