//! The process that the tests capture and restore: memory of every kind, and a line of text about each.
//!
//! ```text
//!  descriptor 0, a socket:   command ──▶ read() with a pattern in all vector registers ──▶ answer
//! ```
//! It waits in the middle of a function that has left its state everywhere: on the stack, in the heap, in a large
//! mapping, in thread-local and static memory, in vector registers, in `errno`, in signal actions. Each answer depends on
//! all that came before.
#![allow(unsafe_code)]

use nix::{
    libc,
    sys::{
        mman::{MapFlags, ProtFlags, mmap},
        signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, raise, sigaction, sigprocmask},
    },
    unistd::write,
};
use std::{
    cell::Cell,
    fs::File,
    io,
    num::NonZeroUsize,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Instant,
};

/// Words of a mapping that malloc makes on its own: 16 MiB, of which every 64th page is written.
const BIG_WORDS: usize = 2 << 20;
const BIG_STEP_WORDS: usize = 32 << 10;

static COUNTER: AtomicU64 = AtomicU64::new(100);
static SIGNALS: AtomicU64 = AtomicU64::new(0);
static HANDLER_STACK: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static LOCAL: Cell<u64> = const { Cell::new(1000) };
}

extern "C" fn on_signal(_: libc::c_int) {
    let here = 0_u8;
    SIGNALS.fetch_add(1, Relaxed);
    HANDLER_STACK.store(&raw const here as usize, Relaxed);
}

/// Sixteen registers of 32 bytes.
type Vectors = [[u8; 32]; 16];

/// Reads a command while every vector register holds a pattern; answers the command and what they held after.
#[target_feature(enable = "avx")]
fn read_with_vectors(buffer: &mut [u8; 256], pattern: &Vectors) -> (isize, Vectors) {
    let mut after = Vectors::default();
    let mut read = libc::SYS_read as isize;
    // SAFETY: no safe code can keep a vector register over a call. The three pointers are to whole arrays of ours, which
    // outlive the block; the kernel writes no more than the buffer's length; every register changed is named.
    unsafe {
        std::arch::asm!(
            "vmovups ymm0, [r8]", "vmovups ymm1, [r8+32]", "vmovups ymm2, [r8+64]", "vmovups ymm3, [r8+96]",
            "vmovups ymm4, [r8+128]", "vmovups ymm5, [r8+160]", "vmovups ymm6, [r8+192]", "vmovups ymm7, [r8+224]",
            "vmovups ymm8, [r8+256]", "vmovups ymm9, [r8+288]", "vmovups ymm10, [r8+320]", "vmovups ymm11, [r8+352]",
            "vmovups ymm12, [r8+384]", "vmovups ymm13, [r8+416]", "vmovups ymm14, [r8+448]", "vmovups ymm15, [r8+480]",
            "syscall",
            "vmovups [r9], ymm0", "vmovups [r9+32], ymm1", "vmovups [r9+64], ymm2", "vmovups [r9+96], ymm3",
            "vmovups [r9+128], ymm4", "vmovups [r9+160], ymm5", "vmovups [r9+192], ymm6", "vmovups [r9+224], ymm7",
            "vmovups [r9+256], ymm8", "vmovups [r9+288], ymm9", "vmovups [r9+320], ymm10", "vmovups [r9+352], ymm11",
            "vmovups [r9+384], ymm12", "vmovups [r9+416], ymm13", "vmovups [r9+448], ymm14", "vmovups [r9+480], ymm15",
            "vzeroupper",
            inlateout("rax") read,
            in("rdi") 0,
            in("rsi") buffer.as_mut_ptr(),
            in("rdx") buffer.len(),
            in("r8") pattern,
            in("r9") &raw mut after,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _,
            out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _, out("ymm12") _,
            out("ymm13") _, out("ymm14") _, out("ymm15") _, out("rcx") _, out("r11") _,
            options(nostack)
        );
    }
    (read, after)
}

fn map_model(path: &str) -> &'static [u8] {
    let file = File::open(path).expect("a model");
    let bytes = file.metadata().expect("its length").len() as usize;
    let length = NonZeroUsize::new(bytes).expect("a model of some length");
    // SAFETY: a fresh mapping at an address of the kernel's choice, of exactly the file's length. The test never
    // shortens the file, and the mapping is never undone.
    unsafe {
        let address = mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0).expect("map the model");
        std::slice::from_raw_parts(address.cast().as_ptr(), bytes)
    }
}

fn handle(signal: Signal) {
    let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_ONSTACK, SigSet::empty());
    // SAFETY: the handler only stores into atomics.
    unsafe { sigaction(signal, &action) }.expect("handle a signal");
}

