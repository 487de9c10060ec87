//! What the system knows of this process, read from /proc when somebody asks.

use super::exposition::{Family, counter, gauge};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};
use std::fs;
use std::sync::OnceLock;

/// Names as Prometheus's own libraries have them. What cannot be read is left out.
pub fn families() -> [Family; 7] {
    let stat = Stat::read();
    let stat = stat.as_ref();
    let rlimit = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft);
    [
        gauge(
            "process_resident_memory_bytes",
            "process.resident_memory_bytes",
            stat.map(|s| s.resident_bytes),
            "Memory of the process that is in RAM.",
        ),
        gauge(
            "process_virtual_memory_bytes",
            "process.virtual_memory_bytes",
            stat.map(|s| s.virtual_bytes),
            "Address space of the process.",
        ),
        gauge(
            "process_open_fds",
            "process.open_fds",
            open_files(),
            "Files and sockets that are open.",
        ),
        gauge("process_max_fds", "process.max_fds", rlimit, "Files that may be open."),
        gauge("process_threads", "process.threads", stat.map(|s| s.threads), "Threads."),
        counter(
            "process_cpu_seconds_total",
            "process.cpu_seconds_total",
            stat.map(|s| s.cpu_seconds),
            "Time on processors, of user and system.",
        ),
        gauge(
            "process_start_time_seconds",
            "process.start_time_seconds",
            stat.and_then(|s| Some(boot_seconds()? + s.started_seconds)),
            "When the process began, since 1970.",
        ),
    ]
}

/// Of /proc/self/stat.
struct Stat {
    cpu_seconds: f64,
    threads: u64,
    /// After the system's own start.
    started_seconds: f64,
    virtual_bytes: u64,
    resident_bytes: u64,
}

impl Stat {
    fn read() -> Option<Stat> {
        let of_system = |var| sysconf(var).ok()?.and_then(|n| u64::try_from(n).ok());
        let ticks = of_system(SysconfVar::CLK_TCK)? as f64;
        let page = of_system(SysconfVar::PAGE_SIZE)?;
        Stat::parse(&fs::read_to_string("/proc/self/stat").ok()?, ticks, page)
    }

    fn parse(text: &str, ticks: f64, page: u64) -> Option<Stat> {
        // The second field is a name in parentheses, with whatever it is made of.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        // Numbered from 1, as in proc_pid_stat(5).
        let field = |number: usize| fields.get(number - 3)?.trim_end().parse::<u64>().ok();
        Some(Stat {
            cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
            threads: field(20)?,
            started_seconds: field(22)? as f64 / ticks,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)?.checked_mul(page)?,
        })
    }
}

/// When the system started, as the clock said when this was first asked: later steps of the clock do
/// not move the start of the process.
fn boot_seconds() -> Option<f64> {
    static BOOT: OnceLock<Option<f64>> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let text = fs::read_to_string("/proc/stat").ok()?;
        text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
    })
}

/// The directory's size says it where the kernel knows (Linux 6.2); counting costs the more the more there
/// are.
fn open_files() -> Option<u64> {
    const DIR: &str = "/proc/self/fd";
    match fs::metadata(DIR).ok()?.len() {
        0 => Some(fs::read_dir(DIR).ok()?.count() as u64),
        n => Some(n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_moves_no_field() {
        let rest =
            "S 1 1 1 0 -1 4194560 9 9 0 0 250 50 0 0 20 0 7 0 400 8192 3 18446744073709551615 1";
        let stat = Stat::parse(&format!("42 (a) b (c)) {rest}\n"), 100.0, 4096).unwrap();
        assert_eq!((stat.cpu_seconds, stat.started_seconds), (3.0, 4.0));
        assert_eq!((stat.threads, stat.virtual_bytes, stat.resident_bytes), (7, 8192, 12288));
        assert!(Stat::parse("42 (a) S 1 1", 100.0, 4096).is_none());
    }

    #[test]
    fn this_process_has_all_of_them() {
        for family in families() {
            let known = matches!(&family.figures, super::super::exposition::Figures::One(Some(_)));
            assert!(known, "{}", family.name);
        }
    }
}
