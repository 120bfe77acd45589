//! OpenSSH over loopback: a server that forks, starts itself anew, separates privileges under seccomp, and passes
//! descriptors; a client that is asked through another one's control socket.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use vmmc_tests::{Running, Site, Way, free_port};

use crate::in_every_way::{Failure, LIMIT, prove, same_in_every_way};
use crate::load::{plainly, program};

#[test]
fn openssh_runs_commands_and_copies() {
    const NEEDED: [&str; 5] = ["sshd", "ssh", "ssh-keygen", "sftp", "sha256sum"];
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: openssh_runs_commands_and_copies: sshd wants to be root"
        );
        return;
    }
    same_in_every_way("openssh_runs_commands_and_copies", &NEEDED, |site, way| {
        let here = site.path();
        let (_server, port) = serve(site, way)?;
        let configuration = format!(
            "Host *\nPort {port}\nUser root\nIdentityFile {0}/key\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n\
             ControlPath {0}/control\n",
            here.display()
        );
        fs::write(here.join("ssh_config"), configuration)?;
        let mut said = Vec::new();

        said.push(ssh(site, way, &["echo out; echo err >&2; exit 0"], Stdio::null())?);
        let large = here.join("large");
        fs::write(&large, (0..5_000_000_u32).flat_map(u32::to_be_bytes).collect::<Vec<u8>>())?;
        said.push(ssh(site, way, &["sha256sum"], File::open(&large)?.into())?);
        said.push(ssh(
            site,
            way,
            &[&format!("cat {} | sha256sum", large.display())],
            Stdio::null(),
        )?);

        // The server that answers has inherited the connection from the one that accepted it.
        let enough = here.join("enough");
        let command = format!("until test -e {}; do echo; sleep 0.01; done", enough.display());
        let mut talking = start(site, way, &[&command], Stdio::null())?;
        prove(site, way, port)?;
        fs::write(&enough, "")?;
        talking.succeed(LIMIT)?;

        // One connection for several commands: each client passes its standard descriptors to the first.
        let mut master = site.command(way.lifts_client(), program("ssh"));
        master.args(["-F", "ssh_config", "-M", "-N", "127.0.0.1"]);
        let mut master = Running::start(&mut master)?;
        crate::load::wait_until("the control socket", || Ok(here.join("control").exists()))?;
        said.push(ssh(site, way, &["sha256sum"], File::open(&large)?.into())?);
        said.push(ssh(site, way, &["echo again"], Stdio::null())?);
        said.push(format!("{:?}", master.is_running()));
        drop(master);
        let _ = fs::remove_file(here.join("control"));

        let mut sftp = site.command(way.lifts_client(), program("sftp"));
        fs::write(
            here.join("batch"),
            format!("put large {0}/up\nget {0}/up down\n", here.display()),
        )?;
        sftp.args(["-q", "-F", "ssh_config", "-b", "batch", "127.0.0.1"]);
        Running::start(&mut sftp)?.succeed(LIMIT)?;
        said.push(format!("{}", fs::read(&large)? == fs::read(here.join("down"))?));
        assert!(said[0] == "out\n" && said[1] == said[2], "{said:?}");
        Ok(said)
    });
}

fn ssh(site: &Site, way: Way, command: &[&str], input: Stdio) -> Result<String, Failure> {
    Ok(start(site, way, command, input)?.succeed(LIMIT)?.stdout)
}

fn start(site: &Site, way: Way, command: &[&str], input: Stdio) -> Result<Running, Failure> {
    let mut ssh = site.command(way.lifts_client(), program("ssh"));
    ssh.args(["-F", "ssh_config", "127.0.0.1"]).args(command);
    Ok(Running::start_with_input(&mut ssh, input)?)
}

fn serve(site: &Site, way: Way) -> Result<(Running, u16), Failure> {
    let (here, port) = (site.path(), free_port());
    for key in ["host", "key"] {
        let mut keygen = Command::new(program("ssh-keygen"));
        plainly(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(here.join(key)))?;
    }
    fs::copy(here.join("key.pub"), here.join("authorized"))?;
    fs::set_permissions(here.join("authorized"), PermissionsExt::from_mode(0o600))?;
    // The empty directory that unprivileged parts of the server are locked into.
    fs::create_dir_all("/run/sshd")?;
    let configuration = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nPidFile {0}/pid\nStrictModes no\n\
         UsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n",
        here.display()
    );
    fs::write(here.join("sshd_config"), configuration)?;
    let mut command = site.command(way.lifts_server(), program("sshd"));
    command.args(["-D", "-e", "-f"]).arg(here.join("sshd_config"));
    Ok((site.serve(&mut command, port)?, port))
}
