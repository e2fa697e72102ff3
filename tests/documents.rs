//! Every path the documents name exists.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::path::Path;

#[test]
fn every_path_in_the_documents_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for document in
        ["README.md", "ARCHITECTURE.md", "NUMERICS.md", "CONTRIBUTING.md", "docs/trajectories.md"]
    {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        for quoted in text.split('`').skip(1).step_by(2) {
            let is_path =
                ["src/", "tests/", "cli/", "docs/", "tools/", "benches/", "examples/", ".ci/"]
                    .iter()
                    .any(|prefix| quoted.starts_with(prefix));
            if is_path && !quoted.contains([' ', '*', '<']) {
                assert!(
                    root.join(quoted).exists(),
                    "{document} names `{quoted}`, which does not exist"
                );
                named += 1;
            }
        }
    }
    assert!(named > 40, "the documents name {named} paths; the test no longer finds them");
}
