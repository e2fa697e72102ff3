//! Patterns of names.

/// Whether `*` (anything) and `?` (one character) in the glob can stand for the rest of the name.
pub(crate) fn matches(glob: &str, name: &str) -> bool {
    let (glob, name): (Vec<char>, Vec<char>) = (glob.chars().collect(), name.chars().collect());
    // reachable[i]: the first i characters of the name are matched by the glob so far.
    let mut reachable = vec![false; name.len() + 1];
    reachable[0] = true;
    for g in glob {
        let before = reachable.clone();
        for i in 0..=name.len() {
            reachable[i] = match g {
                '*' => before[i] || (i > 0 && reachable[i - 1]),
                '?' => i > 0 && before[i - 1],
                c => i > 0 && before[i - 1] && name[i - 1] == c,
            };
        }
    }
    reachable[name.len()]
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn globs() {
        for (glob, name, expected) in [
            ("*", "", true),
            ("", "a", false),
            ("*.weight", "h.0.attn.weight", true),
            ("*.weight", "h.0.attn.bias", false),
            ("h.?.*t*", "h.3.attn", true),
            ("h.?.*t*", "h.13.attn", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
        ] {
            assert_eq!(matches(glob, name), expected, "{glob} {name}");
        }
    }
}
