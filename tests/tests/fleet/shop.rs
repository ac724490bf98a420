//! A box of a simulated fleet: the project's telemetry listener over a real ledger and real certificates, in this process.
//!
//! ```text
//!  puller ─▶ wire (a proxy that may cut) ─▶ listener of appliance-listener ─▶ ledger's threads ─▶ segments on the disk
//!                                            on one executor for all shops
//! ```

use appliance_edge::{Certificates, Edge, Handler, ReplyBody, Request, authority::Signer};
use appliance_ledger::{
    Client, Config, Indexer, Log, Position,
    disk::Folder,
    signed::{SignedPage, hex},
};
use appliance_listener::{Shown, Teller};
use appliance_runtime::{available_cores, run_per_core, spawn};
use appliance_types::{Entry, Outcome, Record, RequestId, Stage};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};
use std::{
    fs,
    future::Future,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU8, AtomicU16, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tests::Random;

const SIZES: Config = Config { segment_bytes: 64 << 10, retain_bytes: 1 << 30, retain_ms: None, free_bytes_min: 0 };

type Task = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The executor that serves all shops.
#[derive(Clone)]
pub(crate) struct Mall(flume::Sender<Task>);

impl Mall {
    pub(crate) fn open() -> Self {
        let (sender, tasks) = flume::unbounded::<Task>();
        thread::spawn(move || {
            let core = &available_cores().unwrap()[..1];
            let running = run_per_core(core, "mall", |_| {
                let tasks = tasks.clone();
                move || async move {
                    while let Ok(task) = tasks.recv_async().await {
                        spawn(task());
                    }
                }
            });
            running.unwrap().join();
        });
        Self(sender)
    }
}

/// How a shop lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Lie {
    /// It does not.
    None,
    /// A record costs something else than its line's proofs say.
    Cost,
    /// A line is left out, and the page signed anew.
    LeftOut,
    /// Its pages are signed by nobody.
    Unsigned,
    /// What it sends is no page at all: JSON as deep as it is long.
    Nonsense,
    /// It does not lie, and fails: 500 for each page.
    Failing,
}

const LIES: [Lie; 6] = [Lie::None, Lie::Cost, Lie::LeftOut, Lie::Unsigned, Lie::Nonsense, Lie::Failing];

/// What is wrong with a shop, while it runs.
#[derive(Debug)]
struct Mood {
    lie: AtomicU8,
    skew_ms: AtomicI64,
    currency: Mutex<Option<&'static str>>,
}

/// A box.
pub(crate) struct Shop {
    pub(crate) name: String,
    pub(crate) wire: Arc<Wire>,
    folder: PathBuf,
    mall: Mall,
    mood: Arc<Mood>,
    given: PathBuf,
    open: Option<Open>,
    boot: u64,
    sequence: u64,
    ids: u128,
    ends: Vec<Record>,
}

struct Open {
    edge: Edge,
    log: Log<Folder>,
    indexer: Indexer,
    ended: flume::Receiver<()>,
}

impl Shop {
    /// A shop that was given what is in `given` by its fleet, and keeps its own things in `folder`; `number` is another for each.
    pub(crate) fn new(mall: &Mall, name: &str, number: u64, given: &Path, folder: &Path) -> Self {
        fs::create_dir_all(folder.join("ledger")).unwrap();
        fs::write(folder.join("box.key"), Signer::make().unwrap()).unwrap();
        let mut shop = Self {
            name: name.to_owned(),
            wire: Wire::open(number),
            folder: folder.to_owned(),
            mall: mall.clone(),
            mood: Arc::new(Mood {
                lie: AtomicU8::new(0),
                skew_ms: AtomicI64::new(0),
                currency: Mutex::new(Some("USD")),
            }),
            given: given.to_owned(),
            open: None,
            boot: number << 32,
            sequence: 0,
            ids: u128::from(number) << 64,
            ends: Vec::new(),
        };
        shop.start();
        shop
    }

    pub(crate) fn start(&mut self) {
        let (log, _) = Log::open_on(Folder::lock(&self.folder.join("ledger")).unwrap(), SIZES, 1).unwrap();
        let (ours, theirs) = sandbox_kernel::socket::packet_pair().unwrap();
        let indexer = Indexer::start(&self.folder.join("ledger"), Some(theirs)).unwrap();
        indexer.note(&log);
        let ledger = Client::connect(ours).unwrap();
        let read =
            |path: PathBuf| fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let [authority, chain, key] = ["ca.pem", "server.pem", "server.key"].map(|file| read(self.given.join(file)));
        let edge = appliance_listener::edge(&authority, Arc::new(Certificates::load(&chain, &key).unwrap())).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        self.wire.leads_to(listener.local_addr().unwrap());
        let (pem, name, mood, serving) =
            (read(self.folder.join("box.key")), self.name.clone(), Arc::clone(&self.mood), edge.clone());
        let (end, ended) = flume::bounded(1);
        let task = move || -> Pin<Box<dyn Future<Output = ()>>> {
            let signer = || Signer::load(&pem).unwrap();
            let teller = Rc::new(Teller::new(name, signer(), ledger, Counter(Arc::clone(&mood))));
            let face = Rc::new(Face { teller, signer: signer(), mood });
            Box::pin(async move {
                serving.serve(listener, face).await.unwrap();
                drop(end);
            })
        };
        assert!(self.mall.0.send(Box::new(task)).is_ok(), "the mall is open");
        self.boot += 1;
        self.sequence = 0;
        self.open = Some(Open { edge, log, indexer, ended });
    }

