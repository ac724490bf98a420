//! A real HAProxy over three boxes, configured as docs/fleet/haproxy.cfg is: what fails when one is drained, stopped, killed.

use appliance_edge::authority::{Identity, ServerNames, issue_server, make_authority};
use nix::sys::signal::Signal;
use serde_json::json;
use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, TcpStream},
    os::unix::{
        fs::{MetadataExt, chown},
        net::UnixStream,
    },
    path::Path,
    process::{Child, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::SystemTime,
};
use tests::{Client, Ember, Function, Network, Role, chat, tree, until};

const BOXES: usize = 3;
const CALLERS: usize = 3;
/// Three boxes share this machine's cores; one thread each does not collapse.
const CONFIG: &str = "inference_cores = 1\n";

/// HAProxy, which ends with the test.
struct Proxy {
    child: Child,
    folder: tempfile::TempDir,
    ca_pem: String,
}

impl Proxy {
    /// Starts it before boxes, as the shipped configuration says but for its folders.
    fn before(boxes: &[Ember]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |text: String, from: &str| {
            assert!(text.contains(from), "{from} is not in the configuration");
            text.replace(from, folder.path().to_str().unwrap())
        };
        let config = place(place(tree::text("docs/fleet/haproxy.cfg"), "/etc/haproxy/ember"), "/run/haproxy");
        fs::write(folder.path().join("haproxy.cfg"), config).unwrap();
        let authority = make_authority("the service", SystemTime::now()).unwrap();
        let names = ServerNames::new("ember.example", IpAddr::from(Network::front()), &[]);
        let Identity { certificate_pem, key_pem } = issue_server(&authority, &names, SystemTime::now()).unwrap();
        fs::write(folder.path().join("service.pem"), certificate_pem + &key_pem).unwrap();
        for (number, ember) in boxes.iter().enumerate() {
            fs::write(folder.path().join(format!("box{}.pem", number + 1)), ember.ca_pem()).unwrap();
        }
        let mut haproxy = tree::haproxy();
        haproxy.arg("-db").arg("-f").arg(folder.path().join("haproxy.cfg"));
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = haproxy.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let proxy = Self { child, folder, ca_pem: authority.certificate_pem };
        until("all boxes are up", || (0..BOXES).all(|number| proxy.status(number) == "UP").then_some(()));
        proxy
    }

    fn client(&self, key: &str) -> Client {
        Client::new(&format!("https://{}:8443", Network::front()), self.ca_pem.as_bytes(), Some(key))
    }

    /// What it thinks of a box: UP, DRAIN (agent), DOWN …
    fn status(&self, number: usize) -> String {
        let said = self.said("show stat");
        let name = format!("boxes,box{},", number + 1);
        let row = said.lines().find(|row| row.starts_with(&name));
        row.and_then(|row| row.split(',').nth(17)).unwrap_or_default().to_owned()
    }

    fn said(&self, command: &str) -> String {
        let mut said = String::new();
        let asked = UnixStream::connect(self.folder.path().join("ember.sock")).and_then(|mut socket| {
            socket.write_all(format!("{command}\n").as_bytes())?;
            socket.read_to_string(&mut said)
        });
        asked.map(|_| said).unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself: its log says why.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("HAProxy said: {}", fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
        }
    }
}

/// What came of a request that did not end well.
#[derive(Debug)]
struct Failure {
    /// Who had begun to stream it.
    streaming_on: Option<String>,
    what: String,
}

/// Requests, one after the other on each of some threads, until told to end.
#[derive(Default)]
struct Callers {
    end: AtomicBool,
    served: AtomicUsize,
    failures: Mutex<Vec<Failure>>,
}

impl Callers {
    fn call(&self, client: &Client, number: usize) {
        for turn in number.. {
            if self.end.load(Ordering::Relaxed) {
                return;
            }
            let request = chat("tiny", &format!("Question {turn}?"), json!({"max_tokens": 12}));
            let outcome = if turn % 2 == 0 { whole(client, &request) } else { streamed(client, &request, || ()) };
            match outcome {
                Ok(()) => drop(self.served.fetch_add(1, Ordering::Relaxed)),
                Err(failure) => self.failures.lock().unwrap().push(failure),
            }
        }
    }

    /// Waits until so many more have been served.
    fn serve(&self, more: usize) {
        let before = self.served.load(Ordering::Relaxed);
        until("requests are served", || (self.served.load(Ordering::Relaxed) >= before + more).then_some(()));
    }

