//! Debian's packages, downloaded by name and unpacked, never installed.
//!
//! apt checks the archive's signatures and the package's hash; where it is not allowed to, the build fails. A package
//! that was unpacked before is not downloaded again.

use crate::ImageError;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// How many packages a name is followed through to the one with the files.
const HOPS_MAX: usize = 4;

/// A package's unpacked files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// The package, after names that only depend on others were followed.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The folder that stands for `/`.
    pub root: PathBuf,
}

/// Unpacks `package` below `cache`; a name without files of its own is followed to the first that it depends on.
///
/// # Errors
/// [`ImageError::Program`] when apt or dpkg fails, [`ImageError::Package`] when the name leads nowhere.
pub fn unpack(package: &str, cache: &Path) -> Result<Unpacked, ImageError> {
    let mut name = package.to_owned();
    for _ in 0..HOPS_MAX {
        match dependency(&run("apt-cache", &["show", "--no-all-versions", &name], None)?) {
            Some(next) if next.starts_with("linux-image-") => name = next,
            _ => {
                let version = candidate(&name)?;
                let root = download(&name, &version, cache)?;
                return Ok(Unpacked { name, version, root });
            }
        }
    }
    Err(ImageError::Package { package: package.to_owned(), reason: "it leads from package to package".to_owned() })
}

/// What a package without files depends on first: one of section `metapackages` or `kernel` that says `Depends:` first.
fn dependency(description: &str) -> Option<String> {
    let field = |name: &str| description.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let is_empty = field("Source:").is_some_and(|source| source.starts_with("linux-signed"))
        && field("Installed-Size:").and_then(|size| size.parse::<u64>().ok()).is_some_and(|kib| kib < 1024);
    let first = field("Depends:")?.split([',', '|', ' ']).next()?;
    is_empty.then(|| first.to_owned())
}

fn candidate(name: &str) -> Result<String, ImageError> {
    let text = run("apt-cache", &["policy", name], None)?;
    let version = text.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    version.filter(|version| *version != "(none)").map(str::to_owned).ok_or_else(|| ImageError::Package {
        package: name.to_owned(),
        reason: "apt knows no version of it; run apt-get update".to_owned(),
    })
}

fn download(name: &str, version: &str, cache: &Path) -> Result<PathBuf, ImageError> {
    let root = cache.join(format!("{name}_{}", version.replace([':', '/'], "_")));
    if root.is_dir() {
        return Ok(root);
    }
    fs::create_dir_all(cache).map_err(ImageError::at(cache))?;
    let fresh = tempfile::tempdir_in(cache).map_err(ImageError::at(cache))?;
    run("apt-get", &["download", "--quiet", &format!("{name}={version}")], Some(fresh.path()))?;
    let mut files = fs::read_dir(fresh.path()).map_err(ImageError::at(fresh.path()))?.flatten();
    let deb = files.find(|file| file.path().extension().is_some_and(|e| e == "deb"));
    let deb = deb.ok_or_else(|| ImageError::Package { package: name.to_owned(), reason: "apt left no file".into() })?;
    let unpacked = fresh.path().join("root");
    run("dpkg-deb", &["--extract", &text(&deb.path()), &text(&unpacked)], None)?;
    fs::rename(&unpacked, &root).map_err(ImageError::at(&root))?;
    Ok(root)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Runs a program to its end; what it printed.
pub(crate) fn run(program: &'static str, arguments: &[&str], folder: Option<&Path>) -> Result<String, ImageError> {
    run_at(program, arguments, folder, &[])
}

/// The same, with more in its environment.
pub(crate) fn run_at(
    program: &'static str,
    arguments: &[&str],
    folder: Option<&Path>,
    environment: &[(&str, &str)],
) -> Result<String, ImageError> {
    heard_at(program, arguments, folder, environment).map(|[printed, _]| printed)
}

/// The same; what it printed, and what it said on stderr.
pub(crate) fn heard_at(
    program: &'static str,
    arguments: &[&str],
    folder: Option<&Path>,
    environment: &[(&str, &str)],
) -> Result<[String; 2], ImageError> {
    let failed = |reason: String| ImageError::Program { program, reason };
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C.UTF-8").envs(environment.iter().copied());
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    let output = command.output().map_err(|error| failed(format!("{error}{}", hint(program))))?;
    if !output.status.success() {
        return Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())));
    }
    Ok([output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()))
}

/// Where a program comes from that Debian does not install by itself.
fn hint(program: &str) -> &'static str {
    match program {
        "sbsign" => "; install the package sbsigntool",
        "mke2fs" | "dumpe2fs" | "debugfs" => "; install the package e2fsprogs",
        "mformat" | "mmd" | "mcopy" => "; install the package mtools",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_package_is_followed() {
        let meta = "Package: linux-image-6.12-amd64\nSource: linux-signed-amd64 (6.12.1)\nInstalled-Size: 14\nDepends: linux-image-6.12.1-amd64 (= 6.12.1)\n";
        assert_eq!(dependency(meta), Some("linux-image-6.12.1-amd64".to_owned()));
        assert_eq!(dependency(&meta.replace("14", "104000")), None);
        assert_eq!(dependency("Package: systemd-boot-efi\nSource: systemd\nInstalled-Size: 300\nDepends: x\n"), None);
    }

    #[test]
    fn a_program_s_failure_says_why() {
        let error = run("dpkg-deb", &["--extract", "/nowhere.deb", "/nowhere"], None).unwrap_err().to_string();
        assert!(error.contains("dpkg-deb failed") && error.contains("/nowhere.deb"), "{error}");
    }
}
