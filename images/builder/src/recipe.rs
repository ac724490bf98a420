//! `images/appliance.toml`: what goes into an image.
//!
//! Paths in it are taken from the folder that the build is started in. Sizes are written as in a function's manifest.

use crate::ImageError;
use appliance_config::size_bytes;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Most functions that come with an image.
const FUNCTIONS_MAX: usize = 64;

/// All that the builder is told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `[image]`
    pub image: Image,
    /// `[kernel]`
    pub kernel: Kernel,
    /// `[boot]`
    pub boot: Boot,
    /// `[update]`
    #[serde(default)]
    pub update: Update,
    /// `[[program]]`
    #[serde(rename = "program")]
    pub programs: Vec<Program>,
    /// `[[function]]`
    #[serde(rename = "function", default)]
    pub functions: Vec<Function>,
}

/// The disk as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// `IMAGE_ID`: by it systemd-boot knows that two slots hold versions of one system.
    pub id: String,
    /// What people are shown.
    pub name: String,
    /// Bytes of the boot partition; it holds two slots and one that is being written.
    #[serde(deserialize_with = "size")]
    pub esp: u64,
    /// Bytes of the data partition beside what functions of the image take of it; the appliance grows it to the disk's end.
    #[serde(deserialize_with = "size")]
    pub data: u64,
}

/// The kernel and what it loads.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Debian's package; one that only depends on the newest is followed to it.
    pub package: String,
    /// Fixed in the UKI: nobody at the console changes it.
    pub command_line: String,
    /// Modules to bring along, by name; what they need comes with them.
    pub modules: Vec<String>,
}

/// The boot loader.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// Debian's package of systemd-boot and its stub.
    pub package: String,
}

/// Who may update the appliance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Update {
    /// The file of the public key of bundles, of `ember image key`; without it `machine.toml` names one, or nobody may.
    pub key: Option<PathBuf>,
}

/// A program in the initramfs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Where it was built, a static executable.
    pub from: PathBuf,
    /// Where it lies on the appliance, from its root.
    pub to: PathBuf,
}

/// A function that the appliance deploys by itself, once, when it first starts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// Its manifest, as `ember deploy` takes it: a model's path is taken from the manifest's folder.
    pub manifest: PathBuf,
    /// The model's file, where the manifest names the model by `sha256:HEX`.
    pub model: Option<PathBuf>,
}

impl Recipe {
    /// Reads the recipe at `path`.
    ///
    /// # Errors
    /// [`ImageError::File`] when it cannot be read, [`ImageError::Recipe`] with line and column when it is wrong.
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let text = fs::read_to_string(path).map_err(ImageError::at(path))?;
        Self::parse(&text).map_err(|reason| ImageError::Recipe { path: path.to_owned(), reason })
    }

    /// Reads a recipe's text.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let recipe: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        recipe.check()?;
        Ok(recipe)
    }

    fn check(&self) -> Result<(), String> {
        let id = &self.image.id;
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return Err(format!("image.id is {id:?}; it may have a-z, 0-9 and -"));
        }
        if self.image.name.is_empty() || self.image.name.contains(['"', '\n', '\\', '$', '`']) {
            return Err(format!("image.name is {:?}; it is a line of text without quotes", self.image.name));
        }
        if let Some(program) = self.programs.iter().find(|p| !p.to.is_absolute()) {
            return Err(format!("program.to is {}; it starts with /", program.to.display()));
        }
        if !self.programs.iter().any(|p| p.to == Path::new("/init")) {
            return Err("no program goes to /init, which the kernel starts".to_owned());
        }
        if self.functions.len() > FUNCTIONS_MAX {
            let count = self.functions.len();
            return Err(format!("{count} functions come with the image; {FUNCTIONS_MAX} is the most"));
        }
        Ok(())
    }
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    size_bytes(&text).map_err(D::Error::custom)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const RECIPE: &str = r#"
[image]
id = "ember"
name = "Ember"
esp = "160MiB"
data = "64MiB"

[kernel]
package = "linux-image-6.12-amd64"
command_line = "quiet"
modules = ["ext4"]

[boot]
package = "systemd-boot-efi"

[update]
key = "update.key.pub"

[[program]]
from = "target/emberd"
to = "/init"
"#;

    #[test]
    fn a_recipe_reads() {
        let recipe = Recipe::parse(RECIPE).unwrap();
        assert_eq!((recipe.image.esp, recipe.image.data), (160 << 20, 64 << 20));
        assert_eq!(recipe.programs[0].to, Path::new("/init"));
        assert_eq!(recipe.update.key.as_deref(), Some(Path::new("update.key.pub")));
    }

    #[test]
    fn functions_come_with_it_where_they_are_named() {
        assert_eq!(Recipe::parse(RECIPE).unwrap().functions, []);
        let function = "[[function]]\nmanifest = \"a.toml\"\n";
        let recipe = Recipe::parse(&format!("{RECIPE}\n{function}")).unwrap();
        assert_eq!(recipe.functions, [Function { manifest: "a.toml".into(), model: None }]);
        let error = Recipe::parse(&format!("{RECIPE}\n{}", function.repeat(FUNCTIONS_MAX + 1))).unwrap_err();
        assert!(error.contains("64 is the most"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (from, to, expected) in [
            ("id = \"ember\"", "id = \"Ember Box\"", "image.id"),
            ("esp = \"160MiB\"", "esp = \"160\"", "line 5"),
            ("command_line", "commandline", "unknown field `commandline`"),
            ("to = \"/init\"", "to = \"init\"", "starts with /"),
            ("to = \"/init\"", "to = \"/bin/emberd\"", "/init"),
            ("name = \"Ember\"", "name = \"Em\\\"ber\"", "image.name"),
        ] {
            let error = Recipe::parse(&RECIPE.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(expected), "{from} → {to}: {error}");
        }
    }

    #[test]
    fn the_appliance_s_own_recipe_is_right() {
        Recipe::parse(include_str!("../../appliance.toml")).unwrap();
    }
}
