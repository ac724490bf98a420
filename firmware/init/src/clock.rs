//! The machine's clock: never before the image was built, and set by time servers (SNTP, RFC 4330).
//!
//! ```text
//!  request:  48 bytes, all 0 but mode 3 (client), version 4, and a random number in place of our time
//!  answer:   leap, version, mode │ stratum │ … │ our number │ when it came there │ when it left there
//!            8 bits                8 bits        24..32       32..40              40..48     s since 1900, and parts of 2^32
//! ```
//! An answer counts if it comes from where we asked, has our number, is from a server that is itself in step, and is not
//! before the image was built. Servers are addresses: the appliance asks no names.

use crate::{console::say, error::InitError};
use sandbox_kernel::hardware::set_clock;
use std::{
    fs::{self, File},
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The time before which this image did not exist, seconds since 1970; the builder writes it.
const BUILD_TIME: &str = "/etc/build-time";
const PORT: u16 = 123;
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// After the clock was set, and after nobody answered.
const PAUSES: [Duration; 2] = [Duration::from_secs(3600), Duration::from_secs(60)];
/// How long after it was built an image may run.
const LIFE_MAX: Duration = Duration::from_secs(15 * 365 * 24 * 3600);
/// From less than this nobody is told.
const TOLD: Duration = Duration::from_millis(500);
const PACKET: usize = 48;
/// Version 4, mode 3.
const REQUEST: u8 = 0x23;
/// From 1900 to 1970, s.
const TO_UNIX: u64 = 2_208_988_800;

/// Sets a clock that is behind the image to when the image was built; that time.
pub(crate) fn not_before_the_image() -> SystemTime {
    let built = built(Path::new(BUILD_TIME)).unwrap_or(UNIX_EPOCH);
    if SystemTime::now() < built {
        say("the clock was behind the image and is set to when that was built");
        if let Err(errno) = set_clock(built) {
            say(format_args!("the clock cannot be set: {}", errno.desc()));
        }
    }
    built
}

fn built(path: &Path) -> Option<SystemTime> {
    Some(UNIX_EPOCH + Duration::from_secs(fs::read_to_string(path).ok()?.trim().parse().ok()?))
}

/// Keeps the clock by `servers`, in turns until one answers. Does not return, unless there are none.
pub(crate) fn keep(servers: &[IpAddr], floor: SystemTime) {
    if servers.is_empty() {
        return say("the clock is the machine's own: neither machine.toml nor DHCP names time servers");
    }
    let mut said = String::new();
    loop {
        let pause = match first(servers, floor) {
            Ok(now) => {
                set(now);
                PAUSES[0]
            }
            Err(error) => {
                let reason = error.to_string();
                if reason != said {
                    say(&reason);
                    said = reason;
                }
                PAUSES[1]
            }
        };
        sleep(pause);
    }
}

/// The first time that is right, or else why the last was not.
fn first(servers: &[IpAddr], floor: SystemTime) -> Result<SystemTime, InitError> {
    let mut fault = InitError::Missing("time server".to_owned());
    for server in servers {
        match ask(SocketAddr::new(*server, PORT), floor) {
            Ok(now) => return Ok(now),
            Err(error) => fault = error,
        }
    }
    Err(fault)
}

fn set(now: SystemTime) {
    let own = SystemTime::now();
    let off = now.duration_since(own).unwrap_or_else(|behind| behind.duration());
    match set_clock(now) {
        Err(errno) => say(format_args!("the clock cannot be set: {}", errno.desc())),
        Ok(()) if off >= TOLD => say(format_args!("the clock was set by {:.1} s", off.as_secs_f64())),
        Ok(()) => {}
    }
}

fn ask(server: SocketAddr, floor: SystemTime) -> Result<SystemTime, InitError> {
    let at = || InitError::io(format!("the time of {server}"));
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).map_err(at())?;
    // From here on only what that server sends is received.
    socket.connect(server).and_then(|()| socket.set_read_timeout(Some(ANSWER_MAX))).map_err(at())?;
    let cookie = random().map_err(at())?;
    let (sent, mut bytes) = (Instant::now(), [0; PACKET]);
    socket.send(&request(cookie)).map_err(at())?;
    let length = socket.recv(&mut bytes).map_err(at())?;
    let now = answer(&bytes[..length], cookie, sent.elapsed());
    let now = now.map_err(|reason| InitError::Network(format!("the time of {server}: {reason}")))?;
    check(now, floor).map(|()| now).map_err(|reason| InitError::Network(format!("the time of {server} is {reason}")))
}

/// Whether a time can be. Nobody proves that an answer is the server's: one far ahead would end certificates and budgets.
fn check(now: SystemTime, floor: SystemTime) -> Result<(), &'static str> {
    match now.duration_since(floor) {
        Err(_) => Err("before this image was built"),
        Ok(since) if since > LIFE_MAX => Err("later than this image can be of use"),
        Ok(_) => Ok(()),
    }
}

fn random() -> io::Result<[u8; 8]> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn request(cookie: [u8; 8]) -> [u8; PACKET] {
    let mut packet = [0; PACKET];
    packet[0] = REQUEST;
    packet[40..].copy_from_slice(&cookie);
    packet
}

