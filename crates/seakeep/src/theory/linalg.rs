//! Small dense symmetric matrices, row-major `[d, d]`: what Newton steps in a handful of dimensions need.

/// `<a, b>`, summed in order.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The Euclidean norm.
pub fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// `a + t b`
pub fn plus(a: &[f64], t: f64, b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + t * b).collect()
}

/// Adds `t a b^T` to the matrix.
pub fn add_outer(to: &mut [f64], t: f64, a: &[f64], b: &[f64]) {
    for (row, a) in to.chunks_exact_mut(b.len()).zip(a) {
        row.iter_mut().zip(b).for_each(|(to, b)| *to += t * a * b);
    }
}

/// Adds `t` to the diagonal.
pub fn add_diagonal(to: &mut [f64], t: f64, d: usize) {
    (0..d).for_each(|i| to[i * d + i] += t);
}

/// `sqrt(v^T M v)`
pub fn norm_in(matrix: &[f64], v: &[f64]) -> f64 {
    let product: Vec<f64> = matrix.chunks_exact(v.len()).map(|row| dot(row, v)).collect();
    dot(&product, v).max(0.0).sqrt()
}

/// The solution of `M x = b` by Cholesky's factors; `None` where `M` is not positive definite.
pub fn solve(matrix: &[f64], b: &[f64]) -> Option<Vec<f64>> {
    let d = b.len();
    let mut l = matrix.to_vec();
    for j in 0..d {
        for i in j..d {
            let below: f64 = (0..j).map(|k| l[i * d + k] * l[j * d + k]).sum();
            let value = l[i * d + j] - below;
            if i > j {
                l[i * d + j] = value / l[j * d + j];
            } else if value > 1e-14 * matrix[j * d + j].abs() && value.is_finite() {
                l[j * d + j] = value.sqrt();
            } else {
                return None;
            }
        }
    }
    let mut x = b.to_vec();
    for i in 0..d {
        let before: f64 = (0..i).map(|k| l[i * d + k] * x[k]).sum();
        x[i] = (x[i] - before) / l[i * d + i];
    }
    for i in (0..d).rev() {
        let after: f64 = (i + 1..d).map(|k| l[k * d + i] * x[k]).sum();
        x[i] = (x[i] - after) / l[i * d + i];
    }
    Some(x)
}

/// The eigenvalues, ascending, by Jacobi's rotations.
pub fn eigenvalues(matrix: &[f64], d: usize) -> Vec<f64> {
    let mut a = matrix.to_vec();
    // Convergence is quadratic; ten sweeps are plenty for any matrix of this size.
    for _ in 0..30 {
        let off: f64 = (0..d * d).filter(|i| i / d != i % d).map(|i| a[i] * a[i]).sum();
        if off <= 1e-30 * dot(&a, &a) {
            break;
        }
        for p in 0..d {
            for q in p + 1..d {
                rotate(&mut a, d, p, q);
            }
        }
    }
    let mut values: Vec<f64> = (0..d).map(|i| a[i * d + i]).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The rotation that makes `a[p][q]` zero.
fn rotate(a: &mut [f64], d: usize, p: usize, q: usize) {
    let apq = a[p * d + q];
    if apq == 0.0 {
        return;
    }
    let theta = (a[q * d + q] - a[p * d + p]) / (2.0 * apq);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for k in 0..d {
        let (x, y) = (a[k * d + p], a[k * d + q]);
        (a[k * d + p], a[k * d + q]) = (c * x - s * y, s * x + c * y);
    }
    for k in 0..d {
        let (x, y) = (a[p * d + k], a[q * d + k]);
        (a[p * d + k], a[q * d + k]) = (c * x - s * y, s * x + c * y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_and_its_eigenvalues_by_hand() {
        let m = [4.0, 1.0, 1.0, 3.0];
        let x = solve(&m, &[1.0, 2.0]).unwrap();
        assert!((x[0] - 1.0 / 11.0).abs() < 1e-15 && (x[1] - 7.0 / 11.0).abs() < 1e-15, "{x:?}");
        assert!(solve(&[1.0, 2.0, 2.0, 1.0], &[1.0, 1.0]).is_none());
        let (root, values) = (5f64.sqrt(), eigenvalues(&m, 2));
        assert!((values[0] - (7.0 - root) / 2.0).abs() < 1e-14, "{values:?}");
        assert!((values[1] - (7.0 + root) / 2.0).abs() < 1e-14);
        assert_eq!(norm_in(&m, &[1.0, 1.0]), 3.0);
    }
}
