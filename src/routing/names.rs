//! What the name of a parameter says that it is. A name is a path: its parts are compared whole, or word by word.
//!
//! A part such as `tok_emb` has the words `tok` and `emb`; `DenseReluDense` has three. A word is never found inside
//! another: `heads` is not `head`, and `remember` is no `emb`.

/// A parameter's name, cut at `.`, `/` and `:`.
pub(super) struct Path<'a> {
    parts: Vec<Part<'a>>,
}

/// One part of a path.
pub(super) struct Part<'a> {
    text: &'a str,
    /// In lower case; digits at their end are left out, so that `conv1` has the word `conv`.
    words: Vec<String>,
}

/// Words of tables that are looked up, and of layers that read the input.
const EMBEDDING: [&str; 11] = [
    "emb",
    "embd",
    "embed",
    "embedder",
    "embedding",
    "embeddings",
    "embeds",
    "patchembed",
    "patchify",
    "wpe",
    "wte",
];
/// Words of output heads, wherever they stand.
const HEAD: [&str; 4] = ["classifier", "logits", "unembed", "unembedding"];
/// Parts that are output heads at the top of a model and hidden matrices inside a block: GPT-J has `mlp.fc_out`, BERT
/// `attention.output`.
const HEAD_AT_TOP: [&str; 19] = [
    "conv_out",
    "fc",
    "fc_out",
    "final_layer",
    "generator",
    "heads",
    "out",
    "out_layer",
    "output",
    "output_layer",
    "output_proj",
    "output_projection",
    "outputs",
    "proj_out",
    "qa_outputs",
    "readout",
    "score",
    "scorer",
    "seq_relationship",
];
/// Words of parts that repeat or lie inside what repeats.
const BLOCK: [&str; 22] = [
    "attention",
    "attn",
    "block",
    "blocks",
    "crossattention",
    "expert",
    "experts",
    "feed",
    "feedforward",
    "ff",
    "ffn",
    "h",
    "intermediate",
    "layer",
    "layers",
    "mixer",
    "mlp",
    "moe",
    "selfattention",
    "stage",
    "stages",
    "unit",
];
const NORM: [&str; 8] =
    ["batchnorm", "bn", "gn", "groupnorm", "layernorm", "ln", "norm", "rmsnorm"];
/// Parameters of state-space and recurrent mixers that are not linear maps.
const STATE: [&str; 10] = [
    "A",
    "A_log",
    "A_param",
    "D",
    "a_log",
    "dt_bias",
    "log_dt",
    "time_decay",
    "time_faaaa",
    "time_first",
];
/// Tables of learned vectors, by the parameter's own name.
const VECTORS: [&str; 10] = [
    "codebook",
    "latents",
    "memory",
    "pe",
    "probe",
    "prompt",
    "prompts",
    "queries",
    "soft_prompt",
    "time_mix",
];
/// What one head has one row of.
const HEAD_GATES: [&str; 5] = ["b_proj", "beta_proj", "in_proj_a", "in_proj_b", "in_proj_ba"];
/// What files hold beside the parameters: statistics, masks, tables that are computed.
const BUFFERS: [&str; 18] = [
    "attention_mask",
    "attn_mask",
    "causal_mask",
    "cos_cached",
    "freqs_cis",
    "inv_freq",
    "mask",
    "masked_bias",
    "num_batches_tracked",
    "position_ids",
    "positional_encoding_gaussian_matrix",
    "relative_coords_table",
    "relative_position_index",
    "running_mean",
    "running_var",
    "sin_cached",
    "token_type_ids",
    "tril",
];
/// What belongs to a quantised tensor.
const QUANTISATION: [&str; 13] = [
    "absmax",
    "g_idx",
    "input_scale",
    "nested_absmax",
    "nested_quant_map",
    "quant_map",
    "qweight",
    "qzeros",
    "scales",
    "weight_scale",
    "weight_scale_2",
    "weight_scale_inv",
    "zeros",
];

