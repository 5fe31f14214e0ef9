use super::*;
use crate::testing::{Op, check, close, random};

/// One without an opening.
fn segment(start: usize, len: usize, context: Range<usize>) -> Segment {
    Segment { start, len, opening: 0..0, context }
}

/// A prompt of 5 with branches of 70 (more than a block) and 3, a lone text of 4; and what two groups begin with, rows 82..85: a
/// prompt of 2 with branches of 3 and 1, and a text without one.
fn layout() -> Layout {
    let after = |start, len, context| Segment { start, len, opening: 82..85, context };
    Layout {
        segments: vec![
            segment(0, 5, 0..0),
            segment(5, 70, 0..5),
            segment(75, 3, 0..5),
            segment(78, 4, 78..78),
            segment(82, 3, 0..0),
            after(85, 2, 85..85),
            after(87, 3, 85..87),
            after(90, 1, 85..87),
            after(91, 4, 0..0),
        ],
        groups: vec![0..3, 3..4, 4..5, 5..8, 8..9],
    }
}

/// A prompt of 300 with branches of 520 (three pieces of columns, four tasks) and 2, and a lone text of 150: longer than the short ones in
/// all that work is cut by.
fn long() -> Layout {
    Layout {
        segments: vec![
            segment(0, 300, 0..0),
            segment(300, 520, 0..300),
            segment(820, 2, 0..300),
            segment(822, 150, 0..0),
        ],
        groups: vec![0..3, 3..4],
    }
}

/// Rows.
fn rows(layout: &Layout) -> usize {
    layout.segments.iter().map(|s| s.len).sum()
}

const H: usize = 4;
const J: usize = 2;
const D: usize = 3;

fn shape(window: Option<usize>) -> Shape {
    Shape { heads: H, kv_heads: J, head_dim: D, scale: 0.7, window }
}

/// Every text written out whole, keys listed one by one, in f64.
fn reference(layout: &Layout, (q, k, v): (&[f32], &[f32], &[f32]), window: Option<usize>) -> Vec<f32> {
    let mut o = vec![0.0; rows(layout) * H * D];
    for segment in &layout.segments {
        let before: Vec<usize> = segment.opening.clone().chain(segment.context.clone()).collect();
        for i in 0..segment.len {
            let mut keys: Vec<usize> = before.clone();
            keys.extend(segment.start..=segment.start + i);
            let skip = keys.len().saturating_sub(window.unwrap_or(usize::MAX));
            let keys = &keys[skip..];
            for h in 0..H {
                let at = |x: &[f32], row: usize, head: usize, heads: usize, c: usize| {
                    x[(row * heads + head) * D + c] as f64
                };
                let row = segment.start + i;
                let j = h / (H / J);
                let s: Vec<f64> = keys
                    .iter()
                    .map(|&key| {
                        0.7f32 as f64 * (0..D).map(|c| at(q, row, h, H, c) * at(k, key, j, J, c)).sum::<f64>()
                    })
                    .collect();
                let total: f64 = s.iter().map(|s| s.exp()).sum();
                for c in 0..D {
                    o[(row * H + h) * D + c] = keys
                        .iter()
                        .zip(&s)
                        .map(|(&key, s)| s.exp() / total * at(v, key, j, J, c))
                        .sum::<f64>() as f32;
                }
            }
        }
    }
    o
}

fn split(all: &[f32]) -> (&[f32], &[f32], &[f32]) {
    let t = all.len() / ((H + 2 * J) * D);
    let (q, kv) = all.split_at(t * H * D);
    let (k, v) = kv.split_at(t * J * D);
    (q, k, v)
}

fn run_forward(layout: &Layout, all: &[f32], window: Option<usize>) -> (Vec<f32>, Vec<f32>) {
    let (q, k, v) = split(all);
    let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; rows(layout) * H * 2]);
    forward(&mut o, &mut lse, q, k, v, layout, shape(window));
    (o, lse)
}

fn run_tangent(layout: &Layout, all: &[f32], t: &[f32], window: Option<usize>) -> (Vec<f32>, Vec<f32>) {
    let (o, lse) = run_forward(layout, all, window);
    let (mut t_o, mut t_lse) = (vec![0.0; o.len()], vec![0.0; rows(layout) * H]);
    tangent((&mut t_o, &mut t_lse), split(all), split(t), (&o, &lse), layout, shape(window));
    (t_o, t_lse)
}

fn inputs(layout: &Layout) -> Vec<f32> {
    random(rows(layout) * (H + 2 * J) * D, 3).iter().map(|x| 1.5 * x).collect()
}

#[test]
fn forward_equals_the_text_written_out() {
    let cases = [(layout(), [None, Some(4), Some(1)]), (long(), [None, Some(450), Some(4)])];
    for (layout, windows) in cases {
        for window in windows {
            let all = inputs(&layout);
            let want = reference(&layout, split(&all), window);
            close(&run_forward(&layout, &all, window).0, &want, 2e-6, "attention");
        }
    }
}

#[test]
fn larger_scores_further_on_take_over() {
    // Scores grow with the position, to hundreds: each piece's exponentials leave of those before next to nothing.
    let layout = long();
    let mut all = inputs(&layout);
    let of_q = rows(&layout) * H * D;
    all[..of_q].iter_mut().for_each(|q| *q = q.abs() + 0.1);
    for (i, k) in all[of_q..of_q + rows(&layout) * J * D].iter_mut().enumerate() {
        *k += 0.2 * (i / (J * D)) as f32;
    }
    // Scores of some hundreds are rounded to 3e-5, and so are the exponents.
    let (want, got) = (reference(&layout, split(&all), None), run_forward(&layout, &all, None).0);
    close(&got, &want, 2e-4, "attention");
}