    pub(crate) fn stop(&mut self) {
        let Some(Open { edge, ended, .. }) = self.open.take() else { return };
        edge.drain(Duration::ZERO);
        assert_eq!(
            ended.recv_timeout(tests::HANG),
            Err(flume::RecvTimeoutError::Disconnected),
            "{} does not stop",
            self.name
        );
    }

    /// Serves so many requests.
    pub(crate) fn serve(&mut self, requests: u64) {
        let mut entries = Vec::new();
        for _ in 0..requests {
            self.ids += 1;
            let open = Record::new(RequestId::from_random(self.ids), key(self.ids), "assistant".parse().unwrap());
            let ended = Record {
                came_unix_ms: 1_700_000_000_000,
                ended_unix_ms: 1_700_000_001_000,
                project: self.ids.is_multiple_of(2).then(|| "north".parse().unwrap()),
                outcome: Outcome::Completed,
                status: 200,
                tokens_out: 7,
                cost_nanos: (self.ids % 1_000) as u64,
                ..open.clone()
            };
            for (stage, record) in [(Stage::Open, open), (Stage::Closed, ended.clone())] {
                entries.push(Entry { boot: self.boot, core: 0, sequence: self.sequence, stage, record });
                self.sequence += 1;
            }
            self.ends.push(ended);
        }
        let open = self.open.as_mut().expect("it is open");
        open.log.append(&entries).unwrap();
        open.indexer.note(&open.log);
    }

    /// All that it ever metered on this disk, by request.
    pub(crate) fn ends(&self) -> Vec<Record> {
        let mut ends = self.ends.clone();
        ends.sort_by_key(|record| record.request.bits());
        ends
    }

    /// How many requests have ended before a place in its ledger.
    pub(crate) fn ended_before(&self, place: Position) -> usize {
        let entries = appliance_ledger::entries(&self.folder.join("ledger"), Position::default()).unwrap().flatten();
        entries.filter(|placed| placed.at < place && placed.entry.stage == Stage::Closed).count()
    }

    /// A copy of its disk.
    pub(crate) fn image(&self) -> Disk {
        let folder = tempfile::tempdir().unwrap();
        copy(&self.folder.join("ledger"), folder.path());
        Disk { folder, ends: self.ends.clone() }
    }

    /// Goes on from an earlier copy of its disk.
    pub(crate) fn put_back(&mut self, disk: &Disk) {
        self.stop();
        fs::remove_dir_all(self.folder.join("ledger")).unwrap();
        fs::create_dir_all(self.folder.join("ledger")).unwrap();
        copy(disk.folder.path(), &self.folder.join("ledger"));
        self.ends.clone_from(&disk.ends);
        self.start();
    }

    /// Loses the oldest segment of its ledger, as by retention.
    pub(crate) fn forgets(&mut self) {
        self.stop();
        let segments = fs::read_dir(self.folder.join("ledger")).unwrap().map(|file| file.unwrap().path());
        let oldest = segments.filter(|path| is_segment(path)).min().unwrap();
        fs::remove_file(oldest).unwrap();
        self.start();
    }

    /// Loses its telemetry folder, and makes a key anew.
    pub(crate) fn lose_its_key(&mut self) {
        self.stop();
        fs::write(self.folder.join("box.key"), Signer::make().unwrap()).unwrap();
        self.start();
    }

    pub(crate) fn lie(&self, lie: Lie) {
        self.mood.lie.store(lie as u8, Ordering::Relaxed);
    }

    /// Charges in this from now on; tells no prices without.
    pub(crate) fn charges_in(&self, currency: Option<&'static str>) {
        *self.mood.currency.lock().unwrap() = currency;
    }

    pub(crate) fn clock_is_off(&self, ms: i64) {
        self.mood.skew_ms.store(ms, Ordering::Relaxed);
    }
}

fn key(id: u128) -> appliance_types::KeyName {
    ["app", "web", "night"][(id % 3) as usize].parse().unwrap()
}

/// A copy of a shop's disk.
pub(crate) struct Disk {
    folder: tempfile::TempDir,
    ends: Vec<Record>,
}

/// Copies segments. All else is made of them, and comes and goes while a ledger is open.
fn copy(from: &Path, to: &Path) {
    for path in fs::read_dir(from).unwrap().map(|file| file.unwrap().path()).filter(|path| is_segment(path)) {
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "log")
}

struct Counter(Arc<Mood>);

impl Shown for Counter {
    async fn metrics(&self, _: &Request) -> Response<ReplyBody> {
        Response::new("# EOF\n".into())
    }

