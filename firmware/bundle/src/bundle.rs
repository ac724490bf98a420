//! A bundle's bytes: written as one, read as a stream.

use crate::{
    BundleError,
    minisign::{PublicKey, SecretKey},
};
use firmware_slots::{Offer, Version};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"EMBERUPD";
const PART_BYTES_MAX: usize = 4096;
const COPY_BYTES: usize = 1 << 20;
/// Longest UKI.
const UKI_BYTES_MAX: u64 = 1 << 30;

/// What a bundle says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Its version, three numbers.
    pub version: String,
    /// The least version that it can be installed from.
    pub minimum: String,
    /// What it is for: the image's id and the processor's kind.
    pub compatible: String,
    /// Bytes of its UKI.
    pub size: u64,
    /// BLAKE3 of its UKI.
    pub blake3: String,
}

impl Manifest {
    /// Of `uki`.
    pub fn of(uki: &[u8], version: Version, minimum: Version, compatible: &str) -> Self {
        Self {
            version: version.to_string(),
            minimum: minimum.to_string(),
            compatible: compatible.to_owned(),
            size: uki.len() as u64,
            blake3: blake3::hash(uki).to_string(),
        }
    }

    fn parse(bytes: &[u8]) -> Result<(Self, Offer, blake3::Hash), BundleError> {
        let bad = |what: String| BundleError::Form(format!("its manifest: {what}"));
        let text = str::from_utf8(bytes).map_err(|error| bad(error.to_string()))?;
        let manifest: Self = toml::from_str(text).map_err(|error| bad(error.to_string()))?;
        let version = |text: &str| text.parse::<Version>().map_err(bad);
        let offer = Offer {
            version: version(&manifest.version)?,
            minimum: version(&manifest.minimum)?,
            compatible: manifest.compatible.clone(),
        };
        let hash = blake3::Hash::from_hex(&manifest.blake3).map_err(|error| bad(error.to_string()))?;
        if manifest.size == 0 || manifest.size > UKI_BYTES_MAX {
            return Err(bad(format!("{} bytes are no UKI", manifest.size)));
        }
        Ok((manifest, offer, hash))
    }
}

/// Writes the bundle of `uki`.
///
/// # Errors
/// [`BundleError::Form`] where `manifest` is none, [`BundleError::Read`] of `out`.
pub fn write(mut out: impl Write, uki: &[u8], manifest: &Manifest, key: &SecretKey) -> Result<(), BundleError> {
    let text = toml::to_string(manifest).map_err(|error| BundleError::Form(error.to_string()))?;
    Manifest::parse(text.as_bytes())?;
    let signature = key.sign(text.as_bytes(), &format!("Ember {} for {}", manifest.version, manifest.compatible));
    let length = |part: &str| u32::try_from(part.len()).expect("a manifest is short").to_le_bytes();
    let head = [MAGIC.as_slice(), &length(&text), &length(&signature), text.as_bytes(), signature.as_bytes()].concat();
    out.write_all(&head).and_then(|()| out.write_all(uki)).and_then(|()| out.flush()).map_err(BundleError::Read)
}

/// A bundle whose manifest somebody who is trusted vouches for; its UKI is still to come.
#[derive(Debug)]
pub struct Reader<R> {
    rest: R,
    manifest: Manifest,
    offer: Offer,
    hash: blake3::Hash,
}

impl<R: Read> Reader<R> {
    /// Reads up to the UKI.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn open(mut stream: R, key: &PublicKey) -> Result<Self, BundleError> {
        let mut head = [0; 16];
        exact(&mut stream, &mut head, "within its first 16 bytes")?;
        if !head.starts_with(MAGIC) {
            return Err(BundleError::Form("it does not begin with EMBERUPD".to_owned()));
        }
        let length = |at: usize| u32::from_le_bytes(*head[at..].first_chunk().expect("16 bytes")) as usize;
        let mut part = |length: usize, name: &str| {
            if length > PART_BYTES_MAX {
                return Err(BundleError::Form(format!("its {name} has {length} bytes")));
            }
            let mut bytes = vec![0; length];
            exact(&mut stream, &mut bytes, &format!("within its {name}")).map(|()| bytes)
        };
        let (manifest, signature) = (part(length(8), "manifest")?, part(length(12), "signature")?);
        let signature = String::from_utf8(signature)
            .map_err(|_| BundleError::Signature("it is no minisign signature".to_owned()))?;
        key.verify(&manifest, &signature)?;
        let (manifest, offer, hash) = Manifest::parse(&manifest)?;
        Ok(Self { rest: stream, manifest, offer, hash })
    }

    /// What was signed.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What it offers.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Copies the UKI to `out`, to the bundle's end. What was written is the UKI only if this ends well.
    ///
    /// # Errors
    /// [`BundleError::Truncated`], [`BundleError::Contents`], [`BundleError::Read`]; `failed` makes one of a failed write.
    pub fn copy(
        mut self,
        mut out: impl Write,
        failed: impl Fn(io::Error) -> BundleError,
    ) -> Result<Manifest, BundleError> {
        let (mut hasher, mut left) = (blake3::Hasher::new(), self.manifest.size);
        let mut buffer = vec![0; COPY_BYTES];
        while left > 0 {
            let wanted = left.min(COPY_BYTES as u64) as usize;
            let read = some(&mut self.rest, &mut buffer[..wanted])?;
            if read == 0 {
                return Err(BundleError::Truncated(format!("{left} bytes early")));
            }
            hasher.update(&buffer[..read]);
            out.write_all(&buffer[..read]).map_err(&failed)?;
            left -= read as u64;
        }
        if some(&mut self.rest, &mut buffer[..1])? != 0 {
            return Err(BundleError::Contents("there are bytes behind them".to_owned()));
        }
        if hasher.finalize() != self.hash {
            return Err(BundleError::Contents("the BLAKE3 differs".to_owned()));
        }
        Ok(self.manifest)
    }
}

fn exact(stream: &mut impl Read, bytes: &mut [u8], place: &str) -> Result<(), BundleError> {
    stream.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => BundleError::Truncated(place.to_owned()),
        _ => BundleError::Read(error),
    })
}

fn some(stream: &mut impl Read, bytes: &mut [u8]) -> Result<usize, BundleError> {
    loop {
        match stream.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map_err(BundleError::Read),
        }
    }
}
