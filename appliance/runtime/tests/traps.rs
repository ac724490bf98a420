//! The promises of the crate's head, each of which the library underneath breaks.
#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

use appliance_runtime::{
    Elapsed, StartError, TcpListener, UnixStream, available_cores, catch_unwind, cooperative_rings, listeners,
    readable, run_per_core, sleep, spawn, spawn_owned, timeout, unblock,
};
use futures_lite::{AsyncReadExt, AsyncWriteExt, FutureExt, future};
use nix::libc;
use nix::sys::{
    eventfd::EventFd,
    socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair},
};
use std::{
    cell::Cell,
    io::{Read, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    process::{Command, Stdio},
    rc::Rc,
    time::Duration,
};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
const FOR_EVER: Duration = Duration::from_secs(3600);

/// Runs `main` on one core and gives what it gives.
fn on_a_core<T: Send + 'static, F: Future<Output = T> + 'static>(main: impl FnOnce() -> F + Send + 'static) -> T {
    let core = available_cores().unwrap()[0];
    let mut main = Some(main);
    let cores = run_per_core(&[core], "test", |_| main.take().unwrap()).unwrap();
    cores.join().pop().flatten().expect("the main future panicked")
}

/// True when `future` is still pending after the executor went through everything that is ready.
async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    for _ in 0..3 {
        if future::poll_once(&mut *future).await.is_some() {
            return false;
        }
        sleep(Duration::from_millis(1)).await;
    }
    true
}

#[test]
fn a_panicking_task_ends_alone() {
    let answer = on_a_core(|| async {
        spawn(async { panic!("in a detached task") });
        let owned = spawn_owned(async {
            future::yield_now().await;
            panic!("in an owned task")
        });
        assert!(owned.await.is_err());
        assert!(catch_unwind(async { panic!("caught") }).await.is_err());
        spawn_owned(async { 42 }).await.unwrap()
    });
    assert_eq!(answer, 42);
}

#[test]
fn a_panicking_main_future_ends_its_core_only() {
    let core = available_cores().unwrap()[0];
    let cores = run_per_core(&[core, core], "test", |index| move || async move { assert_eq!(index, 1) }).unwrap();
    assert_eq!(cores.join(), [None, Some(())]);
}

#[test]
fn a_dropped_or_cancelled_task_drops_its_future() {
    on_a_core(|| async {
        let held = Rc::new(());
        for cancelled in [true, false] {
            let inner = Rc::clone(&held);
            let task = spawn_owned(async move {
                sleep(FOR_EVER).await;
                drop(inner);
            });
            future::yield_now().await;
            if cancelled {
                assert!(task.cancel().await.is_none());
            } else {
                drop(task);
                future::yield_now().await;
            }
            assert_eq!(Rc::strong_count(&held), 1);
        }
    });
}

#[test]
fn completions_interrupt_no_core() {
    let before = cooperative_rings();
    on_a_core(|| async {});
    assert!(cooperative_rings() >= before + 2, "an executor has two rings that wait for sockets");
}

#[test]
fn an_executor_pins_little_memory() {
    // Thirty executors of the library's default size would pin 900 MiB.
    let core = available_cores().unwrap()[0];
    let cores = vec![core; 4];
    let before = pinned_kib();
    let pinned = run_per_core(&cores, "test", |_| || async { pinned_kib() }).unwrap().join();
    let most = pinned.into_iter().flatten().max().unwrap();
    assert!(most - before <= 4 * 1024, "{most} KiB pinned, {before} before");
}

fn pinned_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_missing_core_is_named_and_starts_nothing() {
    let core = available_cores().unwrap()[0];
    let refused = run_per_core(&[core, 1023], "test", |_| || async { unreachable!("the other core may not start") });
    assert!(matches!(refused, Err(StartError::Affinity { core: 1023, .. })), "{refused:?}");
}

#[test]
fn executors_restart_at_once_and_often() {
    let core = available_cores().unwrap()[0];
    for _ in 0..30 {
        assert_eq!(run_per_core(&[core; 2], "test", |index| move || async move { index }).unwrap().join().len(), 2);
    }
}

#[test]
fn readable_waits_for_an_eventfd() {
    on_a_core(|| async {
        let event = EventFd::new().unwrap();
        let mut waiting = Box::pin(readable(event.as_fd()));
        assert!(is_pending(&mut waiting).await);
        event.write(1).unwrap();
        waiting.await.unwrap();
        assert_eq!(event.read().unwrap(), 1);
    });
}

