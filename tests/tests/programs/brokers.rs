//! mosquitto with its own clients: messages of every quality of service to several subscribers, and one that is large.

use std::fs;
use std::io::Write;
use std::process::Command;

use vmmc_tests::{Running, Site, Way, free_port};

use crate::in_every_way::{Failure, LIMIT, prove, same_in_every_way};
use crate::load::{feed, plainly, program, wait_until};

const MESSAGES: usize = 400;

#[test]
fn mosquitto_gives_each_message_to_each_subscriber() {
    const NEEDED: [&str; 3] = ["mosquitto", "mosquitto_pub", "mosquitto_sub"];
    same_in_every_way("mosquitto_gives_each_message_to_each_subscriber", &NEEDED, |site, way| {
        let (here, port) = (site.path(), free_port());
        fs::write(
            here.join("conf"),
            format!(
                "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\nmax_queued_messages 0\n"
            ),
        )?;
        let mut server = site.command(way.lifts_server(), program("mosquitto"));
        let _server = site.serve(server.args(["-c", "conf"]), port)?;

        let mut subscribers = Vec::new();
        for quality in ["0", "1", "2"] {
            let mut subscriber = client(site, way, "mosquitto_sub", port, "news/#");
            subscriber.args(["-q", quality, "-C", &(MESSAGES + 2).to_string(), "-F", "%t %l %p"]);
            subscribers.push(Running::start(&mut subscriber)?);
        }
        // Whoever has subscribed gets the first message, which the broker keeps for those who have not.
        plainly(
            client(site, way, "mosquitto_pub", port, "news/first")
                .args(["-r", "-q", "1", "-m", "hello"]),
        )?;
        wait_until("the subscribers", || {
            Ok(subscribers.iter().all(|subscriber| subscriber.output_so_far().contains("hello")))
        })?;

        let mut publisher = client(site, way, "mosquitto_pub", port, "news/lines");
        let (mut publisher, mut input) = site.start_fed(publisher.args(["-q", "2", "-l"]))?;
        let mut talk = client(site, way, "mosquitto_pub", port, "talk");
        let (mut talk, mut words) = site.start_fed(talk.args(["-q", "1", "-l"]))?;
        for number in 0..MESSAGES {
            writeln!(input, "message {number} {}", "x".repeat(number * 7))?;
        }
        drop(input);
        publisher.succeed(LIMIT)?;
        // Messages of one quality of service do not wait for those of another.
        let last = format!("message {} ", MESSAGES - 1);
        wait_until("the last line", || {
            Ok(subscribers.iter().all(|subscriber| subscriber.output_so_far().contains(&last)))
        })?;
        fs::write(here.join("large"), "large ".repeat(500_000))?;
        plainly(
            client(site, way, "mosquitto_pub", port, "news/large").args(["-q", "1", "-f", "large"]),
        )?;
        let said = subscribers
            .iter_mut()
            .map(|subscriber| Ok(subscriber.succeed(LIMIT)?.stdout))
            .collect::<Result<Vec<_>, Failure>>()?;
        assert!(said[0].contains("message 399 x"), "{}", said[0]);
        feed(&mut words, "anything\n", || prove(site, way, port))?;
        drop(words);
        talk.succeed(LIMIT)?;
        Ok(said)
    });
}

fn client(site: &Site, way: Way, name: &str, port: u16, topic: &str) -> Command {
    let mut command = site.command(way.lifts_client(), program(name));
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-t", topic]);
    command
}
