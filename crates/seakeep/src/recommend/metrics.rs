//! How well rankings put the item that was chosen: hit rate, discounted gain and reciprocal rank, with intervals.
//!
//! With one relevant item at rank `r` (from 1) among `c` candidates:
//!
//! ```text
//! HR@K = [r <= K]      NDCG@K = [r <= K] / log2(1 + r)      MRR = 1 / r
//! ```
//! A row whose candidates lack the item counts 0 in all. Under a random order the means are `K/c`, `sum_{r<=K} 1/log2(1+r) / c`
//! and `H_c / c`: given with each as `chance`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::stats::{Bootstrap, Interval};

/// The K of HR@K and NDCG@K.
pub const CUTOFFS: [usize; 3] = [1, 5, 10];

/// Where one row's item came.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    /// Whose row it is; rows of one user are drawn together.
    pub user: String,
    /// The user's group.
    pub group: Option<String>,
    /// The item's rank, from 1; `None` where it is not among the candidates.
    pub rank: Option<usize>,
    /// Candidates.
    pub candidates: usize,
}

/// A mean, its 95% interval, and what a random order would give.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Mean over rows.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Under a random order.
    pub chance: f64,
}

/// The metrics of some rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Rows.
    pub rows: usize,
    /// Different users.
    pub users: usize,
    /// Share of the rows whose item is among their candidates.
    pub valid_ratio: f64,
    /// `hr@1`, ..., `ndcg@10`, `mrr`.
    pub metrics: Vec<(String, Estimate)>,
}

impl Summary {
    /// A metric by its name.
    pub fn of(&self, name: &str) -> Option<Estimate> {
        self.metrics.iter().find(|(own, _)| own == name).map(|(_, e)| *e)
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let metrics: Map<String, Value> =
            self.metrics.iter().map(|(name, e)| (name.clone(), json!(e))).collect();
        json!({"rows": self.rows, "users": self.users, "valid_ratio": self.valid_ratio, "metrics": metrics})
    }
}

/// A number between 0 and 1 for a rank.
#[derive(Clone, Copy)]
enum Metric {
    Hit(usize),
    Ndcg(usize),
    Reciprocal,
}

impl Metric {
    fn all() -> Vec<Metric> {
        let at = |make: fn(usize) -> Metric| CUTOFFS.into_iter().map(make);
        at(Metric::Hit).chain(at(Metric::Ndcg)).chain([Metric::Reciprocal]).collect()
    }

    fn name(self) -> String {
        match self {
            Metric::Hit(k) => format!("hr@{k}"),
            Metric::Ndcg(k) => format!("ndcg@{k}"),
            Metric::Reciprocal => "mrr".into(),
        }
    }

    fn at(self, rank: usize) -> f64 {
        let within = |k| f64::from(rank <= k);
        match self {
            Metric::Hit(k) => within(k),
            Metric::Ndcg(k) => within(k) / (1.0 + rank as f64).log2(),
            Metric::Reciprocal => 1.0 / rank as f64,
        }
    }

    fn of(self, row: &Ranking) -> f64 {
        row.rank.map_or(0.0, |rank| self.at(rank))
    }

    /// Its mean where every rank is as likely.
    fn chance(self, row: &Ranking) -> f64 {
        let whole: f64 = (1..=row.candidates).map(|rank| self.at(rank)).sum();
        if row.rank.is_some() { whole / row.candidates as f64 } else { 0.0 }
    }
}

/// Means over rows, and intervals over users, whose rows are drawn together; of one user, who says nothing of another, there is none (NaN).
pub fn summarise(rows: &[Ranking], how: Bootstrap) -> Summary {
    let mut users: BTreeMap<&str, Vec<&Ranking>> = BTreeMap::new();
    rows.iter().for_each(|row| users.entry(&row.user).or_default().push(row));
    let counts: Vec<f64> = users.values().map(|own| own.len() as f64).collect();
    let n = rows.len() as f64;
    let estimate = |metric: Metric| {
        let sum = |own: &Vec<&Ranking>| own.iter().map(|row| metric.of(row)).sum::<f64>();
        let sums: Vec<f64> = users.values().map(sum).collect();
        let Interval { low, high, .. } = how.ratio(&sums, &counts);
        let value = rows.iter().map(|row| metric.of(row)).sum::<f64>() / n;
        let chance = rows.iter().map(|row| metric.chance(row)).sum::<f64>() / n;
        (metric.name(), Estimate { value, low, high, chance })
    };
    Summary {
        rows: rows.len(),
        users: users.len(),
        valid_ratio: rows.iter().filter(|r| r.rank.is_some()).count() as f64 / n,
        metrics: Metric::all().into_iter().map(estimate).collect(),
    }
}

/// The rows of each group, in the order of names; none where no row has one.
pub fn groups(rows: &[Ranking]) -> BTreeMap<String, Vec<Ranking>> {
    let mut groups: BTreeMap<String, Vec<Ranking>> = BTreeMap::new();
    for row in rows {
        if let Some(group) = &row.group {
            groups.entry(group.clone()).or_default().push(row.clone());
        }
    }
    groups
}
