//! VMMC's own parts: the runtime directory, the node service, the preloaded library.

use std::path::PathBuf;
use std::time::Duration;

use vmmc_os::{RuntimeDirError, default_runtime_dir, prepare_runtime_dir};

use super::finding::Finding;

pub(super) fn findings() -> Vec<Finding> {
    vec![runtime_directory(), service(), preloaded_library()]
}

fn runtime_directory() -> Finding {
    let (name, path) = ("runtime directory", default_runtime_dir());
    let shown = path.display().to_string();
    match prepare_runtime_dir(&path, false) {
        Ok(()) => Finding::good(name, shown, "ours alone: the service can be trusted"),
        Err(RuntimeDirError::Missing { .. }) => match can_be_made(&path) {
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
    match vmmc_node::status(&default_runtime_dir(), Duration::from_secs(2)) {
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
