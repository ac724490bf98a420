//! Models of other sizes than there are at hand: the architecture and the vocabulary of one, with random weights, and where
//! more words are asked for, words that answers may have and no prompt, since nothing merges to them; and models with another chat template.
//!
//! ```text
//!  GGUF of architecture llama ──▶ metadata, but for the sizes ──▶ tensors of those sizes, in the order of their use ──▶ GGUF
//! ```
//! What it says is noise, and what it costs is what a model of its size costs: its weights are as many bytes, of the same
//! types (Q8_0 for the embeddings, Q4_1 for what multiplies), read and computed with in the same way. Two runs write the
//! same bytes.
//!
//! Layout read and written: magic, version 3, counts of tensors and of pairs; pairs (name, type, value); tensors (name,
//! dimensions, type, offset); from a multiple of 32 on the data, each tensor from such a multiple on.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

const MAGIC: &[u8] = b"GGUF\x03\0\0\0";
const ALIGNMENT: u64 = 32;
/// Values in a block of either quantised type.
const BLOCK: u64 = 32;
/// Values of a head. That of the model that is read stays, as its rotations do.
const HEAD: u32 = 64;

/// The sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Layers; those of the model that is read, where none are said.
    pub layers: Option<u32>,
    /// Values of an embedding: 64 for each head.
    pub width: u32,
    /// Values between the two halves of a feed-forward part, a multiple of 32.
    pub hidden: u32,
    /// Heads that share a key and a value.
    pub heads_per_key: u32,
    /// Words of the vocabulary; those of the model that is read, where none are said. Never fewer.
    pub words: Option<u32>,
}

impl Sizes {
    /// With 30 layers and 49,152 words, 1.2 GB: a model for a box.
    pub const LARGE: Self = Self { layers: None, width: 2048, hidden: 8192, heads_per_key: 4, words: None };
    /// With 49,152 words, 3.6 million weights and 6 MB: a model for a processor that is emulated.
    pub const TINY: Self = Self { layers: Some(4), width: 64, hidden: 192, heads_per_key: 1, words: None };
    /// A vocabulary of 262,144 words, as Gemma 3's, and 270 million weights, of which two thirds are words.
    pub const WORDY: Self = Self { layers: Some(18), width: 640, hidden: 2048, heads_per_key: 2, words: Some(262_144) };

    fn heads(self) -> u32 {
        self.width / HEAD
    }

    fn keys(self) -> u32 {
        self.heads() / self.heads_per_key
    }

    /// What a pair of the model that is read is replaced by.
    fn instead_of(self, name: &str) -> Option<u32> {
        match name {
            "llama.block_count" => self.layers,
            "llama.embedding_length" => Some(self.width),
            "llama.feed_forward_length" => Some(self.hidden),
            "llama.attention.head_count" => Some(self.heads()),
            "llama.attention.head_count_kv" => Some(self.keys()),
            "llama.vocab_size" => self.words,
            _ => None,
        }
    }
}

