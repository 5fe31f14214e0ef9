//! The spider chart: all objectives at once, one closed line for each policy.

use std::fmt::Write;

use super::axis::{Axis, Scale};
use super::look::{Look, shape};
use super::svg::WIDTH;
use super::tags::{LINE, beside, stacked, width};
use super::text::escape;
use super::view::Spider;

const RADIUS: f64 = 104.0;
/// Letters of an objective's name; the whole stands in the table.
const LETTERS: usize = 13;

/// The `<svg>` element, or nothing where there are fewer than three objectives: two span no area.
pub fn svg(spider: &Spider, looks: &[Look], labels: &[&str], id: &str) -> Option<String> {
    let n = spider.axes.len();
    if n < 3 || spider.values.iter().flatten().flatten().all(|v| !v.is_finite()) {
        return None;
    }
    let web = Web::of(spider);
    let drawn: Vec<Drawn> = (looks.iter().zip(labels).zip(&spider.values))
        .filter_map(|((look, label), values)| Some(Drawn { look: *look, label, values: finite(values)? }))
        .collect();
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
         <title id=\"{id}-t\">All objectives at once</title><desc id=\"{id}-d\">One spoke for each of {n} objectives, one closed \
         line for each policy, further out is better; {}. The same numbers stand in the table.</desc><g class=\"axes\">",
        web.height,
        escape(&spider.unit)
    );
    web.grid(&mut out, spider);
    names(&mut out, spider, &|axis, r| web.at(axis, r));
    out.push_str("</g>");
    drawn.iter().for_each(|policy| web.line(&mut out, policy));
    let ticks = web.ticks(&mut out);
    web.tags(&mut out, &drawn, &ticks);
    out.push_str("</svg>");
    Some(out)
}

/// A policy that has a value on every spoke.
struct Drawn<'a> {
    look: Look,
    label: &'a str,
    values: &'a [f64],
}

/// Where everything stands.
struct Web {
    spokes: usize,
    scale: Axis,
    /// Of the middle.
    cx: f64,
    cy: f64,
    height: f64,
}

impl Web {
    fn of(spider: &Spider) -> Self {
        let spokes = spider.axes.len();
        let side = spokes.div_ceil(2) as f64;
        let height = (2.0 * RADIUS + 3.0 * LINE).max((side + 2.0) * LINE);
        let values = spider.values.iter().flatten().flatten().copied();
        let scale = Axis::over(values.chain([0.0]), Scale::Linear, 0.0, 1.0);
        // The lowest ring is not the centre: there all directions would fall together.
        let scale = scale.between(0.14 * RADIUS, RADIUS);
        Web { spokes, scale, cx: WIDTH / 2.0, cy: height / 2.0, height }
    }

    /// The point so far out, so many spokes on from the first, which points upwards.
    fn turned(&self, spokes: f64, r: f64) -> (f64, f64) {
        let angle = std::f64::consts::TAU * spokes / self.spokes as f64 - std::f64::consts::FRAC_PI_2;
        (self.cx + r * angle.cos(), self.cy + r * angle.sin())
    }

    fn at(&self, axis: usize, r: f64) -> (f64, f64) {
        self.turned(axis as f64, r)
    }

    /// The corners of a closed line, so far out on each spoke.
    fn path(&self, r: impl Fn(usize) -> f64) -> String {
        let corner = |axis| {
            let (x, y) = self.at(axis, r(axis));
            format!("{x:.1},{y:.1}")
        };
        (0..self.spokes).map(corner).collect::<Vec<_>>().join(" ")
    }

    /// Rings and spokes.
    fn grid(&self, out: &mut String, spider: &Spider) {
        for (tick, _) in &self.scale.ticks {
            let class = if tick.abs() < 1e-9 { "grid zero" } else { "grid" };
            let r = self.scale.place(*tick);
            let _ = write!(out, "<polygon class=\"{class}\" points=\"{}\"/>", self.path(|_| r));
        }
        let Web { cx, cy, .. } = self;
        for (axis, (_, seen)) in spider.axes.iter().enumerate() {
            let (x, y) = self.at(axis, RADIUS);
            let dash = if *seen == Some(false) { "3 3" } else { "none" };
            let _ = write!(
                out,
                "<line class=\"grid\" stroke-dasharray=\"{dash}\" x1=\"{cx}\" y1=\"{cy}\" x2=\"{x:.1}\" y2=\"{y:.1}\"/>"
            );
        }
    }

