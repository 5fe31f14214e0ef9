//! Whether records are whole, and whether they belong together.

use std::path::{Path, PathBuf};

use crate::policy_record::{Column, POLICY_SCHEMA_VERSION, PairSet, PolicyRecord, Samples};
use crate::{Error, Result};

/// Refuses records that cannot be reported together.
///
/// # Errors
/// [`Error::Usage`] for none or for records that differ in what they were judged on, [`Error::Format`] for one that
/// contradicts itself.
pub fn records(records: &[(PathBuf, PolicyRecord)]) -> Result<()> {
    if records.is_empty() {
        return Err(Error::Usage(
            "no records; expected at least one file that `seakeep eval --policy_record FILE` wrote".into(),
        ));
    }
    for (at, (path, record)) in records.iter().enumerate() {
        whole(path, record)?;
        for (other_path, other) in &records[..at] {
            let (a, b) = (&record.policy, &other.policy);
            if a.label == b.label && a.seed == b.seed {
                return Err(together(
                    path,
                    other_path,
                    &format!("both are `{}`, seed {}", a.label, a.seed),
                    "give each once",
                ));
            }
            if a.label == b.label && a.method != b.method {
                let what = format!(
                    "`{}` is of method `{}` in one and `{}` in the other",
                    a.label, a.method, b.method
                );
                return Err(together(path, other_path, &what, "give other labels"));
            }
            if let Some(what) = (a.label == b.label).then(|| a.trained_otherwise(b)).flatten() {
                let what = format!("`{}` was trained with {what}, and would pass for another seed", a.label);
                return Err(together(path, other_path, &what, "judge with `eval --label`, a label for each"));
            }
        }
    }
    same(
        records,
        |r| r.shift.as_ref(),
        |a, b| {
            (a != b).then(|| {
                "they were judged under different shifts (objectives, mixtures, nominal alpha or alphas)"
                    .into()
            })
        },
    )?;
    same(records, |r| r.samples.as_ref(), samples_differ)?;
    let mut names: Vec<&str> =
        records.iter().flat_map(|(_, r)| &r.datasets).map(|d| d.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        same(records, |r| r.datasets.iter().find(|d| d.name == name), pairs_differ)?;
    }
    Ok(())
}

fn together(path: &Path, other: &Path, what: &str, hint: &str) -> Error {
    Error::Usage(format!(
        "{} and {} cannot be reported together: {what}; {hint}",
        other.display(),
        path.display()
    ))
}

/// Compares every record's part with the first that has one.
fn same<'a, T: 'a>(
    records: &'a [(PathBuf, PolicyRecord)],
    part: impl Fn(&'a PolicyRecord) -> Option<&'a T>,
    differ: impl Fn(&T, &T) -> Option<String>,
) -> Result<()> {
    let mut having = records.iter().filter_map(|(path, record)| Some((path, part(record)?)));
    let Some((first_path, first)) = having.next() else { return Ok(()) };
    for (path, other) in having {
        if let Some(what) = differ(first, other) {
            return Err(together(
                path,
                first_path,
                &what,
                "run `seakeep eval` again with the same data for both",
            ));
        }
    }
    Ok(())
}

fn samples_differ(a: &Samples, b: &Samples) -> Option<String> {
    if a.prompts_fingerprint != b.prompts_fingerprint || a.prompts != b.prompts {
        let of = |s: &Samples| format!("{} prompts, fingerprint `{}`", s.prompts, s.prompts_fingerprint);
        return Some(format!("their prompts differ ({}; {})", of(a), of(b)));
    }
    if let Some(what) = a.judged_otherwise(b) {
        return Some(what);
    }
    let names = |s: &Samples| s.scores.keys().cloned().collect::<Vec<_>>().join(", ");
    (names(a) != names(b)).then(|| format!("their objectives differ ({}; {})", names(a), names(b)))
}

fn pairs_differ(a: &PairSet, b: &PairSet) -> Option<String> {
    let name = &a.name;
    if a.margins.0.len() != b.margins.0.len() {
        let counts = format!("{} and {}", a.margins.0.len(), b.margins.0.len());
        return Some(format!("data set `{name}` has different numbers of pairs ({counts})"));
    }
    if let (Some(first), Some(second)) = (&a.rows_fingerprint, &b.rows_fingerprint)
        && first != second
    {
        return Some(format!("data set `{name}` is of other rows ({}; {})", a.dataset_name, b.dataset_name));
    }
    let scores = |set: &PairSet| {
        let bits = |(name, column): (&String, &Column)| {
            (name.clone(), column.0.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
        };
        [&set.score_differences, &set.chosen_scores].map(|scores| scores.iter().map(bits).collect::<Vec<_>>())
    };
    let what = match a.groups == b.groups {
        false => "groups",
        true if scores(a) != scores(b) => "scores",
        true => return None,
    };
    Some(format!("the pairs of data set `{name}` differ (in their {what})"))
}

/// A record that does not contradict itself.
fn whole(path: &Path, record: &PolicyRecord) -> Result<()> {
    let wrong = |what: String| Err(Error::Format { path: path.to_owned(), what });
    if record.schema_version != POLICY_SCHEMA_VERSION {
        return wrong(format!(
            "schema_version {}; expected {POLICY_SCHEMA_VERSION}; judge the policy again with this program",
            record.schema_version
        ));
    }
    if let Err(what) = record.check() {
        return wrong(what);
    }
    if let Some(shift) = &record.shift {
        let rising = shift.alphas.windows(2).all(|two| two[0] < two[1]);
        if shift.alphas.is_empty() || !rising || shift.alphas.iter().any(|a| !(0.0..=1.0).contains(a)) {
            return wrong(format!(
                "`shift.alphas` is {:?}; expected growing numbers from 0 to 1",
                shift.alphas
            ));
        }
        if !(0.0..=1.0).contains(&shift.nominal_alpha) {
            return wrong(format!("`shift.nominal_alpha` is {}; expected 0 to 1", shift.nominal_alpha));
        }
        let unknown = shift.mixtures.iter().find(|m| !["convex", "geometric"].contains(&m.as_str()));
        if let Some(mixture) = unknown {
            return wrong(format!("`shift.mixtures` has `{mixture}`; expected convex or geometric"));
        }
        for name in shift.objectives.iter() {
            let scored = record.samples.as_ref().filter(|s| !s.scores.is_empty());
            if let Some(s) = scored.filter(|s| !s.scores.contains_key(name)) {
                let all: Vec<&str> = s.scores.keys().map(String::as_str).collect();
                return wrong(format!(
                    "the shift is over `{name}`, which has no scores; there are {}",
                    all.join(", ")
                ));
            }
        }
    }
    Ok(())
}
