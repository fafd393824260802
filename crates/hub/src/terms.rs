//! What the licences of the Llama family ask for, as facts in short. Not legal advice: the licence's
//! own text counts, and these rows only say what to look for in it.
//!
//! Sources: the LICENSE and USE_POLICY files that Meta publishes with Llama 1, 2, 3, 3.1, 3.2, 3.3
//! and 4; the model cards of Galactica, SmolLM and TinyLlama.

use serde::Serialize;

/// One licence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Terms {
    /// The names that cards and files give it: lower case, letters, digits and dots only.
    #[serde(skip)]
    names: &'static [&'static str],
    /// Its title.
    pub title: &'static str,
    /// Whether it allows commercial use.
    pub commercial: bool,
    /// More monthly users than this, on the day of the release, need a licence of their own.
    pub monthly_users_max: Option<u64>,
    /// What a product must show.
    pub display: Option<&'static str>,
    /// What the name of a model that was made from it must begin with.
    pub name_begins_with: Option<&'static str>,
    /// The line that copies must carry in a file of notices.
    pub notice: Option<&'static str>,
    /// Whether an acceptable use policy is part of it.
    pub use_policy: bool,
    /// What else is to be known.
    pub note: Option<&'static str>,
}

/// A licence without any of Meta's clauses.
const PLAIN: Terms = Terms {
    names: &[],
    title: "",
    commercial: true,
    monthly_users_max: None,
    display: None,
    name_begins_with: None,
    notice: None,
    use_policy: false,
    note: None,
};

/// Meta's community licences.
const COMMUNITY: Terms = Terms {
    monthly_users_max: Some(700_000_000),
    use_policy: true,
    ..PLAIN
};

const OUTPUTS: &str = "its outputs must not be used to improve other large language models, but for those made from it";
const EU: &str = "the rights to its multimodal models are not granted to people who live, and companies that \
                  have their principal place of business, in the European Union; users of products that \
                  contain them are not meant";

/// One row a licence.
pub const TERMS: [Terms; 10] = [
    Terms {
        names: &["llama1", "llama", "llamalicense"],
        title: "LLaMA (1) licence: research that is not commercial",
        commercial: false,
        note: Some("weights were given on request, and must not be passed on"),
        ..PLAIN
    },
    Terms {
        names: &["llama2"],
        title: "Llama 2 Community License",
        notice: Some(
            "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All \
             Rights Reserved.",
        ),
        note: Some(OUTPUTS),
        ..COMMUNITY
    },
    Terms {
        names: &["llama3"],
        title: "Meta Llama 3 Community License",
        display: Some("Built with Meta Llama 3"),
        name_begins_with: Some("Llama 3"),
        notice: Some(
            "Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © Meta Platforms, \
             Inc. All Rights Reserved.",
        ),
        note: Some(OUTPUTS),
        ..COMMUNITY
    },
    Terms {
        names: &["llama3.1"],
        title: "Llama 3.1 Community License",
        display: Some("Built with Llama"),
        name_begins_with: Some("Llama"),
        notice: Some(
            "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All \
             Rights Reserved.",
        ),
        ..COMMUNITY
    },
    Terms {
        names: &["llama3.2"],
        title: "Llama 3.2 Community License",
        display: Some("Built with Llama"),
        name_begins_with: Some("Llama"),
        notice: Some(
            "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc. All \
             Rights Reserved.",
        ),
        note: Some(EU),
        ..COMMUNITY
    },
    Terms {
        names: &["llama3.3"],
        title: "Llama 3.3 Community License",
        display: Some("Built with Llama"),
        name_begins_with: Some("Llama"),
        notice: Some(
            "Llama 3.3 is licensed under the Llama 3.3 Community License, Copyright © Meta Platforms, Inc. All \
             Rights Reserved.",
        ),
        ..COMMUNITY
    },
    Terms {
        names: &["llama4"],
        title: "Llama 4 Community License",
        display: Some("Built with Llama"),
        name_begins_with: Some("Llama"),
        notice: Some(
            "Llama 4 is licensed under the Llama 4 Community License, Copyright © Meta Platforms, Inc. All \
             Rights Reserved.",
        ),
        note: Some(EU),
        ..COMMUNITY
    },
    Terms {
        names: &["apache2.0", "apache2", "apachelicense2.0"],
        title: "Apache License 2.0 (SmolLM, TinyLlama)",
        note: Some("copies carry the licence's text, and the NOTICE file if there is one"),
        ..PLAIN
    },
    Terms {
        names: &["mit", "mitlicense"],
        title: "MIT License",
        note: Some("copies carry the licence's text and its copyright line"),
        ..PLAIN
    },
    Terms {
        names: &["ccbync4.0"],
        title: "Creative Commons Attribution-NonCommercial 4.0 (Galactica)",
        commercial: false,
        note: Some("copies name the authors and say what was changed"),
        ..PLAIN
    },
];

