//! Functions that come with an image: their manifests and models, looked at before anything is built.
//!
//! ```text
//!  [[function]] ─▶ manifest, parsed ─▶ its model: a file, hashed ─▶ ember/models/HEX.gguf      once, whoever uses it
//!                                                                 ─▶ ember/preload/NAME.toml    names it by its digest
//! ```
//! The model lies where the appliance's store has models, so it is there once and is never copied. The manifest lies where
//! the appliance looks for what it is to deploy by itself, and goes from there when it has.
//!
//! Left out: whether llama.cpp can load the model. That is the appliance's to find out, in its sandbox.

use crate::{
    ImageError,
    data::{DataFile, Source},
    recipe::Function,
};
use appliance_config::{Manifest, ModelReference};
use appliance_types::{FunctionName, ModelDigest};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Below the data partition's root, the service's folders of models and of what it is to deploy.
const MODELS: &str = "ember/models";
const MANIFESTS: &str = "ember/preload";
const MAGIC: &[u8] = b"GGUF";
const PIECE_BYTES: usize = 1 << 20;

/// What comes with an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preload {
    manifests: BTreeMap<FunctionName, Manifest>,
    models: BTreeMap<ModelDigest, (PathBuf, u64)>,
}

impl Preload {
    /// Looks at all of `functions`.
    ///
    /// # Errors
    /// [`ImageError::Function`] with what is wrong: a manifest that is none, a model that is not there, is no GGUF or another
    /// than the manifest names, or a second function of one name.
    pub fn read(functions: &[Function]) -> Result<Self, ImageError> {
        let mut preload = Self::default();
        for function in functions {
            let wrong = |reason| ImageError::Function { manifest: function.manifest.clone(), reason };
            preload.add(function).map_err(wrong)?;
        }
        Ok(preload)
    }

    /// Names of the functions.
    pub fn names(&self) -> impl Iterator<Item = &FunctionName> {
        self.manifests.keys()
    }

    /// The files that it is on the data partition.
    pub fn files(&self) -> Vec<DataFile> {
        let manifests = self.manifests.iter().map(|(name, manifest)| DataFile {
            to: format!("{MANIFESTS}/{name}.toml"),
            from: Source::Bytes(manifest.to_toml().into_bytes()),
        });
        let models = self.models.iter().map(|(digest, (file, bytes))| DataFile {
            to: format!("{MODELS}/{digest}.gguf"),
            from: Source::File(file.clone(), *bytes),
        });
        manifests.chain(models).collect()
    }

    fn add(&mut self, function: &Function) -> Result<(), String> {
        let text = fs::read_to_string(&function.manifest).map_err(|error| error.to_string())?;
        let manifest = Manifest::parse(&text)
            .map_err(|error| format!("line {}, column {}: {}", error.line, error.column, error.message))?;
        let file = model_file(function, &manifest)?;
        let (digest, bytes) = look_at(&file).map_err(|reason| format!("its model {}: {reason}", file.display()))?;
        if let ModelReference::Digest(named) = manifest.model
            && named != digest
        {
            return Err(format!("it names sha256:{named}, and {} is sha256:{digest}", file.display()));
        }
        self.models.entry(digest).or_insert((file, bytes));
        match self.manifests.entry(manifest.name.clone()) {
            Entry::Occupied(taken) => Err(format!("another function of this image is named `{}`", taken.key())),
            Entry::Vacant(free) => {
                free.insert(Manifest { model: ModelReference::Digest(digest), ..manifest });
                Ok(())
            }
        }
    }
}

/// Manifest or recipe name the file, one of them.
fn model_file(function: &Function, manifest: &Manifest) -> Result<PathBuf, String> {
    match (&manifest.model, &function.model) {
        (ModelReference::Path(path), None) => Ok(function.manifest.parent().unwrap_or(Path::new("")).join(path)),
        (ModelReference::Digest(_), Some(file)) => Ok(file.clone()),
        (ModelReference::Path(path), Some(_)) => {
            Err(format!("it names its model's file, {path}: leave `model` out of the recipe"))
        }
        (ModelReference::Digest(digest), None) => {
            Err(format!("it names sha256:{digest}: say in the recipe which file that is, `model = \"FILE\"`"))
        }
    }
}

