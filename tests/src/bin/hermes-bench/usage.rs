//! CPU and memory of a process tree, from /proc.
//!
//! Called at the start and at the end of the measured time. It owns nothing. Always true: a process's time is counted
//! once, in itself while it lives and in the parent that reaped it afterwards, so the difference of two readings is what
//! the tree used in between. A process that nobody waited for is missing from the second reading; our processes and
//! Postgres wait for their children.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context as _;
use nix::unistd::{SysconfVar, sysconf};

/// What a process is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The root of the tree and what is neither of the others.
    ControlPlane,
    /// `hermes-worker`.
    Worker,
    /// The server and everything below it.
    Postgres,
}

/// One process at the time of the reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Clock ticks after boot: with the pid it names a process for ever.
    pub(crate) started: u64,
    pub(crate) role: Role,
    /// User and system time, its own and that of the children it reaped, clock ticks.
    pub(crate) ticks: u64,
    /// Resident memory, bytes.
    pub(crate) resident: u64,
}

/// A process tree at one time; the root comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) processes: Vec<Process>,
}

/// CPU time in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cpu {
    pub(crate) control_plane: f64,
    pub(crate) workers: f64,
    pub(crate) postgres: f64,
}

impl Cpu {
    pub(crate) fn total(self) -> f64 {
        self.control_plane + self.workers + self.postgres
    }
}

/// The fields we use of `/proc/PID/stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stat {
    pid: i32,
    name: String,
    parent: i32,
    ticks: u64,
    started: u64,
}

/// Reads the tree below `root`, itself included.
///
/// # Errors
/// When `root` is gone or /proc cannot be read. Processes that end meanwhile are left out.
pub(crate) fn read_tree(root: i32) -> anyhow::Result<Reading> {
    let mut stats = HashMap::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let name = entry.context("read /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if let Some(stat) = read_stat(pid) {
            stats.insert(pid, stat);
        }
    }
    anyhow::ensure!(stats.contains_key(&root) && !is_zombie(root), "process {root} has ended");
    let roles = roles(root, &stats, program);
    let processes = roles
        .into_iter()
        .filter_map(|(pid, role)| {
            let stat = stats.get(&pid)?;
            Some(Process { pid, started: stat.started, role, ticks: stat.ticks, resident: resident(pid).unwrap_or(0) })
        })
        .collect();
    Ok(Reading { processes })
}

/// CPU time of one process and the children it reaped, milliseconds; 0 when it is gone.
pub(crate) fn cpu_of(pid: i32) -> f64 {
    read_stat(pid).map_or(0.0, |stat| ticks_to_ms(stat.ticks))
}

/// Whether this very process is still there (a zombie is not).
pub(crate) fn is_running(process: &Process) -> bool {
    read_stat(process.pid).is_some_and(|stat| stat.started == process.started) && !is_zombie(process.pid)
}

/// Ended, and nobody has waited for it yet.
fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| state(&text) == Some('Z'))
}

impl Reading {
    /// What the tree used since `earlier`.
    pub(crate) fn cpu_since(&self, earlier: &Self) -> Cpu {
        let used = |role| {
            let sum = |reading: &Self| -> u64 {
                reading.processes.iter().filter(|process| process.role == role).map(|process| process.ticks).sum()
            };
            ticks_to_ms(sum(self).saturating_sub(sum(earlier)))
        };
        Cpu { control_plane: used(Role::ControlPlane), workers: used(Role::Worker), postgres: used(Role::Postgres) }
    }

    /// Resident memory of the largest process of a role, megabytes (10⁶ bytes); `None` without one.
    pub(crate) fn largest_mb(&self, role: Role) -> Option<f64> {
        let largest =
            self.processes.iter().filter(|process| process.role == role).map(|process| process.resident).max()?;
        u32::try_from(largest / 1000).ok().map(|kilobytes| f64::from(kilobytes) / 1e3)
    }

    /// How many processes have a role.
    pub(crate) fn count(&self, role: Role) -> usize {
        self.processes.iter().filter(|process| process.role == role).count()
    }
}

/// The tree below `root` in breadth-first order with each process's role, which children of Postgres inherit.
fn roles(root: i32, stats: &HashMap<i32, Stat>, program: impl Fn(&Stat) -> String) -> Vec<(i32, Role)> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for stat in stats.values() {
        children.entry(stat.parent).or_default().push(stat.pid);
    }
    let mut found = vec![(root, Role::ControlPlane)];
    let mut next = 0;
    while let Some(&(pid, role)) = found.get(next) {
        next += 1;
        for child in children.get(&pid).into_iter().flatten().filter_map(|child| stats.get(child)) {
            let own = match program(child).as_str() {
                _ if role == Role::Postgres => Role::Postgres,
                "postgres" => Role::Postgres,
                "hermes-worker" => Role::Worker,
                _ => role,
            };
            found.push((child.pid, own));
        }
    }
    found
}

