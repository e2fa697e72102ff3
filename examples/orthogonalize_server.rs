//! Times single orthogonalizations on request, so that another program can alternate with it in one run
//! (`tools/compare_torch.py`).
//!
//! A request is a line `ROWS COLS SCHEDULE PRECISION INPUT OUTPUT`: `INPUT` is a file of little-endian f32,
//! row-major; the result goes to `OUTPUT`, or nowhere if that is `-`. The answer is a line
//! `SECONDS METHOD GFLOP`. Schedule `svd` is the exact polar factor; `NAME@2,1` forces Gram groups of 2 and 1
//! iterations. The input is kept while its name stays the same.
#![allow(clippy::print_stdout, reason = "an example that answers on stdout")]

use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

use muon_cuda::{
    Cpu, MatrixShape, MethodChoice, OrthogonalizeOptions, Orthogonalizer, Precision, orthogonalize,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut cpu = Cpu::new()?;
    let (mut loaded, mut input) = (String::new(), Vec::new());
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [rows, cols, schedule, precision, file, result] = fields[..] else {
            return Err(format!("expected six fields, found `{line}`").into());
        };
        let shape = MatrixShape { rows: rows.parse()?, cols: cols.parse()? };
        if loaded != file {
            let bytes = std::fs::read(file)?;
            input = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            file.clone_into(&mut loaded);
        }
        let (schedule, method) = match schedule.split_once('@') {
            Some((name, groups)) => {
                let groups =
                    groups.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
                (name, MethodChoice::Gram(groups))
            }
            None => (schedule, MethodChoice::Auto),
        };
        let orthogonalizer = match schedule {
            "svd" => Orthogonalizer::ExactSvd,
            name => Orthogonalizer::preset(name)?,
        };
        let precision = match precision {
            "bf16" => Precision::Bf16,
            "fp16" => Precision::Fp16,
            _ => Precision::F32,
        };
        let options = OrthogonalizeOptions {
            orthogonalizer,
            precision,
            method,
            ..OrthogonalizeOptions::default()
        };
        let mut output = vec![0.0f32; shape.len()];
        let start = Instant::now();
        let done = orthogonalize(&mut cpu, shape, &input[..], &mut output[..], &options)?;
        let seconds = start.elapsed().as_secs_f64();
        if result != "-" {
            let bytes: Vec<u8> = output.iter().flat_map(|x| x.to_le_bytes()).collect();
            std::fs::write(result, bytes)?;
        }
        let method = done.method.map_or_else(|| "svd".to_owned(), |m| m.to_string());
        println!("{seconds:.9} {method} {:.3}", done.flops as f64 / 1e9);
        std::io::stdout().flush()?;
    }
    Ok(())
}
