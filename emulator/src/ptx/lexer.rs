//! PTX text to tokens, each with its line.

use super::module::LoadError;

/// One token. Identifiers keep their dots (`ld.global.f32`, `%tid.x`, `.reg`).
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token<'a> {
    Word(&'a str),
    Integer(i128),
    /// A literal with the bits of an f32 (`0f…`).
    Single(u32),
    /// A literal with the bits of an f64 (`0d…` or decimal).
    Double(u64),
    Text(&'a str),
    Punct(u8),
}

/// A token and the line it starts on.
#[derive(Debug, Clone)]
pub(crate) struct Spanned<'a> {
    pub(crate) token: Token<'a>,
    pub(crate) line: u32,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

/// Splits the text.
pub(crate) fn lex(text: &str) -> Result<Vec<Spanned<'_>>, LoadError> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len() / 4);
    let (mut at, mut line) = (0usize, 1u32);
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        match byte {
            b'\n' => {
                line += 1;
                at += 1;
            }
            b' ' | b'\t' | b'\r' | 0 => at += 1,
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                while bytes.get(at).is_some_and(|b| *b != b'\n') {
                    at += 1;
                }
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let end = text[at..].find("*/").map_or(bytes.len(), |i| at + i + 2);
                line += text[at..end].bytes().filter(|b| *b == b'\n').count() as u32;
                at = end;
            }
            b'"' => {
                let end = text[at + 1..].find('"').map_or(bytes.len(), |i| at + 1 + i);
                out.push(Spanned { token: Token::Text(&text[at + 1..end]), line });
                at = (end + 1).min(bytes.len());
            }
            b'0'..=b'9' => {
                while bytes.get(at).is_some_and(|b| is_word(*b)) {
                    at += 1;
                }
                // An exponent's sign belongs to the number: `1.5e-3`.
                let hex = text[start..at].starts_with("0x") || text[start..at].starts_with("0X");
                let literal = &text[start..at];
                if !hex
                    && literal.contains('.')
                    && literal.ends_with(['e', 'E'])
                    && matches!(bytes.get(at), Some(b'+' | b'-'))
                {
                    at += 1;
                    while bytes.get(at).is_some_and(u8::is_ascii_digit) {
                        at += 1;
                    }
                }
                let token = number(&text[start..at]).ok_or_else(|| LoadError {
                    line,
                    text: text[start..at].to_owned(),
                    message: "not a number".to_owned(),
                })?;
                out.push(Spanned { token, line });
            }
            _ if is_word(byte) => {
                while bytes.get(at).is_some_and(|b| is_word(*b)) || text[at..].starts_with("::") {
                    at += if bytes[at] == b':' { 2 } else { 1 };
                }
                out.push(Spanned { token: Token::Word(&text[start..at]), line });
            }
            _ if byte.is_ascii_punctuation() => {
                out.push(Spanned { token: Token::Punct(byte), line });
                at += 1;
            }
            _ => {
                return Err(LoadError {
                    line,
                    text: text.lines().nth(line as usize - 1).unwrap_or("").to_owned(),
                    message: format!("unexpected byte 0x{byte:02x}"),
                });
            }
        }
    }
    Ok(out)
}

fn number(literal: &str) -> Option<Token<'static>> {
    let lower = literal.to_ascii_lowercase();
    if let Some(bits) = lower.strip_prefix("0f")
        && bits.len() == 8
    {
        return u32::from_str_radix(bits, 16).ok().map(Token::Single);
    }
    if let Some(bits) = lower.strip_prefix("0d")
        && bits.len() == 16
    {
        return u64::from_str_radix(bits, 16).ok().map(Token::Double);
    }
    let digits = lower.strip_suffix('u').unwrap_or(&lower);
    let integer = if let Some(hex) = digits.strip_prefix("0x") {
        i128::from_str_radix(hex, 16)
    } else if let Some(binary) = digits.strip_prefix("0b") {
        i128::from_str_radix(binary, 2)
    } else if digits.len() > 1 && digits.starts_with('0') && !digits.contains('.') {
        i128::from_str_radix(digits, 8)
    } else {
        digits.parse::<i128>()
    };
    match integer {
        Ok(value) => Some(Token::Integer(value)),
        Err(_) => lower.parse::<f64>().ok().map(|value| Token::Double(value.to_bits())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token<'_>> {
        lex(text).unwrap().into_iter().map(|spanned| spanned.token).collect()
    }

    #[test]
    fn words_keep_dots_and_numbers_their_bits() {
        assert_eq!(
            tokens(
                "@!%p1 mov.f32 %f1, 0f3F800000; // c\n.reg.b32 f; 0X1FU 0d3FF0000000000000 1.5e-3"
            ),
            vec![
                Token::Punct(b'@'),
                Token::Punct(b'!'),
                Token::Word("%p1"),
                Token::Word("mov.f32"),
                Token::Word("%f1"),
                Token::Punct(b','),
                Token::Single(0x3f80_0000),
                Token::Punct(b';'),
                Token::Word(".reg.b32"),
                Token::Word("f"),
                Token::Punct(b';'),
                Token::Integer(0x1f),
                Token::Double(1.0f64.to_bits()),
                Token::Double(1.5e-3f64.to_bits()),
            ]
        );
    }

    #[test]
    fn lines_count_through_comments() {
        let spanned = lex("a /* x\n y */ b\n\"s\" ld.global.L1::no_allocate.f32").unwrap();
        let lines: Vec<u32> = spanned.iter().map(|token| token.line).collect();
        assert_eq!(lines, [1, 2, 3, 3]);
        assert_eq!(spanned[3].token, Token::Word("ld.global.L1::no_allocate.f32"));
        assert!(lex("\u{e9}").is_err());
    }
}
