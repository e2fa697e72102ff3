//! Running a product: reads its matrices, multiplies, rounds once, writes.

use super::{
    arithmetic::{Dtype, multiply},
    product::{Group, Item, Items, Product, Scalar, View},
};
use crate::runtime::{Fault, Runtime, Span, Status, Task};

impl Runtime {
    pub(crate) fn execute_product(&mut self, task: &Task, product: &Product) -> Result<(), Status> {
        self.check_footprint(task)?;
        for group in &product.groups {
            let alpha = self.scalar(task, group.alpha)?;
            let beta = self.scalar(task, group.beta)?;
            let items = match &group.items {
                Items::Known(items) => items.clone(),
                Items::Arrays { a, b, c, count } => {
                    let items = self.pointer_arrays(task, [*a, *b, *c], *count)?;
                    self.check_items(task, group, &items, beta != 0.0)?;
                    items
                }
            };
            for item in &items {
                self.multiply_one(task, group, item, alpha, beta)?;
            }
            self.counters.gemms += items.len() as u64;
            self.counters.gemm_flops +=
                2 * group.d.rows * group.d.cols * group.a.cols * items.len() as u64;
        }
        self.counters.blas_calls += 1;
        Ok(())
    }

    fn scalar(&mut self, task: &Task, scalar: Scalar) -> Result<f64, Status> {
        match scalar {
            Scalar::Value(value) => Ok(value),
            Scalar::Device { address, dtype } => {
                let mut bytes = [0; 8];
                let bytes = &mut bytes[..dtype.size() as usize];
                self.read_written(task, address, bytes)?;
                Ok(decode(dtype, bytes))
            }
        }
    }

    fn pointer_arrays(
        &mut self,
        task: &Task,
        arrays: [u64; 3],
        count: u64,
    ) -> Result<Vec<Item>, Status> {
        let mut columns = [Vec::new(), Vec::new(), Vec::new()];
        for (array, column) in arrays.into_iter().zip(&mut columns) {
            let mut bytes = vec![0; 8 * count as usize];
            self.read_written(task, array, &mut bytes)?;
            column.extend(bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry)));
        }
        let [a, b, c] = columns;
        Ok((0..count as usize).map(|i| Item { a: a[i], b: b[i], c: c[i], d: c[i] }).collect())
    }

    /// The checks of a batch whose addresses were only known now.
    fn check_items(
        &mut self,
        task: &Task,
        group: &Group,
        items: &[Item],
        reads_c: bool,
    ) -> Result<(), Status> {
        if let Some((class, message)) = self.item_error(group, items) {
            self.task_fault(task, Fault { class, message })?;
            return Err(Status::ILLEGAL_ADDRESS);
        }
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        for item in items {
            let (r, w) = group.item_footprint(item, reads_c);
            reads.extend(r);
            writes.extend(w);
        }
        self.check_order(task, &reads, &writes)
    }

    fn gather(&mut self, task: &Task, view: View, address: u64) -> Result<Vec<f32>, Status> {
        let mut runs = Vec::with_capacity((view.rows * view.cols) as usize);
        let mut bytes = Vec::new();
        for span in view.spans(address) {
            let len = span.end - span.start;
            bytes.resize(len as usize, 0);
            self.read_written(task, span.start, &mut bytes)?;
            view.dtype.widen(&bytes, &mut runs);
        }
        Ok(row_major(runs, view))
    }

    fn multiply_one(
        &mut self,
        task: &Task,
        group: &Group,
        item: &Item,
        alpha: f64,
        beta: f64,
    ) -> Result<(), Status> {
        let (m, n, k) = (group.d.rows as usize, group.d.cols as usize, group.a.cols as usize);
        if group.a.dtype == Dtype::F64 {
            return self.multiply_f64(task, group, item, alpha, beta);
        }
        let mut a = self.gather(task, group.a, item.a)?;
        let mut b = self.gather(task, group.b, item.b)?;
        group.rounding.apply(&mut a);
        group.rounding.apply(&mut b);
        let threads = if m * n * k > 1 << 21 {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8)
        } else {
            1
        };
        let mut out = if group.parts_in_output {
            in_parts(&a, &b, [m, n, k], group.d.dtype, threads)
        } else {
            multiply(&a, &b, m, n, k, threads)
        };
        let (alpha, beta) = (alpha as f32, beta as f32);
        if beta == 0.0 {
            out.iter_mut().for_each(|value| *value *= alpha);
        } else {
            let c = self.gather(task, group.c, item.c)?;
            out.iter_mut().zip(&c).for_each(|(value, c)| *value = alpha * *value + beta * c);
        }
        let runs = from_row_major(&out, group.d);
        let mut bytes = Vec::with_capacity(runs.len() * group.d.dtype.size() as usize);
        for value in runs {
            group.d.dtype.narrow(value, &mut bytes);
        }
        self.scatter(task, group.d, item.d, &bytes)
    }

    fn scatter(
        &mut self,
        task: &Task,
        view: View,
        address: u64,
        bytes: &[u8],
    ) -> Result<(), Status> {
        let mut rest = bytes;
        for Span { start, end } in view.spans(address) {
            let (run, next) = rest.split_at((end - start) as usize);
            self.store.write(start, run).or_else(|fault| self.task_fault(task, fault))?;
            rest = next;
        }
        Ok(())
    }

    fn gather_f64(&mut self, task: &Task, view: View, address: u64) -> Result<Vec<f64>, Status> {
        let mut runs = Vec::new();
        for span in view.spans(address) {
            let len = span.end - span.start;
            let mut bytes = vec![0; len as usize];
            self.read_written(task, span.start, &mut bytes)?;
            runs.extend(
                bytes.as_chunks::<8>().0.iter().map(|element| f64::from_le_bytes(*element)),
            );
        }
        Ok(row_major(runs, view))
    }

    fn multiply_f64(
        &mut self,
        task: &Task,
        group: &Group,
        item: &Item,
        alpha: f64,
        beta: f64,
    ) -> Result<(), Status> {
        let (m, n, k) = (group.d.rows as usize, group.d.cols as usize, group.a.cols as usize);
        let a = self.gather_f64(task, group.a, item.a)?;
        let b = self.gather_f64(task, group.b, item.b)?;
        let c =
            if beta == 0.0 { vec![0.0; m * n] } else { self.gather_f64(task, group.c, item.c)? };
        let mut out = vec![0.0; m * n];
        for i in 0..m {
            for p in 0..k {
                let left = a[i * k + p];
                for (sum, right) in out[i * n..(i + 1) * n].iter_mut().zip(&b[p * n..(p + 1) * n]) {
                    *sum += left * right;
                }
            }
        }
        for (value, c) in out.iter_mut().zip(&c) {
            *value = if beta == 0.0 { alpha * *value } else { alpha * *value + beta * c };
        }
        let bytes: Vec<u8> =
            from_row_major(&out, group.d).into_iter().flat_map(f64::to_le_bytes).collect();
        self.scatter(task, group.d, item.d, &bytes)
    }
}

