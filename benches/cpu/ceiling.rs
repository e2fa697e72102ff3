//! The speed of faer's products on every core, measured in the run that compares with it.

use std::hint::black_box;
use std::time::Instant;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

/// FLOP/s of square f32 products of side `n`, one at a time on each of that many threads: the best of five
/// rounds, since the first of them warms caches and clocks.
pub(crate) fn ceiling(n: usize, threads: usize) -> f64 {
    let products = 8;
    let round = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(move || {
                    let a = Mat::<f32>::from_fn(n, n, |i, j| ((i * 7 + j) % 13) as f32 - 6.0);
                    let mut c = Mat::<f32>::zeros(n, n);
                    for _ in 0..products {
                        matmul(&mut c, Accum::Replace, &a, &a, 1.0, Par::Seq);
                    }
                    black_box(&c);
                });
            }
        });
        start.elapsed().as_secs_f64()
    };
    let seconds = (0..5).map(|_| round()).fold(f64::INFINITY, f64::min);
    2.0 * (n as f64).powi(3) * f64::from(products) * threads as f64 / seconds
}