    /// A policy's closed line, with a marker on every spoke.
    fn line(&self, out: &mut String, Drawn { look, label, values }: &Drawn) {
        let _ = write!(
            out,
            "<g class=\"{}\"><title>{}</title><polygon class=\"line\" stroke-dasharray=\"{}\" points=\"{}\"/>",
            look.class(),
            escape(label),
            look.dash(),
            self.path(|axis| self.scale.place(values[axis]))
        );
        if *look != Look::Reference {
            out.push_str("<g class=\"marker\">");
            for (axis, value) in values.iter().enumerate() {
                let (x, y) = self.at(axis, self.scale.place(*value));
                shape(out, *look, x, y, 3.0);
            }
            out.push_str("</g>");
        }
        out.push_str("</g>");
    }

    /// The rings' numbers, between the first spokes, where no line has its corner. Gives the boxes that they fill: left, top, right, bottom.
    fn ticks(&self, out: &mut String) -> Vec<[f64; 4]> {
        let ticks = &self.scale.ticks;
        // A ring is a polygon: nearer to the middle half-way between spokes.
        let half_a_turn = std::f64::consts::PI / self.spokes as f64;
        let inner = half_a_turn.cos();
        let apart = (self.scale.place(ticks[1].0) - self.scale.place(ticks[0].0)) * inner * inner;
        let every = ((LINE + 1.0) / apart).ceil().max(1.0) as usize;
        let mut boxes = Vec::new();
        for (tick, text) in ticks.iter().step_by(every) {
            let (x, y) = self.turned(0.5, self.scale.place(*tick) * inner);
            let half = width(text) / 2.0;
            boxes.push([x - half, y - LINE / 2.0, x + half, y + LINE / 2.0]);
            let _ = write!(
                out,
                "<text class=\"mark\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                y + 4.0
            );
        }
        boxes
    }

    /// Each line's number, at the corner where it differs most from the others, clear of what fills `taken`.
    fn tags(&self, out: &mut String, drawn: &[Drawn], taken: &[[f64; 4]]) {
        let mean = |axis: usize| drawn.iter().map(|d| d.values[axis]).sum::<f64>() / drawn.len() as f64;
        let corner = |values: &[f64]| {
            let off = |axis: &usize| (values[*axis] - mean(*axis)).abs();
            let axis = (0..self.spokes).max_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or(0);
            self.at(axis, self.scale.place(values[axis]))
        };
        let wanted: Vec<((f64, f64), String)> =
            drawn.iter().map(|d| (corner(d.values), d.look.tag())).collect();
        let bounds = [self.cx - RADIUS - 2.0, 0.0, self.cx + RADIUS + 2.0, self.height];
        let places = beside(&wanted, taken, bounds);
        for ((policy, (from, tag)), (x, y)) in drawn.iter().zip(&wanted).zip(places) {
            let _ = write!(
                out,
                "<g class=\"tag {}\"><line class=\"leader\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tag}</text></g>",
                policy.look.class(),
                from.0,
                from.1,
                y + 4.5
            );
        }
    }
}

/// The values, where all are numbers.
fn finite(values: &Option<Vec<f64>>) -> Option<&[f64]> {
    values.as_deref().filter(|v| v.iter().all(|x| x.is_finite()))
}

/// The objectives' names in two columns, each beside its spoke's end, joined to it where it had to give way.
fn names(out: &mut String, spider: &Spider, at: &dyn Fn(usize, f64) -> (f64, f64)) {
    let n = spider.axes.len();
    let middle = WIDTH / 2.0;
    for right in [true, false] {
        // The first half goes round on the right, the second on the left.
        let members: Vec<usize> = (0..n).filter(|axis| (2 * axis < n) == right).collect();
        let wanted: Vec<f64> = members.iter().map(|&axis| at(axis, RADIUS).1).collect();
        let limits = wanted.iter().fold((f64::INFINITY, 0.0f64), |(a, b), y| (a.min(*y), b.max(*y)));
        let room = (LINE * members.len() as f64 - (limits.1 - limits.0)).max(0.0) / 2.0 + LINE;
        for (&axis, y) in members.iter().zip(stacked(&wanted, limits.0 - room, limits.1 + room)) {
            let (name, seen) = &spider.axes[axis];
            let (sx, sy) = at(axis, RADIUS + 3.0);
            let (x, anchor) =
                if right { (middle + RADIUS + 10.0, "start") } else { (middle - RADIUS - 10.0, "end") };
            let mut short: String = name.chars().take(LETTERS).collect();
            if short.chars().count() < name.chars().count() {
                short.pop();
                short.push('…');
            }
            let (class, star) = if *seen == Some(false) { ("unseen", "*") } else { ("", "") };
            let _ = write!(
                out,
                "<line class=\"leader\" x1=\"{sx:.1}\" y1=\"{sy:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"{class}\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}{star}</text>",
                if right { x - 3.0 } else { x + 3.0 },
                y + 4.0,
                escape(&short)
            );
        }
    }
}
