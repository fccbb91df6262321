//! The byte-level alphabet of GPT-2: every byte is written as one printable character, so that tokens are strings.

/// The bytes that a token of a byte-level vocabulary stands for. A token with a character outside of the alphabet, such
/// as a special token, stands for its own UTF-8 form.
pub(super) fn token_bytes(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(character_byte).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Printable Latin-1 bytes are written as themselves; the 68 others, in order, as the characters from U+0100.
fn character_byte(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}
