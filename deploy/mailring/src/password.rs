//! Passwords on their way into the directory: read from a terminal or standard input, never from the command line
//! where other users could see them, and hashed here so that they never leave this machine.

use std::io::{self, BufRead, BufReader, IsTerminal, Read};

use anyhow::{Context, anyhow, bail};
use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use router::auth::{HASH_MEMORY_KIB_MAX, HASH_PASSES_MAX};

use crate::failure::Failure;

/// More than any client can send (an AUTH line has 12,288 octets of base64, RFC 4954 §4).
const PASSWORD_OCTETS_MAX: usize = 1024;
/// What the directory takes.
const HASH_OCTETS_MAX: usize = 256;

/// OWASP's minimum for Argon2id: 19 MiB, 2 passes, 1 lane. Every log-in costs a router this once.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// The first line of standard input, or what is typed twice at the terminal.
pub fn obtain(from_stdin: bool) -> Result<String, Failure> {
    if from_stdin {
        return first_line(io::stdin().lock()).map_err(Failure::Usage);
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(anyhow!("no terminal to ask for a password at: use --password-stdin")));
    }
    let typed = |prompt: &str| rpassword::prompt_password(prompt).context("read the password");
    let first = typed("Password: ")?;
    if first != typed("Again: ")? {
        return Err(Failure::Usage(anyhow!("the two passwords differ")));
    }
    check(&first).map_err(Failure::Usage)?;
    Ok(first)
}

fn first_line(input: impl Read) -> anyhow::Result<String> {
    let mut line = Vec::new();
    let max = PASSWORD_OCTETS_MAX as u64 + 2;
    BufReader::new(input.take(max)).read_until(b'\n', &mut line).context("read the password")?;
    let line = line.strip_suffix(b"\n").unwrap_or(&line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let password = String::from_utf8(line.to_vec()).map_err(|_| anyhow!("the password is not UTF-8"))?;
    check(&password)?;
    Ok(password)
}

pub fn check(password: &str) -> anyhow::Result<()> {
    if password.is_empty() {
        bail!("the password is empty");
    }
    if password.len() > PASSWORD_OCTETS_MAX {
        bail!("the password has more than {PASSWORD_OCTETS_MAX} octets");
    }
    // No SASL mechanism and no LOGIN could carry them.
    if password.chars().any(char::is_control) {
        bail!("the password has a control character");
    }
    Ok(())
}

/// Argon2id as a PHC string, with a salt of its own.
pub fn hash(password: &str) -> anyhow::Result<String> {
    check(password)?;
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|e| anyhow!("argon2: {e}"))?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone());
    let salt = Salt::generate();
    let mut output = [0; Params::DEFAULT_OUTPUT_LEN];
    // Zeroed here, and not by the allocator: that takes 5,000 fresh pages from the system for each hash, which costs as
    // much again as the hash does.
    let mut memory = vec![Block::new(); params.block_count()];
    argon2
        .hash_password_into_with_memory(password.as_bytes(), &salt, &mut output, &mut memory)
        .map_err(|e| anyhow!("hash the password: {e}"))?;
    let phc = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&params).map_err(|e| anyhow!("write the hash: {e}"))?,
        salt: Some(salt),
        hash: Some(Output::new(&output).map_err(|e| anyhow!("write the hash: {e}"))?),
    };
    Ok(phc.to_string())
}

/// A hash made elsewhere, in the form that the directory takes.
pub fn check_hash(text: &str) -> anyhow::Result<()> {
    if !text.starts_with("$argon2id$") {
        bail!("password_hash is not an Argon2id PHC string ($argon2id$...)");
    }
    if text.len() > HASH_OCTETS_MAX {
        bail!("password_hash has more than {HASH_OCTETS_MAX} octets");
    }
    let hash = PasswordHash::new(text).map_err(|e| anyhow!("password_hash: {e}"))?;
    let params = Params::try_from(&hash).map_err(|e| anyhow!("password_hash: {e}"))?;
    if params.m_cost() > HASH_MEMORY_KIB_MAX || params.t_cost() > HASH_PASSES_MAX {
        bail!(
            "password_hash costs more than {HASH_MEMORY_KIB_MAX} KiB or {HASH_PASSES_MAX} passes: no router verifies it"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use argon2::password_hash::phc::PasswordHash;
    use argon2::{Argon2, PasswordVerifier};

    use super::{PASSWORD_OCTETS_MAX, check_hash, first_line, hash};

    #[test]
    fn a_password_is_the_first_line_without_its_end() {
        assert_eq!(first_line(&b"s3cret pass\r\nnext"[..]).unwrap(), "s3cret pass");
        assert_eq!(first_line("pässword".as_bytes()).unwrap(), "pässword");
        let longest = "x".repeat(PASSWORD_OCTETS_MAX);
        assert_eq!(first_line(format!("{longest}\n").as_bytes()).unwrap(), longest);
    }

    #[test]
    fn empty_long_and_unspeakable_passwords_are_refused() {
        let long = vec![b'x'; PASSWORD_OCTETS_MAX * 4];
        for bad in [&b""[..], b"\n", b"\r\n", b"a\0b\n", b"\xff\xfe\n", &long] {
            assert!(first_line(bad).is_err());
        }
    }

    #[test]
    fn a_hash_is_argon2id_with_the_chosen_cost_and_verifies() {
        let phc = hash("correct horse").unwrap();
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        check_hash(&phc).unwrap();
        let parsed = PasswordHash::new(&phc).unwrap();
        assert!(Argon2::default().verify_password(b"correct horse", &parsed).is_ok());
        assert!(Argon2::default().verify_password(b"wrong horse", &parsed).is_err());
        assert_ne!(phc, hash("correct horse").unwrap());
    }

    #[test]
    fn hashes_of_other_kinds_are_refused() {
        for bad in [
            "",
            "secret",
            "$2b$12$abc",
            "$argon2i$v=19$m=1,t=1,p=1$c2FsdHNhbHQ$aGFzaA",
            "$argon2id$junk junk",
            "$argon2id$v=19$m=4194304,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2g",
            "$argon2id$v=19$m=64,t=1000000,p=1$c2FsdHNhbHQ$aGFzaGhhc2g",
        ] {
            assert!(check_hash(bad).is_err(), "{bad}");
        }
    }
}
