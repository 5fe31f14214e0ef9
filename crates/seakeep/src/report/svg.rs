//! Charts as inline SVG.
//!
//! Written here and not with `plotters`: its SVG backend fixes colours and fonts in every element and
//! gives no titles, descriptions or classes, so a chart could follow neither dark mode nor a screen
//! reader. What the report needs is lines, bands and points on linear axes.
//!
//! Colours come from the page's style sheet by class; every series also has its own dash and marker, so
//! that none is told by colour alone. A chart is drawn for a width of [`WIDTH`] units, narrow enough that
//! its text stays readable when a phone scales it down.

use std::fmt::Write;

use super::text::{escape, number};

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;
/// Room between the frame and the ends of the axes, so that markers at the ends stay clear of it.
const INSET: f64 = 8.0;

/// Dashes of successive series.
const DASHES: [&str; 8] = ["none", "7 3", "2 3", "9 3 2 3", "5 2", "1 2", "12 3", "6 2 2 2 2 2"];
/// Number of classes `s0`, `s1`, ... that the style sheet has colours for.
const COLOURS: usize = 8;

/// How a series is told from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The method of this number.
    Method(usize),
    /// What methods are measured against: grey, no markers.
    Reference,
    /// The best possible: thin, grey, dotted.
    Ceiling,
}

impl Look {
    fn class(self) -> String {
        match self {
            Look::Method(at) => format!("s{}", at % COLOURS),
            Look::Reference => "reference".into(),
            Look::Ceiling => "ceiling".into(),
        }
    }

    fn dash(self) -> &'static str {
        match self {
            // Beyond the colours the dashes are shifted, so that a colour does not return with its dash.
            Look::Method(at) => DASHES[(at + at / COLOURS) % DASHES.len()],
            Look::Reference => "4 4",
            Look::Ceiling => "1 4",
        }
    }
}

/// A point, with an interval in y where there is one.
#[derive(Clone, Debug)]
pub struct Point {
    /// Horizontal place.
    pub x: f64,
    /// Vertical place.
    pub y: f64,
    /// Half the height of the band at this point; 0 or NaN for none.
    pub spread: f64,
    /// What is shown when the point is hovered over.
    pub note: String,
}

/// How the points of a series are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drawn {
    /// A line with its band, without markers.
    Line,
    /// A line with its band and markers.
    MarkedLine,
    /// Small markers.
    Dots,
    /// Large markers with whiskers.
    Means,
}

/// Points that belong together.
#[derive(Clone, Debug)]
pub struct Series {
    /// Colour, dash and marker.
    pub look: Look,
    /// Line or points.
    pub drawn: Drawn,
    /// Those that are not finite are left out, and a line is broken there.
    pub points: Vec<Point>,
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Short title, read out by screen readers.
    pub title: String,
    /// What is drawn, in a sentence.
    pub description: String,
    /// Label of the horizontal axis.
    pub x_label: String,
    /// Label of the vertical axis.
    pub y_label: String,
    /// Vertical lines: where, and their label.
    pub marks: Vec<(f64, String)>,
    /// What is drawn, the first at the back.
    pub series: Vec<Series>,
}

/// What the numbers of both axes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// The values themselves.
    Linear,
    /// Decimal logarithms; ticks are labelled with the values.
    Log,
}

/// An axis from data to the drawing.
struct Axis {
    low: f64,
    high: f64,
    /// Where the ticks are, and their labels.
    ticks: Vec<(f64, String)>,
    from: f64,
    to: f64,
}

impl Axis {
    /// An axis over the values, drawn between `from` and `to`: with round ends, or of logarithms.
    fn over(values: impl Iterator<Item = f64>, scale: Scale, from: f64, to: f64) -> Axis {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|v| v.is_finite()) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if high - low < 1e-9 * low.abs().max(1e-3) {
            (low, high) = (low - 0.5 * low.abs().max(0.1), high + 0.5 * high.abs().max(0.1));
        }
        let (low, high, ticks) = match scale {
            Scale::Linear => round_ends(low, high),
            Scale::Log => (low, high, powers(low, high)),
        };
        Axis { low, high, ticks, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }
}

