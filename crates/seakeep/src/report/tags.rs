//! Where short labels go so that none lies on another. Boxes are generous: they hold at the larger text of small screens too.

/// Height of a line of text in a chart, in units of its view box.
pub const LINE: f64 = 16.0;

/// Width that a text takes at most.
pub fn width(text: &str) -> f64 {
    10.0 * text.chars().count() as f64 + 1.0
}

/// Heights as near to the wanted ones as can be, a line apart, between `top` and `bottom` where they fit.
pub fn stacked(wanted: &[f64], top: f64, bottom: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]));
    // Groups of touching labels, each centred on the mean of what its members want.
    let mut groups: Vec<(Vec<usize>, f64)> = Vec::new();
    let limit = |centre: f64, n: usize| {
        let half = LINE * (n - 1) as f64 / 2.0;
        centre.min(bottom - half).max(top + half)
    };
    for at in order {
        let mut group = (vec![at], limit(wanted[at], 1));
        while let Some((before, centre)) = groups.last() {
            let apart = LINE * (before.len() + group.0.len()) as f64 / 2.0;
            if group.1 - centre >= apart {
                break;
            }
            let (mut members, _) = groups.pop().expect("there is a last one");
            members.append(&mut group.0);
            let mean = members.iter().map(|&m| wanted[m]).sum::<f64>() / members.len() as f64;
            group = (members.clone(), limit(mean, members.len()));
        }
        groups.push(group);
    }
    let mut out = vec![0.0; wanted.len()];
    for (members, centre) in groups {
        let first = centre - LINE * (members.len() - 1) as f64 / 2.0;
        for (place, member) in members.into_iter().enumerate() {
            out[member] = first + LINE * place as f64;
        }
    }
    out
}

/// Centres for the labels of markers, each as near to its marker as it finds room: off all markers, off all other labels and
/// off what is to be avoided, within `[left, top, right, bottom]`, which boxes are.
pub fn beside(
    markers: &[((f64, f64), String)],
    avoid: &[[f64; 4]],
    [left, top, right, bottom]: [f64; 4],
) -> Vec<(f64, f64)> {
    let overlaps = |a: &[f64; 4], b: &[f64; 4]| a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
    let around = |(x, y): (f64, f64), w: f64, h: f64| [x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0];
    let dots: Vec<[f64; 4]> = markers.iter().map(|(at, _)| around(*at, 11.0, 11.0)).collect();
    let mut taken: Vec<[f64; 4]> = avoid.to_vec();
    let mut out = Vec::new();
    for ((x, y), text) in markers {
        let (w, h) = (width(text), LINE + 1.0);
        let candidates = (0..14).flat_map(|ring| {
            (0..12).map(move |turn| {
                // Beginning at the upper right, which is where people look.
                let angle = std::f64::consts::PI * (f64::from(turn) / 6.0 - 0.25);
                let away = 14.0 + 9.0 * f64::from(ring);
                (x + (away + w / 4.0) * angle.cos(), y + away * angle.sin())
            })
        });
        let free = |at: &(f64, f64)| {
            let area = around(*at, w, h);
            area[0] >= left
                && area[1] >= top
                && area[2] <= right
                && area[3] <= bottom
                && !taken.iter().chain(&dots).any(|other| overlaps(&area, other))
        };
        let at = candidates.clone().find(free).unwrap_or((x + 14.0, y - 10.0));
        taken.push(around(at, w, h));
        out.push(at);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacked_labels_keep_apart_and_near() {
        assert_eq!(stacked(&[100.0, 40.0], 0.0, 200.0), [100.0, 40.0]);
        assert_eq!(stacked(&[100.0, 100.0], 0.0, 200.0), [92.0, 108.0]);
        // At the edges they give way inwards.
        assert_eq!(stacked(&[200.0, 199.0], 0.0, 200.0), [200.0, 184.0]);
        let crowd: Vec<f64> = (0..9).map(|at| 50.0 + f64::from(at)).collect();
        let placed = stacked(&crowd, 0.0, 200.0);
        assert!(placed.windows(2).all(|two| two[1] - two[0] >= LINE - 1e-9), "{placed:?}");
        assert!(stacked(&[], 0.0, 1.0).is_empty());
    }

    #[test]
    fn labels_beside_markers_avoid_each_other() {
        let crowd: Vec<((f64, f64), String)> =
            (0..10).map(|at| ((100.0 + 3.0 * f64::from(at), 100.0), format!("{at}"))).collect();
        let placed = beside(&crowd, &[], [0.0, 0.0, 300.0, 200.0]);
        for (i, a) in placed.iter().enumerate() {
            for b in &placed[..i] {
                assert!((a.0 - b.0).abs() >= 10.9 || (a.1 - b.1).abs() >= LINE + 0.9, "{placed:?}");
            }
        }
    }
}