struct State {
    model: &'static [u8],
    heap: Box<u64>,
    big: Vec<u64>,
    float: f64,
    rounds: u64,
    begun: Instant,
}

impl State {
    fn new(model: &'static [u8]) -> Self {
        let mut big = vec![0_u64; BIG_WORDS];
        big.iter_mut().step_by(BIG_STEP_WORDS).enumerate().for_each(|(at, word)| *word = at as u64 + 1);
        Self { model, heap: Box::new(10), big, float: 1.0, rounds: 0, begun: Instant::now() }
    }

    fn answer(&mut self, command: &str, vectors_kept: bool) -> String {
        match command {
            "count" => self.count(vectors_kept),
            "allocate" => format!("allocated {}", allocate()),
            "model" => format!("model {}", self.model.iter().map(|byte| u64::from(*byte)).sum::<u64>()),
            "fail" => format!("failed {:?}", nix::unistd::close(-1)),
            "errno" => format!("errno {:?}", io::Error::last_os_error().raw_os_error()),
            "signal" => signal(),
            "thread" => std::thread::spawn(|| format!("thread {}", local())).join().expect("a thread"),
            "clock" => format!("clock {}", Instant::now() >= self.begun),
            "descriptors" => descriptors(),
            "linger" => linger(),
            other => format!("unknown {other}"),
        }
    }

    fn count(&mut self, vectors_kept: bool) -> String {
        self.rounds += 1;
        *self.heap += 1;
        self.float = (self.float * 1.25).sin() + 1.0;
        let middle = (self.rounds as usize * 4099) % BIG_WORDS;
        self.big[middle] += self.rounds;
        let sum = self.big.iter().fold(0_u64, |sum, word| sum.wrapping_mul(31).wrapping_add(*word));
        let counter = COUNTER.fetch_add(1, Relaxed);
        let (heap, local, float) = (*self.heap, local(), self.float);
        format!("count {heap} {local} {counter} {float:.17} {sum:x} vectors {vectors_kept}")
    }
}

fn local() -> u64 {
    LOCAL.with(|local| {
        local.set(local.get() + 1);
        local.get()
    })
}

/// Small pieces move the end of the heap, large ones are mapped; some are let go on the way.
fn allocate() -> u64 {
    let mut pieces: Vec<Vec<u64>> = (1..4000).map(|words| vec![words; words as usize % 900 + 1]).collect();
    pieces.retain(|piece| piece[0] % 3 != 0);
    pieces.extend((0..4).map(|at| vec![at; 64 << 10]));
    pieces.iter_mut().for_each(|piece| piece.push(7));
    pieces.iter().map(|piece| piece.iter().sum::<u64>()).fold(0, u64::wrapping_add)
}

/// One signal is handled, on its own stack; another is blocked, and waits.
fn signal() -> String {
    raise(Signal::SIGUSR1).expect("raise");
    raise(Signal::SIGUSR2).expect("raise");
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGUSR2);
    let waited = blocked.wait();
    let mut stack = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: a null pointer asks for no change, the other is to a whole stack_t.
    unsafe { libc::sigaltstack(std::ptr::null(), &raw mut stack) };
    let own = HANDLER_STACK.load(Relaxed).wrapping_sub(stack.ss_sp as usize) < stack.ss_size;
    format!("signal {} {own} {waited:?}", SIGNALS.load(Relaxed))
}

/// A second thread that never ends.
fn linger() -> String {
    std::thread::spawn(|| {
        loop {
            std::thread::park();
        }
    });
    "lingers".to_owned()
}

/// The numbers below 64 that are open.
fn descriptors() -> String {
    // SAFETY: asking for flags changes nothing.
    let open = (0..64).filter(|number| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0);
    format!("descriptors {:?}", open.collect::<Vec<_>>())
}

fn main() {
    let model = map_model(&std::env::args().nth(1).expect("the model's path"));
    handle(Signal::SIGUSR1);
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGUSR2);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None).expect("block a signal");
    let mut state = State::new(model);
    let mut pattern = Vectors::default();
    pattern.as_flattened_mut().iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 7) as u8 + 1);
    let mut buffer = [0; 256];
    assert!(is_x86_feature_detected!("avx"), "no AVX");
    loop {
        // SAFETY: the machine has AVX, as was just made sure.
        let (read, after) = unsafe { read_with_vectors(&mut buffer, &pattern) };
        let Ok(length @ 1..) = usize::try_from(read) else { return };
        let command = str::from_utf8(&buffer[..length]).expect("text").trim_end();
        let answer = state.answer(command, after == pattern) + "\n";
        write(io::stdin(), answer.as_bytes()).expect("answer");
        pattern.as_flattened_mut().rotate_left(1);
    }
}
