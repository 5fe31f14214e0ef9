//! The negative log-likelihood of the chosen completion, as TRL's `sft`, `rpo_alpha` and `cpo_alpha` add it: a mean over
//! all chosen tokens of the batch (not over completions). Per pair that is
//!
//! ```text
//! l_i = -log pi(y_w|x) / (mean number of chosen tokens in the global batch)
//! ```
//! It is of the completion that the data call chosen, also where a rule asks what the flipped pair would cost.
//!
//! Of texts that stand alone (`Nll`) it is all there is: supervised fine-tuning, TRL's `SFTTrainer`. The mean over a batch
//! of these `l_i` is the sum over all its tokens divided by their number, as transformers has it with
//! `num_items_in_batch`.

use super::{Jet, Sample};

/// The loss.
pub(super) fn loss(s: &Sample) -> Jet {
    -s.likelihood / s.mean_chosen_tokens
}

/// The same of prompt and completion: ORPO's.
pub(super) fn whole(s: &Sample) -> Jet {
    -(s.prompt + s.likelihood) / (s.mean_prompt_tokens + s.mean_chosen_tokens)
}
