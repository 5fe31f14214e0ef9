//! Colour, dash and marker of a series. Colours come from the page's style sheet by class; every series also has its own dash,
//! marker and number, so that none is told by colour alone.

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
    /// The class that gives the colour.
    pub fn class(self) -> String {
        match self {
            Look::Method(at) => format!("s{}", at % COLOURS),
            Look::Reference => "reference".into(),
            Look::Ceiling => "ceiling".into(),
        }
    }

    /// The pattern of `stroke-dasharray`.
    pub fn dash(self) -> &'static str {
        match self {
            // Beyond the colours the dashes are shifted, so that a colour does not return with its dash.
            Look::Method(at) => DASHES[(at + at / COLOURS) % DASHES.len()],
            Look::Reference => "4 4",
            Look::Ceiling => "1 4",
        }
    }

    /// The short name that stands at the end of its line and in the legend.
    pub fn tag(self) -> String {
        match self {
            Look::Method(at) => (at + 1).to_string(),
            Look::Reference => "R".into(),
            Look::Ceiling => "max".into(),
        }
    }
}

/// The marker of a series: eight shapes in turn, a ring for the reference.
pub fn shape(out: &mut String, look: Look, x: f64, y: f64, r: f64) {
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
