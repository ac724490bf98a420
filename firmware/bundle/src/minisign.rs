//! Keys and signatures in minisign's form, so that `minisign -V` checks what is made here, and `minisign -G -W` makes keys.
//!
//! ```text
//!  public key   "Ed" · key id (8) · key (32)
//!  secret key   "Ed" · 0 0 (no password) · "B2" · salt, cost (48, unused) · key id (8) · key (64) · BLAKE2b, or zeros (32)
//!  signature    "ED" · key id (8) · Ed25519 of the message's BLAKE2b-512 (64)
//!               Ed25519 of signature and trusted comment (64)
//! ```
//! Each is a line of Base64 below a comment. The form: <https://jedisct1.github.io/minisign/#signature-format>. Signatures
//! of the message itself (`Ed`, minisign before 0.8) are refused, and so are keys under a password: who signs releases by
//! a program has nobody to type it.

use crate::BundleError;
use base64::{Engine, engine::general_purpose::STANDARD};
use blake2::{Blake2b, Blake2b512, Digest, digest::consts::U32};
use ed25519_dalek::{Signature as Ed25519, Signer, SigningKey, VerifyingKey};
use std::fmt::Write as _;

const COMMENT: &str = "untrusted comment: ";
const TRUSTED: &str = "trusted comment: ";
const PUBLIC_BYTES: usize = 42;
const SECRET_BYTES: usize = 158;
const SIGNATURE_BYTES: usize = 74;

/// Whom to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    id: [u8; 8],
    key: VerifyingKey,
}

/// Who signs.
pub struct SecretKey {
    id: [u8; 8],
    key: SigningKey,
}

impl PublicKey {
    /// Reads the file's text, or its second line alone.
    ///
    /// # Errors
    /// [`BundleError::Key`].
    pub fn parse(text: &str) -> Result<Self, BundleError> {
        let bytes = decode::<PUBLIC_BYTES>(last_line(text)).ok_or_else(|| bad("it is no minisign public key"))?;
        let key = *bytes[10..].first_chunk().expect("42 bytes less 10");
        let key = VerifyingKey::from_bytes(&key).ok().filter(|key| !key.is_weak() && bytes.starts_with(b"Ed"));
        Ok(Self { id: id_at(&bytes, 2), key: key.ok_or_else(|| bad("it is no Ed25519 public key"))? })
    }

    /// Checks that `signature`, a file's text, is of `message` by this key; what its trusted comment says.
    ///
    /// # Errors
    /// [`BundleError::Signature`].
    pub fn verify(&self, message: &[u8], signature: &str) -> Result<String, BundleError> {
        let wrong = |what: &str| BundleError::Signature(what.to_owned());
        let mut lines = signature.lines();
        let [comment, first, trusted, second] = [(); 4].map(|()| lines.next().unwrap_or_default());
        let trusted = trusted.strip_prefix(TRUSTED).filter(|_| comment.starts_with(COMMENT));
        let (Some(first), Some(trusted), Some(second)) =
            (decode::<SIGNATURE_BYTES>(first), trusted, decode::<64>(second))
        else {
            return Err(wrong("it is no minisign signature"));
        };
        if !first.starts_with(b"ED") {
            return Err(wrong("it is of an old form, of the message and not of its hash"));
        }
        if id_at(&first, 2) != self.id {
            return Err(BundleError::Signature(format!(
                "it is by key {}, and {} is trusted here",
                hex(id_at(&first, 2)),
                hex(self.id)
            )));
        }
        let of_message: [u8; 64] = *first[10..].first_chunk().expect("74 bytes less 10");
        let holds = |message: &[u8], signature: [u8; 64]| {
            self.key.verify_strict(message, &Ed25519::from_bytes(&signature)).is_ok()
        };
        if !holds(&Blake2b512::digest(message), of_message) {
            return Err(wrong("it is not of this manifest"));
        }
        if !holds(&[of_message.as_slice(), trusted.as_bytes()].concat(), second) {
            return Err(wrong("its trusted comment was changed"));
        }
        Ok(trusted.to_owned())
    }
}

impl SecretKey {
    /// A key of 40 random bytes: its id, its seed.
    pub fn from_random(random: [u8; 40]) -> Self {
        let seed = random[8..].first_chunk().expect("40 bytes less 8");
        Self { id: *random.first_chunk().expect("8 of 40 bytes"), key: SigningKey::from_bytes(seed) }
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// [`BundleError::Key`], also of a key under a password.
    pub fn parse(text: &str) -> Result<Self, BundleError> {
        let bytes = decode::<SECRET_BYTES>(last_line(text)).ok_or_else(|| bad("it is no minisign secret key"))?;
        if !bytes.starts_with(b"Ed") || &bytes[4..6] != b"B2" {
            return Err(bad("it is no Ed25519 secret key"));
        }
        if bytes[2..4] != [0, 0] {
            return Err(bad("it is under a password; make one without: minisign -G -W"));
        }
        let (id, pair) = (id_at(&bytes, 54), *bytes[62..].first_chunk::<64>().expect("158 bytes less 62"));
        // minisign writes no checksum where there is no password.
        if bytes[126..] != [0; 32] && bytes[126..] != checksum(id, &pair) {
            return Err(bad("it is damaged"));
        }
        let key = SigningKey::from_keypair_bytes(&pair).map_err(|_| bad("its halves do not belong together"))?;
        Ok(Self { id, key })
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let mut bytes = b"Ed\0\0B2".to_vec();
        bytes.extend_from_slice(&[0; 48]);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.key.to_keypair_bytes());
        bytes.extend_from_slice(&checksum(self.id, &self.key.to_keypair_bytes()));
        format!("{COMMENT}Ember update secret key {}\n{}\n", hex(self.id), STANDARD.encode(bytes))
    }

