//! Models from a URL, of a real nginx: fetched through breaks, and never a byte kept of what changed, was cut, is no model or
//! is another one.

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};
use tests::{Ember, Run, assistant, tree, until};
use tests_synthetic::{Sizes, write};

/// What a connection brings before it stands still: after this many bytes, hours for the rest.
const STALLS: &str = "limit_rate_after 1m; limit_rate 64;";

/// An nginx of Debian's package, as `make nginx` unpacks it; ended with this value.
struct Nginx {
    folder: tempfile::TempDir,
    address: SocketAddr,
    process: Option<Child>,
}

impl Nginx {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("www")).unwrap();
        // Free until nginx takes it: nothing else here asks for a port of this address.
        let address = TcpListener::bind("127.0.0.253:0").unwrap().local_addr().unwrap();
        Self { folder, address, process: None }
    }

    /// Starts it with some more lines in its server's block, once it does not run.
    fn start(&mut self, with: &str) {
        self.kill();
        let (at, address) = (self.folder.path().display(), self.address);
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
            .collect();
        let config = format!(
            "user root; daemon off; worker_processes 1; pid {at}/pid; error_log {at}/error.log; events {{}}\n\
             http {{ access_log {at}/access.log; {temporary} server {{ listen {address}; root {at}/www; {with} }} }}\n"
        );
        fs::write(self.folder.path().join("nginx.conf"), config).unwrap();
        let program = tree::root().join("target/nginx/usr/sbin/nginx");
        assert!(program.is_file(), "{} is not there: run `make nginx`", program.display());
        let mut command = Command::new(program);
        command
            .arg("-e")
            .arg(self.folder.path().join("error.log"))
            .arg("-c")
            .arg(self.folder.path().join("nginx.conf"));
        self.process = Some(command.stdin(Stdio::null()).process_group(0).spawn().expect("start nginx"));
        until("nginx listens", || TcpStream::connect(self.address).ok());
    }

    /// Ends master and workers at once, as a cut cable does: what they were sending breaks off.
    fn kill(&mut self) {
        if self.end() {
            until("nobody listens", || TcpStream::connect(self.address).is_err().then_some(()));
        }
    }

    /// Whether there was anything to end. Master and workers are a process group.
    fn end(&mut self) -> bool {
        let Some(mut process) = self.process.take() else { return false };
        let killed = killpg(Pid::from_raw(process.id() as i32), Signal::SIGKILL);
        killed.is_ok() && process.wait().is_ok()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("www").join(name)
    }

    /// A model of 6 MB; its SHA-256.
    fn model(&self, name: &str) -> String {
        write(&tree::model(), &self.file(name), Sizes::TINY).unwrap();
        digest(&self.file(name))
    }

    fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// The answers that it has logged, by status.
    fn answers(&self, status: &str) -> usize {
        let log = fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default();
        log.lines().filter(|line| line.split('"').nth(2).is_some_and(|rest| rest.trim().starts_with(status))).count()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.end();
    }
}

/// Has a file's time be another: nginx tells versions apart by whole seconds.
fn changed(file: &Path) {
    let file = fs::File::options().write(true).open(file).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(10)).unwrap();
}

