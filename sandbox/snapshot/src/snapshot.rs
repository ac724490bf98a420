//! A snapshot that may be used: opened, authentic, of the right function on the right machine, and restorable.
//!
//! ```text
//!  head ─▶ magic, version, lengths ─▶ seal ─▶ length of the file ─▶ identity ─▶ Image::check ─▶ Snapshot
//!                                                                                                  │ any order, any thread
//!  a frame's bytes ─▶ tag ─▶ zstd's own header ─▶ decoded straight into the data area ◀────────────┘
//! ```
//!
//! Invariant: a step is taken only when those before it have passed. Left out: reading. The caller reads head and
//! frames as suits it (buffered, O_DIRECT, io_uring) and hands the bytes over.

use crate::{
    check::at_most,
    error::{IdentityPart, SnapshotError},
    frame::{Frame, FrameDecoder},
    head,
    image::{Identity, Image},
    limits::DATA_BYTES_MAX,
    seal::SealKey,
};
use std::fmt::{Display, Write};

/// A snapshot that may be used.
#[derive(Clone, Debug)]
pub struct Snapshot {
    image: Image,
    frames: Vec<Frame>,
    key: SealKey,
}

impl Snapshot {
    /// Opens a snapshot by its head ([`head_bytes`](crate::head_bytes) long, or longer) and the length of its file.
    ///
    /// # Errors
    /// Why it must not be used; nothing but bounded lengths was believed before its seal was checked.
    pub fn open(head: &[u8], file_bytes: u64, key: &[u8; 32], expected: &Identity) -> Result<Self, SnapshotError> {
        let key = SealKey::new(key);
        let (image, frames) = head::read(head, file_bytes, &key)?;
        check_identity(&image.identity, expected)?;
        image.check()?;
        check_data_bytes(&image, &frames)?;
        Ok(Self { image, frames, key })
    }

    /// What a snapshot is of, by its head as for [`open`](Self::open): to look at, whoever it was taken for.
    ///
    /// # Errors
    /// It is not authentic, or not an image.
    pub fn peek(head: &[u8], file_bytes: u64, key: &[u8; 32]) -> Result<Image, SnapshotError> {
        let (image, _) = head::read(head, file_bytes, &SealKey::new(key))?;
        image.check()?;
        Ok(image)
    }

    pub(crate) fn written(image: Image, frames: Vec<Frame>, key: SealKey) -> Self {
        Self { image, frames, key }
    }

    /// The image, checked.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The image, for one who keeps it.
    pub fn into_image(self) -> Image {
        self.image
    }

    /// The frames, in the order of the file and of the data area, which is that of first touch.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Length of the data area, bytes.
    pub fn data_bytes(&self) -> u64 {
        self.frames.last().map_or(0, |frame| frame.data_range().end)
    }

    /// Decodes frame `index` from `input`, the bytes of its [`file_range`](Frame::file_range), straight to `output`,
    /// its [`data_range`](Frame::data_range) of the data area. Allocates nothing.
    ///
    /// # Errors
    /// The bytes are not what was stored, or a buffer has another length; `output` then holds nothing of use.
    pub fn decode_frame(
        &self,
        decoder: &mut FrameDecoder,
        index: usize,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<(), SnapshotError> {
        let count = self.frames.len();
        let frame = self.frames.get(index).ok_or(SnapshotError::NoFrame { index, count })?;
        decoder.decode(&self.key, index, frame, input, output)
    }
}

/// Frames decode to exactly what extents take from the data area.
fn check_data_bytes(image: &Image, frames: &[Frame]) -> Result<(), SnapshotError> {
    let data_bytes = frames.last().map_or(0, |frame| frame.data_range().end);
    at_most("bytes that frames decode to", data_bytes, DATA_BYTES_MAX)?;
    let extent_bytes = image.data_bytes();
    if data_bytes == extent_bytes {
        return Ok(());
    }
    Err(SnapshotError::DataLength { extent_bytes, frame_bytes: data_bytes })
}

fn check_identity(found: &Identity, expected: &Identity) -> Result<(), SnapshotError> {
    let Identity { runner_build, kernel_release, cpu_features, model, manifest, function, accelerators } = expected;
    if accelerators.is_empty() && !found.accelerators.is_empty() {
        return Err(SnapshotError::NeedsDevice { devices: joined(", ", &found.accelerators) });
    }
    let differs = |part, found: String, expected: String| match found == expected {
        true => Ok(()),
        false => Err(SnapshotError::OtherIdentity { part, found, expected }),
    };
    differs(IdentityPart::Function, found.function.to_string(), function.to_string())?;
    differs(IdentityPart::Model, found.model.to_string(), model.to_string())?;
    differs(IdentityPart::Manifest, hex(&found.manifest), hex(manifest))?;
    differs(IdentityPart::RunnerBuild, hex(&found.runner_build), hex(runner_build))?;
    differs(IdentityPart::KernelRelease, found.kernel_release.clone(), kernel_release.clone())?;
    differs(IdentityPart::CpuFeatures, words(&found.cpu_features), words(cpu_features))?;
    differs(IdentityPart::Accelerators, joined(", ", &found.accelerators), joined(", ", accelerators))
}

fn hex(bytes: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*bytes).to_hex().to_string()
}

fn words(words: &[u64]) -> String {
    joined(".", words.iter().map(|word| format!("{word:x}")))
}

fn joined(separator: &str, parts: impl IntoIterator<Item = impl Display>) -> String {
    parts.into_iter().fold(String::new(), |mut text, part| {
        let separator = if text.is_empty() { "" } else { separator };
        write!(text, "{separator}{part}").expect("a string takes all");
        text
    })
}
