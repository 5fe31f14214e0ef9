//! Charts as inline SVG.
//!
//! Written here and not with `plotters`: its SVG backend fixes colours and fonts in every element and
//! gives no titles, descriptions or classes, so a chart could follow neither dark mode nor a screen
//! reader. What the report needs is lines, bands and points.
//!
//! A chart is drawn for a width of [`WIDTH`] units, narrow enough that its text stays readable when a phone scales it down.
//! Every line carries its tag (the number in the legend) at its end, every large marker beside it; tags keep apart.

use std::fmt::Write;

use super::axis::{Axis, Scale};
use super::look::{Look, shape};
use super::tags::{LINE, beside, stacked, width};
use super::text::escape;

/// Width of every chart, in units of its view box.
pub const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 300.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 50.0;
/// Room between the frame and the ends of the axes, so that markers at the ends stay clear of it.
const INSET: f64 = 8.0;

/// A point, with an interval in y where there is one.
#[derive(Clone, Debug)]
pub struct Point {
    /// Horizontal place.
    pub x: f64,
    /// Vertical place.
    pub y: f64,
    /// The interval's ends; NaN for none.
    pub ends: [f64; 2],
    /// What is shown when the point is hovered over.
    pub note: String,
}

impl Point {
    /// The interval, where it is whole and not empty.
    fn interval(&self) -> Option<[f64; 2]> {
        let [low, high] = self.ends;
        (low.is_finite() && high.is_finite() && high > low).then_some(self.ends)
    }

    fn is_finite(&self) -> bool {
        self.x.is_finite() && self.y.is_finite()
    }
}

/// How the points of a series are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drawn {
    /// A line with its band and its tag at the end, without markers.
    Line,
    /// A line with its band, markers and its tag at the end.
    MarkedLine,
    /// A thin line without a tag, behind the points that it joins.
    Joint,
    /// Small markers.
    Dots,
    /// Large markers with whiskers and tags.
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

/// Where things lie in one drawing.
struct Frame {
    x: Axis,
    y: Axis,
    left: f64,
    right: f64,
    bottom: f64,
}

impl Frame {
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (self.x.place(x), self.y.place(y))
    }
}

impl Chart {
    /// Whether there is anything to draw.
    pub fn has_points(&self) -> bool {
        self.series.iter().any(|series| series.points.iter().any(Point::is_finite))
    }

    /// The `<svg>` element. `id` must be unique in the page and a valid HTML id.
    /// With [`Scale::Log`] the points (and intervals, and marks) are decimal logarithms.
    pub fn svg(&self, id: &str, scale: Scale) -> String {
        let ends: Vec<(Look, &Point)> = self
            .series
            .iter()
            .filter(|s| matches!(s.drawn, Drawn::Line | Drawn::MarkedLine))
            .filter_map(|s| Some((s.look, s.points.iter().rev().find(|p| p.is_finite())?)))
            .collect();
        // Room for the tags: to the right as wide as the widest, in height as high as all of them.
        let gutter = ends.iter().map(|(look, _)| 10.0 + width(&look.tag())).fold(0.0, f64::max);
        let height = HEIGHT.max(TOP + BOTTOM + LINE * ends.len() as f64);
        let frame = self.frame(height, gutter, scale);
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
             <title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>",
            escape(&self.title),
            escape(&self.description)
        );
        self.axes(&mut out, &frame, height);
        // Many bands on each other would hide the lines.
        let opacity = (0.7 / ends.len().max(1) as f64).min(0.14);
        for series in &self.series {
            let _ = write!(out, "<g class=\"{}\">", series.look.class());
            let runs: Vec<&[Point]> =
                series.points.split(|p| !p.is_finite()).filter(|r| !r.is_empty()).collect();
            if !matches!(series.drawn, Drawn::Dots | Drawn::Means) {
                runs.iter().for_each(|run| line(&mut out, series, run, &frame, opacity));
            }
            if !matches!(series.drawn, Drawn::Line | Drawn::Joint) {
                runs.into_iter().flatten().for_each(|point| mark(&mut out, series, point, &frame));
            }
            out.push_str("</g>");
        }
        end_tags(&mut out, &ends, &frame);
        self.mean_tags(&mut out, &frame);
        out.push_str("</svg>");
        out
    }

    fn frame(&self, height: f64, gutter: f64, scale: Scale) -> Frame {
        let points = || self.series.iter().flat_map(|s| &s.points);
        let marks = self.marks.iter().map(|mark| mark.0);
        let bounds = |p: &Point| p.interval().map_or([p.y, p.y], |[low, high]| [low.min(p.y), high.max(p.y)]);
        let (bottom, right) = (height - BOTTOM, WIDTH - 12.0 - gutter);
        let y = Axis::over(points().flat_map(bounds), scale, bottom, TOP);
        // The rotated label, then the tick labels.
        let left = 26.0 + 8.0 * y.widest().max(3) as f64;
        let x = Axis::over(points().map(|p| p.x).chain(marks), scale, left + INSET, right - INSET);
        Frame { x, y, left, right, bottom }
    }

    fn axes(&self, out: &mut String, frame: &Frame, height: f64) {
        let Frame { x, y, left, right, bottom } = frame;
        out.push_str("<g class=\"axes\">");
        for (tick, label) in &y.ticks {
            let at = y.place(*tick);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 6.0,
                at + 4.0,
                label
            );
        }
        // Every other label where they would run into each other.
        let room = (right - left) / x.ticks.len() as f64;
        let every = if 8.0 * x.widest() as f64 + 6.0 > room { 2 } else { 1 };
        for (which, (tick, label)) in x.ticks.iter().enumerate() {
            let at = x.place(*tick);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom:.1}\" y2=\"{:.1}\"/>",
                bottom + 4.0
            );
            if which % every == 0 {
                let _ = write!(
                    out,
                    "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                    bottom + 20.0,
                    label
                );
            }
        }
        let _ = write!(
            out,
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"label\" transform=\"translate(13 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (left + right) / 2.0,
            height - 8.0,
            escape(&self.x_label),
            (TOP + bottom) / 2.0,
            escape(&self.y_label)
        );
        for (value, label) in &self.marks {
            let at = x.place(*value);
            let (anchor, to) = if at + 5.0 + width(label) > *right { ("end", -4.0) } else { ("start", 4.0) };
            let _ = write!(
                out,
                "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>\
                 <text class=\"mark\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                at + to,
                TOP + 9.0,
                escape(label)
            );
        }
        out.push_str("</g>");
    }

    /// The tags of large markers, each where it is free.
    fn mean_tags(&self, out: &mut String, frame: &Frame) {
        let means: Vec<(Look, (f64, f64))> = self
            .series
            .iter()
            .filter(|s| s.drawn == Drawn::Means)
            .flat_map(|s| s.points.iter().filter(|p| p.is_finite()).map(|p| (s.look, frame.at(p.x, p.y))))
            .collect();
        let wanted: Vec<((f64, f64), String)> = means.iter().map(|(look, at)| (*at, look.tag())).collect();
        let places = beside(&wanted, &[], [frame.left, TOP, frame.right, frame.bottom]);
        for ((look, (px, py)), (tx, ty)) in means.iter().zip(places) {
            let _ = write!(out, "<g class=\"tag {}\">", look.class());
            if (tx - px).hypot(ty - py) > 16.0 {
                let _ = write!(
                    out,
                    "<line class=\"leader\" x1=\"{px:.1}\" y1=\"{py:.1}\" x2=\"{tx:.1}\" y2=\"{ty:.1}\"/>"
                );
            }
            let _ = write!(
                out,
                "<text x=\"{tx:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text></g>",
                ty + 4.5,
                look.tag()
            );
        }
    }
}

