//! Published sets beside the presets, to compare with.

use anyhow::Result;
use muon_cuda::coefficients::presets;
use muon_cuda::{CoefficientSchedule, Normalization, OddPolynomial, Precision, Tail};

const AOL_EARLY: [[f64; 3]; 4] = [
    [4.0098, -7.0585, 2.4635],
    [3.4585, -5.5479, 2.5959],
    [2.7573, -3.2939, 1.4254],
    [2.7215, -3.0494, 1.3169],
];

const AOL_GENETIC: [[f64; 3]; 4] = [
    [4.6051, -9.6552, 5.6769],
    [4.7505, -6.0861, 2.1790],
    [2.7763, -2.3190, 0.5523],
    [2.4231, -2.2861, 0.8193],
];

const NMOE: [[f64; 3]; 8] = [
    [7.2086, -15.5131, 9.0178],
    [3.9623, -2.5813, 0.4542],
    [3.9466, -2.5765, 0.4544],
    [3.8991, -2.5671, 0.4566],
    [3.7186, -2.5308, 0.4653],
    [3.1390, -2.3073, 0.4733],
    [2.1715, -1.5246, 0.3885],
    [1.8648, -1.2224, 0.3577],
];

fn rows(
    name: &str,
    rows: &[[f64; 3]],
    normalization: Normalization,
    source: &str,
) -> Result<CoefficientSchedule> {
    let polynomials =
        rows.iter().map(|row| Ok(OddPolynomial::new(row)?)).collect::<Result<Vec<_>>>()?;
    Ok(CoefficientSchedule::new(name, polynomials, normalization, Tail::Exact, source)?)
}

/// The default of Gram Newton-Schulz: the first five rows of Polar Express, all divided by 1.05.
///
/// # Errors
/// None in practice.
pub(crate) fn gram_newton_schulz() -> Result<CoefficientSchedule> {
    let raw = presets::preset("polar_express_raw")?;
    let guarded = raw.polynomials()[..5].iter().map(|p| p.with_input_scale(1.05)).collect();
    Ok(CoefficientSchedule::new(
        "gram_newton_schulz",
        guarded,
        Normalization::Frobenius { safety: 1.0 },
        Tail::Exact,
        "Gram Newton-Schulz coefficients.py: Polar Express, first five rows, all divided by 1.05",
    )?)
}

/// Every preset as it runs in that precision, and the default of Gram Newton-Schulz.
///
/// # Errors
/// None in practice: presets can be guarded.
pub(crate) fn runnable(precision: Option<Precision>) -> Result<Vec<CoefficientSchedule>> {
    let u = precision.map_or(0.0, Precision::unit_roundoff);
    let mut out = presets::names()
        .map(|name| Ok(presets::preset(name)?.for_precision(u)?.0))
        .collect::<Result<Vec<_>>>()?;
    out.push(gram_newton_schulz()?);
    Ok(out)
}

/// Every preset as published, and sets that are none: some because they are refused.
///
/// # Errors
/// None in practice.
pub(crate) fn all() -> Result<Vec<CoefficientSchedule>> {
    let unit = Normalization::Frobenius { safety: 1.0 };
    let mut out =
        presets::names().map(|name| Ok(presets::preset(name)?)).collect::<Result<Vec<_>>>()?;
    out.push(gram_newton_schulz()?);
    out.push(rows("nmoe", &NMOE, unit, "nmoe muon.cu: an early draft of Polar Express")?);
    let early = "Emerging-Optimizers \"aol\", early Turbo-Muon";
    out.push(rows("aol_early", &AOL_EARLY, Normalization::Aol, early)?);
    out.push(rows("aol_early, Frobenius", &AOL_EARLY, unit, early)?);
    let genetic = "flash-newton-schulz, dion newton_schulz_triton_fast (genetic search)";
    out.push(rows("aol_genetic", &AOL_GENETIC, Normalization::Aol, genetic)?);
    Ok(out)
}
