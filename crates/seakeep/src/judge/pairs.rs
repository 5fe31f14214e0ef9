//! Preference data: the metrics of a set, and what a record keeps of each pair.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::samples::group;
use super::summary::unknown;
use crate::data::{Pair, TokenizedPair};
use crate::environments::Environments;
use crate::error::{Error, Result, nearest};
use crate::eval::evaluate;
use crate::formats::Fingerprint;
use crate::logps::{BranchLogps, Facts, Role};
use crate::model::{Model, Tensors};
use crate::objective::{Context, Loss, Objective, Rule, Scored};
use crate::policy_record::{Column, PairSet, Shift};
use crate::preferences::Form;
use crate::progress::Progress;
use crate::reference::Known;
use crate::scoring::{PairLayout, Scores};

/// What rows say besides their texts, as evaluation needs it: groups, and scores where the data have them (`scores_chosen` and
/// `scores_rejected`, as `seakeep pairs` writes them).
#[derive(Clone, Debug, Default)]
pub struct RowColumns {
    rows: HashMap<(Arc<Path>, usize), Row>,
    objectives: Vec<String>,
}

#[derive(Clone, Debug, Default)]
struct Row {
    /// Tells its texts from others.
    fingerprint: String,
    group: Option<String>,
    scores: Option<BothScores>,
}

/// Scores of the chosen and of the rejected completion, by objective.
type BothScores = [BTreeMap<String, f64>; 2];

impl RowColumns {
    /// Reads them. Either every row has scores, for the same objectives, or none.
    ///
    /// # Errors
    /// [`Error::Row`] for a row without its group, or with scores that are missing or no numbers.
    pub fn of(rows: &[Pair], group_column: Option<&str>) -> Result<RowColumns> {
        let scored = rows.iter().any(|row| row.extra.contains_key("scores_chosen"));
        let mut columns = RowColumns::default();
        for row in rows {
            let group = group_column.map(|key| group(&row.file, row.row, key, &row.extra)).transpose()?;
            let scores = match scored {
                true => Some([scores(row, "scores_chosen")?, scores(row, "scores_rejected")?]),
                false => None,
            };
            if columns.objectives.is_empty() {
                columns.objectives = scores.iter().flat_map(|s| s[0].keys().cloned()).collect();
            }
            for (key, own) in ["scores_chosen", "scores_rejected"].iter().zip(scores.iter().flatten()) {
                if let Some(name) = columns.objectives.iter().find(|name| !own.contains_key(*name)) {
                    let near = nearest(name, own.keys().map(String::as_str));
                    let hint = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
                    return Err(row.error(key, format!("no score `{name}`, which other rows have{hint}")));
                }
            }
            columns
                .rows
                .insert((row.file.clone(), row.row), Row { fingerprint: row.fingerprint(), group, scores });
        }
        Ok(columns)
    }

    /// The objectives that rows have scores for.
    pub fn objectives(&self) -> &[String] {
        &self.objectives
    }

    /// Refuses objectives that rows with scores do not have, and scores that a mixture of the shift cannot take.
    ///
    /// # Errors
    /// [`Error::Usage`] with the nearest objective; [`Error::Row`] for a negative score in a geometric mixture.
    pub fn check_shift(&self, shift: &Shift, data: &str) -> Result<()> {
        if self.objectives.is_empty() {
            return Ok(());
        }
        let forms: Vec<Form> = shift.mixtures.iter().filter_map(|name| Form::of(name)).collect();
        for name in &shift.objectives {
            if !self.objectives.contains(name) {
                return Err(unknown(name, self.objectives.iter().map(String::as_str), data));
            }
            let refused = |score: f64| forms.iter().any(|form| !form.takes(score));
            let of = |row: &Row| row.scores.iter().flatten().map(|s| s[name]).find(|score| refused(*score));
            let first = self.rows.iter().filter_map(|(place, row)| Some((place, of(row)?)));
            if let Some(((file, row), score)) = first.min_by_key(|(place, _)| *place) {
                let what = format!("`{name}` is {score}; a geometric mixture takes no negative score");
                return Err(Error::row(file, *row, "scores_chosen", what));
            }
        }
        Ok(())
    }

    fn row(&self, pair: &TokenizedPair) -> Option<&Row> {
        self.rows.get(&(pair.file.clone(), pair.row))
    }

    /// Groups and scores of the pairs that were kept, into a record's set.
    fn add_to(&self, set: &mut PairSet, pairs: &[TokenizedPair]) {
        let rows: Option<Vec<&Row>> = pairs.iter().map(|pair| self.row(pair)).collect();
        let Some(rows) = rows else { return };
        let add = |all: Fingerprint, row: &&Row| all.field(row.fingerprint.as_bytes());
        set.rows_fingerprint = Some(rows.iter().fold(Fingerprint::new(), add).hex());
        set.groups = rows.iter().map(|row| row.group.clone()).collect();
        // Completions that stand alone have nothing to differ from.
        if pairs.iter().any(|pair| {
            pair.branches.iter().filter(|b| b.role == Role::Rejected).count() != 1
                || pair.chosen().role != Role::Chosen
        }) {
            return;
        }
        for name in &self.objectives {
            let column = |of: &dyn Fn(&BothScores) -> f64| {
                Column(rows.iter().map(|row| row.scores.as_ref().map_or(f64::NAN, of)).collect())
            };
            set.score_differences
                .insert(name.clone(), column(&|[chosen, rejected]| chosen[name] - rejected[name]));
            set.chosen_scores.insert(name.clone(), column(&|[chosen, _]| chosen[name]));
        }
    }
}