/// A pair that lists something of each word, with `extra` more: type, type of the elements, their count, the elements.
fn with_more_words(name: &str, value: &[u8], extra: u64) -> Option<Vec<u8>> {
    /// What the format calls a word that is text.
    const NORMAL: u32 = 1;
    let (types, rest) = value.split_at_checked(8)?;
    let (count, elements) = rest.split_at_checked(8)?;
    let count = u64::from_le_bytes(count.try_into().ok()?);
    let mut all = [types, &(count + extra).to_le_bytes(), elements].concat();
    for at in 0..extra {
        match name {
            "tokenizer.ggml.tokens" => put_string(&mut all, &format!("word{at}")),
            "tokenizer.ggml.token_type" => all.extend(NORMAL.to_le_bytes()),
            _ => return None,
        }
    }
    Some(all)
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Writes a model of these sizes, with the vocabulary of `from`, and says how many bytes it has.
///
/// # Errors
/// Files cannot be read or written, or `from` is no GGUF of version 3 and architecture llama, of which `InvalidData` tells.
pub fn write(from: &Path, to: &Path, sizes: Sizes) -> io::Result<u64> {
    let source = fs::read(from)?;
    let metadata = metadata(&source).ok_or_else(|| invalid(format!("`{}`: no GGUF of version 3", from.display())))?;
    let tensors = tensors(&metadata, sizes)?;
    let file = BufWriter::with_capacity(1 << 20, File::create(to)?);
    write_all(file, &metadata, sizes, &tensors)?;
    Ok(fs::metadata(to)?.len())
}

/// Writes the model `from` with another chat template, all else as it is.
///
/// # Errors
/// Files cannot be read or written, or `from` is no GGUF of version 3, of which `InvalidData` tells.
pub fn with_template(from: &Path, to: &Path, template: &str) -> io::Result<()> {
    let source = fs::read(from)?;
    let written =
        replaced(&source, template).ok_or_else(|| invalid(format!("`{}`: no GGUF of version 3", from.display())))?;
    fs::write(to, written)
}

fn replaced(source: &[u8], template: &str) -> Option<Vec<u8>> {
    const TEMPLATE: &str = "tokenizer.chat_template";
    const STRING: u32 = 8;
    let mut at = Cursor(source);
    (at.take(8)? == MAGIC).then_some(())?;
    let (count, pairs) = (at.u64()?, at.u64()?);
    let mut pairs = (0..pairs).map(|_| at.pair()).collect::<Option<Metadata<'_>>>()?;
    pairs.retain(|(name, _)| *name != TEMPLATE);
    let value = [&STRING.to_le_bytes()[..], &(template.len() as u64).to_le_bytes(), template.as_bytes()].concat();
    pairs.push((TEMPLATE, &value));
    let tensors = at.0;
    (0..count).try_for_each(|_| at.tensor())?;
    let tensors = &tensors[..tensors.len() - at.0.len()];
    let data = source.get((source.len() - at.0.len()).next_multiple_of(ALIGNMENT as usize)..)?;

    let mut out = [MAGIC, &count.to_le_bytes(), &(pairs.len() as u64).to_le_bytes()].concat();
    for (name, value) in &pairs {
        out.extend((name.len() as u64).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(*value);
    }
    out.extend(tensors);
    out.resize(out.len() + padding(out.len() as u64), 0);
    out.extend(data);
    Some(out)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Pairs as they are written: names, and the bytes of type and value.
type Metadata<'a> = Vec<(&'a str, &'a [u8])>;

fn metadata(file: &[u8]) -> Option<Metadata<'_>> {
    let mut at = Cursor(file);
    (at.take(8)? == MAGIC).then_some(())?;
    let (_tensors, pairs) = (at.u64()?, at.u64()?);
    (0..pairs).map(|_| at.pair()).collect()
}

/// What is left of a file.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, bytes: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let bytes = self.u64()?;
        self.take(bytes)
    }

    fn pair(&mut self) -> Option<(&'a str, &'a [u8])> {
        let name = std::str::from_utf8(self.string()?).ok()?;
        let whole = self.0;
        let kind = self.u32()?;
        self.value(kind)?;
        Some((name, &whole[..whole.len() - self.0.len()]))
    }

    fn tensor(&mut self) -> Option<()> {
        self.string()?;
        let dimensions = self.u32()?;
        self.take(u64::from(dimensions) * 8 + 4 + 8).map(drop)
    }

    fn value(&mut self, kind: u32) -> Option<()> {
        match kind {
            0 | 1 | 7 => self.take(1).map(drop),
            2 | 3 => self.take(2).map(drop),
            4..=6 => self.take(4).map(drop),
            10..=12 => self.take(8).map(drop),
            8 => self.string().map(drop),
            9 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                (kind != 9).then_some(())?;
                (0..count).try_for_each(|_| self.value(kind))
            }
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    F32 = 0,
    Q4_1 = 3,
    Q8_0 = 8,
}

#[derive(Debug)]
struct Tensor {
    name: String,
    dimensions: Vec<u64>,
    kind: Kind,
}

impl Tensor {
    fn new(name: impl Into<String>, dimensions: &[u64], kind: Kind) -> Self {
        Self { name: name.into(), dimensions: dimensions.to_vec(), kind }
    }

    fn bytes(&self) -> u64 {
        let values: u64 = self.dimensions.iter().product();
        match self.kind {
            Kind::F32 => values * 4,
            Kind::Q4_1 => values / BLOCK * 20,
            Kind::Q8_0 => values / BLOCK * 34,
        }
    }
}

/// An unsigned number among the pairs.
fn number(metadata: &Metadata<'_>, name: &str) -> io::Result<u64> {
    let found = metadata.iter().find(|(of, _)| *of == name);
    let value = found.and_then(|(_, bytes)| bytes.strip_prefix(&4_u32.to_le_bytes())?.try_into().ok());
    value.map(|value| u64::from(u32::from_le_bytes(value))).ok_or_else(|| invalid(format!("a GGUF without `{name}`")))
}

fn tensors(metadata: &Metadata<'_>, sizes: Sizes) -> io::Result<Vec<Tensor>> {
    let layers = sizes.layers.map_or_else(|| number(metadata, "llama.block_count"), |layers| Ok(layers.into()))?;
    let words = sizes.words.map_or_else(|| number(metadata, "llama.vocab_size"), |words| Ok(words.into()))?;
    let [width, hidden, keys] = [sizes.width, sizes.hidden, sizes.keys() * HEAD].map(u64::from);
    let mut all = vec![Tensor::new("token_embd.weight", &[width, words], Kind::Q8_0)];
    for layer in 0..layers {
        let mut add = |name: &str, dimensions: &[u64], kind| {
            all.push(Tensor::new(format!("blk.{layer}.{name}.weight"), dimensions, kind));
        };
        add("attn_norm", &[width], Kind::F32);
        add("attn_q", &[width, width], Kind::Q4_1);
        add("attn_k", &[width, keys], Kind::Q4_1);
        add("attn_v", &[width, keys], Kind::Q4_1);
        add("attn_output", &[width, width], Kind::Q4_1);
        add("ffn_norm", &[width], Kind::F32);
        add("ffn_gate", &[width, hidden], Kind::Q4_1);
        add("ffn_up", &[width, hidden], Kind::Q4_1);
        add("ffn_down", &[hidden, width], Kind::Q4_1);
    }
    all.push(Tensor::new("output_norm.weight", &[width], Kind::F32));
    Ok(all)
}

fn write_all(mut file: impl Write, metadata: &Metadata<'_>, sizes: Sizes, tensors: &[Tensor]) -> io::Result<()> {
    let head = head(metadata, sizes, tensors);
    file.write_all(&head)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for tensor in tensors {
        weights(&mut file, tensor, &mut random)?;
        file.write_all(&[0; ALIGNMENT as usize][..padding(tensor.bytes())])?;
    }
    file.flush()
}

fn padding(bytes: u64) -> usize {
    (bytes.next_multiple_of(ALIGNMENT) - bytes) as usize
}

fn head(metadata: &Metadata<'_>, sizes: Sizes, tensors: &[Tensor]) -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    let read = number(metadata, "llama.vocab_size").unwrap_or(0);
    let more_words = sizes.words.map_or(0, |words| u64::from(words).saturating_sub(read));
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    for (name, value) in metadata {
        put_string(&mut head, name);
        match sizes.instead_of(name) {
            Some(size) => head.extend([4_u32, size].map(u32::to_le_bytes).concat()),
            None if more_words > 0 && name.starts_with("tokenizer.ggml.token") => {
                head.extend(with_more_words(name, value, more_words).unwrap_or_else(|| value.to_vec()));
            }
            None => head.extend(*value),
        }
    }
    let mut offset = 0;
    for tensor in tensors {
        put_string(&mut head, &tensor.name);
        head.extend((tensor.dimensions.len() as u32).to_le_bytes());
        tensor.dimensions.iter().for_each(|dimension| head.extend(dimension.to_le_bytes()));
        head.extend((tensor.kind as u32).to_le_bytes());
        head.extend(u64::to_le_bytes(offset));
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len() + padding(head.len() as u64), 0);
    head
}

/// Weights around zero, small enough for a sum of thousands of them to stay a number.
fn weights(file: &mut impl Write, tensor: &Tensor, random: &mut Random) -> io::Result<()> {
    /// 2⁻⁷ and -7.5 × 2⁻⁷ as f16: sixteen steps around zero.
    const Q4_1_SCALE_AND_LEAST: [u8; 4] = [0x00, 0x20, 0x80, 0xab];
    /// 2⁻¹² as f16.
    const Q8_0_SCALE: [u8; 2] = [0x00, 0x0c];
    let blocks = tensor.dimensions.iter().product::<u64>() / BLOCK;
    for _ in 0..blocks {
        match tensor.kind {
            Kind::F32 => file.write_all(&[1_f32.to_le_bytes(); BLOCK as usize].concat())?,
            Kind::Q4_1 => {
                file.write_all(&Q4_1_SCALE_AND_LEAST)?;
                file.write_all(&random.next().to_le_bytes())?;
                file.write_all(&random.next().to_le_bytes())?;
            }
            Kind::Q8_0 => {
                file.write_all(&Q8_0_SCALE)?;
                (0..4).try_for_each(|_| file.write_all(&random.next().to_le_bytes()))?;
            }
        }
    }
    Ok(())
}

/// xorshift64: even enough for weights.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.extend(0_u64.to_le_bytes());
        file.extend(4_u64.to_le_bytes());
        let mut pair = |name: &str, kind: u32, value: &[u8]| {
            file.extend((name.len() as u64).to_le_bytes());
            file.extend(name.as_bytes());
            file.extend(kind.to_le_bytes());
            file.extend(value);
        };
        pair("llama.block_count", 4, &1_u32.to_le_bytes());
        pair("llama.vocab_size", 4, &64_u32.to_le_bytes());
        pair("llama.embedding_length", 4, &576_u32.to_le_bytes());
        let words = [&8_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &2_u64.to_le_bytes(), b"ab"].concat();
        pair("tokenizer.ggml.tokens", 9, &words);
        file
    }

    fn has_the_vocabulary_and_the_sizes(sizes: Sizes, count: usize) {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::write(&from, small()).unwrap();
        let bytes = write(&from, &to, sizes).unwrap();
        let (written, small) = (fs::read(&to).unwrap(), small());
        let pairs = metadata(&written).unwrap();
        assert_eq!(number(&pairs, "llama.embedding_length").unwrap(), u64::from(sizes.width));
        assert_eq!(number(&pairs, "llama.block_count").unwrap(), u64::from(sizes.layers.unwrap_or(1)));
        assert_eq!(pairs[3], metadata(&small).unwrap()[3]);
        let tensors = tensors(&pairs, sizes).unwrap();
        let data: u64 = tensors.iter().map(|tensor| tensor.bytes().next_multiple_of(ALIGNMENT)).sum();
        assert_eq!(bytes, head(&pairs, sizes, &tensors).len() as u64 + data);
        assert_eq!(tensors.len(), count);
    }

    #[test]
    fn a_model_has_the_vocabulary_of_another_and_its_own_sizes() {
        has_the_vocabulary_and_the_sizes(Sizes::LARGE, 11);
        has_the_vocabulary_and_the_sizes(Sizes::TINY, 38);
    }

    #[test]
    fn a_vocabulary_grows_by_words_of_its_own() {
        let small = small();
        let sizes = Sizes { words: Some(66), ..Sizes::TINY };
        let pairs = metadata(&small).unwrap();
        let tensors = tensors(&pairs, sizes).unwrap();
        let head = head(&pairs, sizes, &tensors);
        let pairs = metadata(&head).unwrap();
        assert_eq!((number(&pairs, "llama.vocab_size").unwrap(), tensors[0].dimensions[1]), (66, 66));
        let words = [&9_u32.to_le_bytes()[..], &8_u32.to_le_bytes(), &3_u64.to_le_bytes()].concat();
        let (_, listed) = pairs[3];
        assert!(listed.starts_with(&words) && listed.ends_with(b"word1"), "{listed:?}");
    }

    #[test]
    fn a_template_is_replaced_and_all_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let [from, large, to, again] = ["from", "large", "to", "again"].map(|name| folder.path().join(name));
        fs::write(&from, small()).unwrap();
        write(&from, &large, Sizes::TINY).unwrap();
        with_template(&large, &to, "{{ messages }}").unwrap();
        let (before, after) = (fs::read(&large).unwrap(), fs::read(&to).unwrap());
        let pairs = metadata(&after).unwrap();
        assert_eq!(pairs.len(), metadata(&before).unwrap().len() + 1);
        assert!(pairs.last().unwrap().1.ends_with(b"{{ messages }}"));
        let data = &before[before.len() - 4096..];
        assert!(after.ends_with(data) && after.len() % ALIGNMENT as usize == before.len() % ALIGNMENT as usize);
        with_template(&to, &again, "{{ messages }}").unwrap();
        assert_eq!(fs::read(&again).unwrap(), after);
    }

    #[test]
    fn what_is_no_gguf_is_refused() {
        for wrong in [&b""[..], b"GGUF\x02\0\0\0", &small()[..30]] {
            assert!(metadata(wrong).is_none());
        }
    }
}