    #[track_caller]
    fn have_lost_none(&self) {
        let failures = self.failures.lock().unwrap();
        assert!(failures.is_empty(), "{failures:?}");
    }
}

type Outcome = Result<(), Failure>;

fn whole(client: &Client, request: &serde_json::Value) -> Outcome {
    let failed = |what: String| Failure { streaming_on: None, what };
    let reply = client.try_ask(request).map_err(|error| failed(error.to_string()))?;
    if reply.status == 200 { Ok(()) } else { Err(failed(format!("{reply:?}"))) }
}

/// Calls `begun` once the answer has.
fn streamed(client: &Client, request: &serde_json::Value, begun: impl FnOnce()) -> Outcome {
    let opened = client.try_open("/v1/chat/completions", request);
    let mut stream = opened.map_err(|what| Failure { streaming_on: None, what })?;
    let first = stream.next();
    begun();
    let events = first.into_iter().chain(stream.by_ref()).count();
    match stream.is_done() {
        true => Ok(()),
        false => Err(Failure { streaming_on: Some(server(&stream)), what: format!("cut after {events} events") }),
    }
}

/// What will come of a request.
type Pending<'s> = thread::ScopedJoinHandle<'s, Outcome>;

/// Has a box hold a stream in its midst and an answer that has not begun, for it stands still, besides what the callers ask.
fn held_at<'s>(
    number: usize,
    boxes: &mut [Ember],
    proxy: &Proxy,
    client: &'s Client,
    scope: &'s thread::Scope<'s, '_>,
) -> [Pending<'s>; 2] {
    let others: Vec<_> = (0..BOXES).filter(|other| *other != number).collect();
    let are = |status: &str| others.iter().all(|other| proxy.status(*other).starts_with(status));
    others.iter().for_each(|other| drop(boxes[*other].run(&["drain"]).ok()));
    until("HAProxy knows", || are("DRAIN").then_some(()));
    let long = chat("tiny", "At length.", json!({"max_tokens": 1000}));
    let (began, begun) = mpsc::channel();
    let stream = scope.spawn(move || streamed(client, &long, || began.send(()).unwrap()));
    begun.recv().unwrap();
    boxes[number].process(Role::Runner).signal(Signal::SIGSTOP);
    let answer = scope.spawn(move || whole(client, &chat("tiny", "And this?", json!({"max_tokens": 12}))));
    until("all wait there", || (asked(&boxes[number]) == CALLERS + 2).then_some(()));
    others.iter().for_each(|other| drop(boxes[*other].run(&["resume"]).ok()));
    until("HAProxy knows", || are("UP").then_some(()));
    [stream, answer]
}

/// Requests that a box runs or has waiting.
fn asked(ember: &Ember) -> usize {
    let metrics = String::from_utf8(ember.client().get("/metrics").expect(200).body).unwrap();
    let of = |family: &str| {
        let rows = metrics.lines().filter(|row| row.starts_with(family));
        rows.filter_map(|row| row.rsplit(' ').next()?.parse::<usize>().ok()).sum::<usize>()
    };
    of("ember_slots_busy") + of("ember_queue_depth")
}

/// The box that a stream comes from.
fn server(stream: &tests::Stream) -> String {
    stream.headers["x-ember-box"].to_str().unwrap().to_owned()
}