/// The row of a licence, by the name that a card or a file gives it: `llama3.2`, `Llama 3.2
/// Community License`, `apache-2.0`.
#[must_use]
pub fn terms(licence: &str) -> Option<&'static Terms> {
    let mut name: String = licence
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '.')
        .map(|c| c.to_ascii_lowercase())
        .collect();
    for end in ["agreement", "license", "licence", "community"] {
        if let Some(stem) = name
            .strip_suffix(end)
            .filter(|stem| stem.starts_with("llama") || stem.starts_with("metallama"))
        {
            name.truncate(stem.len());
        }
    }
    let name = name
        .strip_prefix("meta")
        .filter(|n| n.starts_with("llama"))
        .unwrap_or(&name);
    TERMS.iter().find(|row| row.names.contains(&name))
}

impl Terms {
    /// What is asked for, a line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![self.title.to_owned()];
        if !self.commercial {
            lines.push("no commercial use".into());
        }
        if let Some(users) = self.monthly_users_max {
            let millions = users / 1_000_000;
            lines.push(format!(
                "more than {millions} million monthly users need a licence of their own"
            ));
        }
        lines.extend(self.display.map(|text| format!("products show \"{text}\"")));
        let name = |text| format!("names of models made from it begin with \"{text}\"");
        lines.extend(self.name_begins_with.map(name));
        lines.extend(
            self.notice
                .map(|text| format!("copies carry the notice: {text}")),
        );
        if self.use_policy {
            lines.push("its acceptable use policy holds".into());
        }
        lines.extend(self.note.map(str::to_owned));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_found_by_their_names() {
        for (name, title) in [
            ("llama2", "Llama 2 Community License"),
            (
                "LLAMA 2 COMMUNITY LICENSE AGREEMENT",
                "Llama 2 Community License",
            ),
            ("llama3", "Meta Llama 3 Community License"),
            (
                "Meta Llama 3 Community License",
                "Meta Llama 3 Community License",
            ),
            ("llama3.2", "Llama 3.2 Community License"),
            (
                "Llama 3.3 Community License Agreement",
                "Llama 3.3 Community License",
            ),
            ("llama4", "Llama 4 Community License"),
            ("Apache-2.0", "Apache License 2.0 (SmolLM, TinyLlama)"),
            (
                "apache license 2.0",
                "Apache License 2.0 (SmolLM, TinyLlama)",
            ),
            (
                "cc-by-nc-4.0",
                "Creative Commons Attribution-NonCommercial 4.0 (Galactica)",
            ),
        ] {
            assert_eq!(terms(name).map(|row| row.title), Some(title), "{name}");
        }
        for name in ["", "other", "llama5", "llama3.10", "gpl-3.0", "metal"] {
            assert_eq!(terms(name), None, "{name}");
        }
        let lines = terms("llama3.1").unwrap().lines().join("\n");
        for part in [
            "700 million",
            "\"Built with Llama\"",
            "begin with \"Llama\"",
            "use policy",
        ] {
            assert!(lines.contains(part), "{part} in {lines}");
        }
        assert!(terms("llama2").unwrap().display.is_none());
        assert!(!terms("cc-by-nc-4.0").unwrap().commercial);
    }
}
