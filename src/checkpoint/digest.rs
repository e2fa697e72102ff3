//! SHA-256 as the hexadecimal text that stands in files and file names.

use sha2::{Digest, Sha256};

/// The digest of the parts one after another: 64 lower-case hexadecimal digits.
pub(super) fn sha256<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    parts.into_iter().for_each(|part| hash.update(part));
    hash.finalize().iter().flat_map(|byte| [byte >> 4, byte & 15]).map(digit).collect()
}

fn digit(value: u8) -> char {
    char::from_digit(u32::from(value), 16).unwrap_or('?')
}

#[cfg(test)]
mod tests {
    use super::sha256;

    /// FIPS 180-2, appendix B.1, and its empty message.
    #[test]
    fn agrees_with_the_standard() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256([b"abc".as_slice()]), abc);
        assert_eq!(sha256([b"a".as_slice(), b"", b"bc"]), abc);
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256([]), empty);
    }
}
