//! CoAP GET against libcoap's server, and against a bare UDP echo as the least a server can cost.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use harness::{Port, Process, Scratch, Tidegate, tool, wait_until};

use crate::report::Report;

/// Sixty-four clients, each with one confirmable GET on its way.
pub(crate) fn run(rounds: usize, report: &mut Report) {
    let scratch = Scratch::new("coap-bench");
    let port = Port::reserve();
    let mut command = Command::new(tool("coap-server-notls"));
    command.args(["-A", "127.0.0.1", "-p", &port.to_string()]);
    let libcoap = Process::start("coap-server", &scratch, command);
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.arg("--udp-echo");
    let echo = Process::start("udp-echo", &scratch, command);
    let line = echo.wait_for_line("listening on ", Duration::from_secs(10));
    let echo_address =
        line.rsplit(' ').next().and_then(|text| text.parse().ok()).expect("it says where it listens");
    let gateway = Tidegate::builder()
        .tables("[[device]]\nname = \"cellar\"\ntype = \"bme280\"\nbus = \"sim\"\naddress = 0x76\ninterval = \"1s\"")
        .start();
    let servers: [(&[&str], SocketAddr, &Process); 3] = [
        (&["cellar", "temperature"], gateway.coap(), gateway.process()),
        (&["time"], port.address(), &libcoap),
        (&["time"], echo_address, &echo),
    ];
    for (path, address, _) in servers {
        let asked = wait_until(Duration::from_secs(10), || is_content(address, path));
        assert_eq!(asked, Some(true), "no content at {address} {path:?}");
    }
    let mut figures: [Vec<(f64, f64)>; 3] = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..rounds {
        for turn in 0..servers.len() {
            let who = (turn + round) % servers.len();
            let (path, address, process) = servers[who];
            figures[who].push(closed_loop(address, path, process));
        }
    }
    let [ours, libcoap, echo] = figures;
    let rate = |list: &[(f64, f64)]| list.iter().map(|f| f.0).collect::<Vec<_>>();
    let cpu = |list: &[(f64, f64)]| list.iter().map(|f| f.1).collect::<Vec<_>>();
    report.beside("CoAP GET rate, 64 clients", "req/s", rate(&ours), "libcoap", rate(&libcoap));
    report.beside("CoAP GET CPU", "µs/req", cpu(&ours), "libcoap", cpu(&libcoap));
    report.beside("CoAP GET CPU", "µs/req", cpu(&ours), "bare UDP echo", cpu(&echo));
}

/// Answers every datagram with itself, many per system call, until the process ends.
pub(crate) fn echo() -> ExitCode {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    println!("listening on {}", socket.local_addr().expect("it is bound"));
    echo_batches(&socket);
    ExitCode::SUCCESS
}

#[expect(unsafe_code, reason = "recvmmsg and sendmmsg are the point of the comparison")]
fn echo_batches(socket: &UdpSocket) {
    const BATCH: usize = 64;
    let mut buffers = vec![[0u8; 1500]; BATCH];
    let mut names = [const { unsafe { std::mem::zeroed::<libc::sockaddr_in>() } }; BATCH];
    let fd = socket.as_raw_fd();
    loop {
        let mut vectors: Vec<libc::iovec> = buffers
            .iter_mut()
            .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = Vec::with_capacity(BATCH);
        for (vector, name) in vectors.iter_mut().zip(&mut names) {
            // SAFETY: all zeroes is a valid header; the pointers set below outlive both calls.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            messages.push(message);
        }
        // SAFETY: every header points to a buffer, a vector and a name that live until the end of this turn.
        let count = unsafe {
            libc::recvmmsg(
                fd,
                messages.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        let Ok(count) = usize::try_from(count) else { return };
        for (message, vector) in messages.iter().zip(&mut vectors).take(count) {
            vector.iov_len = message.msg_len as usize;
        }
        // SAFETY: as above; the vectors now have the lengths that were received.
        unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count as u32, 0) };
    }
}

