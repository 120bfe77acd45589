//! Two nodes: what goes wrong between them, and what goes on all the same.

mod harness;

use harness::{FOREVER, Node, kill, listen, say, until};
use vmmc::{
    Allow, ExportState, Import, ImportError, ImportSource, Notify, Process, Rights, TransferError,
};

/// A process of its own, for the tests that kill one.
#[test]
fn actor() {
    let Some((role, argument)) = harness::role() else { return };
    let process = Process::open().unwrap();
    match role.as_str() {
        "exporter" => {
            let export = process.export(4096).name("board").create().unwrap();
            say("ready");
            while listen() == "look" {
                say(export.load_signal(0).unwrap());
            }
        }
        "sender" => {
            let import = named(&process, &argument, "board");
            say("ready");
            for round in 1.. {
                import.send_signal(64, &[round as u8; 20_000], 0, round).unwrap();
            }
        }
        _ => panic!("no such role: {role}"),
    }
}

fn named(process: &Process, node: &str, name: &str) -> Import {
    process.import(ImportSource::Name(name.to_owned())).node(node).open().unwrap()
}

fn refused(process: &Process, node: &str, name: &str) -> ImportError {
    process.import(ImportSource::Name(name.to_owned())).node(node).open().unwrap_err()
}

#[test]
fn an_export_of_another_node_is_found_by_name_and_counted_on_both() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let (exporter, importer) = (ada.open(), grace.open());
    let export = exporter.export(4096).name("board").create().unwrap();
    assert_eq!(refused(&importer, "ada", "bard"), ImportError::UnknownExport);
    assert!(importer.import(ImportSource::Name("board".into())).open().is_err(), "not here");
    let import = named(&importer, "ada", "board");
    assert_eq!((import.id(), import.len()), (export.id(), 4096));
    import.send_signal(8, b"hello", 0, 7).unwrap();
    assert_eq!(export.load_signal(0), Ok(7));
    for node in [&ada, &grace] {
        assert_eq!(node.status()["imports"], 1);
    }
    import.unimport();
    for node in [&ada, &grace] {
        until("given back", || node.status()["imports"] == 0);
    }
    // Its place on the link serves the next.
    for round in 1..=50 {
        named(&importer, "ada", "board").signal(0, round).unwrap();
        assert_eq!(export.load_signal(0), Ok(round));
    }
}

#[test]
fn rights_and_admission_hold_across_nodes() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let (exporter, importer) = (ada.open(), grace.open());
    let _foreign =
        exporter.export(64).name("foreign").allow(Allow::User(4_000_000)).create().unwrap();
    let _locked = exporter.export(64).name("locked").allow(Allow::Key([7; 16])).create().unwrap();
    let _open = exporter.export(64).name("open").rights(Rights::READ).create().unwrap();
    assert_eq!(refused(&importer, "ada", "foreign"), ImportError::NotAllowed);
    assert_eq!(refused(&importer, "ada", "locked"), ImportError::NotAllowed);
    assert_eq!(refused(&importer, "ada", "open"), ImportError::Rights);
    let import = |name: &str| importer.import(ImportSource::Name(name.into())).node("ada");
    let locked = import("locked").key([7; 16]).rights(Rights::WRITE).open().unwrap();
    locked.send(0, b"x").unwrap();
    assert_eq!(locked.fetch(0, &mut [0]), Err(TransferError::Rights));
    let open = import("open").rights(Rights::READ).open().unwrap();
    assert_eq!(open.send(0, b"x"), Err(TransferError::Rights));
    open.fetch(0, &mut [0]).unwrap();
}

#[test]
fn nodes_that_are_not_there_are_told_apart() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let importer = grace.open();
    assert_eq!(refused(&importer, "nobody", "board"), ImportError::UnknownNode);
    // No service runs at ada.
    assert_eq!(refused(&importer, "ada", "board"), ImportError::Unreachable);
    // Once one does, nothing has to be started again.
    let exporter = ada.open();
    let export = exporter.export(64).name("board").create().unwrap();
    named(&importer, "ada", "board").signal(0, 1).unwrap();
    assert_eq!(export.load_signal(0), Ok(1));
    // A service without node.toml knows nobody.
    assert_eq!(refused(&Node::new().open(), "ada", "board"), ImportError::UnknownNode);
}

#[test]
fn a_node_with_another_key_name_or_protection_is_denied() {
    type Change = fn(&str) -> String;
    let changes: [(Change, &str); 3] = [
        (|toml| toml.to_owned(), "b3"),
        (|toml| toml.replacen("\"grace\"", "\"ada\"", 1).replacen("name = \"ada\"\n", "", 0), "5a"),
        (|toml| format!("plaintext = true\n{toml}"), "5a"),
    ];
    for (index, (change, key)) in changes.into_iter().enumerate() {
        let [ada, grace] = Node::cluster(["ada", "grace"]);
        let toml = std::fs::read_to_string(grace.path().join("node.toml")).unwrap();
        let mut toml = change(&toml);
        if index == 1 {
            // It calls itself as the one that it calls is called; that one it knows by another name.
            toml = toml.replacen("[[node]]\nname = \"ada\"", "[[node]]\nname = \"other\"", 1);
        }
        grace.configure(&toml, &key.repeat(32));
        let _exporter = ada.open();
        let node = if index == 1 { "other" } else { "ada" };
        assert_eq!(refused(&grace.open(), node, "board"), ImportError::Denied, "{index}");
    }
}

