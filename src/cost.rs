//! What a step of a plan costs on the CUDA device, counted from the recipes as `cuda` executes them. A count, not a
//! measurement: tests/gpu compares it with what the emulator sees.

use crate::config::{Bf16Params, MuonConfig, MuonRule};
use crate::device::{StateRule, StateSpec};
use crate::error::{Error, Result, ResultExt};
use crate::plan::{Commit, Plan, PlanInput, Treatment};
use crate::precision::Dtype;
use crate::recipe::Flops;
use crate::shape::{self, Layout, Split};

/// What a plan's cost depends on besides the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CostInputs {
    /// Element type of the gradients.
    pub grad: Dtype,
    /// Element type of the parameters: f32 or bf16.
    pub param: Dtype,
    /// Element type of the momentum.
    pub momentum: Dtype,
    /// Policy for bf16 parameters.
    pub bf16_params: Bf16Params,
    /// Elements of the tensors under AdamW; 0 for none.
    pub adamw_elements: u64,
}

/// The cost of one step on the CUDA device, from the second step on, without clipping and without L2 decay, for
/// which pass A reads the parameter twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepCost {
    /// Kernels that are launched.
    pub kernel_launches: u64,
    /// Calls of cublasLt; one is a product, or a strip of one, of all matrices of a bucket's chunk.
    pub products: u64,
    /// FLOPs of the products as the device executes them.
    pub executed_flops: u64,
    /// What that could be: with symmetric products in full, and with the least that the recipes can cost.
    pub flops: Flops,
    /// Bytes that pass A (with the norms) reads and writes.
    pub pass_a_bytes: u64,
    /// Bytes that pass B reads and writes.
    pub pass_b_bytes: u64,
    /// Bytes that AdamW (with the check of its gradients) reads and writes.
    pub adamw_bytes: u64,
    /// Bytes of optimizer state, both rules.
    pub state_bytes: u64,
}

impl StepCost {
    /// Bytes of all passes; `u64::MAX` where there are more.
    #[must_use]
    pub fn pass_bytes(&self) -> u64 {
        self.pass_a_bytes.saturating_add(self.pass_b_bytes).saturating_add(self.adamw_bytes)
    }
}

/// Kernels of pass A: `direction_scan`, `norm_finish`, `momentum_blend`.
const PASS_A: u64 = 3;
/// Kernels that look at results and commit after it: `update_check`, `update_verdict`, `momentum_commit`.
const CHECK: u64 = 3;
/// Kernels of AdamW: `gradient_sum`, `span_finish`, `adamw_prepare`, `adamw_apply`.
const ADAMW: u64 = 4;

impl Plan {
    /// A plan for parameters of these shapes, each so many times, all under one rule and without a device.
    ///
    /// # Errors
    /// As [`Muon::add_param`](crate::Muon::add_param).
    pub fn for_shapes<'a>(
        config: &MuonConfig,
        rule: &MuonRule,
        shapes: impl IntoIterator<Item = (&'a [usize], usize)>,
    ) -> Result<Self> {
        config.validate()?;
        crate::config::Rule::from(rule.clone()).validate()?;
        let (mut kinds, mut matrices) = (Vec::new(), 0usize);
        for (dimensions, count) in shapes {
            let blocks = shape::blocks(dimensions, Layout::OutIn, &Split::Whole)
                .context(|| format!("matrices {dimensions:?}"))?;
            matrices = matrices.saturating_add(blocks.len().saturating_mul(count));
            shape::check_matrices(matrices)?;
            kinds.push((blocks, count));
        }
        let params = kinds.iter().flat_map(|(blocks, count)| std::iter::repeat_n(blocks, *count));
        let inputs =
            params.enumerate().map(|(param, blocks)| PlanInput { param, rule, blocks, name: "" });
        Self::new(config, inputs)
    }