fn scores(row: &Pair, key: &str) -> Result<BTreeMap<String, f64>> {
    let found = row.extra.get(key).filter(|v| !v.is_null());
    let scores = match found {
        Some(Value::Object(scores)) if !scores.is_empty() => scores,
        Some(other) => {
            return Err(row.error(key, format!("{other}, expected an object such as {{\"helpful\": 0.7}}")));
        }
        None => return Err(row.error(key, "missing or null, and other rows of the data have scores")),
    };
    let number = |(name, value): (&String, &Value)| match value.as_f64().filter(|x| x.is_finite()) {
        Some(score) => Ok((name.clone(), score)),
        None => Err(row.error(key, format!("`{name}` is {value}, expected a finite number"))),
    };
    scores.iter().map(number).collect()
}

/// Evaluates sets of pairs, whose log-probabilities are known.
#[derive(Clone, Copy, Debug)]
pub struct Evaluator<'a> {
    /// What a pair costs.
    pub objective: &'a Objective,
    /// Environments to infer, and the seed of that.
    pub environments: Option<(usize, u64)>,
}

/// A set, evaluated.
#[derive(Clone, Debug, Default)]
pub struct Evaluated {
    /// For the record: everything but the names and the input gradients.
    pub set: PairSet,
    /// Each pair's own loss with its derivatives, `[rows]`.
    pub losses: Vec<Loss>,
}

impl Evaluator<'_> {
    /// Metrics (`eval_*`, over all pairs as one batch), and of each pair its margin and its own loss, before any robust rule.
    ///
    /// # Errors
    /// Fewer rows than environments.
    pub fn evaluate(
        &self,
        pairs: &[TokenizedPair],
        policy: &Scores,
        reference: &[Known],
        columns: &RowColumns,
    ) -> Result<Evaluated> {
        let layout = PairLayout::of(self.objective);
        let mut facts: Vec<Facts> = pairs.iter().map(|p| Facts::of(p, layout.prompts)).collect();
        if let Some((k, seed)) = self.environments {
            let features: Vec<Vec<f32>> = reference.iter().map(|r| r.features.clone()).collect();
            let found = Environments::find(&features, k, seed)?;
            for (facts, features) in facts.iter_mut().zip(&features) {
                facts.environments = found.of(features);
            }
        }
        let reference = BranchLogps(reference.iter().map(|r| r.logps.clone()).collect());
        let scored = Scored { policy: &policy.logps, reference: &reference, facts: &facts };
        let context = Context::at_the_end(&facts);
        let metrics = evaluate(&scored, &context, self.objective).into_iter();
        let metrics = metrics.chain(policy.stats.metrics(self.objective));
        // A rule may turn labels and weigh pairs; what is kept is the pair's own loss.
        let plain = Objective { rule: Rule::Mean, penalty: None, ..self.objective.clone() };
        let losses = plain.evaluate(&scored, &context).pairs;
        let mut set = PairSet {
            metrics: metrics
                .map(|(name, value)| (format!("eval_{name}"), value.into()))
                .collect::<Map<_, _>>(),
            margins: Column((0..pairs.len()).map(|i| margin(&scored, i)).collect()),
            losses: Column(losses.iter().map(|l| l.value).collect()),
            ..PairSet::default()
        };
        columns.add_to(&mut set, pairs);
        Ok(Evaluated { set, losses })
    }
}

/// `h = u_w - u_l`, nats; of several rejected completions the mean, and of one that stands alone its own `u`, negative if it
/// is called bad.
fn margin(scored: &Scored, i: usize) -> f64 {
    let of = |role: Role| {
        let branches = scored.facts[i].roles.iter().enumerate().filter(|(_, r)| **r == role);
        let ratios: Vec<f64> =
            branches.map(|(b, _)| scored.policy.0[i][b] - scored.reference.0[i][b]).collect();
        if ratios.is_empty() { 0.0 } else { ratios.iter().sum::<f64>() / ratios.len() as f64 }
    };
    of(Role::Chosen) - of(Role::Rejected)
}

/// The norm of each pair loss's gradient in the pair's input embeddings, `[pairs]`: what WDPO penalises, and the slope of the
/// worst case over a Wasserstein ball. `batch_size` pairs at a time.
///
/// # Errors
/// A token or a length that the model does not have.
pub fn input_gradients(
    model: &Model,
    layout: PairLayout,
    (pairs, losses): (&[TokenizedPair], &[Loss]),
    batch_size: usize,
    progress: &mut dyn Progress,
) -> Result<Vec<f64>> {
    let mut norms = Vec::with_capacity(pairs.len());
    let mut unused = Tensors::none(&model.map);
    let size = batch_size.max(1);
    for (pairs, losses) in pairs.chunks(size).zip(losses.chunks(size)) {
        let batch = PairLayout { opening: false, ..layout }.lay_out(pairs);
        model.check(&batch)?;
        let seeds: Vec<f64> = losses.iter().flat_map(|l| l.d.iter().copied()).collect();
        let v = model.backward(&batch, &model.forward(&batch), &seeds, &mut unused);
        let mut squares = vec![0.0; pairs.len()];
        for (row, &pair) in v.chunks_exact(model.config.hidden).zip(&batch.pair_of_row) {
            squares[pair as usize] += row.iter().map(|&x| x as f64 * x as f64).sum::<f64>();
        }
        norms.extend(squares.iter().map(|g| g.sqrt()));
        progress.advance(pairs.len() as u64, "");
    }
    if let Some(i) = norms.iter().position(|g| !g.is_finite()) {
        let what = "its input gradient is not finite: the model's weights are broken";
        return Err(Error::row(&pairs[i].file, pairs[i].row, "", what));
    }
    Ok(norms)
}
