use super::pack::{Panel, Strided};
use super::*;
use crate::blocks::GgmlType;
use crate::testing::{close, random};
use half::bf16;

/// The product by the three loops, in f64.
fn reference(m: usize, n: usize, k: usize, a: Mat, b: Mat) -> Vec<f32> {
    let of = |i: usize, j: usize| -> f64 {
        (0..k).map(|l| a.data[i * a.row + l * a.col] as f64 * b.data[l * b.row + j * b.col] as f64).sum()
    };
    (0..m * n).map(|at| of(at / n, at % n) as f32).collect()
}

fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()
}

const BF16: Precision = Precision::Bf16;

fn product(c_row: usize, precision: Precision) -> Product {
    Product { c_row, accumulate: false, alpha: 1.0, threads: Threads::All, precision }
}

/// Sizes around those of panels, tiles and blocks of every instruction set.
const SIZES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (3, 5, 7),
    (33, 17, 65),
    (14, 32, 384),
    (15, 33, 385),
    (128, 130, 100),
    (1, 64, 300),
    (64, 1, 301),
    (13, 31, 800),
    (140, 260, 33),
    (6, 16, 5000),
    // Rows whole pages apart.
    (40, 50, 1024),
];

#[test]
fn a_product_is_the_three_loops_in_every_layout_precision_and_instruction_set() {
    for (m, n, k) in SIZES {
        let (a, b) = (random(m * k, 1), random(k * n, 2));
        for isa in Isa::available() {
            for (at, bt) in [(false, false), (true, false), (false, true), (true, true)] {
                for precision in [Precision::F32, BF16] {
                    let (a, b) =
                        if precision == BF16 { (rounded(&a), rounded(&b)) } else { (a.clone(), b.clone()) };
                    let am = if at { Mat::new(&a, m).t() } else { Mat::new(&a, k) };
                    let bm = if bt { Mat::new(&b, k).t() } else { Mat::new(&b, n) };
                    // Rows further apart than they are long, and what lies between them stays.
                    let row = n + 3;
                    let mut c = vec![1.0; m * row];
                    let how = Product { accumulate: true, alpha: 0.5, ..product(row, precision) };
                    run(&isa, (m, n, k), &mut c, how, am.into(), bm.into());
                    let exact = reference(m, n, k, am, bm);
                    let want: Vec<f32> = (0..m * row)
                        .map(|at| if at % row < n { 1.0 + 0.5 * exact[at / row * n + at % row] } else { 1.0 })
                        .collect();
                    // Rounding of a sum of k terms below 1.
                    close(&c, &want, 1e-6 * (k as f32).max(4.0), isa.name);
                }
            }
        }
    }
}

#[test]
fn packing_is_the_same_one_by_one_and_in_vectors() {
    let data: Vec<f32> = random(60 * 90, 3)
        .iter()
        .enumerate()
        .map(|(i, x)| match i % 97 {
            0 => f32::NAN,
            1 => f32::INFINITY,
            2 => -0.0,
            3 => 3.4e38,
            // Halfway between two bf16.
            4 => f32::from_bits(0x3f80_8000),
            5 => f32::from_bits(0x3f81_8000),
            _ => *x,
        })
        .collect();
    let strides = [
        Strided { data: &data, outer: 90, inner: 1 },
        Strided { data: &data, outer: 1, inner: 60 },
        Strided { data: &data, outer: 2, inner: 57 },
    ];
    let bits =
        |words: &[u32], form: Words| -> Vec<u32> {
            // Any NaN is as good as any other.
            let one = |bits: u32| if f32::from_bits(bits).is_nan() { u32::MAX } else { bits };
            words
                .iter()
                .map(|w| {
                    if form == Words::Pairs {
                        one(w << 16) >> 16 | one(w & !0xffff) & !0xffff
                    } else {
                        one(*w)
                    }
                })
                .collect()
        };
    for isa in Isa::available() {
        for form in [Words::F32, Words::Rounded, Words::Pairs] {
            if form == Words::Pairs && !isa.pairs {
                continue;
            }
            for from in strides {
                for (count, elements) in [(1, 0..90), (isa.mr.min(5), 3..50), (isa.mr, 0..33), (isa.mr, 7..8)]
                {
                    let elements = elements.start..elements.end.min(if from.outer == 2 { 80 } else { 90 });
                    let words = form.of_elements(elements.len());
                    let (mut got, mut want) = (vec![7; words * isa.mr], vec![9; words * isa.mr]);
                    let panel = Panel { from, first: 2, count, elements: elements.clone(), words: form };
                    // SAFETY: the instruction set is available.
                    unsafe { (isa.pack_a)(&mut got, &panel) };
                    let twin: fn(&mut [u32], &Panel) = match isa.mr {
                        14 => pack::pack::<14>,
                        6 => pack::pack::<6>,
                        _ => pack::pack::<4>,
                    };
                    twin(&mut want, &panel);
                    assert_eq!(bits(&got, form), bits(&want, form), "{} {form:?} {elements:?}", isa.name);
                }
            }
        }
    }
}