/// Requests per second, and the server's processor time per request in microseconds.
fn closed_loop(server: SocketAddr, path: &[&str], process: &Process) -> (f64, f64) {
    let clients: Vec<UdpSocket> = (0..CLIENTS)
        .map(|_| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
            socket.connect(server).expect("loopback is reachable");
            socket.set_nonblocking(true).expect("a socket can be non-blocking");
            socket
        })
        .collect();
    let mut ids = vec![0u16; CLIENTS];
    let mut asked_at = vec![Instant::now(); CLIENTS];
    let cpu_before = process.cpu_time().expect("the server runs");
    let begun = Instant::now();
    for (client, id) in clients.iter().zip(&ids) {
        client.send(&get(path, *id)).expect("loopback is reachable");
    }
    let (mut answered, mut again) = (0, 0);
    let mut reply = [0; 1500];
    while begun.elapsed() < ROUND {
        wait(&clients);
        for (n, client) in clients.iter().enumerate() {
            let is_answered =
                client.recv(&mut reply).is_ok_and(|n| n >= 4) && reply[2..4] == ids[n].to_be_bytes();
            if is_answered {
                answered += 1;
                ids[n] = ids[n].wrapping_add(1);
            } else if asked_at[n].elapsed() > Duration::from_secs(1) {
                again += 1;
            } else {
                continue;
            }
            asked_at[n] = Instant::now();
            client.send(&get(path, ids[n])).expect("loopback is reachable");
        }
    }
    let time = begun.elapsed();
    let cpu = process.cpu_time().expect("the server runs").saturating_sub(cpu_before);
    assert!(answered > 1000, "{answered} answers in {time:?}");
    if again > 0 {
        eprintln!("{server}: {again} requests repeated after a second without an answer");
    }
    (f64::from(answered) / time.as_secs_f64(), cpu.as_secs_f64() * 1e6 / f64::from(answered))
}

/// Whether one GET is answered with 2.05, or, by the echo, with itself.
fn is_content(server: SocketAddr, path: &[&str]) -> Option<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
    socket.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
    socket.send_to(&get(path, 7), server).ok()?;
    let mut reply = [0; 1500];
    socket.recv(&mut reply).ok()?;
    (reply[1] == 0x45 || reply[1] == 1).then_some(true)
}

/// A confirmable GET with a token of two bytes.
fn get(path: &[&str], id: u16) -> Vec<u8> {
    let mut bytes = vec![0x42, 1];
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(&id.to_be_bytes());
    for (n, segment) in path.iter().enumerate() {
        // Uri-Path is option 11; its first appearance is 11 from zero, the next ones 0 from the last.
        bytes.push((if n == 0 { 0xB0 } else { 0 }) | segment.len() as u8);
        bytes.extend_from_slice(segment.as_bytes());
    }
    bytes
}

#[expect(unsafe_code, reason = "std has no poll")]
fn wait(clients: &[UdpSocket]) {
    let watch =
        |socket: &UdpSocket| libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut set: Vec<libc::pollfd> = clients.iter().map(watch).collect();
    // SAFETY: pointer and length are those of one live vector.
    unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, 100) };
}

const CLIENTS: usize = 64;
const ROUND: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_answered_by_libcoap() {
        let scratch = Scratch::new("coap-load");
        let port = Port::reserve();
        let mut command = Command::new(tool("coap-server-notls"));
        command.args(["-A", "127.0.0.1", "-p", &port.to_string()]);
        let server = Process::start("coap-server", &scratch, command);
        assert_eq!(wait_until(Duration::from_secs(10), || is_content(port.address(), &["time"])), Some(true));
        let (rate, cpu) = closed_loop(port.address(), &["time"], &server);
        assert!(rate > 1000.0 && cpu > 0.0, "{rate} requests per second, {cpu} µs each");
        assert_eq!(is_content(port.address(), &["no", "such"]), None);
    }
}