/// The product as two halves of the inner dimension, each rounded to D's type before they are added.
fn in_parts(a: &[f32], b: &[f32], [m, n, k]: [usize; 3], dtype: Dtype, threads: usize) -> Vec<f32> {
    let half = k / 2;
    let part = |from: usize, to: usize| {
        let a: Vec<f32> = a.chunks_exact(k).flat_map(|row| &row[from..to]).copied().collect();
        let out = multiply(&a, &b[from * n..to * n], m, n, to - from, threads);
        let mut bytes = Vec::with_capacity(out.len() * dtype.size() as usize);
        out.iter().for_each(|value| dtype.narrow(*value, &mut bytes));
        let mut rounded = Vec::with_capacity(out.len());
        dtype.widen(&bytes, &mut rounded);
        rounded
    };
    part(0, half).iter().zip(part(half, k)).map(|(x, y)| x + y).collect()
}

fn decode(dtype: Dtype, bytes: &[u8]) -> f64 {
    if dtype == Dtype::F64 {
        let mut raw = [0; 8];
        raw.copy_from_slice(bytes);
        return f64::from_le_bytes(raw);
    }
    let mut value = Vec::with_capacity(1);
    dtype.widen(bytes, &mut value);
    f64::from(value.first().copied().unwrap_or(f32::NAN))
}

/// Values in memory order (the runs of [`View::spans`]) as rows.
fn row_major<T: Copy + Default>(runs: Vec<T>, view: View) -> Vec<T> {
    if view.row_stride != 1 {
        // Runs are rows already.
        return runs;
    }
    let (rows, cols) = (view.rows as usize, view.cols as usize);
    let mut out = vec![T::default(); runs.len()];
    for (col, run) in runs.chunks_exact(rows.max(1)).enumerate() {
        for (row, value) in run.iter().enumerate() {
            out[row * cols + col] = *value;
        }
    }
    out
}

/// Rows as values in memory order.
fn from_row_major<T: Copy + Default>(values: &[T], view: View) -> Vec<T> {
    if view.row_stride != 1 {
        return values.to_vec();
    }
    let (rows, cols) = (view.rows as usize, view.cols as usize);
    let mut out = vec![T::default(); values.len()];
    for (row, from) in values.chunks_exact(cols.max(1)).enumerate() {
        for (col, value) in from.iter().enumerate() {
            out[col * rows + row] = *value;
        }
    }
    out
}
