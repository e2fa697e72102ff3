use super::*;
use crate::coefficients::presets::preset;
use proptest::prelude::*;

/// Half a unit of the last digit, for a number printed with that many significant digits.
fn half_unit(value: f64, digits: i32) -> f64 {
    0.5 * 10f64.powf(value.abs().log10().floor() + 1.0 - f64::from(digits))
}

/// Asserts that generated rows are the printed ones to that many significant digits.
fn assert_rows(what: &str, found: &[OddPolynomial], printed: &[&[f64]], digits: i32) {
    assert_eq!(found.len(), printed.len(), "{what}");
    for (i, (p, row)) in found.iter().zip(printed).enumerate() {
        assert_eq!(p.coefficients().len(), row.len(), "{what}, row {i}");
        for (found, &printed) in p.coefficients().iter().zip(*row) {
            // A whole unit of the last digit, not half: the list comes from a bisection in f64 that
            // ended 2e-10 off (4.310621915158016 and 8.253385896042943 in 45 digits are printed
            // 4.31062191 and 8.25338589).
            let tolerance = 2.0 * half_unit(printed, digits);
            assert!(
                (found - printed).abs() <= tolerance,
                "{what}, row {i}: {found} is not {printed} to {digits} digits"
            );
        }
    }
}

fn worst_difference(a: &OddPolynomial, b: &OddPolynomial) -> f64 {
    let pairs = a.coefficients().iter().zip(b.coefficients());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn the_polar_express_table() {
    let found = compose(&[5; 8], 1e-3, POLAR_EXPRESS_CUSHION, 1.0).unwrap();
    let published = preset("polar_express_raw").unwrap();
    for (i, (p, q)) in found.iter().zip(published.polynomials()).enumerate() {
        // Rows 1 to 6 are as well determined as f64 (measured 1.8e-14, coefficients up to 24). On
        // the seventh interval, 1 ± 1.2e-3, three nearly equal monomials fit 1 to 1e-9: their
        // coefficients are determined to rounding/width² = 1e-16/1.4e-6 (measured 3.5e-11). The
        // published eighth row is the Taylor limit at 1, ours at the upper end 1 + 1e-9, as the
        // recursion says (measured 3.9e-9).
        let tolerance = match i {
            0..6 => 1e-13,
            6 => 1e-10,
            _ => 1e-8,
        };
        let difference = worst_difference(p, q);
        println!("row {}: {difference:e}", i + 1);
        assert!(difference <= tolerance, "row {}: {difference:e}", i + 1);
    }
}

#[test]
fn the_five_row_set_with_the_safety_inside_the_recursion() {
    let found = compose(&[5; 5], 1e-3, 0.02, 1.02).unwrap();
    for (p, q) in found.iter().zip(preset("polar_express_5").unwrap().polynomials()) {
        // Coefficients up to 22 after a 4 × 4 solve: measured 1.2e-14.
        assert!(worst_difference(p, q) <= 1e-12, "{:?}", p.coefficients());
    }
    // The safety is part of the recursion: dividing afterwards gives another set.
    let after = compose(&[5; 5], 1e-3, 0.02, 1.0).unwrap();
    let second = after[1].with_input_scale(1.02);
    assert!(worst_difference(&found[1], &second) > 1e-3);
}

#[test]
fn the_set_timm_ships_is_the_released_code_at_safety_1_01() {
    // timm/optim/muon.py "polar_express", eight rows; the last is the recursion's own, not
    // Taylor's.
    let printed: [[f64; 3]; 6] = [
        [8.237312490495555, -23.157747414558198, 16.680568411445915],
        [4.082441999064835, -2.893047735332586, 0.5252849256975648],
        [3.9263479922546582, -2.8547468034765298, 0.5318022422894988],
        [3.2982187133085143, -2.424541981026706, 0.48632008358844075],
        [2.2970369434552573, -1.63662558125903, 0.4002628455953627],
        [1.8763805351440397, -1.2347896577722228, 0.35891887501668385],
    ];
    let found = compose(&[5; 8], 1e-3, 0.02, 1.01).unwrap();
    for (p, row) in found.iter().zip(printed) {
        // Two programs' roundings at coefficients up to 23; copies of this set in other projects
        // differ among themselves by up to 1e-14.
        assert!(worst_difference(p, &OddPolynomial::new(&row).unwrap()) < 1e-13);
    }
}

#[test]
fn cans_sets() {
    // Quintic: the same recursion on [1e-3, 1] without a cushion, four decimals published.
    let quintic = compose(&[5; 5], 1e-3, 0.0, 1.0).unwrap();
    for (p, q) in quintic.iter().zip(preset("cans").unwrap().polynomials()) {
        assert!(worst_difference(p, q) <= 0.5001e-4, "{:?}", p.coefficients());
    }
    // Cubic, seven iterations, delta = 0.3 (arXiv 2506.10935, table).
    let cubic = for_band(&[3; 7], 0.3).unwrap();
    let published: [[f64; 2]; 7] = [
        [5.181702879894027, -5.177039351076183],
        [2.585422564566848, -0.647862782007566],
        [2.565592012027513, -0.645264570196127],
        [2.516223347431526, -0.638782620243433],
        [2.401068707564606, -0.623585125272674],
        [2.170844761790119, -0.592849780534662],
        [1.839437716819516, -0.547668362229117],
    ];
    for (i, (p, row)) in cubic.polynomials.iter().zip(published).enumerate() {
        let difference = worst_difference(p, &OddPolynomial::new(&row).unwrap());
        println!("CANS cubic row {}: {difference:e}", i + 1);
        // The authors bisect for the lower end to a tolerance of their own: their last image is
        // [0.7025, 1.2975], not [0.7, 1.3].
        assert!(difference < 3e-3, "row {}: {difference:e}", i + 1);
    }
    // From that band it is the same set, to a few roundings of numbers up to 5 (measured 1.3e-15).
    let last = OddPolynomial::new(&published[6]).unwrap();
    let extremum = (published[6][0] / (-3.0 * published[6][1])).sqrt();
    let band = last.eval(extremum) - 1.0;
    println!("CANS cubic: band {band}");
    let cubic = for_band(&[3; 7], band).unwrap();
    for (i, (p, row)) in cubic.polynomials.iter().zip(published).enumerate() {
        let difference = worst_difference(p, &OddPolynomial::new(&row).unwrap());
        println!("CANS cubic row {} from its own band: {difference:e}", i + 1);
        assert!(difference < 1e-14, "row {}: {difference:e}", i + 1);
    }
}

#[test]
fn families_of_a_final_band() {
    let q = |t: usize, band: f64| for_band(&vec![5; t], band).unwrap();
    let tail_12: [&[f64]; 2] =
        [&[3.30745274, -2.48030901, 0.509122664], &[2.29122688, -1.66043452, 0.417892427]];
    let third_12: &[f64] = &[3.97014805, -2.95990714, 0.563642074];
    let fourth_12: &[f64] = &[4.18506731, -3.11025258, 0.580783627];
    let tail_25: [&[f64]; 2] =
        [&[3.6039728, -2.69831452, 0.533861616], &[2.61522781, -1.93921675, 0.448410386]];
    let first_3: &[f64] = &[7.80386316, -22.479514, 16.539338];
    let first_4: &[f64] = &[8.3357682, -24.5767926, 18.2066597];
    let first_5: &[f64] = &[8.47167177, -25.1133784, 18.633495];
    let first_6: &[f64] = &[8.50424948, -25.242044, 18.7358578];
    let fifth_12: &[f64] = &[4.23994173, -3.14830967, 0.585124332];
    let rows = [
        (q(3, 0.12), 1.75e-2, vec![first_3, tail_12[0], tail_12[1]]),
        (q(4, 0.12), 4.1e-3, vec![first_4, third_12, tail_12[0], tail_12[1]]),
        (q(5, 0.12), 9.7e-4, vec![first_5, fourth_12, third_12, tail_12[0], tail_12[1]]),
        (q(6, 0.12), 2.3e-4, vec![first_6, fifth_12, fourth_12, third_12, tail_12[0], tail_12[1]]),
        (q(3, 0.25), 1.07e-2, vec![&[8.06720435, -23.5172593, 17.3641291], tail_25[0], tail_25[1]]),
        (
            q(4, 0.25),
            2.5e-3,
            vec![
                &[8.40480175, -24.8493229, 18.4234363],
                &[4.07657932, -3.03462634, 0.572159613],
                tail_25[0],
                tail_25[1],
            ],
        ),
        (
            for_band(&[9; 2], 0.25).unwrap(),
            1.4e-2,
            vec![
                &[13.4496858, -126.754455, 417.014677, -533.070409, 231.17294],
                &[4.31062191, -9.15352302, 8.25338589, -3.04534019, 0.389342493],
            ],
        ),
    ];
    for (found, lower, printed) in rows {
        let what = format!("{} polynomials from {lower}", printed.len());
        assert_rows(&what, &found.polynomials, &printed, 9);
        // Two or three digits printed.
        assert!((found.lower / lower - 1.0).abs() < 0.03, "{what}: {}", found.lower);
    }
}

#[test]
fn the_degree_nine_presets_come_from_their_final_band() {
    for (name, band, lower) in
        [("nonic3_band25", 0.25, 1.84224412569e-3), ("nonic3_band12", 0.12, 3.00240675008e-3)]
    {
        let start = std::time::Instant::now();
        let found = for_band(&[9; 3], band).unwrap();
        println!("{name}: lower end {:.14e}, in {:?}", found.lower, start.elapsed());
        // Twelve digits given.
        assert!((found.lower - lower).abs() <= half_unit(lower, 12), "{name}: {}", found.lower);
        let preset = preset(name).unwrap();
        let printed: Vec<&[f64]> = preset.polynomials().iter().map(|p| p.coefficients()).collect();
        assert_rows(name, &found.polynomials, &printed, 9);
        // The same from the front, and the exact image is the band.
        let forward = compose(&[9; 3], found.lower, 0.0, 1.0).unwrap();
        for (p, q) in forward.iter().zip(&found.polynomials) {
            // Coefficients up to 627; the lower end's rounding enters with the slope of the ends,
            // 1e3.
            assert!(worst_difference(p, q) < 1e-9, "{name}: {:e}", worst_difference(p, q));
        }
        let ((min, max), error) = image_and_rounding(&found.polynomials, found.lower);
        assert!((min - (1.0 - band)).abs() < error && (max - (1.0 + band)).abs() < error);
        assert!(error < 1e-8, "{error}");
    }
}

fn image(polynomials: &[OddPolynomial], lo: f64, hi: f64) -> (f64, f64) {
    polynomials.iter().fold((lo, hi), |(lo, hi), p| p.image(lo, hi))
}

/// The image of `[lower, 1]` and a bound on its rounding: each polynomial adds that of its own
/// terms and multiplies what came in by its slope at the ends (hundreds at degree 9).
fn image_and_rounding(polynomials: &[OddPolynomial], lower: f64) -> ((f64, f64), f64) {
    let (mut lo, mut hi, mut error) = (lower, 1.0, 0.0f64);
    for p in polynomials {
        let terms = p.coefficients().iter().rev().fold(0.0, |acc, c| acc * hi * hi + c.abs()) * hi;
        error = error * p.derivative(lo).abs().max(p.derivative(hi).abs())
            + 32.0 * f64::EPSILON * terms;
        (lo, hi) = p.image(lo, hi);
    }
    ((lo, hi), error)
}

#[test]
fn a_band_of_a_quarter_is_what_45_digit_arithmetic_gives() {
    // Python's decimal module at 45 digits: Remez exchange with Newton's method for the extrema,
    // secant for the ratio of the ends; rounded to 15 digits.
    let exact: [[f64; 5]; 3] = [
        [
            14.9589885155742,
            -146.534689405579,
            487.681366351493,
            -626.885415871109,
            272.752193217074,
        ],
        [
            6.8187963264701,
            -16.5177152195159,
            13.9678397387559,
            -4.58937599775869,
            0.511560758174649,
        ],
        [
            4.31062191515802,
            -9.15352302529692,
            8.25338589604294,
            -3.04534018726637,
            0.389342493395208,
        ],
    ];
    let found = for_band(&[9; 3], 0.25).unwrap();
    // Relative; measured 8e-15 at worst: the condition of a 6 × 6 solve with entries from 1e-3 to
    // 1.
    assert!((found.lower / 0.001_842_244_125_694_263 - 1.0).abs() < 1e-12, "{}", found.lower);
    for (p, row) in found.polynomials.iter().zip(exact) {
        for (found, exact) in p.coefficients().iter().zip(row) {
            assert!((found / exact - 1.0).abs() < 1e-13, "{found} {exact}");
        }
    }
}

#[test]
fn compositions_for_one_band_are_nested() {
    let long = for_band(&[3, 9, 5, 9], 0.2).unwrap();
    let short = for_band(&[5, 9], 0.2).unwrap();
    // The last polynomial is the same to the bit; the one that was first is stretched from [l, 1]
    // to [l·u, u] by the one put in front.
    assert_eq!(long.polynomials[3], short.polynomials[1]);
    let upper = long.polynomials[0].image(long.lower, 1.0).1;
    let upper = long.polynomials[1].image(2.0 - upper, upper).1;
    let stretched = short.polynomials[0].with_input_scale(upper);
    assert!(worst_difference(&long.polynomials[2], &stretched) < 1e-12);
    assert!(long.lower < short.lower);
}

#[test]
fn recentring_puts_both_ends_around_one() {
    // With a cushion the first polynomial is made for [0.02, 1] and used on [1e-3, 1].
    let p = compose(&[9], 1e-3, 0.02, 1.0).unwrap()[0];
    let uncushioned = compose(&[9], 1e-3, 0.0, 1.0).unwrap()[0];
    // One rounding in each of five terms up to 600.
    assert!((p.eval(1e-3) + p.eval(1.0) - 2.0).abs() < 1e-12);
    let (min, max) = p.image(1e-3, 1.0);
    assert!((min + max - 2.0).abs() < 1e-12, "{min} {max}");
    assert!(p.slope() < uncushioned.slope());
}

#[test]
fn a_record_gives_the_same_polynomials_bit_for_bit() {
    let normalization = Normalization::Frobenius { safety: 1.02 };
    for generator in [
        Generator::Composition { degrees: vec![3, 5, 9], lower: 1e-3, cushion: 0.02, safety: 1.01 },
        Generator::FinalBand { degrees: vec![9, 5], band: 0.2 },
    ] {
        let made = generator.schedule("made", normalization).unwrap();
        assert_eq!(made.regenerate().unwrap().as_ref(), Some(&made));
        let guarded = made.with_safety(1.01).unwrap().with_safety(1.005).unwrap();
        assert_eq!(guarded.regenerate().unwrap().as_ref(), Some(&guarded));
        assert_eq!(guarded.provenance().unwrap().input_safety, [1.01, 1.005]);
        assert_ne!(guarded.polynomials(), made.polynomials());
    }
    // A schedule of another length is not what the record describes.
    let made = CoefficientSchedule::new(
        "tail",
        compose(&[5; 3], 1e-2, 0.0, 1.0).unwrap(),
        normalization,
        Tail::RepeatLast,
        "",
    )
    .unwrap()
    .with_provenance(Provenance {
        input_safety: vec![],
        generator: Generator::Composition {
            degrees: vec![5; 3],
            lower: 1e-2,
            cushion: 0.0,
            safety: 1.0,
        },
    });
    assert!(made.with_iterations(3).unwrap().provenance().is_some());
    assert!(made.with_iterations(4).unwrap().provenance().is_none());
    assert_eq!(preset("jordan").unwrap().regenerate().unwrap(), None);
}

#[test]
fn what_cannot_be_made_is_refused() {
    for (e, part) in [
        (compose(&[], 1e-3, 0.0, 1.0).unwrap_err(), "1 to 32 polynomials, found 0"),
        (compose(&[5; 33], 1e-3, 0.0, 1.0).unwrap_err(), "found 33"),
        (compose(&[7], 1e-3, 0.0, 1.0).unwrap_err(), "found `7`"),
        (compose(&[5], 0.0, 0.0, 1.0).unwrap_err(), "lower end"),
        (compose(&[5], f64::NAN, 0.0, 1.0).unwrap_err(), "lower end"),
        (compose(&[5], 1e-3, 1.0, 1.0).unwrap_err(), "cushion"),
        (compose(&[5], 1e-3, 0.0, 0.99).unwrap_err(), "safety"),
        (compose(&[5], 1e-13, 0.0, 1.0).unwrap_err(), "1e12"),
        (for_band(&[5], 0.0).unwrap_err(), "final band"),
        (for_band(&[5], 1.0).unwrap_err(), "final band"),
        (for_band(&[5; 32], 0.1).unwrap_err(), "fewer polynomials"),
        (minimax(7, 0.1, 1.0).unwrap_err(), "found `7`"),
        (minimax(5, 1.0, 0.1).unwrap_err(), "in order"),
        (minimax_coefficients(19, 0.1, 1.0).unwrap_err(), "found `19`"),
    ] {
        assert!(e.is_invalid_config() && e.to_string().contains(part), "{part}: {e}");
    }
}

#[test]
fn high_degrees_converge_to_their_rounding() {
    // Terms of this polynomial reach 1e6, so the level is never stationary to 1e-15 or even 1e-12.
    let (c, error) = minimax_coefficients(17, 0.02580748788010172, 1.0).unwrap();
    let size: f64 = c.iter().map(|c| c.abs()).sum();
    assert!(size > 1e5, "{size:e}");
    let at_one: f64 = c.iter().sum();
    // Nine coefficients, ten alternations, the first below 1: the last is above.
    assert!((at_one - 1.0 - error).abs() < 16.0 * f64::EPSILON * size, "{at_one} {error}");
}

#[test]
fn long_compositions_settle_at_one() {
    for degrees in [vec![5; 32], vec![9; 20], vec![3; 32], vec![3, 5, 9, 3, 5, 9, 3, 5, 9]] {
        let found = compose(&degrees, 1e-3, 0.02, 1.0).unwrap();
        let (min, max) = image(&found, 1e-3, 1.0);
        // Past convergence every polynomial adds a rounding of size 1e-16 times its terms (below
        // 4).
        assert!((min - 1.0).abs() < 1e-11 && (max - 1.0).abs() < 1e-11, "{degrees:?} {min} {max}");
    }
}

proptest! {
    /// A polynomial whose error is `±E` with alternating sign at one point more than it has
    /// coefficients is the best one (de la Vallée-Poussin): checked from outside, by the exact
    /// image.
    #[test]
    fn minimax_polynomials_equioscillate(
        half in 1usize..9, log_ratio in -6.0f64..-0.3, upper in 0.2f64..3.0,
    ) {
        let degree = 2 * half + 1;
        let lower = upper * 10f64.powf(log_ratio);
        let (c, error) = minimax_coefficients(degree, lower, upper).unwrap();
        let eval = |x: f64| x * c.iter().rev().fold(0.0, |acc, c| acc * x * x + c);
        // Terms of p on the interval add up to this; one rounding of each is the error's error.
        let size: f64 = c.iter().rev().fold(0.0, |acc, c| acc * upper * upper + c.abs()) * upper;
        let tolerance = 64.0 * f64::EPSILON * size;
        // Follow p − 1 along a fine grid: its extrema must be ±E, k + 1 of them, alternating.
        let steps = 20_000;
        let (mut turns, mut last, mut sign) = (0, 0.0f64, 0.0f64);
        for i in 0..=steps {
            // Geometric: small arguments carry as many oscillations as large ones.
            let x = lower * (upper / lower).powf(f64::from(i) / f64::from(steps));
            let e = eval(x) - 1.0;
            prop_assert!(e.abs() <= error + tolerance, "{degree} {lower} {upper}: {e} {error}");
            // 0.1 % below the extremum is near it on this grid.
            if e.abs() > 0.999 * error - tolerance && e.signum() != sign {
                turns += 1;
                sign = e.signum();
                last = e;
            }
        }
        // The last of the k + 1 is at the upper end and below 1, as is the first.
        prop_assert_eq!(turns, half + 2, "{} {} {}: last {}", degree, lower, upper, last);
    }

    /// Any composition in the allowed range can be made; its image stays around 1.
    #[test]
    fn compositions_exist_and_stay_around_one(
        degrees in proptest::collection::vec(prop_oneof![Just(3usize), Just(5), Just(9)], 1..12),
        log_lower in -6.0f64..-0.1, cushion in 0.0f64..0.2, safety in 1.0f64..1.05,
    ) {
        let lower = 10f64.powf(log_lower);
        let found = compose(&degrees, lower, cushion, 1.0).unwrap();
        let ((min, max), error) = image_and_rounding(&found, lower);
        prop_assert!((min + max - 2.0).abs() < 2.0 * error && min > 0.0, "{min} {max} {error:e}");
        let guarded = compose(&degrees, lower, cushion, safety).unwrap();
        let ((min, max), error) = image_and_rounding(&guarded, lower);
        prop_assert!(min > 0.0 && max < 2.0 + error, "{min} {max}");
    }

    /// The image of the interval is the band, for any mix of degrees.
    #[test]
    fn compositions_reach_their_band(
        degrees in proptest::collection::vec(prop_oneof![Just(3usize), Just(5), Just(9)], 1..5),
        log_band in -9.0f64..-0.3,
    ) {
        let band = 10f64.powf(log_band);
        let found = for_band(&degrees, band).unwrap();
        prop_assert!(found.lower > 0.0 && found.lower < 1.0);
        let ((lo, hi), error) = image_and_rounding(&found.polynomials, found.lower);
        prop_assert!((lo - 1.0 + band).abs() < error && (hi - 1.0 - band).abs() < error,
            "{degrees:?} {band}: {lo} {hi}, allowed {error:e}");
    }
}
