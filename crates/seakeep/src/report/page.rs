//! The page: sections in the order a person reads them.

use std::fmt::Write;

use super::axis::Scale;
use super::charts;
use super::look::{Look, key};
use super::sections::{asked, configuration, found, paired, point_tables, results, samples};
use super::svg::Chart;
use super::text::escape;
use super::view::{Place, Report};
use super::{card, spider};

const STYLE: &str = include_str!("style.css");

/// The report as one HTML page.
pub fn render(report: &Report) -> String {
    let mut parts: Vec<(&str, String)> = vec![
        ("What was asked", asked(report)),
        ("Findings", found(report)),
        ("How to read this", guide(report)),
        ("Results", results(report)),
        ("Paired differences", paired(report)),
    ];
    parts.extend(drawings(report));
    parts.push(("Samples", samples(&report.samples)));
    parts.push(("Data card", report.card.as_ref().map(card::html).unwrap_or_default()));
    parts.push(("Exact configuration", configuration(report)));
    page(&report.title, &report.subtitle.join(" · "), parts)
}

/// A page of sections by title; those with nothing in them are left out.
pub fn page(title: &str, subtitle: &str, mut parts: Vec<(&str, String)>) -> String {
    parts.retain(|part| !part.1.is_empty());

    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{0}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<a class=\"skip\" href=\"#content\">Skip to the content</a>\n\
         <header>\n<h1>{0}</h1>\n<p class=\"soft\">{1}</p>\n",
        escape(title),
        escape(subtitle)
    );
    let links: String = parts
        .iter()
        .map(|(title, _)| format!("<li><a href=\"#{}\">{title}</a></li>", anchor(title)))
        .collect();
    let _ = write!(
        out,
        "<nav aria-label=\"Sections\"><ul>{links}</ul></nav>\n</header>\n<main id=\"content\" tabindex=\"-1\">\n"
    );
    for (title, body) in &parts {
        let id = anchor(title);
        let _ = writeln!(
            out,
            "<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{title}</h2>\n{body}\n</section>"
        );
    }
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

fn anchor(title: &str) -> String {
    title.to_lowercase().replace(' ', "-")
}

/// How to read the numbers.
fn guide(report: &Report) -> String {
    let mut items = Vec::new();
    if let Some(shift) = &report.shift {
        items.push(format!(
            "<b>Alpha</b> is the {} in the taste that judges. The training labels were drawn at one alpha; the further the \
             judging alpha is from it, the larger the shift.",
            escape(&shift.meaning)
        ));
        items.push(
            "<b>Reward</b> is the reward of texts that the policy wrote itself, so it shows what people would get. \
             <b>Worst</b> is the lowest reward over the alphas, found for each run."
                .into(),
        );
    }
    items.push(format!(
        "<b>Timid is not robust.</b> A method that hardly moves away from the reference loses little under any shift, and \
         gains little anywhere. So read every reward together with its <b>KL</b>, the divergence from the reference in nats \
         per token. A method is robust in a useful sense if its worst case is better than that of plain {} <em>at the same \
         KL</em>; that is why the baseline should stand here with several values of beta.",
        escape(&report.baseline)
    ));
    items.push(format!(
        "<b>±</b> is {}; bands and whiskers are {}. The findings use 95% intervals of paired differences and call nothing a \
         difference that these leave open.",
        escape(report.plus_minus()),
        escape(&report.bands)
    ));
    items.push(
        "<b>Accuracy</b> is the share of held-out pairs that the policy's implicit reward orders as labelled. Where labels \
         are noisy, even a perfect judge stays below 1."
            .into(),
    );
    items.push(
        "<b>In charts</b> every policy has its number, colour, dash and marker, the same everywhere; the legend above the \
         charts names them."
            .into(),
    );
    let items: String = items.into_iter().map(|item| format!("<li>{item}</li>")).collect();
    format!("<ul>{items}</ul>")
}