impl<'a> Path<'a> {
    pub(super) fn new(name: &'a str) -> Self {
        // TensorFlow ends its names in the number of an output: `dense/kernel:0`.
        let name = match name.rsplit_once(':') {
            Some((name, output)) if output.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => name,
        };
        let parts = name.split(['.', '/', ':']).filter(|text| !text.is_empty());
        Self { parts: parts.map(Part::new).collect() }
    }

    /// Why the name says that this is no parameter at all.
    pub(super) fn no_parameter(&self, shape: &[usize]) -> Option<String> {
        let leaf = self.parts.last()?.text;
        if BUFFERS.contains(&leaf) {
            return Some(format!("a buffer by its name: `{leaf}`"));
        }
        if QUANTISATION.contains(&leaf) {
            return Some(format!("part of a quantised tensor by its name: `{leaf}`"));
        }
        // GPT-2 keeps its causal mask as `attn.bias`.
        (leaf == "bias" && matches!(shape, [1, 1, _, _])).then(|| "a mask: `bias` [1, 1, …]".into())
    }

    /// Why the name says that this is no hidden matrix.
    pub(super) fn not_hidden(&self, shape: &[usize]) -> Option<String> {
        let leaf = self.parts.last()?;
        let owner = self.owner()?;
        let said =
            |what: &str, part: &Part<'_>| Some(format!("{what} by its name: `{}`", part.text));
        if let Some(part) = self.parts.iter().find(|p| p.has_any(&EMBEDDING)) {
            return said("an embedding", part);
        }
        if owner.text == "shared" && !self.is_in_block(self.parts.len()) {
            return said("an embedding", owner);
        }
        for (i, part) in self.parts.iter().enumerate() {
            if part.has_any(&HEAD) || (part.ends_in("head") && !self.is_in_attention(i)) {
                return said("an output head", part);
            }
            let at_top = HEAD_AT_TOP.contains(&part.text)
                || (part.text == "decoder" && std::ptr::eq(part, owner));
            if at_top && !self.is_in_block(i) {
                return said("an output head", part);
            }
            if part.has_any(&["router"]) || self.is_router_gate(i, shape) {
                return said("a router", part);
            }
        }
        for part in [leaf, owner] {
            if part.has_any(&["bias"]) {
                return said("a bias", part);
            }
            if part.has_any(&NORM) && !part.has_any(&["linear", "proj"]) {
                return said("a norm", part);
            }
            if part.ends_in("token") || part.ends_in("tokens") {
                return said("a learned token", part);
            }
            if part.ends_in("table") || ["pos", "position", "positions"].contains(&part.text) {
                return said("a table", part);
            }
            if HEAD_GATES.contains(&part.text) {
                return said("a gate with a row for each head", part);
            }
        }
        if owner.starts_with(&["positional"]) {
            return said("a table", owner);
        }
        // From here on the parameter's own name: that of a linear layer is `weight`.
        if !std::ptr::eq(leaf, owner) {
            return None;
        }
        if leaf.starts_with(&["rel", "relative", "pos", "position", "positional"]) {
            return said("a table", leaf);
        }
        if STATE.contains(&leaf.text) {
            return said("a parameter of a state-space mixer", leaf);
        }
        if VECTORS.contains(&leaf.text) || leaf.text.starts_with("time_mix") {
            return said("learned vectors", leaf);
        }
        ["scale", "gain", "gamma", "beta"]
            .iter()
            .any(|word| leaf.ends_in(word))
            .then(|| format!("a scale by its name: `{}`", leaf.text))
    }

    /// Whether the name speaks of experts.
    pub(super) fn says_experts(&self) -> bool {
        self.parts.iter().any(|p| p.has_any(&["expert", "experts", "moe"]))
    }

    /// Whether the name speaks of a convolution.
    pub(super) fn says_convolution(&self) -> bool {
        let conv = ["conv", "conv1d", "conv2d", "conv3d", "convolution", "convs"];
        self.parts.iter().any(|p| p.has_any(&conv))
    }