#[test]
fn plaintext_works_where_both_chose_it() {
    let nodes = Node::cluster(["ada", "grace"]);
    for node in &nodes {
        let toml = std::fs::read_to_string(node.path().join("node.toml")).unwrap();
        node.configure(&format!("plaintext = true\n{toml}"), &"5a".repeat(32));
    }
    let [ada, grace] = nodes;
    let (exporter, importer) = (ada.open(), grace.open());
    let export = exporter.export(100_000).name("board").create().unwrap();
    named(&importer, "ada", "board").send(0, &[3; 100_000]).unwrap();
    let mut found = vec![0; 100_000];
    export.read(0, &mut found).unwrap();
    assert!(found.iter().all(|byte| *byte == 3));
}

#[test]
fn a_wrong_node_toml_is_named_when_the_service_starts() {
    let [ada, _grace] = Node::cluster(["ada", "grace"]);
    ada.configure("name = \"ada\"\n", "");
    let started = ada.command(&["start"]);
    assert!(!started.status.success());
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    assert!(said.contains("node.toml") && said.contains("addresses"), "{said}");
    ada.configure(
        "name = \"ada\"\naddresses = [\"192.0.2.1:7411\"]\nkey_file = \"cluster.key\"",
        &"00".repeat(32),
    );
    let said = String::from_utf8_lossy(&ada.command(&["start"]).stderr).into_owned();
    assert!(said.contains("192.0.2.1:7411"), "{said}");
}

#[test]
fn a_killed_exporter_is_told_to_the_other_node() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let mut exporter = ada.actor("exporter", "");
    assert_eq!(exporter.hear(), "ready");
    let importer = grace.open();
    let import = named(&importer, "ada", "board");
    import.signal(0, 5).unwrap();
    exporter.tell("look");
    assert_eq!(exporter.hear(), "5");
    exporter.kill();
    until("dead", || import.state() == ExportState::Dead);
    assert_eq!(import.signal(0, 6), Err(TransferError::Dead));
}

#[test]
fn a_stopped_exporter_takes_no_part() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let mut exporter = ada.actor("exporter", "");
    assert_eq!(exporter.hear(), "ready");
    exporter.signal(libc::SIGSTOP);
    let importer = grace.open();
    let import = named(&importer, "ada", "board");
    import.send_signal(8, &[9; 4000], 0, 77).unwrap();
    assert_eq!(import.load_signal(0), Ok(77));
    exporter.signal(libc::SIGCONT);
    exporter.tell("look");
    assert_eq!(exporter.hear(), "77");
}

#[test]
fn a_killed_sender_leaves_nothing_and_others_go_on() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let exporter = ada.open();
    let export = exporter.export(32_768).name("board").create().unwrap();
    let importer = grace.open();
    let import = named(&importer, "ada", "board");
    for _ in 0..5 {
        export.write(0, &[0; 8]).unwrap();
        let mut sender = grace.actor("sender", "ada");
        assert_eq!(sender.hear(), "ready");
        until("it sends", || export.load_signal(0).unwrap() > 20);
        sender.kill();
        import.send(30_000, b"still here").unwrap();
        for node in [&ada, &grace] {
            until("given back", || node.status()["imports"] == 1);
        }
    }
}

#[test]
fn a_killed_service_is_a_dead_node_and_the_next_one_is_met_again() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let exporter = ada.open();
    let export = exporter.export(4096).name("board").notify(Notify::Event).create().unwrap();
    let importer = grace.open();
    let import = named(&importer, "ada", "board");
    import.send_notify(0, b"one").unwrap();
    assert_eq!(export.wait(FOREVER).unwrap().len, 3);
    kill(ada.service_pid().unwrap(), libc::SIGKILL);
    until("dead", || import.state() == ExportState::Dead);
    assert_eq!(import.send(0, b"x"), Err(TransferError::Dead));
    // The exporter has its service started anew, and announces its export there.
    until("found again", || {
        importer.import(ImportSource::Name("board".into())).node("ada").open().is_ok()
    });
    named(&importer, "ada", "board").send_notify(0, b"three").unwrap();
    assert_eq!(export.wait(FOREVER).unwrap().len, 5);
    // The importer's own service is killed: the import is asked for again.
    let import = named(&importer, "ada", "board");
    kill(grace.service_pid().unwrap(), libc::SIGKILL);
    until("served again", || import.send_notify(0, b"fifth").is_ok());
    assert_eq!(export.wait(FOREVER).unwrap().len, 5);
}

#[test]
fn noise_on_the_ports_of_a_node_hurts_nobody() {
    use std::io::Write;
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let (exporter, importer) = (ada.open(), grace.open());
    let export = exporter.export(64).name("board").create().unwrap();
    let toml = std::fs::read_to_string(ada.path().join("node.toml")).unwrap();
    let address = toml.split("addresses = [\"").nth(1).unwrap().split('"').next().unwrap();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = 1_u64;
    let mut noise = |len: usize| -> Vec<u8> {
        let mut byte = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 56) as u8
        };
        (0..len).map(|_| byte()).collect()
    };
    let import = named(&importer, "ada", "board");
    for round in 1..=200 {
        // As far as the header, packets of the link that is there.
        let mut packet = noise(round as usize * 7);
        packet.iter_mut().zip([0x10, 0, 0, 0, 0, 0, 0, 0]).for_each(|(byte, head)| *byte = head);
        socket.send_to(&packet, address).unwrap();
        let mut stranger = std::net::TcpStream::connect(address).unwrap();
        let _ = stranger.write_all(&noise(round as usize * 13));
        import.signal(0, round).unwrap();
        assert_eq!(export.load_signal(0), Ok(round));
    }
}
