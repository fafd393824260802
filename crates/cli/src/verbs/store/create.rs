//! `puna create`: a model made out of another one.

use std::path::Path;

use anyhow::Result;
use hub::parse_modelfile;

use crate::args::CreateArgs;
use crate::exit::{Code, failure};
use crate::lower::{Lower, check_template};
use crate::machine::size;
use crate::progress::Shown;
use crate::{input, interrupt, load, out};

pub fn create(args: &CreateArgs) -> Result<()> {
    let text = input::text(&args.file)?;
    let name = args.file.display().to_string();
    let recipe = parse_modelfile(&text).map_err(|error| {
        let hint = "FROM, PARAMETER, SYSTEM, TEMPLATE, ADAPTER, MESSAGE and LICENSE are its words; \
                    docs/models-and-store.md has them";
        failure(Code::Failed, format!("{name}: {error}"), hint)
    })?;
    // All that can be wrong with it is said before anything is fetched or copied.
    Lower::of_recipe(&recipe, &name)?;
    recipe.template.as_deref().map_or(Ok(()), check_template)?;
    let folder = args.file.parent().unwrap_or(Path::new(""));
    let folder = std::path::absolute(match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    })?;
    let hub = load::hub(args.net)?;
    let mut progress = Shown::new();
    let (made, _) = interrupt::listen(|| hub.create(&args.name, recipe, &folder, &mut progress));
    drop(progress);
    let made = made?;
    out::print(args.format.format, &made, || {
        let from = made
            .recipe
            .as_ref()
            .map_or("", |recipe| recipe.from.as_str());
        format!("{} is made from {from}, {}", made.name, size(made.bytes))
    })
}
