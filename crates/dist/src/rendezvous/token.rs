//! What proves that a connection belongs to the run: HMAC-SHA256 (RFC 2104) over nonces of both sides.

use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};

/// Bytes of a SHA-256 block.
const BLOCK: usize = 64;

/// Random bytes that are used once.
pub(super) type Nonce = [u8; 32];

/// The key of a run.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    key: [u8; 32],
    /// It is known to nobody but the run's processes, and derived from nothing that they claim in the open.
    secret: bool,
}

impl Token {
    /// The key that stands for a secret of the user's.
    pub fn secret(secret: &[u8]) -> Self {
        Self { key: Sha256::digest(secret).into(), secret: true }
    }

    /// The key that stands for what the run is about: digests of its recipe and data.
    pub fn derived<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self { key: hash.finalize().into(), secret: false }
    }

    pub(super) fn is_secret(&self) -> bool {
        self.secret
    }

    /// What proves the knowledge of the token in the role `role`, for these parts.
    pub(super) fn proof(&self, role: &str, parts: &[&[u8]]) -> [u8; 32] {
        let mut message = role.as_bytes().to_vec();
        for part in parts {
            message.extend((part.len() as u64).to_le_bytes());
            message.extend(*part);
        }
        hmac(&self.key, &message)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut padded = [0u8; BLOCK];
    if key.len() > BLOCK {
        padded[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        padded[..key.len()].copy_from_slice(key);
    }
    let with = |pad: u8| padded.map(|byte| byte ^ pad);
    let inner = Sha256::new().chain_update(with(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(with(0x5c)).chain_update(inner).finalize().into()
}

/// Whether two proofs are the same, in a time that doesn't tell where they differ.
pub(super) fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// Random bytes of the system.
pub(super) fn nonce() -> io::Result<Nonce> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn hmac_gives_what_rfc_4231_says() {
        assert_eq!(
            hex(&hmac(&[0x0b; 20], b"Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        assert_eq!(
            hex(&hmac(b"Jefe", b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(&hmac(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First")),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    #[test]
    fn proofs_depend_on_the_key_the_role_and_where_parts_end() {
        let (a, b) = (Token::secret(b"a"), Token::derived([&b"a"[..]]));
        assert!(!same(&a.proof("x", &[b"12"]), &b.proof("x", &[b"12"])));
        assert!(!same(&a.proof("x", &[b"12"]), &a.proof("y", &[b"12"])));
        assert!(!same(&a.proof("x", &[b"1", b"2"]), &a.proof("x", &[b"12", b""])));
        assert_ne!(nonce().unwrap(), nonce().unwrap());
    }
}
