//! One record's samples as numbers for each prompt, which is what is resampled.

use crate::policy_record::{Samples, Shift};
use crate::preferences::Form;
use crate::stats::{divergence_per_token, mixed, per_prompt};

/// The form of a mixture's name; the names were checked.
pub fn form(name: &str) -> Form {
    Form::ALL.into_iter().find(|form| form.name() == name).unwrap_or(Form::Convex)
}

/// Where the shift is judged.
#[derive(Clone, Debug)]
pub struct Judged {
    /// By mixture: its name and form.
    pub mixtures: Vec<(String, Form)>,
    /// The alphas of the curves.
    pub alphas: Vec<f64>,
    /// The alpha of the labels, and the one furthest from it.
    pub ends: [f64; 2],
}

impl Judged {
    /// Of a shift; of none, nothing.
    pub fn of(shift: Option<&Shift>) -> Judged {
        let Some(shift) = shift else {
            return Judged { mixtures: Vec::new(), alphas: Vec::new(), ends: [0.0; 2] };
        };
        let away = |alpha: &f64| (alpha - shift.nominal_alpha).abs();
        let far = shift.alphas.iter().copied().max_by(|a, b| away(a).total_cmp(&away(b)));
        Judged {
            mixtures: shift.mixtures.iter().map(|name| (name.clone(), form(name))).collect(),
            alphas: shift.alphas.clone(),
            ends: [shift.nominal_alpha, far.unwrap_or(shift.nominal_alpha)],
        }
    }
}

/// Numbers for each prompt, `[prompts]` each.
#[derive(Clone, Debug)]
pub struct Measures {
    /// By mixture and alpha: mean reward of the prompt's samples.
    pub rewards: Vec<Vec<Vec<f64>>>,
    /// By mixture and end (nominal, far): the same.
    pub ends: Vec<[Vec<f64>; 2]>,
    /// By objective: mean score.
    pub scores: Vec<Vec<f64>>,
    /// Divergence from the reference, summed over the prompt's samples, nats.
    pub nats: Vec<f64>,
    /// Tokens, summed over the prompt's samples.
    pub tokens: Vec<f64>,
    /// Completions of each prompt.
    pub per_prompt: usize,
    /// By mixture and end: the reward of every completion, `[prompts * per_prompt]`.
    pub completions: Vec<[Vec<f64>; 2]>,
}

impl Measures {
    /// Of a record's samples.
    pub fn of(samples: &Samples, shift: Option<&Shift>, judged: &Judged) -> Measures {
        let n = samples.per_prompt;
        let empty = Vec::new();
        let pair = shift.map_or([&empty, &empty], |s| {
            [0, 1].map(|i| samples.scores.get(&s.objectives[i]).map_or(&empty, |c| &c.0))
        });
        let reward = |form: Form, alpha: f64| mixed(form, alpha, pair[0], pair[1]);
        let mean = |values: &[f64]| per_prompt(values, n);
        let ratios: Vec<f64> = samples.logps.0.iter().zip(&samples.ref_logps.0).map(|(p, r)| p - r).collect();
        let (nats, tokens) = divergence_per_token(&ratios, &samples.tokens, n);
        let completions: Vec<[Vec<f64>; 2]> =
            judged.mixtures.iter().map(|(_, form)| judged.ends.map(|alpha| reward(*form, alpha))).collect();
        Measures {
            rewards: judged
                .mixtures
                .iter()
                .map(|(_, form)| judged.alphas.iter().map(|alpha| mean(&reward(*form, *alpha))).collect())
                .collect(),
            ends: completions.iter().map(|ends| [mean(&ends[0]), mean(&ends[1])]).collect(),
            scores: samples.scores.values().map(|column| mean(&column.0)).collect(),
            nats,
            tokens,
            per_prompt: n,
            completions,
        }
    }
}
