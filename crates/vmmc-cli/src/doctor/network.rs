//! What the network path between hosts can use.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;

use super::finding::Finding;

pub(super) fn findings() -> Vec<Finding> {
    vec![segmentation(), aggregation(), inlets(), libfabric()]
}

fn segmentation() -> Finding {
    let change = "use Linux 4.18 or later";
    let follows = "large sends to other hosts take one system call for up to 64 packets";
    offload("UDP segmentation", libc::UDP_SEGMENT, 1200, follows, change)
}

fn aggregation() -> Finding {
    let change = "use Linux 5.0 or later";
    let follows = "packets from other hosts are received many at a time";
    offload("UDP aggregation", libc::UDP_GRO, 1, follows, change)
}

/// Sets a socket option of UDP on a socket of the loopback interface.
fn offload(
    name: &'static str,
    option: libc::c_int,
    value: libc::c_int,
    follows: &str,
    change: &str,
) -> Finding {
    let probe = || {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let len = size_of_val(&value) as libc::socklen_t;
        // SAFETY: `value` is an int, as both options want, and lives through the call.
        let set = unsafe {
            let value = (&raw const value).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, option, value, len)
        };
        if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    match probe() {
        Ok(()) => Finding::good(name, "works", follows),
        Err(cause) => Finding::limited(
            name,
            format!("fails ({cause})"),
            "traffic to other hosts takes one system call a packet",
            change,
        ),
    }
}

/// Has the program run at the loopback interface for a moment, for nobody's sake.
fn inlets() -> Finding {
    let name = "inlets";
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let opened = vmmc_os::Inlets::open().and_then(|mut inlets| inlets.admit(nobody));
    match opened {
        Ok(_) => {
            let follows = "small messages from other hosts come to who looks without a system call";
            Finding::good(name, "the kernel fills them", follows)
        }
        Err(error) => {
            let text = error.to_string();
            let (found, change) = text.split_once(": ").unwrap_or((&text, ""));
            let follows = "small messages from other hosts take a microsecond more";
            Finding::limited(name, found, follows, change)
        }
    }
}

fn libfabric() -> Finding {
    let name = "libfabric";
    let found = loader_directories().into_iter().find_map(|directory| {
        let path = Path::new(&directory).join("libfabric.so.1");
        path.exists().then(|| path.display().to_string())
    });
    match found {
        Some(path) => Finding::good(name, path, "RDMA hardware can be used where there is some"),
        None => Finding::limited(
            name,
            "not installed",
            "other hosts are reached by UDP only",
            "apt install libfabric1",
        ),
    }
}

/// Where the dynamic loader looks.
fn loader_directories() -> Vec<String> {
    let given = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let usual = ["/usr/lib", "/lib", "/usr/lib64", "/usr/local/lib", "/opt/amazon/efa/lib64"];
    let multiarch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    given
        .split(':')
        .filter(|directory| !directory.is_empty())
        .map(str::to_owned)
        .chain([multiarch])
        .chain(usual.map(str::to_owned))
        .collect()
}