    async fn inventory(&self) -> Map<String, Value> {
        let Value::Object(mut map) = json!({ "version": "0.1.0", "functions": [{}], "disk": { "free_bytes": 7 } })
        else {
            unreachable!("it is an object")
        };
        let currency = *self.0.currency.lock().unwrap();
        let tokens = json!({ "tokens_in_1k": 0, "tokens_cached_1k": 0, "tokens_out_1k": 0 });
        let prices = currency.map(|currency| {
            json!({
                "version": 1, "effective_unix_ms": 0, "request": 200, "gib_second": 16_667, "cpu_second": 0,
                "tokens": tokens, "batch": tokens, "bill_wake": true, "currency": currency,
            })
        });
        map.insert("prices".to_owned(), prices.into_iter().collect());
        map
    }

    fn unix_ms(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        now.saturating_add_signed(self.0.skew_ms.load(Ordering::Relaxed))
    }
}

/// The listener, and what its shop makes of its words.
struct Face {
    teller: Rc<Teller<Counter>>,
    signer: Signer,
    mood: Arc<Mood>,
}

impl Handler for Face {
    async fn call(self: Rc<Self>, request: Request) -> Response<ReplyBody> {
        let of_the_ledger = request.head.uri.path().ends_with("/ledger");
        let reply = Rc::clone(&self.teller).call(request).await;
        let lie = LIES[self.mood.lie.load(Ordering::Relaxed) as usize];
        let (head, body) = reply.into_parts();
        match body {
            ReplyBody::Full(bytes) if of_the_ledger && lie != Lie::None && head.status == 200 => {
                let mut head = head;
                head.headers.remove("content-length");
                if lie == Lie::Failing {
                    head.status = StatusCode::INTERNAL_SERVER_ERROR;
                }
                Response::from_parts(head, ReplyBody::Full(self.falsify(&bytes, lie).into()))
            }
            body => Response::from_parts(head, body),
        }
    }
}

impl Face {
    fn falsify(&self, bytes: &[u8], lie: Lie) -> Vec<u8> {
        let mut page: SignedPage = serde_json::from_slice(bytes).unwrap();
        match lie {
            Lie::None | Lie::Failing => {}
            Lie::Cost => {
                page.lines.iter_mut().for_each(|line| *line = line.replace("\"cost_nanos\":", "\"cost_nanos\":9"))
            }
            Lie::LeftOut => {
                page.lines.pop();
                page = self.sign(page);
            }
            Lie::Unsigned => page.signature = hex(&[7; 64]),
            Lie::Nonsense => return b"[".repeat(300_000),
        }
        serde_json::to_vec(&page).unwrap()
    }

    fn sign(&self, page: SignedPage) -> SignedPage {
        let signature = self.signer.sign(page.message().as_bytes()).unwrap();
        page.signed(&signature)
    }
}

/// A proxy before a shop, whose address stays and which may cut connections.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    target: AtomicU16,
    /// Draws after how many bytes each connection is cut, where connections are.
    cuts: Mutex<Option<Random>>,
}

/// Most bytes after which a connection is cut: some pages.
const CUT_BYTES_MAX: usize = 200_000;

impl Wire {
    fn open(number: u64) -> Arc<Self> {
        let host = Ipv4Addr::new(127, 0, 0, (number % 250) as u8 + 2);
        let listener = TcpListener::bind((host, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let wire = Arc::new(Self { address, target: AtomicU16::new(0), cuts: Mutex::default() });
        let weak = Arc::downgrade(&wire);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(wire) = weak.upgrade() else { return };
                thread::spawn(move || wire.carry(&stream));
            }
        });
        wire
    }

    fn leads_to(&self, address: SocketAddr) {
        self.target.store(address.port(), Ordering::Relaxed);
    }

    /// Cuts each connection from now on, or none any more.
    pub(crate) fn cut(&self, seed: Option<u64>) {
        *self.cuts.lock().unwrap() = seed.map(Random::seeded);
    }

    fn carry(&self, client: &TcpStream) {
        let cut_after = self.cuts.lock().unwrap().as_mut().map(|random| random.below(CUT_BYTES_MAX));
        let target = (Ipv4Addr::LOCALHOST, self.target.load(Ordering::Relaxed));
        let Ok(server) = TcpStream::connect(target) else {
            return drop(client.shutdown(Shutdown::Both));
        };
        thread::scope(|scope| {
            scope.spawn(|| pump(client, &server, None));
            pump(&server, client, cut_after);
        });
    }
}

/// Carries bytes until either end is gone or so many have passed; then both are.
fn pump(mut from: &TcpStream, mut to: &TcpStream, bytes_max: Option<usize>) {
    let (mut left, mut buffer) = (bytes_max.unwrap_or(usize::MAX), vec![0; 8 << 10]);
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let length = length.min(left);
        left -= length;
        if to.write_all(&buffer[..length]).is_err() || left == 0 {
            break;
        }
    }
    for stream in [from, to] {
        // It may be gone already.
        let _ = stream.shutdown(Shutdown::Both);
    }
}