/// The digest and the length of a GGUF.
fn look_at(path: &Path) -> Result<(ModelDigest, u64), String> {
    let said = |error: io::Error| error.to_string();
    let mut file = File::open(path).map_err(said)?;
    let (mut piece, mut hash, mut bytes) = (vec![0; PIECE_BYTES], Sha256::new(), 0);
    loop {
        let length = file.read(&mut piece).map_err(said)?;
        if bytes == 0 && !piece[..length].starts_with(MAGIC) {
            return Err("it does not begin with `GGUF`".to_owned());
        }
        if length == 0 {
            return Ok((ModelDigest::from_bytes(hash.finalize().into()), bytes));
        }
        hash.update(&piece[..length]);
        bytes += length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000007";

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            folder.put("m.gguf", "GGUF and more");
            folder
        }

        fn put(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(name);
            fs::write(&path, text).unwrap();
            path
        }

        fn function(&self, file: &str, name: &str, model: &str) -> Function {
            Function { manifest: self.put(file, &format!("name = \"{name}\"\nmodel = \"{model}\"\n")), model: None }
        }
    }

    fn fault(functions: &[Function]) -> String {
        Preload::read(functions).unwrap_err().to_string()
    }

    #[test]
    fn two_functions_of_one_model_bring_it_once_and_name_it_by_its_digest() {
        let folder = Folder::new();
        let functions = [folder.function("b.toml", "b", "m.gguf"), folder.function("a.toml", "a", "./m.gguf")];
        let files = Preload::read(&functions).unwrap().files();
        let [a, b, model] = files.as_slice() else { panic!("{files:?}") };
        assert_eq!([&a.to, &b.to], ["ember/preload/a.toml", "ember/preload/b.toml"]);
        let digest = model.to.strip_prefix("ember/models/").unwrap().strip_suffix(".gguf").unwrap();
        assert_eq!(model.bytes(), 13);
        let Source::Bytes(text) = &a.from else { panic!("{a:?}") };
        let manifest = Manifest::parse(std::str::from_utf8(text).unwrap()).unwrap();
        assert_eq!(manifest.model, ModelReference::Digest(digest.parse().unwrap()));
        // By its digest, where the recipe says which file that is.
        let named = Function {
            model: Some(folder.0.path().join("m.gguf")),
            ..folder.function("c.toml", "c", &format!("sha256:{digest}"))
        };
        assert_eq!(Preload::read(&[named]).unwrap().names().count(), 1);
    }

    #[test]
    fn what_is_wrong_is_said_with_the_manifest_and_the_file() {
        let folder = Folder::new();
        let missing = folder.function("a.toml", "a", "none.gguf");
        let error = fault(&[missing]);
        assert!(error.contains("a.toml: its model") && error.contains("none.gguf: No such file"), "{error}");
        folder.put("text.gguf", "#!/bin/sh");
        assert!(fault(&[folder.function("a.toml", "a", "text.gguf")]).contains("does not begin with `GGUF`"));
        let empty = folder.put("empty.gguf", "");
        assert!(fault(&[folder.function("a.toml", "a", empty.to_str().unwrap())]).contains("does not begin"));
        let twice = [folder.function("a.toml", "a", "m.gguf"), folder.function("b.toml", "a", "m.gguf")];
        assert!(fault(&twice).contains("b.toml: another function of this image is named `a`"));
        let unknown = Function { manifest: folder.put("a.toml", "name = \"a\"\ncolour = 1\n"), model: None };
        assert!(fault(&[unknown]).contains("a.toml: line 2, column 1: "));
        let absent = Function { manifest: folder.0.path().join("absent.toml"), model: None };
        assert!(fault(&[absent]).contains("absent.toml: No such file"));
    }

    #[test]
    fn a_model_that_is_named_by_its_digest_must_be_that_one() {
        let folder = Folder::new();
        let named = folder.function("a.toml", "a", DIGEST);
        assert!(fault(std::slice::from_ref(&named)).contains("say in the recipe which file that is"));
        let model = Some(folder.0.path().join("m.gguf"));
        assert!(fault(&[Function { model: model.clone(), ..named }]).contains("it names sha256:0000"));
        let both = Function { model, ..folder.function("b.toml", "b", "m.gguf") };
        assert!(fault(&[both]).contains("leave `model` out"));
    }
}