    /// What a step costs on the CUDA device.
    ///
    /// # Errors
    /// A count that 64 bits do not hold.
    pub fn cuda_cost(&self, inputs: &CostInputs) -> Result<StepCost> {
        let spec = |rule| StateSpec {
            len: 1,
            param_dtype: inputs.param,
            bf16_params: inputs.bf16_params,
            rule,
            salt: 0,
        };
        let muon_spec = spec(StateRule::Muon { momentum_dtype: inputs.momentum, matrices: 1 });
        let adamw_spec = spec(StateRule::AdamW);
        let bytes = |dtype: Dtype| dtype.bytes() as u128;
        let (grad, momentum) = (bytes(inputs.grad), bytes(inputs.momentum));
        // Read and written; beside an f32 master a bf16 parameter is only written.
        let param = bytes(inputs.param);
        let param = if muon_spec.has_master() { 8 + param } else { 2 * param };
        let adamw = u128::from(inputs.adamw_elements);

        let (mut pass_a, mut pass_b) = (0u128, 0u128);
        let (mut full, mut symmetric, mut executed) = (0u128, 0u128, 0u128);
        let (mut launches, mut products) = (0u128, 0u128);
        // Chunks in which there is a matrix, and those in which one is looked at before it is committed.
        let (mut active_chunks, mut checked_chunks) = (0, 0);
        for bucket in self.buckets() {
            let count = bucket.matrices.len() as u128;
            let n = bucket.shape.len() as u128 * count;
            let iterate = bucket.treatment.stored_in(self.precision()).bytes() as u128;
            // Gradient and momentum are read for the norm and again for the blend.
            pass_a += n * (2 * grad + 2 * momentum + iterate);
            pass_b += n * (iterate + param);
            let chunks = bucket.matrices.len().div_ceil(bucket.slots.max(1));
            active_chunks = active_chunks.max(chunks);
            match bucket.commit {
                Commit::PassA => pass_a += n * momentum,
                // The result is looked at, then gradient and momentum are read a third time.
                Commit::AfterCheck => {
                    pass_b += n * (iterate + grad + 2 * momentum);
                    checked_chunks = checked_chunks.max(chunks);
                }
            }
            if let Treatment::Polynomial { recipe, .. } = &bucket.treatment {
                let (shape, strips) = (bucket.shape, &bucket.symmetric);
                let flops = recipe.flops(shape);
                full += u128::from(flops.full) * count;
                symmetric += u128::from(flops.symmetric) * count;
                executed += u128::from(recipe.executed_flops(shape, strips)) * count;
                launches += u128::from(recipe.kernel_launches(shape, strips)) * chunks as u128;
                products += u128::from(recipe.calls(shape, strips)) * chunks as u128;
            }
        }
        launches += u128::from(PASS_A + 1) * active_chunks as u128;
        launches += u128::from(CHECK) * checked_chunks as u128;
        // `step_finish`.
        launches += u128::from(!self.buckets().is_empty());
        launches += if adamw > 0 { u128::from(ADAMW) } else { 0 };
        let state = self.elements() as u128 * muon_spec.bytes() as u128
            + adamw * adamw_spec.bytes() as u128;
        Ok(StepCost {
            kernel_launches: counted("kernel launches", launches)?,
            products: counted("products", products)?,
            executed_flops: counted("FLOPs", executed)?,
            flops: Flops { full: counted("FLOPs", full)?, symmetric: counted("FLOPs", symmetric)? },
            pass_a_bytes: counted("bytes of pass A", pass_a)?,
            pass_b_bytes: counted("bytes of pass B", pass_b)?,
            adamw_bytes: counted("bytes of AdamW", adamw * (2 * grad + 16 + param))?,
            state_bytes: counted("bytes of state", state)?,
        })
    }
}