/// The range made round, and its ticks.
fn round_ends(low: f64, high: f64) -> (f64, f64, Vec<(f64, String)>) {
    let raw = (high - low) / 5.0;
    let power = 10f64.powf(raw.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= raw * 0.999).unwrap_or(raw);
    // The slack keeps a value that is a tick but for rounding from adding a tick.
    let low = (low / step + 1e-6).floor() * step;
    let high = (high / step - 1e-6).ceil() * step;
    let digits = (-step.log10().floor()).max(0.0) as usize;
    let count = ((high - low) / step).round() as usize;
    let ticks = (0..=count).map(|at| low + at as f64 * step).map(|tick| (tick, number(tick, digits)));
    (low, high, ticks.collect())
}

/// The ticks of a logarithmic axis between the decimal logarithms `low` and `high`: powers of ten, and with few of
/// them 3, or 2 and 5, times those.
fn powers(low: f64, high: f64) -> Vec<(f64, String)> {
    let (multiples, every): (&[f64], i32) = match high - low {
        width if width <= 2.2 => (&[1.0, 2.0, 5.0], 1),
        width if width <= 3.5 => (&[1.0, 3.0], 1),
        width if width <= 7.0 => (&[1.0], 1),
        width => (&[1.0], (width / 5.0).ceil() as i32),
    };
    let label = |exponent: i32, m: f64| match exponent {
        -3..0 => number(m * 10f64.powi(exponent), -exponent as usize),
        0..5 => number(m * 10f64.powi(exponent), 0),
        _ => format!("{m}e{exponent}").replace('-', "−"),
    };
    let exponents = (low.floor() as i32..=high.ceil() as i32).filter(|e| e.rem_euclid(every) == 0);
    let all = exponents.flat_map(|e| multiples.iter().map(move |m| (f64::from(e) + m.log10(), label(e, *m))));
    all.filter(|(at, _)| *at >= low - 1e-9 && *at <= high + 1e-9).collect()
}

impl Chart {
    /// Whether there is anything to draw.
    pub fn has_points(&self) -> bool {
        self.series.iter().any(|series| !series.points.is_empty())
    }

    /// The `<svg>` element. `id` must be unique in the page and a valid HTML id.
    pub fn svg(&self, id: &str) -> String {
        self.svg_on(id, Scale::Linear)
    }

    /// As [`Chart::svg`]; with [`Scale::Log`] the points (and spreads, and marks) are decimal logarithms.
    pub fn svg_on(&self, id: &str, scale: Scale) -> String {
        let points = || self.series.iter().flat_map(|s| &s.points);
        let marks = self.marks.iter().map(|mark| mark.0);
        let x = Axis::over(points().map(|p| p.x).chain(marks), scale, LEFT + INSET, WIDTH - RIGHT - INSET);
        let bounds = |p: &Point| {
            let spread = if p.spread.is_finite() { p.spread } else { 0.0 };
            [p.y - spread, p.y + spread]
        };
        let y = Axis::over(points().flat_map(bounds), scale, HEIGHT - BOTTOM, TOP);
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
             <title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>",
            escape(&self.title),
            escape(&self.description)
        );
        self.axes(&mut out, &x, &y);
        for series in &self.series {
            let _ = write!(out, "<g class=\"{}\">", series.look.class());
            let runs: Vec<&[Point]> = series
                .points
                .split(|p| !p.x.is_finite() || !p.y.is_finite())
                .filter(|r| !r.is_empty())
                .collect();
            if matches!(series.drawn, Drawn::Line | Drawn::MarkedLine) {
                for run in &runs {
                    line(&mut out, series.look, run, &x, &y);
                }
            }
            if series.drawn != Drawn::Line {
                for point in runs.into_iter().flatten() {
                    mark(&mut out, series, point, &x, &y);
                }
            }
            out.push_str("</g>");
        }
        out.push_str("</svg>");
        out
    }

    fn axes(&self, out: &mut String, x: &Axis, y: &Axis) {
        let (left, right, top, bottom) = (LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM);
        out.push_str("<g class=\"axes\">");
        for (tick, label) in &y.ticks {
            let at = y.place(*tick);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 6.0,
                at + 4.0,
                label
            );
        }
        for (tick, label) in &x.ticks {
            let at = x.place(*tick);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{:.1}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 4.0,
                bottom + 17.0,
                label
            );
        }
        let middle = (left + right) / 2.0;
        let _ = write!(
            out,
            "<text class=\"label\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"label\" transform=\"translate(12 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 8.0,
            escape(&self.x_label),
            (top + bottom) / 2.0,
            escape(&self.y_label)
        );
        for (value, label) in &self.marks {
            let at = x.place(*value);
            let _ = write!(
                out,
                "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>\
                 <text class=\"mark\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                at + 4.0,
                top + 8.0,
                escape(label)
            );
        }
        out.push_str("</g>");
    }
}

