//! Settings: from flags and a configuration file to a validated plan.
//!
//! | file | what |
//! |---|---|
//! | `keys` | the one table of keys: name, kind, default, help |
//! | `foreign` | keys of TRL and Hugging Face that have no effect here, or are refused, each with the reason |
//! | `kind` | what a value may be, and how that is said to a person |
//! | `settings` | the file and the flags, checked against the tables |
//! | `methods` | the presets of `--method`, and what is said of each |
//! | `objective` | settings to an objective: what goes with what |
//! | `plan` | settings to the library's options: what belongs together, what contradicts |

pub mod foreign;
pub mod keys;
pub mod kind;
pub mod methods;
pub mod objective;
pub mod plan;
pub mod settings;

pub use settings::Settings;