fn digest(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

/// What lies in the store's folder.
fn stored(ember: &Ember) -> Vec<String> {
    let files = fs::read_dir(ember.data().join("models")).unwrap();
    files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

fn stored_bytes(ember: &Ember) -> u64 {
    let bytes = |name: &String| fs::metadata(ember.data().join("models").join(name)).map_or(0, |file| file.len());
    stored(ember).iter().map(bytes).sum()
}

/// `ember model add` under way, once some of the file is in the store's hands.
fn adding(ember: &Ember, url: &str, sha256: &str) -> Child {
    let mut command = ember.command(&["model", "add", url, "--sha256", sha256, "--json"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("some of it is there", || (stored_bytes(ember) > 0).then_some(()));
    child
}

fn ended(child: Child) -> (bool, String, String) {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// Nothing of what was refused is in the store.
fn assert_nothing_stored(ember: &Ember) {
    until("the store is empty", || stored(ember).is_empty().then_some(()));
    assert_eq!(ember.run(&["model", "ls", "--json"]).json(), Value::Array(Vec::new()));
}

#[test]
fn a_model_is_fetched_through_breaks_and_served() {
    let (ember, mut nginx) = (Ember::start(), Nginx::new());
    let sha256 = nginx.model("tiny.gguf");
    nginx.start(STALLS);
    let child = adding(&ember, &nginx.url("tiny.gguf"), &sha256);
    nginx.start(STALLS);
    until("it goes on", || (stored_bytes(&ember) > 3 << 19).then_some(()));
    nginx.start("");
    let (is_fine, stdout, stderr) = ended(child);
    assert!(is_fine, "{stderr}");
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["sha256"], sha256.as_str());
    // It logs an answer once it has ended, which who was answered may know first.
    until("what was there was not fetched again", || (nginx.answers("206") == 1).then_some(()));
    assert_eq!(stored(&ember), [format!("{sha256}.gguf")]);

    // What is there is not fetched.
    nginx.kill();
    ember.run(&["model", "add", &nginx.url("tiny.gguf"), "--sha256", &sha256]).ok();
    ember.deploy(&assistant().model(format!("sha256:{sha256}"))).ok();
    ember.stop();
}

#[test]
fn what_changes_or_is_cut_meanwhile_is_refused() {
    let (ember, mut nginx) = (Ember::start(), Nginx::new());
    let sha256 = nginx.model("tiny.gguf");
    let url = nginx.url("tiny.gguf");

    // Other bytes of the same length the second time.
    nginx.start(STALLS);
    let child = adding(&ember, &url, &sha256);
    let mut other = fs::read(nginx.file("tiny.gguf")).unwrap();
    other.reverse();
    fs::write(nginx.file("new"), &other).unwrap();
    changed(&nginx.file("new"));
    fs::rename(nginx.file("new"), nginx.file("tiny.gguf")).unwrap();
    nginx.start("");
    let (is_fine, _, stderr) = ended(child);
    assert!(!is_fine && stderr.contains("the file changed while it was fetched, at byte "), "{stderr}");
    assert_nothing_stored(&ember);

    // Shorter than was said: nginx ends the connection where the file ends.
    let sha256 = nginx.model("tiny.gguf");
    nginx.start("limit_rate_after 1m; limit_rate 256k; sendfile off;");
    let child = adding(&ember, &url, &sha256);
    fs::File::options().write(true).open(nginx.file("tiny.gguf")).unwrap().set_len(1 << 20).unwrap();
    changed(&nginx.file("tiny.gguf"));
    let (is_fine, _, stderr) = ended(child);
    assert!(!is_fine && stderr.contains("the file changed while it was fetched, at byte "), "{stderr}");
    assert_nothing_stored(&ember);
    ember.stop();
}

#[test]
fn what_is_no_model_or_another_is_refused_and_https_proves_the_host() {
    let (ember, mut nginx) = (Ember::start(), Nginx::new());
    let sha256 = nginx.model("tiny.gguf");
    fs::write(nginx.file("page.html"), "<html>Log in first.</html>").unwrap();
    nginx.start("");
    let refused = |url: &str, digest: &str| ember.run(&["model", "add", url, "--sha256", digest]).refused();
    let zeros = "0".repeat(64);
    let message = refused(&nginx.url("tiny.gguf"), &zeros);
    assert!(message.contains(&sha256) && message.contains(&zeros), "{message}");
    assert!(refused(&nginx.url("absent.gguf"), &sha256).contains("it answered 404"));
    assert!(refused(&nginx.url("page.html"), &sha256).contains("is no model"));
    assert_nothing_stored(&ember);

    // A host whose certificate is of this Ember's own CA.
    let tls = ember.data().join("tls");
    let with = format!("ssl_certificate {0}/server.pem; ssl_certificate_key {0}/server.key;", tls.display());
    let private = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    nginx.start(&format!("listen {private} ssl; {with}"));
    let url = format!("https://{private}/tiny.gguf");
    let untrusted = ember.run(&["model", "add", &url]).refused();
    assert!(
        untrusted.contains("cannot fetch https://") && untrusted.to_lowercase().contains("certificate"),
        "{untrusted}"
    );
    assert_nothing_stored(&ember);
    let mut command = ember.command(&["model", "add", &url, "--json"]);
    let added = Run::of(command.env("SSL_CERT_FILE", tls.join("ca.pem"))).json();
    assert_eq!(added["sha256"], sha256.as_str());
    ember.stop();
}