    /// The text of the public key's file.
    pub fn public_text(&self) -> String {
        let bytes = [b"Ed".as_slice(), &self.id, self.key.verifying_key().as_bytes()].concat();
        format!("{COMMENT}Ember update public key {}\n{}\n", hex(self.id), STANDARD.encode(bytes))
    }

    /// Signs `message`; the signature file's text.
    pub fn sign(&self, message: &[u8], trusted: &str) -> String {
        let of_message = self.key.sign(&Blake2b512::digest(message)).to_bytes();
        let of_all = self.key.sign(&[of_message.as_slice(), trusted.as_bytes()].concat()).to_bytes();
        let first = [b"ED".as_slice(), &self.id, &of_message].concat();
        let (first, second) = (STANDARD.encode(first), STANDARD.encode(of_all));
        format!("{COMMENT}Ember update {}\n{first}\n{TRUSTED}{trusted}\n{second}\n", hex(self.id))
    }
}

fn checksum(id: [u8; 8], pair: &[u8; 64]) -> [u8; 32] {
    Blake2b::<U32>::new().chain_update(b"Ed").chain_update(id).chain_update(pair).finalize().into()
}

fn last_line(text: &str) -> &str {
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim()
}

fn decode<const N: usize>(line: &str) -> Option<[u8; N]> {
    STANDARD.decode(line.trim()).ok()?.try_into().ok()
}

fn id_at(bytes: &[u8], at: usize) -> [u8; 8] {
    *bytes[at..].first_chunk().expect("the caller's length was checked")
}

/// minisign prints an id as a number.
fn hex(id: [u8; 8]) -> String {
    id.iter().rev().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02X}").expect("a String takes all text");
        text
    })
}

fn bad(what: &str) -> BundleError {
    BundleError::Key(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of minisign's own, and of whoever implements it.
    const KNOWN_KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    const KNOWN: &str = "untrusted comment: signature from minisign secret key\n\
        RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=\n\
        trusted comment: timestamp:1556193335\tfile:test\n\
        y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==\n";

    fn key(number: u8) -> SecretKey {
        SecretKey::from_random([number; 40])
    }

    #[test]
    fn minisign_s_own_signature_holds() {
        let key = PublicKey::parse(KNOWN_KEY).unwrap();
        assert_eq!(key.verify(b"test", KNOWN).unwrap(), "timestamp:1556193335\tfile:test");
        let reason = |message: &[u8], signature: &str| key.verify(message, signature).unwrap_err().to_string();
        assert!(reason(b"Test", KNOWN).contains("not of this manifest"));
        assert!(reason(b"test", &KNOWN.replace("1556193335", "1556193336")).contains("trusted comment"));
        assert!(reason(b"test", &KNOWN.replace("RUQf6", "RWQf6")).contains("old form"));
        assert!(reason(b"test", &KNOWN.replace("RUQf6", "RUQf7")).contains("is trusted here"));
        assert!(reason(b"test", "").contains("no minisign signature"));
    }

    #[test]
    fn what_is_signed_here_holds_and_any_flipped_bit_does_not() {
        let public = PublicKey::parse(&key(7).public_text()).unwrap();
        let signature = key(7).sign(b"manifest", "version 1.2.3");
        assert_eq!(public.verify(b"manifest", &signature).unwrap(), "version 1.2.3");
        let other = PublicKey::parse(&key(8).public_text()).unwrap();
        assert!(other.verify(b"manifest", &signature).is_err());
        let begin = signature.find('\n').unwrap() + 1;
        for at in begin..signature.trim_end().len() {
            let mut bytes = signature.clone().into_bytes();
            bytes[at] ^= 1;
            let flipped = String::from_utf8(bytes).unwrap();
            assert!(public.verify(b"manifest", &flipped).is_err(), "byte {at} flipped: {flipped}");
        }
    }

    #[test]
    fn keys_read_as_they_are_written() {
        let again = SecretKey::parse(&key(9).text()).unwrap();
        assert_eq!(again.text(), key(9).text());
        let reason = |text: &str| SecretKey::parse(text).err().unwrap().to_string();
        let line = |change: fn(&mut Vec<u8>)| {
            let mut bytes = STANDARD.decode(last_line(&key(9).text())).unwrap();
            change(&mut bytes);
            STANDARD.encode(bytes)
        };
        assert!(reason(&line(|bytes| bytes[2..4].copy_from_slice(b"Sc"))).contains("under a password"));
        assert!(reason(&line(|bytes| bytes[70] ^= 1)).contains("damaged"));
        assert!(reason("hello").contains("no minisign secret key"));
        assert!(PublicKey::parse(&key(9).text()).is_err());
    }
}
