//! What is printed, where nobody may be reading it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

#[test]
fn a_reader_that_leaves_ends_what_prints_quietly() {
    for command in ["stat", "doctor"] {
        let own = Permissions::from_mode(0o700);
        let directory = tempfile::Builder::new().permissions(own).tempdir().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let printed = Command::new(env!("CARGO_BIN_EXE_vmmc"))
            .arg(command)
            .env("VMMC_RUNTIME_DIR", directory.path())
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&printed.stderr);
        assert_eq!(printed.status.signal(), Some(libc::SIGPIPE), "{command}: {complaint}");
        assert_eq!(complaint, "", "{command}");
    }
}
