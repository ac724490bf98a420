//! From the recipe to the finished image.

use crate::{
    ImageError, Preload, Recipe, Signer,
    bmap::Map,
    data, debian, disk,
    initramfs::Tree,
    modules,
    uki::{self, Parts},
};
use std::{
    env,
    fs::{self, File},
    io::BufReader,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Where the kernel's parts and the boot loader's lie in their packages.
const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";
const LOADER: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// What was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The image.
    pub image: PathBuf,
    /// Its block map.
    pub bmap: PathBuf,
    /// Bytes of the disk, holes included.
    pub bytes: u64,
    /// Bytes of it that a writer writes.
    pub written: u64,
    /// Bytes of the UKI, which is what an update sends.
    pub uki: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Modules in it.
    pub modules: usize,
    /// Names of the functions that come with it.
    pub functions: Vec<String>,
}

/// Builds `recipe` as `version` into `out`, with boot loader and UKI signed by `signer`; packages are unpacked below `cache`.
/// Says what it does through `step`.
///
/// # Errors
/// [`ImageError`]; nothing of a failed build stands under `out`.
pub fn build(
    recipe: &Recipe,
    version: &str,
    signer: Option<&Signer>,
    out: &Path,
    cache: &Path,
    mut step: impl FnMut(&str),
) -> Result<Built, ImageError> {
    let preload = Preload::read(&recipe.functions)?;
    let data_files = preload.files();
    step("kernel and boot loader");
    let kernel = debian::unpack(&recipe.kernel.package, cache)?;
    let boot = debian::unpack(&recipe.boot.package, cache)?;
    let release = release(&kernel)?;
    let read = |root: &Path, path: &str| fs::read(root.join(path)).map_err(ImageError::at(root.join(path)));
    let signed = |program: Vec<u8>| match signer {
        Some(signer) => signer.sign(&program),
        None => Ok(program),
    };
    let (stub, loader) = (read(&boot.root, STUB)?, signed(read(&boot.root, LOADER)?)?);
    step("modules and initramfs");
    let modules = modules::select(&kernel.root.join("lib/modules").join(&release), &recipe.kernel.modules)?;
    let os_release = os_release(recipe, version);
    let since = build_time(&kernel.root.join(format!("boot/vmlinuz-{release}")))?;
    let initrd = initramfs(recipe, &modules, &os_release, since)?;
    step("unified kernel image");
    let linux = read(&kernel.root, &format!("boot/vmlinuz-{release}"))?;
    let uki = signed(uki::build(&Parts {
        stub: &stub,
        os_release: &os_release,
        command_line: &recipe.kernel.command_line,
        release: &release,
        linux: &linux,
        initrd: &initrd,
    })?)?;
    step("disk");
    let contents = disk::Contents {
        loader: &loader,
        uki: &uki,
        esp_bytes: recipe.image.esp,
        data_bytes: recipe.image.data + data::room_for(&data_files),
        data_files: &data_files,
    };
    let (bytes, map) = finish(out, &contents)?;
    Ok(Built {
        image: out.to_owned(),
        bmap: bmap_path(out),
        bytes,
        written: map.mapped() * crate::bmap::BLOCK as u64,
        uki: uki.len() as u64,
        kernel: release,
        modules: modules.len(),
        functions: preload.names().map(ToString::to_string).collect(),
    })
}

/// Writes image and map beside their place, and moves them there when they are whole.
fn finish(out: &Path, contents: &disk::Contents) -> Result<(u64, Map), ImageError> {
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(ImageError::at(folder))?;
    let fresh = tempfile::tempdir_in(folder).map_err(ImageError::at(folder))?;
    let (image, bmap) = (fresh.path().join("image"), fresh.path().join("bmap"));
    disk::write(&image, contents)?;
    let file = File::open(&image).map_err(ImageError::at(&image))?;
    let bytes = file.metadata().map_err(ImageError::at(&image))?.len();
    let used = disk::used(&image)?;
    let map = Map::with(BufReader::with_capacity(1 << 20, file), &used).map_err(ImageError::at(&image))?;
    fs::write(&bmap, map.xml()).map_err(ImageError::at(&bmap))?;
    fs::rename(&image, out).map_err(ImageError::at(out))?;
    fs::rename(&bmap, bmap_path(out)).map_err(ImageError::at(bmap_path(out)))?;
    Ok((bytes, map))
}

/// `ember.img` → `ember.img.bmap`.
fn bmap_path(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".bmap");
    name.into()
}

fn release(kernel: &debian::Unpacked) -> Result<String, ImageError> {
    let folder = kernel.root.join("lib/modules");
    let mut found = fs::read_dir(&folder).map_err(ImageError::at(&folder))?.flatten();
    let (first, more) = (found.next(), found.next());
    let name = first.filter(|_| more.is_none()).and_then(|entry| entry.file_name().into_string().ok());
    name.ok_or_else(|| ImageError::Package {
        package: kernel.name.clone(),
        reason: "it holds not exactly one kernel".to_owned(),
    })
}

/// What systemd-boot sorts slots by: the same `IMAGE_ID` and the higher `IMAGE_VERSION` first.
fn os_release(recipe: &Recipe, version: &str) -> String {
    let (id, name) = (&recipe.image.id, &recipe.image.name);
    format!(
        "ID={id}\nIMAGE_ID={id}\nNAME=\"{name}\"\nPRETTY_NAME=\"{name} {version}\"\nVERSION_ID={version}\n\
         IMAGE_VERSION={version}\n"
    )
}

/// A time before which this image was not there, seconds since 1970: `SOURCE_DATE_EPOCH` or its kernel's, the later one. Its
/// clock is never before it.
fn build_time(linux: &Path) -> Result<u64, ImageError> {
    let kernel = fs::metadata(linux).map_err(ImageError::at(linux))?.mtime();
    let source = env::var("SOURCE_DATE_EPOCH").unwrap_or_default();
    let wrong = || ImageError::Disk(format!("SOURCE_DATE_EPOCH is {source:?}; it is a number of seconds since 1970"));
    let source = if source.is_empty() { 0 } else { source.parse().map_err(|_| wrong())? };
    Ok(source.max(u64::try_from(kernel).unwrap_or(0)))
}

fn initramfs(
    recipe: &Recipe,
    modules: &[modules::Module],
    os_release: &str,
    since: u64,
) -> Result<Vec<u8>, ImageError> {
    let mut tree = Tree::new();
    tree.file("etc/os-release", os_release.as_bytes().to_vec(), false);
    tree.file("etc/build-time", format!("{since}\n").into_bytes(), false);
    if let Some(key) = &recipe.update.key {
        tree.file("etc/update.pub", fs::read(key).map_err(ImageError::at(key))?, false);
    }
    for program in &recipe.programs {
        let bytes = fs::read(&program.from).map_err(ImageError::at(&program.from))?;
        tree.file(&program.to.to_string_lossy(), bytes, true);
    }
    for module in modules {
        tree.file(&format!("modules/{}.ko", module.name), module.bytes.clone(), false);
    }
    tree.file("modules/order", modules::order(modules).into_bytes(), false);
    tree.file("modules/alias", modules::aliases(modules).into_bytes(), false);
    Ok(tree.compressed())
}
