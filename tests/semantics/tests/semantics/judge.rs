//! Plays a scenario in every way and demands equal transcripts.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use vmmc_semantics::{Actor, Expectation, Played, SCENARIOS, Scenario, WarmUp};
use vmmc_semantics::{complaints, differences, play};
use vmmc_tests::{Site, Watchdog, Way};

/// Panics unless all ways of playing the scenario agree with the kernel.
pub(crate) fn judge(name: &str) {
    let _watchdog = Watchdog::new(name, Duration::from_secs(180));
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name);
    let scenario = scenario.expect("the scenario is in the table");
    let (site, actor) = (site(), actor());
    let run = |way| play(&site, &actor, name, way).expect("the actors start");

    let oracle = run(Way::Plain);
    let mut faults = complaints(&oracle);
    let mut shown = vec![oracle.clone()];
    for way in Way::ALL.into_iter().filter(|way| *way != Way::Plain) {
        let played = run(way);
        let found = faults_of(scenario, &oracle, &played);
        if !found.is_empty() {
            shown.push(played);
        }
        faults.extend(found);
    }
    if !faults.is_empty() {
        let transcripts: String = shown.iter().map(transcript).collect();
        panic!("{name}:\n{}\n{transcripts}", faults.join("\n"));
    }
}

fn faults_of(scenario: &Scenario, oracle: &Played, played: &Played) -> Vec<String> {
    if let Expectation::Differs(why) = scenario.expectation {
        eprintln!("KNOWN DIFFERENCE: {} ({}): {why}", scenario.name, played.way);
        return Vec::new();
    }
    let mut faults = complaints(played);
    faults.extend(differences(oracle, played).iter().map(ToString::to_string));
    if played.way == Way::BothLifted && scenario.warm_up == WarmUp::Warm && !played.seen_lifted {
        faults.push(format!("{}: vmmc stat never showed the connection lifted", played.way));
    }
    faults
}

fn transcript(played: &Played) -> String {
    let mut text = String::new();
    for (name, side) in [("server", &played.server), ("client", &played.client)] {
        text += &format!("--- {}, {name}\n{}\n", played.way, side.lines.join("\n"));
        if !side.errors.is_empty() {
            text += &format!("standard error: {}\n", side.errors.trim_end());
        }
    }
    text
}

/// The actor is built once, and removed when the last test that uses it has ended.
pub(crate) fn actor() -> Arc<Actor> {
    static SHARED: OnceLock<Mutex<Weak<Actor>>> = OnceLock::new();
    shared(&SHARED, || Actor::build().expect("the actor compiles"))
}

/// One runtime directory, and so one node service, for all scenarios that are played at the same time.
fn site() -> Arc<Site> {
    static SHARED: OnceLock<Mutex<Weak<Site>>> = OnceLock::new();
    shared(&SHARED, || Site::new().expect("there is a vmmc to try"))
}

fn shared<T>(slot: &OnceLock<Mutex<Weak<T>>>, make: impl FnOnce() -> T) -> Arc<T> {
    let mut slot = slot.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(present) = slot.upgrade() {
        return present;
    }
    let made = Arc::new(make());
    *slot = Arc::downgrade(&made);
    made
}
