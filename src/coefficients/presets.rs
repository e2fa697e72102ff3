//! Published coefficient schedules, by the names they have in `tests/data/coefficients.json`.

use super::{CoefficientSchedule, Normalization, OddPolynomial, Tail};
use crate::error::{Error, Result};

struct Preset {
    name: &'static str,
    rows: &'static [&'static [f64]],
    normalization: Normalization,
    tail: Tail,
    source: &'static str,
}

const FROBENIUS: Normalization = Normalization::Frobenius { safety: 1.0 };

/// Names of all presets, in the order of the documentation.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|p| p.name)
}

/// The preset of that name.
///
/// # Errors
/// An unknown name; the message suggests the nearest one.
pub fn preset(name: &str) -> Result<CoefficientSchedule> {
    PRESETS
        .iter()
        .find(|p| p.name == name)
        .map(Preset::schedule)
        .ok_or_else(|| Error::unknown_name("coefficient schedule", name, names()))
}

impl Preset {
    fn schedule(&self) -> CoefficientSchedule {
        let polynomials = self.rows.iter().map(|row| OddPolynomial::published(row)).collect();
        CoefficientSchedule::published(
            self.name,
            polynomials,
            self.normalization,
            self.tail,
            self.source,
        )
    }
}

/// The schedule a rule has by default: `polar_express_5`.
pub(crate) fn default_schedule() -> CoefficientSchedule {
    POLAR_EXPRESS_5.schedule()
}

const POLAR_EXPRESS_5: Preset = Preset {
    name: "polar_express_5",
    rows: &[
        &[8.156554524902461, -22.48329292557795, 15.878769915207462],
        &[4.042929935166739, -2.808917465908714, 0.5000178451051316],
        &[3.8916678022926607, -2.772484153217685, 0.5060648178503393],
        &[3.285753657755655, -2.3681294933425376, 0.46449024233003106],
        &[2.3465413258596377, -1.7097828382687081, 0.42323551169305323],
    ],
    normalization: Normalization::Frobenius { safety: 1.02 },
    tail: Tail::Exact,
    source: "modded-nanogpt train_gpt.py; dion polar_express.py: l=1e-3, T=5, cushion=0.02, safety 0.02 applied inside the recursion",
};

