//! Small dense linear systems: Gaussian elimination with partial pivoting.

/// Solves `A·x = b` for the augmented rows `[A | b]`, or `None` where `A` is singular to rounding.
pub(super) fn solve<R: AsMut<[f64]> + AsRef<[f64]>>(rows: &mut [R]) -> Option<Vec<f64>> {
    let n = rows.len();
    for k in 0..n {
        let pivot = (k..n)
            .max_by(|&i, &j| rows[i].as_ref()[k].abs().total_cmp(&rows[j].as_ref()[k].abs()))?;
        rows.swap(k, pivot);
        let (done, below) = rows.split_at_mut(k + 1);
        let head = done[k].as_ref();
        if head[k] == 0.0 || !head[k].is_finite() {
            return None;
        }
        for row in below {
            let row = row.as_mut();
            let factor = row[k] / head[k];
            for (r, h) in row[k..].iter_mut().zip(&head[k..]) {
                *r -= factor * h;
            }
        }
    }
    let mut x = vec![0.0; n];
    for k in (0..n).rev() {
        let row = rows[k].as_ref();
        let tail: f64 = row[k + 1..n].iter().zip(&x[k + 1..]).map(|(a, x)| a * x).sum();
        x[k] = (row[n] - tail) / row[k];
    }
    x.iter().all(|x| x.is_finite()).then_some(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves_with_a_zero_pivot_and_refuses_a_singular_system() {
        // 2y = 4, x + y = 3
        let mut rows = [[0.0, 2.0, 4.0], [1.0, 1.0, 3.0]];
        assert_eq!(solve(&mut rows), Some(vec![1.0, 2.0]));
        let mut rows = [[1.0, 2.0, 4.0], [2.0, 4.0, 3.0]];
        assert_eq!(solve(&mut rows), None);
    }
}
