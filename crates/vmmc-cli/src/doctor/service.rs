//! VMMC's own parts: the runtime directory, the node service, the preloaded library.

use std::path::PathBuf;
use std::time::Duration;

use vmmc_node::Policy;
use vmmc_os::{RuntimeDirError, ServiceOf, ServicePlace};

use super::finding::Finding;

pub(super) fn findings() -> Vec<Finding> {
    vec![runtime_directory(), service(), policy(), users(), preloaded_library()]
}

fn runtime_directory() -> Finding {
    let (name, place) = ("runtime directory", ServicePlace::of_environment());
    let path = &place.dir;
    let shown = path.display().to_string();
    match place.check(false) {
        Ok(_) if place.of == ServiceOf::Host => Finding::good(
            name,
            shown,
            "the host's: programs of all users use its service; VMMC_SERVICE=own for one of one's own",
        ),
        Ok(_) => Finding::good(name, shown, "ours alone: the service can be trusted"),
        Err(RuntimeDirError::Missing { .. }) => match can_be_made(path) {
            true => Finding::good(
                name,
                format!("{shown}, not there yet"),
                "made when the service starts",
            ),
            false => Finding::unusable(
                name,
                format!("{shown} is not there and cannot be made"),
                "no service can be started",
                "set VMMC_RUNTIME_DIR to a directory of your own",
            ),
        },
        Err(cause) => Finding::unusable(
            name,
            cause.to_string(),
            "no service can be started or trusted",
            "as the message says",
        ),
    }
}

fn can_be_made(path: &std::path::Path) -> bool {
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    path.parent().is_some_and(|parent| rustix::fs::access(parent, access).is_ok())
}

fn service() -> Finding {
    let name = "node service";
    match vmmc_node::status(&ServicePlace::of_environment(), Duration::from_secs(2)) {
        Ok(Some(status)) => Finding::good(
            name,
            format!(
                "{}, {} processes, {} exports, {} pairs",
                crate::node::process(status.pid),
                status.processes,
                status.exports,
                status.pairs
            ),
            "running",
        ),
        Ok(None) => Finding::good(name, "not running", "started when first needed"),
        Err(cause) => Finding::unusable(
            name,
            cause.to_string(),
            "nothing can be exported or imported, and connections stay on TCP",
            "as the message says; then vmmc node start",
        ),
    }
}

fn policy() -> Finding {
    let name = "policy";
    let shown = |path: std::path::PathBuf| {
        let there = if path.exists() { "" } else { " (not there)" };
        format!("{}{there}", path.display())
    };
    let files = [Some(Policy::host_path()), Policy::user_path()];
    let files =
        files.map(|path| path.map(shown)).into_iter().flatten().collect::<Vec<_>>().join(", ");
    match Policy::of_programs() {
        Ok(policy) => Finding::good(name, files, policy.summary()),
        Err(cause) => Finding::limited(
            name,
            cause.to_string(),
            "vmmc run starts programs plainly: their connections stay on TCP",
            "as the message says",
        ),
    }
}

fn users() -> Finding {
    let name = "other users";
    let place = ServicePlace::of_environment();
    if !vmmc_os::strangers_can_be_rung() {
        return Finding::limited(
            name,
            "asynchronous I/O (io_setup) does not work here",
            "connections to other users' programs stay on TCP: such cannot be woken safely",
            "sysctl fs.aio-max-nr=1048576, or allow io_setup and io_submit where system calls are filtered",
        );
    }
    match (place.of, Policy::of_programs()) {
        (ServiceOf::Host, Ok(policy)) if !policy.between.is_empty() => Finding::good(
            name,
            format!("{} rules of the host's policy say who may meet whom", policy.between.len()),
            "connections between these users are lifted",
        ),
        (ServiceOf::Host, _) => Finding::good(
            name,
            "no rule of the host's policy lets users meet",
            "connections between users stay on TCP; [[between]] in /etc/vmmc/policy.toml allows them",
        ),
        (ServiceOf::User, _) => Finding::good(
            name,
            "the service is one user's",
            "connections between users stay on TCP; `vmmc node start --system` starts a service for all",
        ),
    }
}

fn preloaded_library() -> Finding {
    let name = "preloaded library";
    let beside = std::env::current_exe().ok().and_then(|program| {
        let file: PathBuf = program.parent()?.join("libvmmc_preload.so");
        file.exists().then(|| file.display().to_string())
    });
    match beside {
        Some(path) => Finding::good(name, path, "vmmc run can lift the connections of programs"),
        None => Finding::limited(
            name,
            "no libvmmc_preload.so beside this program",
            "vmmc run cannot lift connections; the Rust library works",
            "cargo build -p vmmc-preload, with the same profile as this program",
        ),
    }
}