#[test]
fn readable_tells_of_a_pipes_end() {
    on_a_core(|| async {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut waiting = Box::pin(readable(&reader));
        assert!(is_pending(&mut waiting).await);
        drop(writer);
        waiting.await.unwrap();
    });
}

#[test]
fn readable_tells_of_a_process_end() {
    on_a_core(|| async {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pidfd = pidfd_of(child.id());
        let mut waiting = Box::pin(readable(&pidfd));
        assert!(is_pending(&mut waiting).await);
        drop(child.stdin.take());
        waiting.await.unwrap();
        assert!(child.try_wait().unwrap().is_some());
    });
}

/// The pidfd of a child, by way of the number that `/proc` has no name for.
fn pidfd_of(pid: u32) -> OwnedFd {
    // SAFETY: `pidfd_open` takes two numbers and gives a fresh descriptor, which nobody else owns.
    #[allow(unsafe_code)]
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        assert!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(i32::try_from(fd).unwrap())
    }
}

#[test]
fn readable_takes_no_message_even_when_woken_in_vain() {
    on_a_core(|| async {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let mut waiting = Box::pin(readable(&near));
        for round in 0..100_u8 {
            assert!(is_pending(&mut waiting).await);
            send(far.as_raw_fd(), &[round], MsgFlags::empty()).unwrap();
            if round % 2 == 0 {
                // Another reader is faster: the wake is in vain, and the next message must stay whole.
                assert_eq!(recv(near.as_raw_fd(), &mut [0; 8], MsgFlags::empty()).unwrap(), 1);
                continue;
            }
            waiting.await.unwrap();
            let mut message = [0; 8];
            assert_eq!(recv(near.as_raw_fd(), &mut message, MsgFlags::empty()).unwrap(), 1);
            assert_eq!(message[0], round);
            waiting = Box::pin(readable(&near));
        }
    });
}

#[test]
fn a_dropped_read_loses_nothing() {
    on_a_core(|| async {
        let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut near = UnixStream::from_fd(near.into());
        let mut buf = [0; 8];
        for _ in 0..1000 {
            assert!(future::poll_once(near.read(&mut buf)).await.is_none());
        }
        far.write_all(b"whole").unwrap();
        near.read_exact(&mut buf[..5]).await.unwrap();
        assert_eq!(&buf[..5], b"whole");
    });
}

#[test]
fn a_flush_is_never_deferred() {
    on_a_core(|| async {
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut near = UnixStream::from_fd(near.into());
        while future::poll_once(near.write_all(&[0; 4096])).await.is_some() {}
        assert!(future::poll_once(near.flush()).await.is_some(), "pending although nothing is buffered");
    });
}

#[test]
fn listeners_share_one_port() {
    let listeners = listeners(LOOPBACK, 3).unwrap();
    let ports: Vec<u16> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    assert!(ports[0] != 0 && ports.iter().all(|port| *port == ports[0]), "{ports:?}");
}

#[test]
fn a_dropped_accept_loses_no_connection() {
    let listener = listeners(LOOPBACK, 1).unwrap().pop().unwrap();
    let address = listener.local_addr().unwrap();
    on_a_core(move || async move {
        let listener = TcpListener::from_std(listener).unwrap();
        for _ in 0..50 {
            assert!(future::poll_once(listener.accept()).await.is_none());
            let mut client = unblock(move || std::net::TcpStream::connect(address)).await.unwrap();
            let (mut stream, peer) = listener.accept().await.unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
            stream.write_all(b"hello").await.unwrap();
            drop(stream);
            let text = unblock(move || client.read_to_end(&mut Vec::new())).await.unwrap();
            assert_eq!(text, 5);
        }
    });
}

#[test]
fn time_passes_and_blocking_work_panics_here() {
    on_a_core(|| async {
        assert_eq!(timeout(Duration::from_millis(1), future::pending::<()>()).await, Err(Elapsed));
        assert_eq!(timeout(FOR_EVER, async { 1 }).await, Ok(1));
        assert_eq!(unblock(|| 2).await, 2);
        for _ in 0..5 {
            assert!(catch_unwind(unblock(|| panic!("on a blocking thread"))).await.is_err());
        }
        let slept = Rc::new(Cell::new(false));
        let sleeper = async {
            sleep(Duration::from_millis(1)).await;
            slept.set(true);
        };
        sleeper.or(future::pending()).await;
        assert!(slept.get());
    });
}
