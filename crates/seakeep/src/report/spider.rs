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
    let side = n.div_ceil(2) as f64;
    let height = (2.0 * RADIUS + 3.0 * LINE).max((side + 2.0) * LINE);
    let (cx, cy) = (WIDTH / 2.0, height / 2.0);
    let values = spider.values.iter().flatten().flatten().copied();
    let scale = Axis::over(values.chain([0.0]), Scale::Linear, 0.0, 1.0);
    // The lowest ring is not the centre: there all directions would fall together.
    let scale = scale.between(0.14 * RADIUS, RADIUS);
    let angle = |axis: usize| std::f64::consts::TAU * axis as f64 / n as f64 - std::f64::consts::FRAC_PI_2;
    let at = |axis: usize, r: f64| (cx + r * angle(axis).cos(), cy + r * angle(axis).sin());
    let path = |r: &dyn Fn(usize) -> f64| {
        let corner = |axis| {
            let (x, y) = at(axis, r(axis));
            format!("{x:.1},{y:.1}")
        };
        (0..n).map(corner).collect::<Vec<_>>().join(" ")
    };
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
         <title id=\"{id}-t\">All objectives at once</title><desc id=\"{id}-d\">One spoke for each of {n} objectives, one closed \
         line for each policy, further out is better; {}. The same numbers stand in the table.</desc><g class=\"axes\">",
        escape(&spider.unit)
    );
    for (tick, _) in &scale.ticks {
        let class = if tick.abs() < 1e-9 { "grid zero" } else { "grid" };
        let r = scale.place(*tick);
        let _ = write!(out, "<polygon class=\"{class}\" points=\"{}\"/>", path(&|_| r));
    }
    for (axis, (_, seen)) in spider.axes.iter().enumerate() {
        let (x, y) = at(axis, RADIUS);
        let dash = if *seen == Some(false) { "3 3" } else { "none" };
        let _ = write!(
            out,
            "<line class=\"grid\" stroke-dasharray=\"{dash}\" x1=\"{cx}\" y1=\"{cy}\" x2=\"{x:.1}\" y2=\"{y:.1}\"/>"
        );
    }
    names(&mut out, spider, &at);
    out.push_str("</g>");
    for ((look, label), values) in looks.iter().zip(labels).zip(&spider.values) {
        let Some(values) = finite(values) else { continue };
        let _ = write!(
            out,
            "<g class=\"{}\"><title>{}</title><polygon class=\"line\" stroke-dasharray=\"{}\" points=\"{}\"/>",
            look.class(),
            escape(label),
            look.dash(),
            path(&|axis| scale.place(values[axis]))
        );
        if *look != Look::Reference {
            out.push_str("<g class=\"marker\">");
            for (axis, value) in values.iter().enumerate() {
                let (x, y) = at(axis, scale.place(*value));
                shape(&mut out, *look, x, y, 3.0);
            }
            out.push_str("</g>");
        }
        out.push_str("</g>");
    }
    // Between the first spokes, where no line has its corner.
    let middle = std::f64::consts::PI / n as f64 - std::f64::consts::FRAC_PI_2;
    let inner = (std::f64::consts::PI / n as f64).cos();
    let ticks = &scale.ticks;
    let every = ((LINE + 1.0) / ((scale.place(ticks[1].0) - scale.place(ticks[0].0)) * inner * -middle.sin()))
        .ceil()
        .max(1.0) as usize;
    let mut avoid = Vec::new();
    for (tick, text) in ticks.iter().step_by(every) {
        let r = scale.place(*tick) * inner;
        let (x, y) = (cx + r * middle.cos(), cy + r * middle.sin());
        let half = width(text) / 2.0;
        avoid.push([x - half, y - LINE / 2.0, x + half, y + LINE / 2.0]);
        let _ = write!(
            out,
            "<text class=\"mark\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
            y + 4.0
        );
    }
    // Each line's number stands at the corner where it differs most from the others.
    let drawn: Vec<(Look, &Vec<f64>)> =
        looks.iter().copied().zip(&spider.values).filter_map(|(look, v)| Some((look, finite(v)?))).collect();
    let mean = |axis: usize| drawn.iter().map(|d| d.1[axis]).sum::<f64>() / drawn.len() as f64;
    let corner = |values: &Vec<f64>| {
        let off = |axis: &usize| (values[*axis] - mean(*axis)).abs();
        let axis = (0..n).max_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or(0);
        at(axis, scale.place(values[axis]))
    };
    let wanted: Vec<((f64, f64), String)> =
        drawn.iter().map(|(look, values)| (corner(values), look.tag())).collect();
    let bounds = [cx - RADIUS - 2.0, 0.0, cx + RADIUS + 2.0, height];
    for ((look, (from, tag)), (x, y)) in
        drawn.iter().map(|d| d.0).zip(&wanted).zip(beside(&wanted, &avoid, bounds))
    {
        let _ = write!(
            out,
            "<g class=\"tag {}\"><line class=\"leader\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tag}</text></g>",
            look.class(),
            from.0,
            from.1,
            y + 4.5
        );
    }
    out.push_str("</svg>");
    Some(out)
}

/// The values, where all are numbers.
fn finite(values: &Option<Vec<f64>>) -> Option<&Vec<f64>> {
    values.as_ref().filter(|v| v.iter().all(|x| x.is_finite()))
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