const PRESETS: &[Preset] = &[
    Preset {
        name: "classical_cubic",
        rows: &[&[1.5, -0.5], &[1.5, -0.5], &[1.5, -0.5], &[1.5, -0.5], &[1.5, -0.5]],
        normalization: FROBENIUS,
        tail: Tail::RepeatLast,
        source: "lecture notes: p(x) = 3/2 x - 1/2 x^3",
    },
    Preset {
        name: "jordan",
        rows: &[
            &[3.4445, -4.775, 2.0315],
            &[3.4445, -4.775, 2.0315],
            &[3.4445, -4.775, 2.0315],
            &[3.4445, -4.775, 2.0315],
            &[3.4445, -4.775, 2.0315],
        ],
        normalization: FROBENIUS,
        tail: Tail::RepeatLast,
        source: "lecture notes; KellerJordan/Muon muon.py; torch.optim.Muon",
    },
    Preset {
        name: "you",
        rows: &[
            &[4.0848, -6.8946, 2.927],
            &[3.9505, -6.3029, 2.6377],
            &[3.7418, -5.5913, 2.3037],
            &[2.8769, -3.1427, 1.2046],
            &[2.8366, -3.0525, 1.2012],
        ],
        normalization: FROBENIUS,
        tail: Tail::Exact,
        source: "You Jiacheng 2025; optax 'dion'; NeMo Emerging-Optimizers 'quintic'; Gram-NS YOU_COEFFICIENTS",
    },
    Preset {
        name: "polar_express_raw",
        rows: &[
            &[8.28721201814563, -23.595886519098837, 17.300387312530933],
            &[4.107059111542203, -2.9478499167379106, 0.5448431082926601],
            &[3.9486908534822946, -2.908902115962949, 0.5518191394370137],
            &[3.3184196573706015, -2.488488024314874, 0.51004894012372],
            &[2.300652019954817, -1.6689039845747493, 0.4188073119525673],
            &[1.891301407787398, -1.2679958271945868, 0.37680408948524835],
            &[1.8750014808534479, -1.2500016453999487, 0.3750001645474248],
            &[1.875, -1.25, 0.375],
        ],
        normalization: FROBENIUS,
        tail: Tail::RepeatLast,
        source: "arXiv 2505.16932, l=1e-3, cushion 0.02407327424182761; last row repeats",
    },
    POLAR_EXPRESS_5,
    Preset {
        name: "cans",
        rows: &[
            &[8.4703, -25.1081, 18.6293],
            &[4.1828, -3.1087, 0.5806],
            &[3.9619, -2.9541, 0.563],
            &[3.2866, -2.4647, 0.5074],
            &[2.2737, -1.6447, 0.4162],
        ],
        normalization: FROBENIUS,
        tail: Tail::RepeatLast,
        source: "arXiv 2506.10935 as listed by NeMo Emerging-Optimizers",
    },
    Preset {
        name: "turbo_muon",
        rows: &[
            &[3.9505, -6.3029, 2.6377],
            &[3.7418, -5.5913, 2.3037],
            &[2.8769, -3.1427, 1.2046],
            &[2.8366, -3.0525, 1.2012],
        ],
        normalization: Normalization::Aol,
        tail: Tail::Exact,
        source: "arXiv 2512.04632: last four of You after AOL preconditioning",
    },
    Preset {
        name: "deepseek_v4",
        rows: &[
            &[3.4445, -4.775, 2.0315],
            &[3.4445, -4.775, 2.0315],
            &[3.4445, -4.775, 2.0315],
            &[3.4445, -4.775, 2.0315],
            &[3.4445, -4.775, 2.0315],
            &[3.4445, -4.775, 2.0315],
            &[3.4445, -4.775, 2.0315],
            &[3.4445, -4.775, 2.0315],
            &[2.0, -1.5, 0.5],
            &[2.0, -1.5, 0.5],
        ],
        normalization: FROBENIUS,
        tail: Tail::Exact,
        source: "NeMo Emerging-Optimizers 'deepseekv4'",
    },
    Preset {
        name: "cubic5",
        rows: &[
            &[3.3656576, -3.3420992],
            &[2.5744352, -1.4957376],
            &[2.5368962, -1.431257],
            &[2.4418906, -1.276404],
            &[2.2230472, -0.963065],
        ],
        normalization: FROBENIUS,
        tail: Tail::Exact,
        source: "arXiv 2606.00371 as listed by NeMo Emerging-Optimizers (degree 3)",
    },
    Preset {
        name: "nonic3_band25",
        rows: &[
            &[14.9589885, -146.534689, 487.681366, -626.885416, 272.752193],
            &[6.81879633, -16.5177152, 13.9678397, -4.589376, 0.511560758],
            &[4.31062191, -9.15352302, 8.25338589, -3.04534019, 0.389342493],
        ],
        normalization: Normalization::Frobenius { safety: 1.02 },
        tail: Tail::Exact,
        source: "greedy minimax composition of three degree-9 odd polynomials, final band 1 +- 0.25, lower end 1.84e-3 (computed for this project; 9 digits)",
    },
    Preset {
        name: "nonic3_band12",
        rows: &[
            &[14.8006098, -144.455149, 480.245807, -617.009508, 268.373807],
            &[6.40979733, -15.3523547, 13.0921434, -4.35757333, 0.492894191],
            &[3.62846675, -7.02543901, 6.47138479, -2.5379082, 0.351089876],
        ],
        normalization: Normalization::Frobenius { safety: 1.01 },
        tail: Tail::Exact,
        source: "as above, final band 1 +- 0.12, lower end 3.0e-3",
    },
];
