//! Whether this machine has room for workers that nobody asked for yet.

use std::fs;

/// Memory that stays free for what is asked for, in KiB.
const FREE_KIB: u64 = 512 * 1024;

/// Enough free memory and no more to run than processors; yes where Linux does not tell.
pub fn has_room() -> bool {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| enough_memory(&text)).unwrap_or(true);
    let load =
        fs::read_to_string("/proc/loadavg").ok().and_then(|text| idle_processor(&text, processors)).unwrap_or(true);
    memory && load
}

fn enough_memory(meminfo: &str) -> Option<bool> {
    let kib = |name: &str| {
        meminfo.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok())
    };
    let (available, total) = (kib("MemAvailable:")?, kib("MemTotal:")?);
    Some(available >= FREE_KIB.min(total / 4))
}

/// The fourth field of `loadavg` is `running/existing`; we are one of the running.
fn idle_processor(loadavg: &str, processors: usize) -> Option<bool> {
    let running: usize = loadavg.split_whitespace().nth(3)?.split('/').next()?.parse().ok()?;
    Some(running <= processors + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_needs_memory_and_a_processor() {
        let meminfo = |available| format!("MemTotal:  8000000 kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n");
        assert_eq!(enough_memory(&meminfo(600_000)), Some(true));
        assert_eq!(enough_memory(&meminfo(400_000)), Some(false));
        assert_eq!(enough_memory("nothing"), None);
        assert_eq!(idle_processor("0.50 0.40 0.30 2/345 6789", 2), Some(true));
        assert_eq!(idle_processor("9.50 0.40 0.30 7/345 6789", 2), Some(false));
    }
}