/// The time now, by an answer that came `took` after the request with `cookie` was sent.
fn answer(packet: &[u8], cookie: [u8; 8], took: Duration) -> Result<SystemTime, String> {
    if packet.len() < PACKET {
        return Err(format!("{} bytes are no answer", packet.len()));
    }
    let (leap, version, mode, stratum) = (packet[0] >> 6, packet[0] >> 3 & 7, packet[0] & 7, packet[1]);
    if mode != 4 || !(3..=4).contains(&version) || packet[24..32] != cookie {
        return Err("it answers something else".to_owned());
    }
    if leap == 3 || !(1..=15).contains(&stratum) {
        return Err("it is not in step itself".to_owned());
    }
    let (came, left) = (since_1970(&packet[32..40]), since_1970(&packet[40..48]));
    let (Some(came), Some(left)) = (came, left) else { return Err("it says no time".to_owned()) };
    let there = left.checked_sub(came).filter(|there| *there <= took);
    let there = there.ok_or("its times do not follow each other")?;
    Ok(UNIX_EPOCH + left + (took - there) / 2)
}

/// Times whose highest bit is not set are of the era that begins in 2036.
fn since_1970(bytes: &[u8]) -> Option<Duration> {
    let number = |at: usize| u64::from(u32::from_be_bytes(*bytes[at..].first_chunk().expect("eight bytes")));
    let (seconds, parts) = (number(0), number(4));
    if seconds == 0 && parts == 0 {
        return None;
    }
    let era = if seconds >> 31 == 0 { 1 << 32 } else { 0 };
    Some(Duration::new((era + seconds).checked_sub(TO_UNIX)?, ((parts * 1_000_000_000) >> 32) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
    /// 2026-01-01, and a half second.
    const NOW: (u32, u32) = (3_976_214_400, 1 << 31);

    fn packet(came: (u32, u32), left: (u32, u32)) -> [u8; PACKET] {
        let mut packet = [0; PACKET];
        (packet[0], packet[1]) = (0x24, 2);
        packet[24..32].copy_from_slice(&COOKIE);
        for (at, (seconds, parts)) in [(32, came), (40, left)] {
            packet[at..at + 4].copy_from_slice(&seconds.to_be_bytes());
            packet[at + 4..at + 8].copy_from_slice(&parts.to_be_bytes());
        }
        packet
    }

    #[test]
    fn an_answer_is_as_old_as_half_of_its_way() {
        let read = answer(&packet(NOW, NOW), COOKIE, Duration::from_millis(200)).unwrap();
        assert_eq!(read, UNIX_EPOCH + Duration::from_millis(1_767_225_600_600));
        let after_2036 = answer(&packet((5, 0), (5, 0)), COOKIE, Duration::ZERO).unwrap();
        assert_eq!(after_2036, UNIX_EPOCH + Duration::from_secs((1 << 32) + 5 - TO_UNIX));
        assert_eq!(request(COOKIE)[40..], COOKIE);
    }

    #[test]
    fn what_does_not_answer_us_is_refused() {
        let good = packet(NOW, NOW);
        let took = Duration::from_millis(1);
        for (at, value) in [(0, 0x23), (0, 0x2c), (0, 0xe4), (1, 0), (1, 16), (24, 9)] {
            let mut bad = good;
            bad[at] = value;
            assert!(answer(&bad, COOKIE, took).is_err(), "byte {at}");
        }
        assert!(answer(&good[..47], COOKIE, took).is_err());
        assert!(answer(&packet((0, 0), (0, 0)), COOKIE, took).is_err());
        assert!(answer(&packet((NOW.0 + 1, 0), NOW), COOKIE, took).is_err(), "it left before it came");
        assert!(answer(&packet(NOW, (NOW.0 + 9, 0)), COOKIE, took).is_err(), "it was there longer than away");
    }

    #[test]
    fn the_builder_s_time_is_read() {
        assert_eq!(built(Path::new("/nonexistent")), None);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "1767225600\n").unwrap();
        assert_eq!(built(file.path()), Some(UNIX_EPOCH + Duration::from_secs(1_767_225_600)));
    }

    #[test]
    fn a_time_before_the_image_or_long_after_it_cannot_be() {
        let built = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert_eq!(check(built, built), Ok(()));
        assert_eq!(check(built + LIFE_MAX, built), Ok(()));
        assert!(check(built - Duration::from_secs(1), built).is_err());
        assert!(check(built + LIFE_MAX + Duration::from_secs(1), built).is_err());
    }

    #[test]
    fn a_server_is_asked_and_one_before_the_image_is_not_believed() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let serve = std::thread::spawn(move || {
            for _ in 0..2 {
                let mut request = [0; PACKET];
                let (_, client) = server.recv_from(&mut request).unwrap();
                assert_eq!(request[0], REQUEST);
                let mut answer = packet(NOW, NOW);
                answer[24..32].copy_from_slice(&request[40..]);
                server.send_to(&answer, client).unwrap();
            }
        });
        let then = UNIX_EPOCH + Duration::from_millis(1_767_225_600_500);
        assert!(ask(address, then).unwrap() >= then);
        let error = ask(address, then + Duration::from_secs(3600)).unwrap_err().to_string();
        assert!(error.ends_with("before this image was built"), "{error}");
        serve.join().unwrap();
    }
}