/// The sections that are charts.
fn drawings(report: &Report) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    let each = |draw: &dyn Fn(&super::view::MixtureView) -> Chart| -> Vec<Chart> {
        report.mixtures.iter().map(draw).collect()
    };
    let curves = charted(report, "reward", "", &each(&|m| charts::reward(report, m)));
    if !curves.is_empty() {
        out.push(("Reward against shift", curves + &point_tables(report)));
    }
    let text = "Up is better, left is closer to the reference. A grey line joins the reference and the settings of one \
                method: what lies above the baseline's line is more robust than caution alone.";
    let places: Vec<Chart> = report
        .mixtures
        .iter()
        .flat_map(|m| Place::ALL.map(|place| charts::frontier(report, m, place)))
        .collect();
    out.push(("Reward against divergence", charted(report, "frontier", text, &places)));
    out.push(("All objectives", objectives(report)));
    let mut accuracy = each(&|m| charts::accuracy(report, m));
    for set in &report.data_sets {
        accuracy.extend(set.along.iter().map(|view| charts::along(report, &set.name, view)));
    }
    out.push(("Preference accuracy against shift", charted(report, "accuracy", "", &accuracy)));
    out.push(("Worst cases", worst_cases(report)));
    let text = "Losses of different objectives are not comparable with each other; margins are, up to beta.";
    out.push(("Training", charted(report, "training", text, &charts::training(report))));
    out
}

fn objectives(report: &Report) -> String {
    let Some(data) = &report.spider else { return String::new() };
    let looks = charts::looks(report);
    let labels: Vec<&str> = report.policies.iter().map(|p| p.label.as_str()).collect();
    let Some(svg) = spider::svg(data, &looks, &labels, "spider") else { return String::new() };
    let used = |look: Look| looks.iter().zip(&data.values).any(|(l, v)| *l == look && v.is_some());
    let unseen = data.axes.iter().any(|axis| axis.1 == Some(false));
    let star = if unseen {
        " A star and a dashed spoke mark an objective that the training labels did not use."
    } else {
        ""
    };
    format!(
        "{}<p>{}.{star} The numbers stand under Results.</p><div class=\"charts\"><figure><h3>All objectives at once</h3>{svg}\
         </figure></div>",
        legend(report, &used),
        escape(&super::text::capital(&data.unit))
    )
}

fn worst_cases(report: &Report) -> String {
    let mut out = String::new();
    for (at, set) in report.data_sets.iter().enumerate() {
        let all: Vec<Chart> = set.balls.iter().map(|ball| charts::ball(report, &set.name, ball)).collect();
        let body = charted(report, &format!("ball{at}-"), "", &all);
        if !body.is_empty() {
            let _ = write!(
                out,
                "<h3>{}</h3><p class=\"soft\">{}</p>{}",
                escape(&set.name),
                escape(&set.description),
                body.replace("<figure><h3>", "<figure><h4>").replace("</h3><svg", "</h4><svg")
            );
        }
    }
    if !out.is_empty() {
        out.insert_str(
            0,
            "<p>The worst share of wrongly ordered pairs, and the worst mean loss, over all data within a distance of these \
             pairs: reweighted within a ball around equal weights or, for Wasserstein, with every input moved. At radius 0 \
             stands the plain mean; a line that rises less is more robust to that kind of shift.</p>",
        );
    }
    out
}

/// Names of what is drawn, each with its number, line and marker.
fn legend(report: &Report, used: &dyn Fn(Look) -> bool) -> String {
    let mut looks: Vec<(Look, &str)> =
        charts::looks(report).into_iter().zip(report.policies.iter().map(|p| p.label.as_str())).collect();
    looks.push((Look::Ceiling, "best possible"));
    looks.retain(|(look, _)| used(*look));
    keys(&looks)
}

/// A legend of these series.
pub fn keys(looks: &[(Look, &str)]) -> String {
    let item = |(look, label): &(Look, &str)| {
        format!("<li>{}<span><b>{}</b> {}</span></li>", key(*look), look.tag(), escape(label))
    };
    format!("<ul class=\"legend\">{}</ul>", looks.iter().map(item).collect::<String>())
}

/// A legend, a text, and charts side by side where there is room; nothing where nothing is to be drawn.
fn charted(report: &Report, id: &str, text: &str, charts: &[Chart]) -> String {
    if !charts.iter().any(Chart::has_points) {
        return String::new();
    }
    let used = |look: Look| {
        charts.iter().flat_map(|c| &c.series).any(|series| series.look == look && !series.points.is_empty())
    };
    let text = if text.is_empty() { String::new() } else { format!("<p>{text}</p>") };
    format!("{}{text}{}", legend(report, &used), figures(id, charts, Scale::Linear))
}

/// Charts side by side where there is room.
pub fn figures(id: &str, charts: &[Chart], scale: Scale) -> String {
    let figures: String = charts
        .iter()
        .enumerate()
        .filter(|(_, chart)| chart.has_points())
        .map(|(at, chart)| {
            let svg = chart.svg(&format!("{id}{at}"), scale);
            format!("<figure><h3>{}</h3>{svg}</figure>", escape(&chart.title))
        })
        .collect();
    format!("<div class=\"charts\">{figures}</div>")
}