/// File name of the executable, or the process's own name where that is not ours to see.
fn program(stat: &Stat) -> String {
    let path = fs::read_link(format!("/proc/{}/exe", stat.pid)).unwrap_or_default();
    path.file_name().and_then(|name| name.to_str()).map_or_else(|| stat.name.clone(), ToOwned::to_owned)
}

fn read_stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name is in parentheses and may hold any character, parentheses and newlines too: the last `)` ends it.
fn parse_stat(text: &str) -> Option<Stat> {
    let (pid, rest) = text.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        parent: fields.get(1)?.parse().ok()?,
        ticks: number(11)? + number(12)? + number(13)? + number(14)?,
        started: number(19)?,
    })
}

fn state(text: &str) -> Option<char> {
    text.rsplit_once(") ")?.1.chars().next()
}

fn resident(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    parse_resident(&text).ok_or_else(|| io::Error::other("no VmRSS"))
}

fn parse_resident(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn ticks_to_ms(ticks: u64) -> f64 {
    let per_second =
        sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u32::try_from(ticks).ok()).unwrap_or(100);
    f64::from(u32::try_from(ticks).unwrap_or(u32::MAX)) * 1e3 / f64::from(per_second)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const LINE: &str = "4242 (a ) (b\n c) S 17 4242 17 0 -1 4194560 1234 5678 0 1 250 50 7 3 20 0 9 0 987654 12345 678 \
                        18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0\n";

    #[test]
    fn a_stat_line_is_read_whatever_the_name() {
        let expected =
            Stat { pid: 4242, name: "a ) (b\n c".into(), parent: 17, ticks: 250 + 50 + 7 + 3, started: 987_654 };
        assert_eq!(parse_stat(LINE), Some(expected));
        assert_eq!(state(LINE), Some('S'));
        assert_eq!(parse_stat("4242 (cut) S 17 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(parse_resident("Name:\tx\nVmHWM:\t  99 kB\nVmRSS:\t   1000 kB\n"), Some(1_024_000));
        // A kernel thread and a zombie have none.
        assert_eq!(parse_resident("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn every_process_below_the_root_has_a_role() {
        let stat = |pid, parent, name: &str| (pid, Stat { pid, name: name.into(), parent, ticks: 0, started: 0 });
        let stats: HashMap<i32, Stat> = [
            stat(10, 1, "hermes-control-plane"),
            stat(11, 10, "postgres"),
            stat(12, 11, "hermes-worker"),
            stat(13, 10, "hermes-worker"),
            stat(14, 13, "bash"),
            stat(15, 10, "pg_isready"),
            stat(16, 1, "postgres"),
        ]
        .into();
        let mut found = roles(10, &stats, |stat| stat.name.clone());
        found.sort_by_key(|(pid, _)| *pid);
        let (plane, worker, postgres) = (Role::ControlPlane, Role::Worker, Role::Postgres);
        assert_eq!(found, [(10, plane), (11, postgres), (12, postgres), (13, worker), (14, worker), (15, plane)]);
    }

    #[test]
    fn time_moves_to_the_parent_that_reaped_and_is_counted_once() {
        let process = |pid, role, ticks| Process { pid, started: 1, role, ticks, resident: 0 };
        let before = Reading {
            processes: vec![
                process(1, Role::ControlPlane, 100),
                process(2, Role::Postgres, 40),
                process(3, Role::Postgres, 10),
            ],
        };
        let after = Reading { processes: vec![process(1, Role::ControlPlane, 130), process(2, Role::Postgres, 70)] };
        let cpu = after.cpu_since(&before);
        assert!((cpu.control_plane - ticks_to_ms(30)).abs() < 1e-9);
        assert!((cpu.postgres - ticks_to_ms(20)).abs() < 1e-9);
        assert!((cpu.total() - ticks_to_ms(50)).abs() < 1e-9);
    }

    #[test]
    fn a_real_child_is_found_and_known_by_its_start() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let found = read_tree(own).unwrap().processes.into_iter().find(|process| process.pid == pid).unwrap();
        assert!(is_running(&found));
        assert!(!is_running(&Process { started: found.started + 1, ..found.clone() }));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_running(&found));
        assert!(read_tree(pid).is_err());
    }
}
