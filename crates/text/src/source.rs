//! The source of a chat template, made ready for the engine.
//!
//! Templates are written for Jinja2 as transformers sets it up; the engine is minijinja. What the engine does
//! not know, answers differently or does not guard is settled here on the text, tag by tag, so that every line
//! keeps its number:
//! - `{% generation %}` (transformers' mark of what a model is trained on) becomes `{% with %}`: the same scope,
//!   the same whitespace control, no output of its own;
//! - every value that gets a name (`set`, `for`, `with`, a macro's parameters) passes through a filter that bounds
//!   it ([`KEEP`], [`KEEP_ATTRIBUTE`]): fuel does not meter comparing or printing values that hold one another many
//!   times, so none may come to be;
//! - `{% for %}` refuses to walk `none` ([`ITERABLE`]), which the engine takes for an empty list;
//! - `a ~ b` becomes a call of [`CONCAT`], which prints as Python does and is metered;
//! - `a + b` becomes a call of [`ADD`] in templates that mark strings as safe: in Python such a string escapes
//!   what it is added to, whether or not the template escapes what it prints;
//! - a macro that says `varargs` or `kwargs` gets parameters of these names, and is wrapped behind its end ([`WRAP`]);
//! - line ends become `\n`, as Jinja2 reads them.
//!
//! It also lists the string literals of the template: what a template may look for in a message. It knows where
//! tags begin and end and how operators bind, not what anything means: a malformed tag is left for the engine
//! to report.

use crate::rewrite::expression;
use crate::tokens::Tokens;
use crate::variadic::{KWARGS, VARARGS};

/// The filter that every value with a name passes through.
pub(crate) const KEEP: &str = "puna_keep";
/// The same for `{% set namespace.name = value %}`, the one way in which a template could build a circle.
pub(crate) const KEEP_ATTRIBUTE: &str = "puna_keep_attribute";
/// The filter that what a `{% for %}` walks passes through.
pub(crate) const ITERABLE: &str = "puna_iterable";
/// The function behind `~`.
pub(crate) const CONCAT: &str = "puna_concat";
/// The function behind `+` where strings may be marked as safe.
pub(crate) const ADD: &str = "puna_add";
/// The function that makes a macro catch the arguments it has no parameters for.
pub(crate) const WRAP: &str = "puna_macro";

/// Filters that give a safe string.
const SAFE_FILTERS: [&str; 4] = ["safe", "escape", "e", "forceescape"];
/// Most tokens in one tag, and most `elif` in a template: the engine's compiler recurses over long chains. The
/// longest known tags have a few hundred tokens.
const MAX_TOKENS: usize = 4000;
const MAX_ELIF: usize = 1000;
/// Most macros with `varargs` or `kwargs`.
const MAX_VARIADIC: usize = 500;

/// A template's text for the engine.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) text: String,
    /// The string literals in it.
    pub(crate) literals: Vec<String>,
    /// Whether every tag could be read. If not, the engine must refuse the text, too.
    pub(crate) whole: bool,
}

/// Rewrites a template's source. The error says what there is too much of.
pub(crate) fn prepare(source: &str) -> Result<Source, String> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut scan = Scan {
        src: &source,
        out: String::with_capacity(source.len() * 2),
        literals: Vec::new(),
        safe: false,
        elifs: 0,
        longest: 0,
        whole: true,
        bodies: Vec::new(),
        variadic: 0,
        strays: false,
    };
    scan.safe = scan.marks_strings_safe();
    scan.all();
    let Scan {
        out,
        mut literals,
        elifs,
        longest,
        whole,
        variadic,
        strays,
        ..
    } = scan;
    if variadic > MAX_VARIADIC {
        return Err(format!(
            "more than {MAX_VARIADIC} macros take {VARARGS} or {KWARGS}"
        ));
    }
    if strays {
        return Err(format!(
            "{VARARGS} and {KWARGS} of call blocks are not implemented"
        ));
    }
    if longest > MAX_TOKENS {
        return Err(format!("a tag has more than {MAX_TOKENS} tokens"));
    }
    if elifs > MAX_ELIF {
        return Err(format!("it has more than {MAX_ELIF} elif tags"));
    }
    literals.retain(|l| !l.is_empty());
    literals.sort_unstable();
    literals.dedup();
    Ok(Source {
        text: out,
        literals,
        whole,
    })
}

