//! What files were like when they were last told of. Changes of one file by us follow each other, so that
//! what was noted last is what the last of them has left.

use super::sys::Stat;
use crate::base::Result;
use crate::vfs::NodeId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

const SHARDS: usize = 64;
/// Files remembered.
const STATES_MAX: usize = 65_536;

pub struct States(Vec<Mutex<HashMap<NodeId, u64>>>);

impl Default for States {
    fn default() -> States {
        States((0..SHARDS).map(|_| Mutex::default()).collect())
    }
}

impl States {
    fn shard(&self, node: NodeId) -> &Mutex<HashMap<NodeId, u64>> {
        &self.0[(node.0 % SHARDS as u64) as usize]
    }

    fn lock(&self, node: NodeId) -> MutexGuard<'_, HashMap<NodeId, u64>> {
        self.shard(node).lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn clear(&self) {
        for shard in &self.0 {
            shard.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// This is what a file is like after a change of our own.
    pub fn note(&self, node: NodeId, stat: &Stat) {
        put(&mut self.lock(node), node, stat);
    }

    /// Changes a file, and notes what it is like then. Few files share a lock; the host, too, lets one
    /// write at a time into a file.
    pub fn alter(&self, node: NodeId, change: impl FnOnce() -> Result<Stat>) -> Result<Stat> {
        let mut states = self.lock(node);
        let stat = change()?;
        put(&mut states, node, &stat);
        Ok(stat)
    }

    /// What a file is like, and whether that is another than was told last; it is told from now on. A
    /// change of our own that goes on is waited for, `patience` at most.
    pub fn look(
        &self,
        node: NodeId,
        patience: Duration,
        stat: impl FnOnce() -> Result<Stat>,
    ) -> Result<(Stat, bool)> {
        let until = Instant::now() + patience;
        let mut states = loop {
            match self.shard(node).try_lock() {
                Ok(states) => break states,
                Err(TryLockError::Poisoned(e)) => break e.into_inner(),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                    return stat().map(|stat| (stat, true));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let stat = stat()?;
        let is_news = put(&mut states, node, &stat);
        Ok((stat, is_news))
    }
}

/// True where it was otherwise before, or not known.
fn put(states: &mut HashMap<NodeId, u64>, node: NodeId, stat: &Stat) -> bool {
    if states.len() >= STATES_MAX / SHARDS {
        states.clear();
    }
    states.insert(node, stat.state()) != Some(stat.state())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::local::sys;
    use std::ffi::OsStr;
    use std::io::Write;

    #[test]
    fn what_we_are_changing_is_waited_for_and_no_news_and_what_others_change_is() {
        let path = std::env::temp_dir().join(format!("spiderweb-states-{}", std::process::id()));
        let mut file = std::fs::File::create(&path).unwrap();
        let (states, node) = (States::default(), NodeId(7));
        let seen = std::fs::File::open(&path).unwrap();
        let stat = || sys::stat(&seen, OsStr::new(""));
        let (began, begun) = std::sync::mpsc::channel();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                states.alter(node, || {
                    began.send(()).unwrap();
                    file.write_all(b"ours").unwrap();
                    stat()
                })
            });
            begun.recv().unwrap();
            let (now, is_news) = states.look(node, Duration::from_secs(60), stat).unwrap();
            assert_eq!((now.attr(node).size, is_news), (4, false));
        });
        file.write_all(b"theirs").unwrap();
        assert!(states.look(node, Duration::ZERO, stat).unwrap().1);
        assert!(!states.look(node, Duration::ZERO, stat).unwrap().1, "told once");
        let _changing = states.lock(node);
        assert!(states.look(node, Duration::ZERO, stat).unwrap().1, "in doubt it is told");
        std::fs::remove_file(&path).unwrap();
    }
}
