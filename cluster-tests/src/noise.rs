//! Mail that takes the room that it says.

/// A message of octets that do not compress, in lines, the same for the same seed.
pub fn noise(seed: u64, octets: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut message = format!("Subject: noise {seed}\r\n\r\n").into_bytes();
    while message.len() < octets {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        message.extend(format!("{state:016x}{:016x}\r\n", state.rotate_left(21)).as_bytes());
    }
    message
}