/// Three boxes that serve the same function to the same keys, and one of these.
fn boxes(network: &Network) -> (Vec<Ember>, String) {
    let first = network.start(0, CONFIG, |_| ());
    let key = first.run(&["key", "create", "--name", "app"]).ok().trim().to_owned();
    let same_keys = |folder: &Path| {
        fs::create_dir_all(folder.join("data/server")).unwrap();
        for file in ["admin.key", "server/keys.json", "server/device.secret"] {
            let (from, to) = (first.data().join(file), folder.join("data").join(file));
            let owner = fs::metadata(&from).unwrap();
            fs::copy(&from, &to).unwrap();
            chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
    };
    let others: Vec<_> = (1..BOXES).map(|number| network.start(number, CONFIG, same_keys)).collect();
    let model = first.scratch().join("tiny.gguf");
    tests_synthetic::write(&tree::model(), &model, tests_synthetic::Sizes::TINY).unwrap();
    let tiny = Function::named("tiny").model(model.display());
    let all = [first].into_iter().chain(others).map(|ember| ember.with(&tiny)).collect();
    (all, key)
}

/// Stops boxes, the last first: each proves that nothing is left but what was there before it.
pub(crate) fn stop(boxes: Vec<Ember>) {
    boxes.into_iter().rev().for_each(Ember::stop);
}

fn served(ember: &Ember) -> usize {
    ember.ledger().len()
}

#[test]
fn a_box_that_is_drained_stopped_or_killed_loses_no_request_but_what_it_streams() {
    Network::with(BOXES as u8, |network| {
        let (mut boxes, key) = boxes(network);
        let proxy = Proxy::before(&boxes);
        let (client, callers) = (proxy.client(&key), Callers::default());
        thread::scope(|scope| {
            let _end = EndOf(&callers.end);
            for number in 0..CALLERS {
                let (callers, client) = (&callers, &client);
                scope.spawn(move || callers.call(client, number));
            }
            until("every box serves", || boxes.iter().all(|ember| served(ember) > 0).then_some(()));

            let out = BOXES - 1;
            boxes[out].run(&["drain"]).ok();
            until("HAProxy knows", || proxy.status(out).starts_with("DRAIN").then_some(()));
            boxes[out].run(&["drain", "--wait", "30s"]).ok();
            let before = served(&boxes[out]);
            callers.serve(20);
            assert_eq!(served(&boxes[out]), before, "a drained box is sent nothing");
            boxes[out].signal(Signal::SIGTERM);
            boxes[out].has_stopped();
            callers.serve(20);
            network.at(out, || boxes[out].start_again());
            until("it is sent requests again", || (served(&boxes[out]) > before).then_some(()));
            callers.have_lost_none();

            let number = 0;
            let killed = format!("box{}", number + 1);
            let [stream, answer] = held_at(number, &mut boxes, &proxy, &client, scope);
            boxes[number].kill();
            assert_eq!(stream.join().unwrap().unwrap_err().streaming_on.as_ref(), Some(&killed));
            assert!(answer.join().unwrap().is_ok(), "another box gives what had not begun");
            until("HAProxy knows", || proxy.status(number).starts_with("DOWN").then_some(()));
            callers.serve(20);
            let failures = callers.failures.lock().unwrap();
            let others = failures.iter().filter(|failure| failure.streaming_on.as_ref() != Some(&killed));
            assert_eq!(others.map(|failure| &failure.what).collect::<Vec<_>>(), [""; 0], "killed: {killed}");
            assert!(failures.len() <= CALLERS, "{failures:?}");
            network.at(number, || boxes[number].start_again());
            until("HAProxy knows", || (proxy.status(number) == "UP").then_some(()));
        });
        drop(proxy);
        stop(boxes);
    });
}

/// Ends callers, whatever comes of the test.
struct EndOf<'e>(&'e AtomicBool);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_agent_check_is_answered_with_what_the_box_could_take() {
    Network::with(1, |network| {
        let ember = network.start(0, CONFIG, |_| ());
        let model = ember.scratch().join("tiny.gguf");
        tests_synthetic::write(&tree::model(), &model, tests_synthetic::Sizes::TINY).unwrap();
        let ember = ember.with(&Function::named("tiny").model(model.display()).scale("concurrency = 1"));
        until("it is idle", || (Network::agent(0)? == "up ready 100%\n").then_some(()));

        let busy = AtomicBool::new(false);
        thread::scope(|scope| {
            let _end = EndOf(&busy);
            let (client, busy) = (ember.client(), &busy);
            scope.spawn(move || {
                while !busy.load(Ordering::Relaxed) {
                    client.ask(&chat("tiny", "At length.", json!({"max_tokens": 500}))).expect(200);
                }
            });
            until("its one core is taken", || (Network::agent(0)? == "up ready 1%\n").then_some(()));
        });

        assert_eq!(ember.run(&["drain", "--json"]).json()["draining"], true);
        until("it says so", || (Network::agent(0)? == "drain\n").then_some(()));
        ember.client().ask(&chat("tiny", "Still there?", json!({"max_tokens": 4}))).expect(200);
        ember.run(&["resume"]).ok();

        // Whoever holds connections, sends something or leaves keeps nobody else from an answer.
        let mut crowd: Vec<_> = (0..50).map(|_| TcpStream::connect((Network::address(0), 9444)).unwrap()).collect();
        crowd.iter_mut().for_each(|one| one.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap_or_default());
        crowd.truncate(25);
        until("it is back", || (Network::agent(0)? == "up ready 100%\n").then_some(()));
        drop(crowd);

        let key = ember.run(&["key", "create", "--name", "app"]).ok();
        ember.client().with_key(key.trim()).post("/ember/v1/drain", &json!({})).expect(403);
        ember.stop();
        assert_eq!(Network::agent(0), None);
    });
}
