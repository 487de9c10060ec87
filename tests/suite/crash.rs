//! Random commands of several clients against a gateway that is killed in the midst of them, beside a model
//! that knows nothing of it. What was answered is there afterwards, and exactly so; what was not answered is
//! there whole or not at all; numbers are never given out twice, and none goes back.
//!
//! `SPIDERWEB_CRASH_OPS` says how many commands are answered in all, `SPIDERWEB_CRASH_SEED` which they are.

mod model;

use crate::program::{Client, Gateway, PATIENCE, Scratch};
use model::{Command, World};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard};

const CLIENTS: u64 = 4;
const OPS: u64 = 400;

/// A sequence that its seed determines (SplitMix64).
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

/// What must hold for all clients together.
#[derive(Default)]
struct Ledger {
    /// The ids that were given out: no two commands get the same.
    ids: BTreeSet<String>,
    /// The highest numbers, by kind, that were known when the gateway started.
    floor: BTreeMap<String, u64>,
    /// Publications that were answered.
    published: u64,
}

impl Ledger {
    fn given_out(&mut self, id: &str) {
        let (kind, number) = numbered(id);
        assert!(self.ids.insert(id.to_owned()), "{id} was given out twice");
        let floor = self.floor.get(kind).copied().unwrap_or(0);
        assert!(number > floor, "{id} was given out after {kind}-{floor}");
    }

    fn started(&mut self) {
        for id in &self.ids {
            let (kind, number) = numbered(id);
            let floor = self.floor.entry(kind.to_owned()).or_default();
            *floor = number.max(*floor);
        }
    }
}

fn numbered(id: &str) -> (&str, u64) {
    let (kind, number) = id.rsplit_once('-').unwrap();
    (kind, number.parse().unwrap())
}

/// One who gives commands, each after the other, about projects and nodes of his own.
struct Commander {
    random: Random,
    world: World,
}

impl Commander {
    /// Until the gateway is gone; gives back the command that was not answered.
    fn command(
        &mut self,
        mut client: Client,
        ledger: &Mutex<Ledger>,
        answered: &Sender<()>,
    ) -> Option<Command> {
        loop {
            let command = self.world.command(&mut self.random);
            let (operation, payload) = command.request(&self.world);
            let Some(reply) = client.try_control(operation, payload) else { return Some(command) };
            self.answered(&command, &reply, &mut lock(ledger));
            answered.send(()).ok()?;
        }
    }

    fn answered(&mut self, command: &Command, reply: &Value, ledger: &mut Ledger) {
        match command.applied(&self.world) {
            Ok(world) => {
                assert_eq!(reply["ok"], true, "{command:?}: {reply}");
                let payload = &reply["payload"];
                let ids = [&payload["project_id"], &payload["node_id"]];
                let known = self.world.ids();
                self.world = world;
                if let Some(id) = ids.iter().find_map(|id| id.as_str())
                    && !matches!(command, Command::Delete(_) | Command::Forget(_))
                    && !known.contains(id)
                {
                    ledger.given_out(id);
                }
                self.world.learn(command, payload);
                ledger.published += u64::from(matches!(command, Command::Publish(..)));
            }
            Err(code) => assert_eq!(reply["error"]["code"], code, "{command:?}: {reply}"),
        }
    }

    /// After a start: takes over what is there, if it is what must be.
    fn compare(&mut self, doubt: Option<Command>, found: &World, ledger: &mut Ledger) {
        let carried_out = doubt.as_ref().and_then(|command| command.applied(&self.world).ok());
        let known = self.world.ids();
        let expected = [Some(&self.world), carried_out.as_ref()].into_iter().flatten();
        let Some(expected) = expected.into_iter().find(|world| world.allows(found)) else {
            panic!("{found:#?}\nis neither\n{:#?}\nnor that after {doubt:?}", self.world)
        };
        self.world = expected.taken_from(found);
        self.world.ids().difference(&known).for_each(|id| ledger.given_out(id));
    }
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// All that the gateway has of a client's.
fn found(admin: &mut Client, client: u64) -> World {
    let list = |value: &Value, name: &str| value[name].as_array().unwrap().clone();
    let own = |value: &Value, name: &str| {
        value[name].as_str().is_some_and(|n| n.starts_with(&format!("c{client}-")))
    };
    let projects = list(&admin.control("project_list", json!({})), "projects");
    let projects = projects.iter().filter(|p| own(p, "name"));
    let whole: Vec<_> = projects
        .map(|p| admin.control("project_get", json!({"project_id": p["project_id"]})))
        .collect();
    let nodes = list(&admin.control("node_list", json!({})), "nodes");
    let nodes: Vec<_> = nodes.into_iter().filter(|n| own(n, "node_name")).collect();
    World::read(client, &whole, &nodes)
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: {text:?}")))
}

/// Waits until so many commands were answered, or nobody gives any.
fn wait_for(answers: &Receiver<()>, count: u64) {
    for _ in 0..count {
        if answers.recv_timeout(PATIENCE).is_err() {
            return;
        }
    }
}

#[test]
fn what_was_answered_survives_kills_and_nothing_is_half_done() {
    let random_seed =
        || u64::from_str_radix(&spiderweb::base::id::hex_token("")[..15], 16).unwrap();
    let seed = setting("SPIDERWEB_CRASH_SEED").unwrap_or_else(random_seed);
    let mut left = setting("SPIDERWEB_CRASH_OPS").unwrap_or(OPS);
    println!("SPIDERWEB_CRASH_SEED={seed}");
    let mut random = Random(seed);
    let scratch = Scratch::new();
    let ledger = Mutex::new(Ledger::default());
    let mut seq = 0;
    let mut commanders: Vec<_> = (0..CLIENTS)
        .map(|n| Commander { random: Random(seed ^ (n << 60)), world: World::new(n) })
        .collect();
    let mut doubts: Vec<Option<Command>> = (0..CLIENTS).map(|_| None).collect();
    loop {
        let mut gateway = Gateway::at(scratch.path(), "0");
        let mut admin = gateway.admin();
        for (n, (commander, doubt)) in commanders.iter_mut().zip(doubts.drain(..)).enumerate() {
            commander.compare(doubt, &found(&mut admin, n as u64), &mut lock(&ledger));
        }
        // What was in doubt was given out before the kill, too, beside higher numbers that were answered.
        lock(&ledger).started();
        let published = std::mem::take(&mut lock(&ledger).published);
        let now = admin.control("node_service_watch", json!({}))["seq"].as_u64().unwrap();
        assert!(now >= seq + published, "events are at {now}, after {seq} and {published} more");
        seq = now;
        if left == 0 {
            return;
        }
        let target = (10 + random.below(60)).min(left);
        left -= target;
        let (answered, answers) = channel();
        doubts = std::thread::scope(|scope| {
            let run = |commander| {
                let (client, ledger, answered) = (gateway.admin(), &ledger, answered.clone());
                let commander: &mut Commander = commander;
                scope.spawn(move || commander.command(client, ledger, &answered))
            };
            let threads: Vec<_> = commanders.iter_mut().map(run).collect();
            wait_for(&answers, target);
            gateway.program.kill();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
    }
}