struct Scan<'a> {
    src: &'a str,
    out: String,
    literals: Vec<String>,
    /// Whether the template marks strings as safe.
    safe: bool,
    /// How many `elif` tags there are, and the tokens of the longest tag.
    elifs: usize,
    longest: usize,
    /// Whether every tag was read.
    whole: bool,
    /// The macros and call blocks that are open.
    bodies: Vec<Body>,
    /// How many macros say `varargs` or `kwargs`, and whether a call block does.
    variadic: usize,
    strays: bool,
}

/// A macro or a call block (without a name) that is open: where parameters can be added in what is written and where
/// they are bounded, whether it has any, which of `varargs` and `kwargs` are among them, and which it says.
struct Body {
    name: String,
    parameters: usize,
    bounds: usize,
    any: bool,
    own: [bool; 2],
    says: [bool; 2],
}

impl Scan<'_> {
    fn marks_strings_safe(&self) -> bool {
        self.src.split('|').skip(1).any(|after| {
            let name = after.trim_start();
            let end = name
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(name.len());
            SAFE_FILTERS.contains(&&name[..end])
        })
    }

    fn all(&mut self) {
        let bytes = self.src.as_bytes();
        let mut copied = 0;
        let mut at = 0;
        while at + 1 < bytes.len() {
            if bytes[at] != b'{' {
                at += 1;
                continue;
            }
            match bytes[at + 1] {
                b'#' => at = self.find("#}", at + 2).map_or(bytes.len(), |end| end + 2),
                b'{' | b'%' => {
                    self.push(&[&self.src[copied..at]]);
                    at = if bytes[at + 1] == b'{' {
                        self.print(at)
                    } else {
                        self.tag(at)
                    };
                    copied = at;
                }
                _ => at += 1,
            }
        }
        self.push(&[&self.src[copied..]]);
    }

    fn find(&self, what: &str, from: usize) -> Option<usize> {
        self.src.get(from..)?.find(what).map(|i| from + i)
    }

    fn push(&mut self, parts: &[&str]) {
        parts.iter().for_each(|p| self.out.push_str(p));
    }

    /// Copies the `{{ expression }}` that opens at `start`, rewritten; returns where it ends.
    fn print(&mut self, start: usize) -> usize {
        let from = after_sign(self.src, start + 2);
        let Some((tokens, close)) = self.tokens(from, b"}}") else {
            return self.rest(start);
        };
        let value_end = before_sign(self.src, from, close);
        let expression = self.expression(&tokens, from, value_end);
        self.push(&[
            &self.src[start..from],
            &expression,
            &self.src[value_end..close + 2],
        ]);
        close + 2
    }

    /// Copies the tag that opens at `start` (its `{%`), rewritten; returns where it ends.
    fn tag(&mut self, start: usize) -> usize {
        let src = self.src;
        let name_at = src.len() - src[after_sign(src, start + 2)..].trim_start().len();
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let name_end = src[name_at..]
            .find(|c| !word(c))
            .map_or(src.len(), |i| name_at + i);
        let name = &src[name_at..name_end];
        let Some((tokens, close)) = self.tokens(name_end, b"%}") else {
            return self.rest(start);
        };
        let end = close + 2;
        let value_end = before_sign(src, name_end, close);
        let (head, tail) = (&src[start..name_at], &src[value_end..end]);
        self.elifs += usize::from(name == "elif");
        match name {
            "generation" => self.push(&[head, "with", &src[name_end..end]]),
            "endgeneration" => self.push(&[head, "endwith", &src[name_end..end]]),
            "raw" => {
                let end = self.end_of_raw(end);
                self.push(&[&src[start..end]]);
                return end;
            }
            "set" => self.set(&tokens, [start, name_at, name_end, value_end, end]),
            "for" | "macro" | "call" | "with" => {
                let rest = self.walked(&tokens, name, name_end, value_end);
                self.push(&[head, name, &rest]);
                let bound = tokens.bound(name, src);
                let parameters = self.out.len() - rest.len() + rest.rfind(')').unwrap_or(0);
                for bound in &bound {
                    self.push(&[&bounded(bound)]);
                }
                if matches!(name, "macro" | "call") {
                    let of = |name: &str| bound.contains(&name);
                    self.bodies.push(Body {
                        name: match name {
                            "macro" => tokens.first(src).to_owned(),
                            _ => String::new(),
                        },
                        parameters,
                        bounds: self.out.len(),
                        any: !bound.is_empty(),
                        own: [of(VARARGS), of(KWARGS)],
                        says: [false; 2],
                    });
                }
                self.push(&[tail]);
            }
            "endmacro" | "endcall" => {
                let wrapped = self.end_of_body();
                let rest = self.expression(&tokens, name_end, value_end);
                self.push(&[head, name, &rest, &wrapped, tail]);
            }
            _ => {
                let rest = self.expression(&tokens, name_end, value_end);
                self.push(&[head, name, &rest, tail]);
            }
        }
        end
    }

    /// Ends a macro or call block: what it says and does not name as its parameters is added to them. Returns what
    /// to write behind it.
    fn end_of_body(&mut self) -> String {
        let Some(body) = self.bodies.pop() else {
            return String::new();
        };
        if let Some(outer) = self.bodies.last_mut() {
            outer.says = [0, 1].map(|i| outer.says[i] || body.says[i]);
        }
        let added = [0, 1].map(|i| body.says[i] && !body.own[i]);
        if added == [false; 2] {
            return String::new();
        }
        self.variadic += 1;
        self.strays |= body.name.is_empty();
        if self.variadic > MAX_VARIADIC || self.strays {
            return String::new();
        }
        let names = [(added[0], VARARGS), (added[1], KWARGS)];
        let names = names.iter().filter(|(added, _)| *added);
        let (mut parameters, mut bounds) = (String::new(), String::new());
        for (i, (_, name)) in names.enumerate() {
            let comma = if body.any || i > 0 { ", " } else { "" };
            parameters.push_str(&format!("{comma}{name}=none"));
            bounds.push_str(&bounded(name));
        }
        // The later place first: it moves the other.
        self.out.insert_str(body.bounds, &bounds);
        self.out.insert_str(body.parameters, &parameters);
        let (name, [varargs, kwargs]) = (&body.name, added);
        format!(" %}}{{% set {name} = {WRAP}({name}, {varargs}, {kwargs}) ")
    }

    /// Copies `{% set target = value %}` with its value behind a filter; `{% set target %}` as it is. The places:
    /// the tag, its name, behind the name, behind the value, behind the tag.
    fn set(&mut self, tokens: &Tokens, [start, name, target, value_end, end]: [usize; 5]) {
        let src = self.src;
        let Some(equals) = tokens.assignment() else {
            return self.push(&[&src[start..end]]);
        };
        let value = self.expression(tokens, equals + 1, value_end);
        let filter = if src[target..equals].contains('.') {
            KEEP_ATTRIBUTE
        } else {
            KEEP
        };
        let head = &src[start..name];
        let tail = &src[value_end..end];
        let target = &src[target..equals];
        self.push(&[head, "set", target, "= (", &value, ")|", filter, " ", tail]);
    }

    /// The inside of a tag, what a `for` walks behind a filter.
    fn walked(&self, tokens: &Tokens, name: &str, from: usize, to: usize) -> String {
        match tokens.walked(self.src).filter(|_| name == "for") {
            Some((walked, end)) => {
                let end = end.min(to);
                let target = &self.src[from..walked];
                let walked = self.expression(tokens, walked, end);
                let condition = self.expression(tokens, end, to);
                format!("{target} ({walked})|{ITERABLE} {condition}")
            }
            None => self.expression(tokens, from, to),
        }
    }

    /// Copies what cannot be read as it is: the engine says best what is wrong with it.
    fn rest(&mut self, start: usize) -> usize {
        self.whole = false;
        self.push(&[&self.src[start..]]);
        self.src.len()
    }

    /// Where the `{% endraw %}` after `from` ends, or the end of the source.
    fn end_of_raw(&self, from: usize) -> usize {
        let mut at = from;
        while let Some(open) = self.find("{%", at) {
            let name = self.src[after_sign(self.src, open + 2)..].trim_start();
            let tail = name.strip_prefix("endraw").map(str::trim_start);
            if let Some(tail) = tail.map(|t| t.strip_prefix(['-', '+']).unwrap_or(t))
                && tail.starts_with("%}")
            {
                return self.src.len() - tail.len() + 2;
            }
            at = open + 2;
        }
        self.src.len()
    }

    /// The tokens of a tag from `from` on, and where its end mark stands.
    fn tokens(&mut self, from: usize, close: &[u8; 2]) -> Option<(Tokens, usize)> {
        let mut tokens = Tokens::read(self.src, from, close);
        self.longest = self.longest.max(tokens.list.len());
        self.literals.append(&mut tokens.literals);
        if let Some(body) = self.bodies.last_mut() {
            let says = [VARARGS, KWARGS].map(|name| tokens.say(name, self.src));
            body.says = [0, 1].map(|i| body.says[i] || says[i]);
        }
        let close = tokens.close;
        Some(tokens).zip(close)
    }

    fn expression(&self, tokens: &Tokens, from: usize, to: usize) -> String {
        expression(self.src, tokens, from, to, self.safe)
    }
}

