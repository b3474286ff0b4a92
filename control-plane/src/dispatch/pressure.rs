//! How much of each agent's work waits, as far as this replica knows, and whether more is taken.
//!
//! Written by the poll (what the store counts), by intake (what it accepted since) and by dispatch (what began); read by
//! intake before a message is prepared. Always true: one agent's backlog refuses that agent's messages and nobody else's; what
//! is refused here has touched nothing. It is an estimate: other replicas' messages of the last second and turns behind running
//! ones are not in it, so a bound may be passed by as many; a session's own bound is exact and the store's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hermes_core::config::Limits;

use crate::store::Backlog;

/// Messages of one agent on their way into a commit; a part of what intake holds, so that one agent's flood leaves room.
const MAX_ON_THE_WAY: usize = 1024;
/// How long a chat or caller is asked to stay away.
pub const COME_BACK: Duration = Duration::from_secs(5);

/// Why an agent takes no further message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressed {
    /// As many of its turns wait as may.
    Full,
    /// Its sessions have waited for too long already.
    Late,
    /// Too many of its messages are on their way.
    Flooded,
}

#[derive(Debug, Default)]
struct Load {
    /// Waiting turns as last counted.
    counted: i64,
    /// Accepted less begun since.
    since: i64,
    /// Since when its first session waits.
    oldest: Option<Instant>,
    on_the_way: usize,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Pressure {
    loads: Arc<Mutex<HashMap<i32, Load>>>,
}

/// A message on its way; dropping it says that it has arrived.
#[derive(Debug)]
pub struct OnTheWay {
    pressure: Pressure,
    agent_no: i32,
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        self.pressure.on(self.agent_no, |load| load.on_the_way = load.on_the_way.saturating_sub(1));
    }
}

impl Pressure {
    fn loads(&self) -> MutexGuard<'_, HashMap<i32, Load>> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on<T>(&self, agent_no: i32, change: impl FnOnce(&mut Load) -> T) -> T {
        change(self.loads().entry(agent_no).or_default())
    }

    /// Whether a message of the agent is taken; `comes_back`: its sender repeats it by itself when told to. A command adds no work,
    /// so only a flood of them is refused.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, agent_no: i32, limits: &Limits, comes_back: bool, command: bool) -> Result<OnTheWay, Pressed> {
        let most = i64::try_from(limits.queued_per_agent).unwrap_or(i64::MAX);
        let late = Duration::from_secs(limits.shed_after_seconds);
        self.on(agent_no, |load| {
            if !command && load.counted.saturating_add(load.since) >= most {
                return Err(Pressed::Full);
            }
            if comes_back && !command && !late.is_zero() && load.oldest.is_some_and(|since| since.elapsed() > late) {
                return Err(Pressed::Late);
            }
            if load.on_the_way >= MAX_ON_THE_WAY {
                return Err(Pressed::Flooded);
            }
            load.on_the_way += 1;
            Ok(())
        })?;
        Ok(OnTheWay { pressure: self.clone(), agent_no })
    }

    /// A message was kept and waits.
    pub(crate) fn waits(&self, agent_no: i32) {
        self.on(agent_no, |load| load.since += 1);
    }

    /// A turn that waited has begun.
    pub(super) fn begun(&self, agent_no: i32) {
        self.on(agent_no, |load| load.since = (load.since - 1).max(-load.counted));
    }

    /// Whether anything is known to wait.
    pub(super) fn is_any(&self) -> bool {
        self.loads().values().any(|load| load.counted != 0 || load.since != 0)
    }

    /// What the store has counted; agents that are not in it have nothing that waits.
    pub(super) fn counted(&self, backlog: &[Backlog]) {
        let mut loads = self.loads();
        let now = Instant::now();
        for load in loads.values_mut() {
            *load = Load { on_the_way: load.on_the_way, ..Load::default() };
        }
        for found in backlog {
            let load = loads.entry(found.agent_no).or_default();
            load.counted = found.queued;
            load.oldest = now.checked_sub(found.oldest);
        }
        loads.retain(|_, load| load.counted != 0 || load.on_the_way != 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backlog(agent_no: i32, queued: i64, oldest: u64) -> Backlog {
        Backlog { agent_no, queued, oldest: Duration::from_secs(oldest) }
    }

    #[test]
    fn an_agents_bound_counts_what_came_since_the_last_count_and_refuses_nobody_else() {
        let (pressure, limits) = (Pressure::default(), Limits { queued_per_agent: 3, ..Limits::default() });
        pressure.counted(&[backlog(1, 2, 0)]);
        let taken = pressure.admit(1, &limits, true, false);
        assert!(taken.is_ok());
        pressure.waits(1);
        assert_eq!(pressure.admit(1, &limits, true, false).err(), Some(Pressed::Full));
        assert!(pressure.admit(1, &limits, true, true).is_ok(), "a stop is no work");
        assert!(pressure.admit(2, &limits, true, false).is_ok());
        pressure.begun(1);
        assert!(pressure.admit(1, &limits, true, false).is_ok());
        for _ in 0..9 {
            pressure.begun(1);
        }
        // However many began, what came after them counts.
        for _ in 0..3 {
            assert!(pressure.admit(1, &limits, true, false).is_ok());
            pressure.waits(1);
        }
        assert_eq!(pressure.admit(1, &limits, true, false).err(), Some(Pressed::Full));
        pressure.counted(&[]);
        assert!(pressure.admit(1, &limits, true, false).is_ok() && !pressure.is_any());
    }

    #[test]
    fn an_agent_that_is_late_refuses_those_who_come_back_and_takes_the_others() {
        let (pressure, limits) = (Pressure::default(), Limits { shed_after_seconds: 60, ..Limits::default() });
        pressure.counted(&[backlog(1, 2, 61), backlog(2, 2, 30)]);
        assert_eq!(pressure.admit(1, &limits, true, false).err(), Some(Pressed::Late));
        assert!(pressure.admit(1, &limits, false, false).is_ok() && pressure.admit(2, &limits, true, false).is_ok());
        let never = Limits { shed_after_seconds: 0, ..Limits::default() };
        assert!(pressure.admit(1, &never, true, false).is_ok());
    }

    #[test]
    fn one_agents_flood_leaves_room_on_the_way() {
        let (pressure, limits) = (Pressure::default(), Limits::default());
        let mut flood: Vec<OnTheWay> = Vec::new();
        while let Ok(message) = pressure.admit(1, &limits, true, false) {
            flood.push(message);
        }
        assert_eq!(flood.len(), MAX_ON_THE_WAY);
        assert!(pressure.admit(2, &limits, true, false).is_ok());
        flood.pop();
        assert!(pressure.admit(1, &limits, true, false).is_ok());
    }
}
