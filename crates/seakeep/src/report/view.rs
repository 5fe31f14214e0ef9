//! What a report shows, whatever kind of record it was made of: numbers with intervals, curves, comparisons, texts.
//!
//! [`super::of_eval`] and [`super::of_policies`] make it; the page, the charts, the findings and the terminal's table read
//! nothing else. A part that a record cannot fill stays empty, and the page leaves its section out.

use serde_json::Value;

use crate::eval_record::Sample;

/// A number and its interval; `low` and `high` are NaN where there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The number.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Estimate {
    /// A number without an interval.
    pub fn alone(mean: f64) -> Estimate {
        Estimate { mean, low: f64::NAN, high: f64::NAN }
    }

    /// Half the interval's width.
    pub fn half(&self) -> f64 {
        (self.high - self.low) / 2.0
    }

    /// What the interval says of the sign: `Some(true)` above zero, `Some(false)` below, `None` where it holds zero or
    /// there is none.
    pub fn sign(&self) -> Option<bool> {
        // Comparisons with NaN are false, which is the answer wanted.
        if self.low > 0.0 {
            Some(true)
        } else if self.high < 0.0 {
            Some(false)
        } else {
            None
        }
    }
}

/// The whole report.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The page's title.
    pub title: String,
    /// What stands under it, in a few words each.
    pub subtitle: Vec<String>,
    /// What was asked, and of which data.
    pub paragraphs: Vec<String>,
    /// Counts and constants, by name.
    pub facts: Vec<(String, String)>,
    /// The shift of preferences, where there is one.
    pub shift: Option<ShiftView>,
    /// What `±` and bands are, such as `one standard deviation over seeds`.
    pub bands: String,
    /// What `±` is, where it is not what bands are: they need not lie evenly about a mean.
    pub plus_minus: Option<String>,
    /// How the findings' intervals were made, what they cover and what not.
    pub caveat: String,
    /// The label or method that others are compared with, as findings call it, such as `DPO`.
    pub baseline: String,
    /// The policies, the reference among them: the order of every list of cells and of the legend.
    pub policies: Vec<PolicyView>,
    /// One for each mixture of objectives.
    pub mixtures: Vec<MixtureView>,
    /// Tables with a row for each policy.
    pub tables: Vec<Table>,
    /// Differences from the baseline label: a row for each other policy.
    pub paired: Vec<Table>,
    /// All objectives at once.
    pub spider: Option<Spider>,
    /// Worst cases of each data set.
    pub data_sets: Vec<DataSetView>,
    /// Sentences about data sets and objectives, under headings.
    pub more_findings: Vec<(String, Vec<String>)>,
    /// Completions to read.
    pub samples: Vec<Sample>,
    /// The data card of `seakeep pairs`.
    pub card: Option<Value>,
    /// Commands, as typed.
    pub commands: Vec<String>,
    /// Programs, machines, times.
    pub circumstances: Vec<(String, String)>,
    /// The whole configuration, where a record holds it.
    pub config: Value,
}

/// The axis along which preferences shift.
#[derive(Clone, Debug, Default)]
pub struct ShiftView {
    /// The alpha of the training labels.
    pub nominal: f64,
    /// The alpha furthest from it.
    pub far: f64,
    /// What alpha is, such as `share of population 1`.
    pub meaning: String,
}

/// A policy (over its seeds) as a line of charts and tables.
#[derive(Clone, Debug, Default)]
pub struct PolicyView {
    /// The method with the settings that tell it from others.
    pub label: String,
    /// The method, the same for all its settings.
    pub method: String,
    /// Whether it is what every policy started from.
    pub is_reference: bool,
    /// Divergence from the reference, nats per token.
    pub kl: Option<Estimate>,
    /// Its settings, for reading.
    pub settings: Vec<(String, String)>,
    /// Step, loss, margin; the mean over seeds, thinned.
    pub training: Vec<(f64, f64, f64)>,
}

/// The places of a curve that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the alpha of the training labels.
    Nominal,
    /// At the alpha furthest from it.
    Far,
    /// At the alpha of the lowest reward, found for each run.
    Worst,
}

impl Place {
    /// All of them, in the order of every `[_; 3]` here.
    pub const ALL: [Place; 3] = [Place::Nominal, Place::Far, Place::Worst];
}