/// A line through the points and its band behind it.
fn line(out: &mut String, look: Look, points: &[Point], x: &Axis, y: &Axis) {
    let path = |points: &mut dyn Iterator<Item = (f64, f64)>| {
        points.map(|(px, py)| format!("{:.1},{:.1}", x.place(px), y.place(py))).collect::<Vec<_>>().join(" ")
    };
    if points.iter().any(|p| p.spread > 0.0) {
        let half = |p: &Point| if p.spread.is_finite() { p.spread } else { 0.0 };
        let above = points.iter().map(|p| (p.x, p.y + half(p)));
        let below = points.iter().rev().map(|p| (p.x, p.y - half(p)));
        let _ = write!(out, "<polygon class=\"band\" points=\"{}\"/>", path(&mut above.chain(below)));
    }
    let _ = write!(
        out,
        "<polyline class=\"line\" stroke-dasharray=\"{}\" points=\"{}\"/>",
        look.dash(),
        path(&mut points.iter().map(|p| (p.x, p.y)))
    );
}

/// One point's marker, its whisker where it is a mean, and its note.
fn mark(out: &mut String, series: &Series, point: &Point, x: &Axis, y: &Axis) {
    let (px, py) = (x.place(point.x), y.place(point.y));
    let size = match series.drawn {
        Drawn::Dots => 2.6,
        Drawn::Means => 5.5,
        Drawn::Line | Drawn::MarkedLine => 3.2,
    };
    let class = if series.drawn == Drawn::Dots { "marker faint" } else { "marker" };
    let _ = write!(out, "<g class=\"{class}\"><title>{}</title>", escape(&point.note));
    if series.drawn == Drawn::Means && point.spread > 0.0 {
        let (low, high) = (y.place(point.y - point.spread), y.place(point.y + point.spread));
        let _ = write!(
            out,
            "<line class=\"whisker\" x1=\"{px:.1}\" x2=\"{px:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\"/>"
        );
    }
    shape(out, series.look, px, py, size);
    out.push_str("</g>");
}

/// The marker of a series: eight shapes in turn, a ring for the reference.
fn shape(out: &mut String, look: Look, x: f64, y: f64, r: f64) {
    let polygon = |corners: &[(f64, f64)]| {
        let at = |(dx, dy): &(f64, f64)| format!("{:.1},{:.1}", x + dx * r, y + dy * r);
        format!("<polygon points=\"{}\"/>", corners.iter().map(at).collect::<Vec<_>>().join(" "))
    };
    let text = match look {
        Look::Reference | Look::Ceiling => {
            format!("<circle class=\"hollow\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r:.1}\"/>")
        }
        Look::Method(at) => match at % 8 {
            0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r:.1}\"/>"),
            1 => polygon(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            2 => polygon(&[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)]),
            3 => polygon(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
            4 => polygon(&[(0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)]),
            5 => polygon(&[(-1.2, -0.4), (1.2, -0.4), (1.2, 0.4), (-1.2, 0.4)]),
            6 => polygon(&[(-0.4, -1.2), (0.4, -1.2), (0.4, 1.2), (-0.4, 1.2)]),
            _ => polygon(&[(0.0, -1.2), (1.1, -0.4), (0.7, 1.0), (-0.7, 1.0), (-1.1, -0.4)]),
        },
    };
    out.push_str(&text);
}