#[test]
fn derivatives() {
    for (layout, window) in [(layout(), None), (layout(), Some(4)), (long(), None), (long(), Some(450))] {
        let t = rows(&layout);
        let zeros = || [t * H * D, t * J * D, t * J * D].map(|n| vec![0.0; n]);
        let op = Op {
            forward: &|all| run_forward(&layout, all, window).0,
            backward: &|all, d| {
                let [mut d_q, mut d_k, mut d_v] = zeros();
                let out = (&mut d_q[..], &mut d_k[..], &mut d_v[..]);
                let (o, lse) = run_forward(&layout, all, window);
                backward(out, d, split(all), (&o, &lse), &layout, shape(window));
                [d_q, d_k, d_v].concat()
            },
            tangent: &|all, t| run_tangent(&layout, all, t, window).0,
            curvature: &|all, t, d| {
                let [mut s_q, mut s_k, mut s_v] = zeros();
                let out = (&mut s_q[..], &mut s_k[..], &mut s_v[..]);
                let (o, lse) = run_forward(&layout, all, window);
                let (t_o, t_lse) = run_tangent(&layout, all, t, window);
                let made = ((&o[..], &lse[..]), (&t_o[..], &t_lse[..]));
                curvature(out, d, split(all), split(t), made, &layout, shape(window));
                [s_q, s_k, s_v].concat()
            },
            moving: t * (H + 2 * J) * D,
        };
        check(&op, &inputs(&layout), t * H * D, 4e-3, 3e-3);
    }
}

#[test]
fn a_cache_grown_in_steps_gives_the_same_rows() {
    for window in [None, Some(4)] {
        let all = inputs(&layout());
        let (q, k, v) = split(&all);
        // The prompt and its long branch are rows 0..75: one text, fed in steps, the first so many as stretches of their own.
        let (want, _) = run_forward(&layout(), &all, window);
        let mut first = None;
        let cases: [(usize, &[usize]); 6] = [
            (0, &[75]),
            (0, &[5, 1, 1, 68]),
            (1, &[5, 1, 69]),
            (2, &[7, 20, 1, 47]),
            (3, &[1, 16, 17, 41]),
            (1, &[60, 15]),
        ];
        for (shared, steps) in cases {
            let mut o = vec![0.0; 75 * H * D];
            let mut stretches = vec![Cache::default()];
            let mut done = 0;
            for (i, &rows) in steps.iter().enumerate() {
                let (own, before) = stretches.split_last_mut().unwrap();
                let of = |x: &[f32], heads: usize| x[done * heads * D..(done + rows) * heads * D].to_vec();
                let text = Cached { row: 0, rows, shared: before.iter().collect(), own };
                let out = &mut o[done * H * D..(done + rows) * H * D];
                cached_forward(out, (&of(q, H), &of(k, J), &of(v, J)), &mut [text], shape(window));
                done += rows;
                if i < shared {
                    let next = stretches[0].after(20);
                    stretches.push(next);
                }
            }
            assert_eq!(stretches.iter().map(Cache::len).sum::<usize>(), 75);
            close(&o, &want[..75 * H * D], 1e-6, "cached");
            assert!(first.get_or_insert(o.clone()) == &o, "the same bits however it was fed");
        }
    }
}

#[test]
fn texts_of_a_batch_have_the_bits_they_have_alone() {
    // As many channels as lines have and one more; more rows than one task.
    let shape = Shape { heads: 6, kv_heads: 2, head_dim: 17, scale: 0.3, window: Some(30) };
    let (of_q, of_k) = (6 * 17, 2 * 17);
    let lengths = [1, 40, 3];
    let total: usize = lengths.iter().sum();
    let (q, k, v) = (random(total * of_q, 1), random(total * of_k, 2), random(total * of_k, 3));
    let mut caches = vec![Cache::default(); 3];
    let mut row = 0;
    let mut texts = Vec::new();
    for (own, rows) in caches.iter_mut().zip(lengths) {
        texts.push(Cached { row, rows, shared: Vec::new(), own });
        row += rows;
    }
    let mut together = vec![0.0; total * of_q];
    cached_forward(&mut together, (&q, &k, &v), &mut texts, shape);
    row = 0;
    for rows in lengths {
        let [q, k, v] = [(&q, of_q), (&k, of_k), (&v, of_k)].map(|(x, of)| &x[row * of..(row + rows) * of]);
        let mut alone = vec![0.0; rows * of_q];
        let text = Cached { row: 0, rows, shared: Vec::new(), own: &mut Cache::default() };
        cached_forward(&mut alone, (q, k, v), &mut [text], shape);
        assert!(alone == together[row * of_q..(row + rows) * of_q], "{rows} rows");
        let all = Segment { start: 0, len: rows, opening: 0..0, context: 0..0 };
        let layout = Layout { segments: vec![all], groups: std::iter::once(0..1).collect() };
        let (mut want, mut lse) = (vec![0.0; rows * of_q], vec![0.0; rows * 6 * 2]);
        forward(&mut want, &mut lse, q, k, v, &layout, shape);
        close(&alone, &want, 1e-6, "as in training");
        row += rows;
    }
}