#[test]
fn weights_are_multiplied_in_the_form_they_are_stored_in() {
    // Rows of whole blocks; more than are decoded at a time, and no multiple of it.
    let (rows, cols) = (300, 1280);
    let w = rounded(&random(rows * cols, 4));
    let stored: Vec<bf16> = w.iter().map(|x| bf16::from_f32(*x)).collect();
    let quantised = Blocks::quantise(GgmlType::Q8_0, &w);
    let mut dequantised = vec![0.0; w.len()];
    quantised.read(0, &mut dequantised);
    let t = 37;
    for precision in [Precision::F32, BF16] {
        for (elements, plain) in [
            (Elements::F32(&w), &w),
            (Elements::Bf16(&stored), &w),
            (Elements::Blocks(&quantised), &dequantised),
        ] {
            for (n, k, transposed) in [(rows, cols, true), (cols, rows, false)] {
                let x = random(t * k, 5);
                let (weight, mat) = (Weight::new(elements, cols), Mat::new(plain, cols));
                let (weight, mat) = if transposed { (weight.t(), mat.t()) } else { (weight, mat) };
                let (mut got, mut want) = (vec![0.0; t * n], vec![0.0; t * n]);
                multiply((t, n, k), &mut got, product(n, precision), Mat::new(&x, k), weight);
                multiply((t, n, k), &mut want, product(n, precision), Mat::new(&x, k), mat);
                assert!(got == want, "the same bits");
            }
        }
    }
}

#[test]
fn bf16_is_near_f32() {
    let (m, n, k) = (50, 40, 700);
    let (a, b) = (random(m * k, 6), random(n * k, 7));
    let (a, b) = (Mat::new(&a, k), Mat::new(&b, k).t());
    let (mut low, mut full) = (vec![0.0; m * n], vec![0.0; m * n]);
    multiply((m, n, k), &mut low, product(n, BF16), a, b);
    multiply((m, n, k), &mut full, product(n, Precision::F32), a, b);
    let of = |x: &[f32]| x.iter().map(|x| *x as f64 * *x as f64).sum::<f64>().sqrt();
    let apart: Vec<f32> = low.iter().zip(&full).map(|(l, f)| l - f).collect();
    // Each factor is rounded by at most 2^-8 of itself, by about half of that in the root mean square.
    let error = of(&apart) / of(&full);
    assert!(error > 1e-4 && error < 1.0 / 256.0, "{error}");
}

#[test]
fn neither_threads_nor_vectors_change_bits() {
    let (m, n, k) = (200, 300, 1000);
    let (a, b) = (random(m * k, 1), random(k * n, 2));
    let on = |isa: &Isa, threads: usize, precision: Precision| {
        let mut c = vec![0.0; m * n];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (a, b) = (Mat::new(&a, k), Mat::new(&b, n));
        pool.install(|| run(isa, (m, n, k), &mut c, product(n, precision), a.into(), b.into()));
        c
    };
    let first = on(Isa::best(), 1, Precision::F32);
    for isa in Isa::available().iter().filter(|isa| isa.name != "portable") {
        for threads in [1, 2, 5] {
            assert!(on(isa, threads, Precision::F32) == first, "{} on {threads} threads", isa.name);
            assert!(on(isa, threads, BF16) == on(isa, 1, BF16), "bf16: {} on {threads} threads", isa.name);
        }
    }
}

#[test]
fn a_sum_over_nothing_is_zero() {
    let mut c = vec![1.0; 4];
    gemm((2, 2, 0), &mut c, 2, true, 1.0, Mat::new(&[], 0), Mat::new(&[], 2), Threads::One);
    assert_eq!(c, [1.0; 4]);
    gemm((2, 2, 0), &mut c, 2, false, 1.0, Mat::new(&[], 0), Mat::new(&[], 2), Threads::One);
    assert_eq!(c, [0.0; 4]);
}

#[test]
#[should_panic(expected = "a factor is too short")]
fn short_input_is_refused() {
    gemm(
        (2, 2, 2),
        &mut [0.0; 4],
        2,
        false,
        1.0,
        Mat::new(&[0.0; 3], 2),
        Mat::new(&[0.0; 4], 2),
        Threads::One,
    );
}

