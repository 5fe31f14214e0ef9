//! Reward models: decoders with a head of labels on the last token of a text, in the layout of transformers'
//! `*ForSequenceClassification`; their training, what they say of texts, and how good that is.
//!
//! | file | what |
//! |---|---|
//! | `model` | [`RewardModel`]: loading, scoring, saving |
//! | `rows` | data rows: texts with labels, pairs |
//! | `loss` | cross-entropies, squared error, Bradley-Terry |
//! | `step` | the loss of a global batch and its gradient |
//! | `texts` | training texts, also several joined |
//! | `train` | a run |
//! | `gating` | ArmoRM's mixture of objectives |
//! | `measures` | accuracy, area under the ROC curve, calibration |

mod gating;
mod loss;
mod measures;
mod model;
mod rows;
mod step;
mod texts;
mod train;

pub use loss::{Given, Objective, Problem, Target};
pub use measures::{Measures, measure, roc_auc};
pub use model::RewardModel;
pub use rows::{LabelNames, RewardRow, content_of, label_names, read_rewards, variables_of};
pub use step::{Example, StepOutput, gradient};
pub use train::{RewardOptions, RewardSummary, evaluate, examples, run};
