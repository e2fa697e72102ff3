//! Shapes of models that people know, from their published architectures.

/// Parameters of a model.
pub(crate) struct Model {
    pub(crate) name: &'static str,
    /// Count, rows, columns of the hidden matrices.
    pub(crate) matrices: &'static [(usize, [usize; 2])],
    /// Elements of everything else: embeddings, head, norms, biases.
    pub(crate) adamw_elements: u64,
    /// Where the numbers come from.
    pub(crate) source: &'static str,
}

pub(crate) const MODELS: [Model; 3] = [
    Model {
        name: "gpt2-small",
        matrices: &[(48, [768, 768]), (12, [3072, 768]), (12, [768, 3072])],
        adamw_elements: 39_505_152,
        source: "Radford et al. 2019: 12 layers of width 768, vocabulary 50257, context 1024; q, k, v apart; \
                 124,439,808 parameters",
    },
    Model {
        name: "llama-7b",
        matrices: &[(128, [4096, 4096]), (64, [11008, 4096]), (32, [4096, 11008])],
        adamw_elements: 262_410_240,
        source: "Touvron et al. 2023: 32 layers of width 4096, feed-forward 11008, vocabulary 32000; \
                 6,738,415,616 parameters",
    },
    Model {
        name: "kimi-k2-stage",
        matrices: &[(216, [2048, 7168]), (1, [7168, 18432])],
        adamw_elements: 0,
        source: "Kimi K2: width 7168, experts of 2048, dense layer of 18432; one device's share of a pipeline stage \
                 as benchmarked by the authors of Gram Newton-Schulz",
    },
];

#[cfg(test)]
mod tests {
    use super::MODELS;

    #[test]
    fn sizes_are_the_published_ones() {
        let total = |name: &str| {
            let m = MODELS.iter().find(|m| m.name == name).unwrap();
            let matrices: usize = m.matrices.iter().map(|(n, [r, c])| n * r * c).sum();
            matrices as u64 + m.adamw_elements
        };
        assert_eq!(total("gpt2-small"), 124_439_808);
        assert_eq!(total("llama-7b"), 6_738_415_616);
    }
}