    /// Whether these parts follow each other in the name.
    pub(super) fn contains(&self, pattern: &str) -> bool {
        let pattern = Path::new(pattern);
        !pattern.parts.is_empty()
            && self
                .parts
                .windows(pattern.parts.len())
                .any(|window| window.iter().zip(&pattern.parts).all(|(a, b)| a.text == b.text))
    }

    /// The layer that the parameter belongs to, or the parameter itself where its name is its own.
    fn owner(&self) -> Option<&Part<'a>> {
        let plain = |text: &str| {
            let stem = text.trim_end_matches(|c: char| c.is_ascii_digit());
            ["weight", "kernel", "w", "bias", "b", "weight_g", "weight_v"].contains(&stem)
        };
        match self.parts.as_slice() {
            [.., owner, leaf] if plain(leaf.text) => Some(owner),
            [.., leaf] => Some(leaf),
            [] => None,
        }
    }

    /// Whether a part before this one is numbered, or lies inside what repeats.
    fn is_in_block(&self, end: usize) -> bool {
        self.parts[..end]
            .iter()
            .any(|p| p.text.bytes().all(|b| b.is_ascii_digit()) || p.has_any(&BLOCK))
    }

    fn is_in_attention(&self, end: usize) -> bool {
        let attention = ["attention", "attn", "crossattention", "selfattention"];
        self.parts[..=end].iter().any(|p| p.has_any(&attention))
    }

    /// A gate that chooses experts, as opposed to the gate of a gated feed-forward layer: it is much wider than high.
    fn is_router_gate(&self, i: usize, shape: &[usize]) -> bool {
        let part = &self.parts[i];
        if !part.ends_in("gate") {
            return false;
        }
        let of_experts =
            |p: &Part<'_>| p.has_any(&["moe", "expert", "experts"]) && p.text != "experts";
        if of_experts(part) || (i > 0 && of_experts(&self.parts[i - 1])) {
            return true;
        }
        matches!(shape, [rows, cols] if part.text == "gate" && rows.saturating_mul(4) <= *cols)
    }
}

impl<'a> Part<'a> {
    fn new(text: &'a str) -> Self {
        let mut words = vec![String::new()];
        let mut before = '_';
        for c in text.chars() {
            if (before.is_lowercase() && c.is_uppercase()) || !c.is_alphanumeric() {
                words.push(String::new());
            }
            if c.is_alphanumeric()
                && let Some(word) = words.last_mut()
            {
                word.extend(c.to_lowercase());
            }
            before = c;
        }
        let stem = |word: &String| word.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
        let words = words.iter().map(stem).filter(|word| !word.is_empty()).collect();
        Self { text, words }
    }

    fn has_any(&self, words: &[&str]) -> bool {
        self.words.iter().any(|w| words.contains(&w.as_str()))
    }

    fn starts_with(&self, words: &[&str]) -> bool {
        self.words.first().is_some_and(|w| words.contains(&w.as_str()))
    }

    fn ends_in(&self, word: &str) -> bool {
        self.words.last().is_some_and(|w| w == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_cut_into_words() {
        let words = |text| Part::new(text).words;
        assert_eq!(words("tok_emb"), ["tok", "emb"]);
        assert_eq!(words("DenseReluDense"), ["dense", "relu", "dense"]);
        assert_eq!(words("adaLN_modulation"), ["ada", "ln", "modulation"]);
        assert_eq!(words("conv1"), ["conv"]);
        assert_eq!(words("conv1d"), ["conv1d"]);
        assert_eq!(words("ln_1"), ["ln"]);
        assert!(words("11").is_empty());
    }

    #[test]
    fn patterns_are_whole_parts() {
        let path = Path::new("h.1.attn/c_attn:weight");
        for (pattern, found) in [
            ("h.1", true),
            ("attn.c_attn", true),
            ("c_attn", true),
            ("attn.weight", false),
            ("h.11", false),
            ("c_att", false),
            ("", false),
        ] {
            assert_eq!(path.contains(pattern), found, "{pattern}");
        }
        assert!(!Path::new("h.11.w").contains("h.1"));
    }
}
