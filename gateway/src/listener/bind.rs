//! Taking the addresses: all before anything serves, and with the reason when one is taken already.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, UdpSocket};

use anyhow::{Result, anyhow};
use socket2::{Domain, Protocol, Socket, Type};

/// Listens on a TCP address. `what` names the protocol to a person.
///
/// # Errors
/// Names the port, what it was for, and who holds it where that can be found out.
pub fn tcp(what: &str, address: SocketAddr) -> Result<TcpListener> {
    let listen = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for the old connections' time to pass.
        socket.set_reuse_address(true)?;
        only_v6(&socket, address)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    listen().map_err(|error| explain(what, "tcp", address, &error))
}

/// Binds a UDP address.
///
/// # Errors
/// As for [`tcp`].
pub fn udp(what: &str, address: SocketAddr) -> Result<UdpSocket> {
    let bind = || -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        only_v6(&socket, address)?;
        socket.bind(&address.into())?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    bind().map_err(|error| explain(what, "udp", address, &error))
}

/// `[::]` and `0.0.0.0` can then both be listed.
fn only_v6(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() { socket.set_only_v6(true) } else { Ok(()) }
}

fn explain(what: &str, protocol: &str, address: SocketAddr, error: &io::Error) -> anyhow::Error {
    let port = address.port();
    match error.kind() {
        ErrorKind::AddrInUse => {
            let holder = holder(protocol, port).map_or_else(
                || format!("`ss -lp 'sport = :{port}'` as root shows by whom"),
                |holder| format!("by {holder}"),
            );
            anyhow!(
                "{what}: {protocol} port {port} on {} is taken already, {holder}; stop that, or set another address in \
                 [{what}] listen",
                address.ip()
            )
        }
        ErrorKind::PermissionDenied => {
            anyhow!(
                "{what}: no permission for {protocol} port {port}: ports below 1024 need CAP_NET_BIND_SERVICE"
            )
        }
        ErrorKind::AddrNotAvailable => {
            anyhow!("{what}: {} is no address of this machine (`ip address` lists them)", address.ip())
        }
        _ => anyhow!("{what}: cannot listen on {address}: {error}"),
    }
}

/// Name and process id of who has a port open, as far as we may see it in `/proc`.
fn holder(protocol: &str, port: u16) -> Option<String> {
    let inodes: Vec<String> = [protocol.to_owned(), format!("{protocol}6")]
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/net/{table}")).ok())
        .flat_map(|table| table.lines().skip(1).filter_map(|line| inode_of(line, port)).collect::<Vec<_>>())
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    for process in fs::read_dir("/proc").ok()?.filter_map(Result::ok) {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let descriptors =
            fs::read_dir(process.path().join("fd")).into_iter().flatten().filter_map(Result::ok);
        let has_it = descriptors
            .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
            .any(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str()));
        if has_it {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    None
}

/// The inode of a line of `/proc/net/tcp` (proc(5)) whose local port is `port`, if it listens or is UDP.
fn inode_of(line: &str, port: u16) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let local = fields.get(1)?.rsplit_once(':')?.1;
    let is_open = matches!(*fields.get(3)?, "0A" | "07");
    (is_open && u16::from_str_radix(local, 16) == Ok(port)).then(|| fields.get(9).map(ToString::to_string))?
}

/// Connections the kernel holds for us until they are accepted.
const BACKLOG: i32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_holder() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = tcp("mqtt", address).unwrap_err().to_string();
        assert!(error.contains(&address.port().to_string()), "{error}");
        assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
        assert!(error.contains("[mqtt] listen"), "{error}");
    }
}