/// Rewards under one mixture.
#[derive(Clone, Debug, Default)]
pub struct MixtureView {
    /// Such as `convex`.
    pub name: String,
    /// By policy; `None` where it was not measured.
    pub curves: Vec<Option<CurveView>>,
    /// The best possible reward by alpha, where it is known.
    pub ceiling: Vec<(f64, f64)>,
    /// Differences from the baseline in the worst case.
    pub comparisons: Vec<Comparison>,
}

/// One policy's rewards along the shift.
#[derive(Clone, Debug, Default)]
pub struct CurveView {
    /// By growing alpha.
    pub points: Vec<AlphaPoint>,
    /// At [`Place::ALL`].
    pub at: Vec<Estimate>,
    /// The alpha of the lowest reward (of the mean curve).
    pub worst_alpha: f64,
    /// What it has over the reference, at [`Place::ALL`].
    pub gains: Vec<Option<Estimate>>,
    /// One for each run (seed).
    pub runs: Vec<RunPoint>,
}

/// One point of a curve.
#[derive(Clone, Debug)]
pub struct AlphaPoint {
    /// Where.
    pub alpha: f64,
    /// Mean reward of own samples.
    pub reward: Estimate,
    /// Share of pairs ordered as labelled there.
    pub accuracy: Option<Estimate>,
}

/// One run on the frontier.
#[derive(Clone, Debug)]
pub struct RunPoint {
    /// Its seed.
    pub seed: u64,
    /// Divergence, nats per token.
    pub kl: f64,
    /// Reward at [`Place::ALL`].
    pub at: [f64; 3],
}

/// A policy against the baseline, in the worst case.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Index of the policy.
    pub policy: usize,
    /// Index of the baseline's best setting.
    pub best: usize,
    /// How many settings of the baseline there are.
    pub settings: usize,
    /// The difference at own settings.
    pub own: Gap,
    /// The difference from the baseline's frontier at the policy's divergence; or why it cannot be had.
    pub equal_kl: Result<Gap, String>,
}

/// A difference, and why it has no interval where it has none.
#[derive(Clone, Debug)]
pub struct Gap {
    /// The difference.
    pub estimate: Estimate,
    /// Such as `from 1 paired seed(s)`.
    pub without: String,
}

/// Numbers with a row for each policy.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// A short name.
    pub name: String,
    /// A line that says more.
    pub caption: String,
    /// The columns after the first.
    pub columns: Vec<Column>,
}

/// A column of a table.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its heading.
    pub name: String,
    /// Decimals.
    pub digits: usize,
    /// By policy.
    pub cells: Vec<Option<Estimate>>,
}

impl Table {
    /// Adds a column unless it is empty.
    pub fn push(&mut self, name: impl Into<String>, digits: usize, cells: Vec<Option<Estimate>>) {
        if cells.iter().any(Option::is_some) {
            self.columns.push(Column { name: name.into(), digits, cells });
        }
    }
}

/// Gains over the reference by objective.
#[derive(Clone, Debug, Default)]
pub struct Spider {
    /// The objectives, and whether training labels used them; `None` where that is not known.
    pub axes: Vec<(String, Option<bool>)>,
    /// What a unit is.
    pub unit: String,
    /// By policy, by axis.
    pub values: Vec<Option<Vec<f64>>>,
}

impl Report {
    /// What `±` is.
    pub fn plus_minus(&self) -> &str {
        self.plus_minus.as_ref().unwrap_or(&self.bands)
    }
}

/// Worst cases and accuracies on the pairs of one data set.
#[derive(Clone, Debug, Default)]
pub struct DataSetView {
    /// Its name.
    pub name: String,
    /// File and rows.
    pub description: String,
    /// By ball.
    pub balls: Vec<BallView>,
    /// By mixture, where the pairs carry scores.
    pub along: Vec<AlongView>,
}

/// The share of pairs that a policy's implicit reward orders as a mixture labels them, along the shift.
#[derive(Clone, Debug, Default)]
pub struct AlongView {
    /// The mixture.
    pub mixture: String,
    /// By policy: alpha and accuracy.
    pub curves: Vec<Option<Vec<(f64, Estimate)>>>,
}

/// Worst cases over the radius of a ball.
#[derive(Clone, Debug, Default)]
pub struct BallView {
    /// Such as `KL ball`.
    pub name: String,
    /// The radius, its unit or bounds.
    pub radius: String,
    /// `error`, the share of pairs in the wrong order, or `loss`, nats.
    pub what: String,
    /// By policy: radius and worst case.
    pub curves: Vec<Option<Vec<(f64, Estimate)>>>,
}
