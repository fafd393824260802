//! Whether a measurement fits in memory, and the nearest one that would.

use anyhow::Result;
use model::PAGE;

use crate::args::BenchArgs;
use crate::exit::usage;
use crate::memory::{Ask, Need, room};

/// Tokens of a cache in which every sequence holds what it is asked to: whole pages, for sequences
/// share none.
pub fn tokens(args: &BenchArgs) -> Result<usize> {
    let too_much = || usage("--depth and --parallel ask for too many tokens", "");
    let each = args.depth.checked_add(longest(args));
    let pages = each.ok_or_else(too_much)?.div_ceil(PAGE);
    let pages = pages.checked_mul(args.parallel).ok_or_else(too_much)?;
    pages.checked_mul(PAGE).ok_or_else(too_much)
}

/// Tokens that a test adds to what a sequence holds.
pub fn longest(args: &BenchArgs) -> usize {
    args.prompt.max(args.generate)
}

/// Refuses a measurement that does not fit, with the nearest that does. `with` are options that go
/// before all others.
pub fn check(args: &BenchArgs, need: &Need<'_>, with: &str) -> Result<()> {
    let tokens = tokens(args)?;
    let options = |fits: usize| Some(format!("{with}{}", within(args, fits)?));
    let ask = Ask {
        what: "a cache",
        tokens,
        least: Some(tokens),
        most: tokens,
        options: &options,
    };
    room(need, &ask)
}

/// The options of the nearest measurement that takes at most so many tokens: less depth, then fewer
/// sequences, then shorter tests.
fn within(args: &BenchArgs, fits: usize) -> Option<String> {
    let (longest, (p, n)) = (longest(args), (args.prompt, args.generate));
    let each = fits / args.parallel / PAGE * PAGE;
    let tests = format!("-p {p} -n {n}");
    if each >= longest {
        let depth = args.depth.min(each - longest);
        return Some(format!(
            "{tests} --depth {depth} --parallel {}",
            args.parallel
        ));
    }
    match fits / (longest.div_ceil(PAGE) * PAGE) {
        0 => {
            let most = fits / PAGE * PAGE;
            let (p, n) = (p.min(most), n.min(most));
            (most > 0).then(|| format!("-p {p} -n {n} --depth 0 --parallel 1"))
        }
        parallel => Some(format!("{tests} --depth 0 --parallel {parallel}")),
    }
}