/// The end of a tag and a tag that bounds a name; the tag's end is the next to come.
fn bounded(name: &str) -> String {
    format!(" %}}{{% set {name} = ({name})|{KEEP} ")
}

/// Behind the whitespace sign of a tag that opens before `at`.
fn after_sign(src: &str, at: usize) -> usize {
    at + usize::from(src[at..].starts_with(['-', '+']))
}

/// Before the whitespace sign of a tag that closes at `close`.
fn before_sign(src: &str, from: usize, close: usize) -> usize {
    close - usize::from(close > from && src[..close].ends_with(['-', '+']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(cases: &[(&str, &str)]) {
        for (from, to) in cases {
            let squeeze = |s: &str| s.replace(' ', "");
            assert_eq!(squeeze(&prepare(from).unwrap().text), squeeze(to), "{from}");
        }
    }

    #[test]
    fn generation_tags_become_a_scope_with_the_same_whitespace_control() {
        for (from, to) in [
            (
                "a{% generation %}b{% endgeneration %}c",
                "a{% with %}b{% endwith %}c",
            ),
            (
                "a{%- generation -%}b{%+endgeneration+%}c",
                "a{%- with -%}b{%+endwith+%}c",
            ),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            ("{# {% generation %} #}x", "{# {% generation %} #}x"),
            (
                "{% raw %}{% generation %}{% endraw %}x",
                "{% raw %}{% generation %}{% endraw %}x",
            ),
            (
                "{% if generation %}x{% endif %}",
                "{% if generation %}x{% endif %}",
            ),
        ] {
            assert_eq!(prepare(from).unwrap().text, to, "{from}");
        }
    }

    #[test]
    fn stored_values_pass_a_filter() {
        rewritten(&[
            ("{% set a = b %}", "{% set a = (b)|puna_keep %}"),
            (
                "{%- set n.a = '=%}' -%}",
                "{%- set n.a = ('=%}')|puna_keep_attribute -%}",
            ),
            ("{% set a %}x{% endset %}", "{% set a %}x{% endset %}"),
            ("{% set a, b = 1, 2 %}", "{% set a, b = (1, 2)|puna_keep %}"),
            (
                "{% set a={'b': {}} %}",
                "{% set a= ({'b': {}})|puna_keep %}",
            ),
            ("{% set a = ", "{% set a = "),
            ("{% set a = -%}", "{% set a = -%}"),
        ]);
    }

    #[test]
    fn names_that_tags_bind_are_bounded() {
        let set = |n: &str| format!("{{%set{n}=({n})|puna_keep");
        for (from, to) in [
            (
                "{%- for x in a ~ b if c ~ d recursive -%}",
                format!(
                    "{{%- for x in (puna_concat(a,b))|puna_iterable if puna_concat(c,d) recursive %}}{} -%}}",
                    set("x")
                ),
            ),
            (
                "{% for (a, b), c in [d if e else f] %}",
                format!(
                    "{{% for (a, b), c in ([d if e else f])|puna_iterable %}}{} %}}{} %}}{} %}}",
                    set("a"),
                    set("b"),
                    set("c")
                ),
            ),
            (
                "{% macro m(a, b=[c, 1], d='x,y') +%}",
                format!(
                    "{{% macro m(a, b=[c, 1], d='x,y') %}}{} %}}{} %}}{} +%}}",
                    set("a"),
                    set("b"),
                    set("d")
                ),
            ),
            (
                "{% call(x) m(y, z) %}",
                format!("{{% call(x) m(y, z) %}}{} %}}", set("x")),
            ),
            ("{% call m(y) %}", "{% call m(y) %}".to_string()),
            (
                "{% with a = [b, c], d = e %}",
                format!(
                    "{{% with a = [b, c], d = e %}}{} %}}{} %}}",
                    set("a"),
                    set("d")
                ),
            ),
            (
                "{% for x in %}",
                format!("{{% for x in %}}{} %}}", set("x")),
            ),
        ] {
            rewritten(&[(from, &to)]);
        }
    }

    #[test]
    fn tags_that_are_too_long_are_refused() {
        assert!(prepare(&format!("{{{{ 1{} }}}}", "+1".repeat(3000))).is_err());
        assert!(prepare(&"{% elif 1 %}".repeat(2000)).is_err());
    }

    #[test]
    fn concatenations_become_calls_with_their_precedence() {
        rewritten(&[
            ("{{ a ~ b }}", "{{ puna_concat(a, b) }}"),
            (
                "{{- a ~ b.c|upper ~ d[0] -}}",
                "{{- puna_concat(a, b.c|upper, d[0]) -}}",
            ),
            (
                "{{ a + b ~ c * 2 - d ~ -e }}",
                "{{ a + puna_concat(b, c * 2) - puna_concat(d, -e) }}",
            ),
            (
                "{{ f(x ~ 'a~b', k=[y ~ z]) ~ w }}",
                "{{ puna_concat(f(puna_concat(x,'a~b'), k=[puna_concat(y,z)]), w) }}",
            ),
            (
                "{% if a ~ b == c ~ d and not e ~ f %}",
                "{% if puna_concat(a,b) == puna_concat(c,d) and not puna_concat(e,f) %}",
            ),
            (
                "{% if a ~ b is not none %}",
                "{% if puna_concat(a, b is not none) %}",
            ),
            ("{% if x in a ~ b %}", "{% if x in puna_concat(a,b) %}"),
            (
                "{{ a ~ b if c else d ~ e }}",
                "{{ puna_concat(a,b) if c else puna_concat(d,e) }}",
            ),
            (
                "{{ {'a': b ~ c, 'd': -1} }}",
                "{{ {'a': puna_concat(b,c), 'd': -1} }}",
            ),
            ("{{ a + b }}{{ a - b }}", "{{ a + b }}{{ a - b }}"),
            (
                "{{ [0] * 3 * n ** 2 }}{{ (2) ** 3 }}",
                "{{ [0]|puna_keep * 3 * n ** 2 }}{{ (2) ** 3 }}",
            ),
            (
                "{{ 3 * [x * 2] + 2 * [1][0] }}",
                "{{ 3 * [x * 2]|puna_keep + 2 * [1][0] }}",
            ),
            ("{{ f(*a, **b) }}", "{{ f(*a, **b) }}"),
            (
                "{{ 1e-5 ~ 1.5E+3 ~ 0xe-1 }}",
                "{{ puna_concat(1e-5, 1.5E+3, 0xe)-1 }}",
            ),
            ("{{ é ~ 'é' ~ ∑ }}", "{{ puna_concat(é, 'é', ∑) }}"),
        ]);
    }

    #[test]
    fn sums_become_calls_where_strings_may_be_safe() {
        rewritten(&[
            (
                "{{ 'a'|safe + b ~ c + (d + e) }}",
                "{{ puna_add('a'|safe, puna_concat(b,c), (puna_add(d,e))) }}",
            ),
            (
                "{{ 'a' | e }}{{ b - c + d }}",
                "{{ 'a' | e }}{{ b - c + d }}",
            ),
            (
                "{{ 'a' | e }}{% if x + y > z %}",
                "{{ 'a' | e }}{% if puna_add(x,y) > z %}",
            ),
        ]);
    }

    #[test]
    fn what_cannot_be_read_stays_as_it_is() {
        for text in [
            "{{ a ~ ) }}",
            "{{ (a ~ b }}",
            "{% if 'a ~ b %}",
            "{{",
            "{%",
            "{% set",
            "{#",
            "{{ }",
            "x{",
            "{{-",
        ] {
            assert_eq!(prepare(text).unwrap().text, text);
        }
    }

    #[test]
    fn lines_keep_their_numbers() {
        let text = "{{ a\n~ b }}\n{% set\nx\n=\n1 + \n2 %}\r\n{{ 'x'|safe\n+ y }}\rz";
        assert_eq!(prepare(text).unwrap().text.matches('\n').count(), 9);
    }

    #[test]
    fn literals_are_listed_once_with_their_escapes_resolved() {
        let source = prepare(
            "{{ 'a\\n' + \"b\" }}'no'{% if x == 'b' %}{% endif %}{# 'c' #}{{ '\\u0041\\q' }}",
        )
        .unwrap();
        assert_eq!(source.literals, ["A\\q", "a\n", "b"]);
    }
}