/// The tags of lines, in the gutter to the right.
fn end_tags(out: &mut String, ends: &[(Look, &Point)], frame: &Frame) {
    let wanted: Vec<f64> = ends.iter().map(|(_, point)| frame.y.place(point.y)).collect();
    let heights = stacked(&wanted, TOP, frame.bottom);
    for ((look, point), (from, to)) in ends.iter().zip(wanted.iter().zip(heights)) {
        let _ = write!(
            out,
            "<g class=\"tag {}\"><polyline class=\"leader\" points=\"{:.1},{from:.1} {:.1},{from:.1} {:.1},{to:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            look.class(),
            frame.x.place(point.x) + 4.0,
            frame.right,
            frame.right + 8.0,
            frame.right + 10.0,
            to + 4.5,
            look.tag()
        );
    }
}

/// A line through the points and its band behind it.
fn line(out: &mut String, series: &Series, points: &[Point], frame: &Frame, opacity: f64) {
    let path = |points: &mut dyn Iterator<Item = (f64, f64)>| {
        let at = |(x, y)| {
            let (px, py) = frame.at(x, y);
            format!("{px:.1},{py:.1}")
        };
        points.map(at).collect::<Vec<_>>().join(" ")
    };
    if points.iter().any(|p| p.interval().is_some()) {
        let ends = |p: &Point| p.interval().unwrap_or([p.y, p.y]);
        let above = points.iter().map(|p| (p.x, ends(p)[1]));
        let below = points.iter().rev().map(|p| (p.x, ends(p)[0]));
        let _ = write!(
            out,
            "<polygon class=\"band\" fill-opacity=\"{opacity:.3}\" points=\"{}\"/>",
            path(&mut above.chain(below))
        );
    }
    let _ = write!(
        out,
        "<polyline class=\"{}\" stroke-dasharray=\"{}\" points=\"{}\"/>",
        if series.drawn == Drawn::Joint { "line thin" } else { "line" },
        series.look.dash(),
        path(&mut points.iter().map(|p| (p.x, p.y)))
    );
}

/// One point's marker, its whisker where it is a mean, and its note.
fn mark(out: &mut String, series: &Series, point: &Point, frame: &Frame) {
    let (px, py) = frame.at(point.x, point.y);
    let size = match series.drawn {
        Drawn::Dots => 2.6,
        Drawn::Means => 5.0,
        Drawn::Line | Drawn::Joint | Drawn::MarkedLine => 3.2,
    };
    let class = if series.drawn == Drawn::Dots { "marker faint" } else { "marker" };
    let _ = write!(out, "<g class=\"{class}\"><title>{}</title>", escape(&point.note));
    if let (Drawn::Means, Some([low, high])) = (series.drawn, point.interval()) {
        let (low, high) = (frame.y.place(low), frame.y.place(high));
        let _ = write!(
            out,
            "<line class=\"whisker\" x1=\"{px:.1}\" x2=\"{px:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\"/>"
        );
    }
    shape(out, series.look, px, py, size);
    out.push_str("</g>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64, f64)]) -> Chart {
        let point = |&(x, y, spread)| Point { x, y, ends: [y - spread, y + spread], note: "<note>".into() };
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
    fn text_is_escaped_and_broken_points_break_the_line() {
        let svg =
            chart(&[(0.0, 0.5, 0.1), (0.5, f64::NAN, 0.0), (1.0, 0.4, f64::NAN)]).svg("c", Scale::Linear);
        assert!(svg.contains("Reward &amp; &lt;shift&gt;") && !svg.contains("<note>"));
        assert_eq!(svg.matches("<polyline class=\"line\"").count(), 2);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert!(chart(&[]).svg("c", Scale::Linear).ends_with("</svg>"));
    }
}