#[test]
fn unpacking_is_the_same_one_by_one_and_in_vectors() {
    for isa in Isa::available() {
        for (rows, channels) in [(1, 1), (5, 40), (isa.nr, 16), (isa.nr - 1, 33)] {
            let (panel, y) = (random(channels * isa.nr, 1), random(rows * channels, 2));
            for add in [false, true] {
                let mut got = y.clone();
                // SAFETY: the instruction set is available.
                match isa.unpack {
                    Some(unpack) => unsafe { unpack(&mut got, &panel, channels, add) },
                    None => pack::unpack(&mut got, &panel, (channels, isa.nr), add),
                }
                let at = |n: usize| panel[n % channels * isa.nr + n / channels];
                let want = (0..y.len()).map(|n| if add { y[n] + at(n) } else { at(n) });
                assert!(got.iter().copied().eq(want), "{}: {rows} x {channels}", isa.name);
            }
        }
    }
}

#[test]
fn products_with_a_factor_in_common_are_those_products() {
    // Fewer and more rows than a panel of B; more of `k` than is summed at a time; a part without rows.
    for (t, k) in [(5, 40), (37, 40), (70, 1300)] {
        let x = random(t * k, 1);
        let sizes = [33, 0, 14, 100];
        let own: Vec<Vec<f32>> = sizes.iter().map(|n| random(n * k, 2)).collect();
        for isa in Isa::available() {
            for (precision, accumulate) in [(Precision::F32, true), (BF16, false)] {
                let stored: Vec<Vec<bf16>> =
                    own.iter().map(|w| w.iter().map(|x| bf16::from_f32(*x)).collect()).collect();
                let weights: Vec<Weight> = if precision == BF16 {
                    stored.iter().map(|w| Weight::new(Elements::Bf16(w), k).t()).collect()
                } else {
                    own.iter().map(|w| Weight::new(&w[..], k).t()).collect()
                };
                let zeros = || -> Vec<Vec<f32>> { sizes.iter().map(|n| vec![0.5; t * n]).collect() };
                let (mut want, mut got) = (zeros(), zeros());
                for ((c, &n), w) in want.iter_mut().zip(&sizes).zip(&weights) {
                    let how = Product::whole(n, accumulate, precision);
                    run(&isa, (t, n, k), c, how, Mat::new(&x, k).into(), (*w).into());
                }
                let each = got.iter_mut().zip(sizes).zip(&weights);
                let each = each.map(|((c, size), w)| Own { operand: (*w).into(), size, c, accumulate });
                together(&isa, each.collect(), Mat::new(&x, k), (t, k), precision, Common::Left);
                assert!(got == want, "by each, {} {t}", isa.name);

                // c_i = a_i x for a_i [n, t] and x [t, k].
                let lefts: Vec<Vec<f32>> = sizes.iter().map(|n| random(n * t, 3)).collect();
                let zeros = || -> Vec<Vec<f32>> { sizes.iter().map(|n| vec![0.5; k * n]).collect() };
                let (mut want, mut got) = (zeros(), zeros());
                for ((c, &n), a) in want.iter_mut().zip(&sizes).zip(&lefts) {
                    let how = Product::whole(k, accumulate, precision);
                    run(&isa, (n, k, t), c, how, Mat::new(a, n).t().into(), Mat::new(&x, k).into());
                }
                let each = got.iter_mut().zip(sizes).zip(&lefts);
                let each = each.map(|((c, size), a)| Own {
                    operand: Mat::new(a, size).t().into(),
                    size,
                    c,
                    accumulate,
                });
                together(&isa, each.collect(), Mat::new(&x, k), (k, t), precision, Common::Right);
                assert!(got == want, "each by, {} {t}", isa.name);
            }
        }
    }
}

#[test]
fn rows_are_packed_in_groups_of_whole_panels() {
    let (a, mut c) = (random(120 * 8, 1), vec![0.0; 120 * 8]);
    let mut part = |rows: usize| Part {
        rows,
        a: Source::rows(Mat::new(&a, 8).into(), rows, 8),
        c: C::of(&mut c, (rows, 8), 8),
        add: false,
    };
    let parts = [part(50), part(120), part(30)];
    let of = |words, most| tiles::groups(&parts, words, 14, most);
    assert_eq!(of(Words::F32, 28), [vec![(0, 0..50), (1, 0..120), (2, 0..30)]], "nothing is packed");
    let groups = of(Words::Pairs, 112);
    assert_eq!(groups, [vec![(0, 0..50), (1, 0..56)], vec![(1, 56..120), (2, 0..30)]]);
}