/// The key of a legend's entry: a stretch of the line with its marker.
pub fn key(look: Look) -> String {
    let mut out = format!(
        "<svg class=\"key\" viewBox=\"0 0 36 12\" aria-hidden=\"true\"><g class=\"{}\">\
         <line class=\"line\" stroke-dasharray=\"{}\" x1=\"1\" x2=\"35\" y1=\"6\" y2=\"6\"/>",
        look.class(),
        look.dash()
    );
    if let Look::Method(_) = look {
        out.push_str("<g class=\"marker\">");
        shape(&mut out, look, 18.0, 6.0, 3.6);
        out.push_str("</g>");
    }
    out.push_str("</g></svg>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64, f64)]) -> Chart {
        let point = |&(x, y, spread)| Point { x, y, spread, note: "<note>".into() };
        Chart {
            title: "Reward & <shift>".into(),
            description: "d".into(),
            x_label: "alpha".into(),
            y_label: "reward".into(),
            marks: vec![(0.1, "nominal".into())],
            series: vec![Series {
                look: Look::Method(1),
                drawn: Drawn::MarkedLine,
                points: points.iter().map(point).collect(),
            }],
        }
    }

    #[test]
    fn axes_have_round_ends_around_the_data() {
        let axis = Axis::over([0.31, 0.58].into_iter(), Scale::Linear, 0.0, 100.0);
        assert!(
            (axis.low - 0.3).abs() < 1e-12 && (axis.high - 0.6).abs() < 1e-12,
            "{} {}",
            axis.low,
            axis.high
        );
        assert!((axis.place(axis.high) - 100.0).abs() < 1e-9);
        let unit = Axis::over((0..=10).map(|a| f64::from(a) / 10.0), Scale::Linear, 0.0, 1.0);
        assert_eq!(unit.ticks.len(), 6);
        assert_eq!(unit.ticks[1].1, "0.2");
        for odd in [vec![], vec![0.0], vec![5.0, 5.0], vec![f64::NAN], vec![-3.0]] {
            for scale in [Scale::Linear, Scale::Log] {
                let axis = Axis::over(odd.clone().into_iter(), scale, 0.0, 1.0);
                assert!(axis.high > axis.low && axis.ticks.len() < 20, "{odd:?}");
            }
        }
    }

    #[test]
    fn logarithmic_axes_are_labelled_with_values() {
        let labels = |low: f64, high: f64| {
            let axis = Axis::over([low.log10(), high.log10()].into_iter(), Scale::Log, 0.0, 1.0);
            axis.ticks.into_iter().map(|tick| tick.1).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(labels(0.02, 1.5), "0.02 0.05 0.1 0.2 0.5 1");
        assert_eq!(labels(128.0, 65536.0), "300 1000 3000 10000 30000");
        assert_eq!(labels(0.0005, 2e6), "0.01 1 100 10000 1e6");
    }

    #[test]
    fn text_is_escaped_and_broken_points_break_the_line() {
        let svg = chart(&[(0.0, 0.5, 0.1), (0.5, f64::NAN, 0.0), (1.0, 0.4, f64::NAN)]).svg("c");
        assert!(svg.contains("Reward &amp; &lt;shift&gt;") && !svg.contains("<note>"));
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert!(chart(&[]).svg("c").ends_with("</svg>"));
    }
}
