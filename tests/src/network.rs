//! Boxes on a network of their own: a namespace for the test, one for each box, and a wire to each.
//!
//! ```text
//!  front, 10.20.0.10: the test's thread, and what it starts
//!     box0 ─────────────────────────────────────────────── eth0 : box 0, 10.20.0.11
//!     box1 ─────────────────────────────────────────────── eth0 : box 1, 10.20.0.12
//! ```
//! Namespaces have no names here: they are held by descriptors and by what runs in them, so that nothing of them is left
//! when the test has ended, however it does. A thread takes its namespace along to the threads and processes that it starts.

use crate::{Ember, Launch, Run, Turn};
use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::gettid,
};
use std::{
    fs::File,
    io::Read,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    panic::resume_unwind,
    path::Path,
    process::Command,
    sync::mpsc,
    thread,
};

/// The port of requests, of telemetry, and of the agent check, on each box.
const PORTS: [u16; 3] = [8443, 9443, 9444];

/// The network.
#[derive(Debug)]
pub struct Network {
    front: File,
    boxes: Vec<File>,
    turn: Turn,
}

impl Network {
    /// Runs a test in the front of a network with so many boxes, on a thread of its own.
    pub fn with(boxes: u8, test: impl FnOnce(&Self) + Send) {
        let ended = thread::scope(|scope| scope.spawn(|| test(&Self::of(boxes))).join());
        ended.unwrap_or_else(|panic| resume_unwind(panic));
    }

    fn of(boxes: u8) -> Self {
        let turn = Turn::take();
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
        ip("link set lo up");
        ip(&format!("address add {}/32 dev lo", Self::front()));
        let mut network = Self { front: own(), boxes: Vec::new(), turn };
        (0..usize::from(boxes)).for_each(|number| network.add(number));
        network
    }

    /// The address of the front.
    pub fn front() -> Ipv4Addr {
        Ipv4Addr::new(10, 20, 0, 10)
    }

    /// The address of a box.
    pub fn address(number: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 20, 0, 11 + u8::try_from(number).expect("few boxes"))
    }

    /// Starts emberd on a box, with telemetry and the agent check, in a folder that was made ready for it.
    pub fn start(&self, number: usize, config: &str, prepare: impl FnOnce(&Path)) -> Ember {
        let [listen, telemetry, agent] = PORTS.map(|port| SocketAddr::from((Self::address(number), port)));
        let launch = Launch { listen: Some(listen), turn: Some(self.turn.clone()), ..Launch::default() };
        let listens = format!("telemetry_listen = \"{telemetry}\"\nagent_listen = \"{agent}\"\n");
        self.at(number, || Ember::begin(launch, &(listens + config), prepare))
    }

    /// What a box answers to an agent check; nothing where nobody listens.
    pub fn agent(number: usize) -> Option<String> {
        let mut line = String::new();
        TcpStream::connect((Self::address(number), PORTS[2])).ok()?.read_to_string(&mut line).ok()?;
        Some(line)
    }

    /// Does something where a box is.
    pub fn at<T>(&self, number: usize, what: impl FnOnce() -> T) -> T {
        let _back = Back(&self.front);
        enter(&self.boxes[number]);
        what()
    }

    /// Makes a box's namespace and the wire to it. `ip` takes a thread's number for the namespace that the thread is in.
    fn add(&mut self, number: usize) {
        let (there, here) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
                there.send((gettid(), own())).expect("somebody waits");
                let _told_by_its_end = ended.recv();
            });
            let (thread, namespace) = here.recv().expect("a namespace is made");
            ip(&format!("link add box{number} type veth peer name eth0 netns {thread}"));
            self.boxes.push(namespace);
            drop(end);
        });
        let address = Self::address(number);
        self.at(number, || {
            ip("link set lo up");
            ip(&format!("address add {address}/32 dev eth0"));
            ip("link set eth0 up");
            ip(&format!("route add {}/32 dev eth0", Self::front()));
        });
        ip(&format!("link set box{number} up"));
        ip(&format!("route add {address}/32 dev box{number} src {}", Self::front()));
    }
}

/// Goes back to a namespace.
struct Back<'n>(&'n File);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        enter(self.0);
    }
}

fn enter(namespace: &File) {
    setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter a network namespace");
}

/// The namespace of this thread.
fn own() -> File {
    File::open("/proc/thread-self/ns/net").expect("/proc is mounted")
}

fn ip(arguments: &str) {
    let run = Run::of(Command::new("ip").args(arguments.split(' ')));
    assert_eq!(run.code, 0, "ip {arguments}: {}", run.stderr);
}
