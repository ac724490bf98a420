//! A process without descriptors left: the edge waits and goes on. In a process of its own, because the limit is one.
#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

use appliance_edge::{
    Certificates, Edge, Handler, Limits, ReplyBody, Request,
    authority::{ServerNames, issue_server, make_authority},
};
use appliance_runtime::{available_cores, listeners, run_per_core};
use http::Response;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::{
    net::{Ipv4Addr, TcpStream},
    process::Command,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

struct Hello;

impl Handler for Hello {
    async fn call(self: Rc<Self>, _: Request) -> Response<ReplyBody> {
        Response::new("hello".into())
    }
}

#[test]
fn it_answers_again_when_descriptors_are_back() {
    let (now, names) = (SystemTime::now(), ServerNames::new("test", Ipv4Addr::LOCALHOST.into(), &[]));
    let server = issue_server(&make_authority("test", now).unwrap(), &names, now).unwrap();
    let certificates = Certificates::load(&server.certificate_pem, &server.key_pem).unwrap();
    let edge = Edge::new(Arc::new(certificates), Limits::default()).unwrap();
    let listener = listeners((Ipv4Addr::LOCALHOST, 0).into(), 1).unwrap().remove(0);
    let address = listener.local_addr().unwrap();
    let mut begin = Some((edge.clone(), listener));
    let cores = run_per_core(&available_cores().unwrap()[..1], "edge", |_| {
        let (edge, listener) = begin.take().unwrap();
        move || async move { edge.serve(listener, Rc::new(Hello)).await }
    });
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();

    // Each connection takes two descriptors, until the client or the server finds none.
    let mut held: Vec<TcpStream> = (0..64).map_while(|_| TcpStream::connect(address).ok()).collect();
    assert!(held.len() < 64);
    held.clear();
    let answer = Command::new("curl").args(["-sSk", &format!("https://{address}/")]).output();
    assert_eq!(answer.unwrap().stdout, b"hello");

    edge.drain(Duration::ZERO);
    assert!(cores.unwrap().join().iter().all(|served| matches!(served, Some(Ok(_)))));
}