/// # Errors
/// More than 64 bits hold.
fn counted(what: &str, count: u128) -> Result<u64> {
    u64::try_from(count).map_err(|_| {
        Error::shape_mismatch(format!("{what} of a step"), format!("at most {}", u64::MAX), count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coefficients::CoefficientSchedule;
    use crate::config::{MethodChoice, Orthogonalizer};
    use crate::precision::Precision;
    use crate::symmetric::SymmetricProducts;

    fn plan(schedule: &str, method: MethodChoice, config: &MuonConfig) -> Plan {
        let rule = MuonRule {
            orthogonalizer: Orthogonalizer::Polynomial {
                schedule: CoefficientSchedule::preset_or_file(schedule).unwrap(),
                iterations: None,
            },
            method,
            ..MuonRule::default()
        };
        let shapes: [(&[usize], usize); 2] = [(&[32, 32], 3), (&[64, 32], 2)];
        Plan::for_shapes(config, &rule, shapes).unwrap()
    }

    const INPUTS: CostInputs = CostInputs {
        grad: Dtype::Bf16,
        param: Dtype::F32,
        momentum: Dtype::F32,
        bf16_params: Bf16Params::Master,
        adamw_elements: 100,
    };

    #[test]
    fn five_quintics_by_hand() {
        let config = MuonConfig { precision: Some(Precision::Bf16), ..MuonConfig::default() };
        let cost = plan("jordan", MethodChoice::Standard, &config).cuda_cost(&INPUTS).unwrap();
        // Five iterations of three products for each of two shapes; squares need no mirror.
        assert_eq!(cost.products, 30);
        // 3 of pass A, 1 of pass B, step_finish, 4 of AdamW.
        assert_eq!(cost.kernel_launches, 9);
        // Full: (4α + 2) n³ an iteration.
        let n3 = 32u64.pow(3);
        assert_eq!(cost.flops.full, 5 * n3 * (3 * 6 + 2 * 10));
        // One tile is not cut.
        assert_eq!(cost.executed_flops, cost.flops.full);
        let elements = 3 * 32 * 32 + 2 * 64 * 32;
        assert_eq!(cost.pass_a_bytes, 18 * elements);
        assert_eq!(cost.pass_b_bytes, 10 * elements);
        assert_eq!(cost.adamw_bytes, 28 * 100);
        assert_eq!(cost.state_bytes, 4 * elements + 8 * 100);
    }

    #[test]
    fn forced_gram_forms_are_checked_and_mirrored_and_chunks_multiply() {
        let config = MuonConfig { precision: Some(Precision::Bf16), ..MuonConfig::default() };
        let gram = MethodChoice::Gram(vec![5]);
        let whole = plan("jordan", gram.clone(), &config);
        let cost = whole.cuda_cost(&INPUTS).unwrap();
        let bucket = &whole.buckets()[0];
        let Treatment::Polynomial { recipe, .. } = &bucket.treatment else {
            unreachable!("a polynomial was asked for")
        };
        let launches = recipe.kernel_launches(bucket.shape, &bucket.symmetric);
        assert!(launches > 0);
        assert_eq!(cost.kernel_launches, 9 + CHECK + 2 * launches);
        // Pass A writes no momentum; pass B reads the result twice, and gradient and momentum once more.
        let elements = whole.elements() as u64;
        assert_eq!((cost.pass_a_bytes, cost.pass_b_bytes), (14 * elements, 22 * elements));
        let few = MuonConfig { workspace_limit: 1, ..config };
        let chunked = plan("jordan", gram, &few);
        assert_eq!(chunked.chunks(), 3);
        let more = chunked.cuda_cost(&INPUTS).unwrap();
        // Three chunks; the second bucket has a matrix in two of them.
        assert_eq!(more.kernel_launches, 5 + 3 * 7 + 5 * launches);
        assert_eq!(more.flops, cost.flops);
        assert_eq!(more.pass_bytes(), cost.pass_bytes());
    }

    #[test]
    fn strips_cost_calls_and_mirrors_and_save_flops() {
        let config = MuonConfig {
            precision: Some(Precision::Bf16),
            symmetric_products: SymmetricProducts::Strips(2),
            ..MuonConfig::default()
        };
        let cost = plan("jordan", MethodChoice::Standard, &config).cuda_cost(&INPUTS).unwrap();
        // Two of three products are symmetric, each in two calls and mirrored: five iterations, two buckets.
        assert_eq!(cost.products, 2 * 5 * (2 * 2 + 1));
        assert_eq!(cost.kernel_launches, 9 + 2 * 5 * 2);
        // 3/4 of 2α + 2, and 2α: 5 n³ an iteration at α = 1, 8.5 at α = 2.
        let n3 = 32u64.pow(3);
        assert_eq!(cost.executed_flops, 5 * n3 * (3 * 5 + 17));
        assert!(cost.flops.symmetric < cost.executed_flops);
        let none = MuonConfig { symmetric_products: SymmetricProducts::Strips(0), ..config };
        let e = Plan::for_shapes(&none, &MuonRule::default(), [(&[8, 8][..], 1)]).unwrap_err();
        assert!(e.is_invalid_config() && e.to_string().contains("symmetric_products"), "{e}");
    }

    #[test]
    fn bf16_parameters_with_and_without_a_master() {
        let plan = plan("jordan", MethodChoice::Standard, &MuonConfig::default());
        let elements = plan.elements() as u64;
        let bf16 = CostInputs { param: Dtype::Bf16, adamw_elements: 0, ..INPUTS };
        let master = plan.cuda_cost(&bf16).unwrap();
        // f32 iterate; master read and written, parameter written.
        assert_eq!(master.pass_b_bytes, (4 + 8 + 2) * elements);
        assert_eq!(master.state_bytes, 8 * elements);
        let stochastic = CostInputs { bf16_params: Bf16Params::Stochastic { seed: 0 }, ..bf16 };
        assert_eq!(plan.cuda_cost(&stochastic).unwrap().pass_b_bytes, (4 + 4) * elements);
    }

    #[test]
    fn counts_that_64_bits_do_not_hold_are_errors() {
        let config = MuonConfig { precision: Some(Precision::Bf16), ..MuonConfig::default() };
        let plan_of = |shape: &[usize], count: usize| {
            let rule = MuonRule { method: MethodChoice::Standard, ..MuonRule::default() };
            Plan::for_shapes(&config, &rule, [(shape, count)])
        };
        // A square of 10⁶ takes some 15 products of 2·10¹⁸ FLOPs: u64 ends at 1.8·10¹⁹.
        for (shape, count) in [
            (&[1_000_000usize, 1_000_000][..], 1),
            (&[100_000, 100_000], 100_000),
            (&[usize::MAX, 1], 1),
            (&[usize::MAX, usize::MAX], 1),
            (&[1, usize::MAX / 8], 1),
            (&[768, 768], usize::MAX),
            (&[5_000_000, 2, 2], 1),
        ] {
            let e = plan_of(shape, count).unwrap_err();
            assert!(e.is_shape_mismatch(), "{shape:?} {count}: {e}");
        }
        let inputs = CostInputs { adamw_elements: u64::MAX, ..INPUTS };
        let small = plan_of(&[8, 8], 1).unwrap();
        let e = small.cuda_cost(&inputs).unwrap_err();
        assert!(e.is_shape_mismatch() && e.to_string().contains("of AdamW"), "{e}");
        // What fits is right: 15 products of a square of 10⁵, and as many of a plan of 10⁵ matrices.
        let flops = |shape: &[usize], count| {
            plan_of(shape, count).unwrap().cuda_cost(&INPUTS).unwrap().flops.full
        };
        assert_eq!(flops(&[100_000, 100_000], 1), 15 * 2 * 10u64.pow(15));
        assert_eq!(flops(&[768, 768], 100_000), 15 * 2 * 768u64.pow(3) * 100_000);
    }
}
