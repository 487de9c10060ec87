//! `-o`: options as mount(8) passes them, comma separated. Most are flags under another name, and become
//! those; the others are kept under their own, as `-o name`.

use crate::base::{Result, ResultExt};
use crate::cli::{Args, usage};
use crate::mount::options::{ATTR_TIMEOUT, Options, View};
use std::time::Duration;

/// What an option stands for.
#[derive(Clone, Copy)]
enum Means {
    /// A value: that of a flag, in place of an earlier one.
    Sets(&'static str),
    /// A value of a flag that repeats.
    Adds(&'static str),
    On(&'static str),
    Off(&'static str),
    /// For others than this program.
    Nothing,
}

use Means::{Adds, Nothing, Off, On, Sets};

/// Longest time that the kernel may be told to believe attributes, in seconds.
const ATTR_TIMEOUT_MAX: f64 = 86_400.0;

/// What is kept on disk where nothing else is asked for.
const CACHE_DIR_BYTES: u64 = 1 << 30;

const TABLE: &[(&str, Means)] = &[
    ("endpoint", Adds("--endpoint")),
    ("endpoint_token_file", Adds("--endpoint-token-file")),
    ("workspace_url", Sets("--workspace-url")),
    ("project_id", Sets("--project-id")),
    ("project_token", Sets("--project-token")),
    ("agent_id", Sets("--agent-id")),
    ("auth_token_file", Sets("--auth-token-file")),
    ("workspace_sync_interval_ms", Sets("--workspace-sync-interval-ms")),
    ("timeout_ms", Sets("--timeout-ms")),
    ("log_level", Sets("--log-level")),
    ("log_file", Sets("--log-file")),
    ("allow_other", On("--allow-other")),
    ("compress", On("--compress")),
    ("ro", On("--read-only")),
    ("read_only", On("--read-only")),
    ("rw", Off("--read-only")),
    ("default_permissions", On("-o default_permissions")),
    ("noexec", On("-o noexec")),
    ("exec", Off("-o noexec")),
    ("copy_across", On("-o copy_across")),
    ("workspace", On("-o workspace")),
    ("fsname", Sets("-o fsname")),
    ("uid", Sets("-o uid")),
    ("gid", Sets("-o gid")),
    ("umask", Sets("-o umask")),
    ("fmask", Sets("-o fmask")),
    ("dmask", Sets("-o dmask")),
    ("attr_timeout", Sets("-o attr_timeout")),
    ("cache_size", Sets("-o cache_size")),
    ("no_cache", On("-o no_cache")),
    ("cache_dir", Sets("-o cache_dir")),
    ("cache_dir_size", Sets("-o cache_dir_size")),
    ("_netdev", Nothing),
    ("async", Nothing),
    ("atime", Nothing),
    ("auto", Nothing),
    ("comment", Nothing),
    ("defaults", Nothing),
    ("dev", Nothing),
    ("diratime", Nothing),
    ("group", Nothing),
    ("noatime", Nothing),
    ("noauto", Nothing),
    ("nodev", Nothing),
    ("nodiratime", Nothing),
    ("nofail", Nothing),
    ("norelatime", Nothing),
    ("nosuid", Nothing),
    ("nouser", Nothing),
    ("owner", Nothing),
    ("relatime", Nothing),
    ("suid", Nothing),
    ("user", Nothing),
    ("users", Nothing),
];

/// Puts the options of every `-o` in their places. Errors: `usage`, for one that is unknown, unless
/// `sloppy`, or lacks its value.
pub fn apply(args: &mut Args, sloppy: bool) -> Result<()> {
    for list in args.all("-o")? {
        for option in split(&list) {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (&*option, None),
            };
            let known = TABLE.iter().find(|(known, _)| *known == name).map(|(_, means)| *means);
            let means = match known {
                Some(means) => means,
                None if name.starts_with("x-") || name.starts_with("X-") || sloppy => continue,
                None => return Err(usage(format!("-o: unknown option {name:?}"))),
            };
            match (means, value) {
                (Nothing, _) => {}
                (Sets(flag), Some(value)) if !value.is_empty() => args.set(flag, value),
                (Adds(flag), Some(value)) if !value.is_empty() => args.add(flag, value),
                (On(flag), None) => args.set(flag, ""),
                (Off(flag), None) => args.unset(flag),
                (Sets(_) | Adds(_), _) => {
                    return Err(usage(format!("-o {name} needs a value, as in {name}=…")));
                }
                (On(_) | Off(_), Some(_)) => {
                    return Err(usage(format!("-o {name} takes no value")));
                }
            }
        }
    }
    Ok(())
}

/// At commas; `\,` is a comma within an option.
fn split(list: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            (',', _) => all.push(String::new()),
            ('\\', Some(',' | '\\')) => all.last_mut().expect("not empty").extend(chars.next()),
            _ => all.last_mut().expect("not empty").push(c),
        }
    }
    all.retain(|option| !option.is_empty());
    all
}

/// What the options and flags say about a mount. `source`: what is shown where `fsname` says nothing.
pub fn read(args: &Args, source: String, timeout_ms: u64) -> Result<Options> {
    let mask = |name: &str| -> Result<Option<u32>> {
        let Some(text) = args.string(name)? else { return Ok(None) };
        let mask = u32::from_str_radix(&text, 8).ok().filter(|mask| *mask <= 0o777);
        mask.map(Some).ok_or_else(|| usage(format!("{name}: {text:?} is not an octal mask")))
    };
    let umask = mask("-o umask")?.unwrap_or(0);
    let attr_timeout = match args.parsed::<f64>("-o attr_timeout", "a number of seconds")? {
        None => ATTR_TIMEOUT,
        Some(s) if (0.0..=ATTR_TIMEOUT_MAX).contains(&s) => Duration::from_secs_f64(s),
        Some(_) => return Err(usage(format!("-o attr_timeout: 0 to {ATTR_TIMEOUT_MAX} seconds"))),
    };
    let size = |name: &str| args.string(name)?.map(|text| bytes(name, &text)).transpose();
    let cache_bytes = if args.has("-o no_cache") { Some(0) } else { size("-o cache_size")? };
    let cache_dir = match (args.string("-o cache_dir")?, size("-o cache_dir_size")?) {
        (None, None) => None,
        (None, Some(_)) => return Err(usage("-o cache_dir_size needs cache_dir=…")),
        (Some(_), _) if cache_bytes == Some(0) => {
            return Err(usage("-o cache_dir needs the cache in memory, which no_cache turns off"));
        }
        (Some(dir), bytes) => {
            let dir = std::path::absolute(dir).context("-o cache_dir")?;
            Some((dir, bytes.unwrap_or(CACHE_DIR_BYTES)))
        }
    };
    Ok(Options {
        source: args.string("-o fsname")?.unwrap_or(source),
        allow_other: args.has("--allow-other"),
        default_permissions: args.has("-o default_permissions"),
        read_only: args.has("--read-only"),
        no_exec: args.has("-o noexec"),
        copy_across: args.has("-o copy_across"),
        timeout_ms,
        view: View {
            uid: owner(args, "-o uid", |name| {
                Ok(nix::unistd::User::from_name(name)?.map(|user| user.uid.as_raw()))
            })?,
            gid: owner(args, "-o gid", |name| {
                Ok(nix::unistd::Group::from_name(name)?.map(|group| group.gid.as_raw()))
            })?,
            file_mask: mask("-o fmask")?.unwrap_or(umask),
            dir_mask: mask("-o dmask")?.unwrap_or(umask),
            attr_timeout,
        },
        cache_bytes,
        cache_dir,
    })
}

/// A number, or a name that this host knows.
fn owner(
    args: &Args,
    option: &str,
    find: impl Fn(&str) -> Result<Option<u32>>,
) -> Result<Option<u32>> {
    let Some(text) = args.string(option)? else { return Ok(None) };
    // The highest stands for "no change".
    let number = text.parse().ok().filter(|n| *n != u32::MAX);
    let found = match number {
        Some(number) => Some(number),
        None => find(&text).context(option)?,
    };
    found.map(Some).ok_or_else(|| usage(format!("{option}: this host knows no {text:?}")))
}

/// A size in bytes, or with K, M or G behind it.
fn bytes(option: &str, text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        _ => None,
    };
    let number = digits.parse::<u64>().ok().zip(shift);
    number
        .and_then(|(n, shift)| n.checked_mul(1 << shift))
        .ok_or_else(|| usage(format!("{option}: {text:?} is not a size such as 64M")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(lists: &[&str]) -> Result<Args> {
        let mut args = Args::default();
        lists.iter().for_each(|list| args.add("-o", *list));
        apply(&mut args, false).map(|()| args)
    }

    #[test]
    fn options_are_flags_under_another_name() {
        let args = given(&[
            "rw,_netdev,nofail,x-systemd.automount,endpoint=a=ws://h/v2/fs#x@/a",
            r"endpoint=b=ws://h/v2/fs#with\,comma,ro,comment=hello,timeout_ms=5,,timeout_ms=6",
        ])
        .unwrap();
        assert_eq!(
            args.all("--endpoint").unwrap(),
            ["a=ws://h/v2/fs#x@/a", "b=ws://h/v2/fs#with,comma"]
        );
        assert!(args.has("--read-only"));
        assert_eq!(args.string("--timeout-ms").unwrap().unwrap(), "6", "the last counts");
        assert!(!given(&["ro,rw"]).unwrap().has("--read-only"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (list, part) in [
            ("bogus", "unknown option \"bogus\""),
            ("auth_token=x", "unknown option \"auth_token\""),
            ("uid", "uid needs a value"),
            ("uid=", "uid needs a value"),
            ("ro=1", "ro takes no value"),
        ] {
            let e = given(&[list]).unwrap_err();
            assert!(e.message.contains(part), "{list}: {e}");
        }
        for (list, part) in [
            ("uid=-1", "-o uid"),
            ("uid=4294967295", "-o uid"),
            ("gid=no-such-group-here", "knows no"),
            ("umask=9", "octal"),
            ("fmask=7777", "octal"),
            ("attr_timeout=-1", "0 to 86400"),
            ("attr_timeout=soon", "number of seconds"),
            ("cache_size=much", "such as 64M"),
            ("cache_size=99999999999G", "such as 64M"),
        ] {
            let e = read(&given(&[list]).unwrap(), String::new(), 1).unwrap_err();
            assert!(e.message.contains(part), "{list}: {e}");
        }
        let mut args = Args::default();
        args.add("-o", "bogus,ro");
        apply(&mut args, true).unwrap();
        assert!(args.has("--read-only"), "sloppy");
    }

    #[test]
    fn a_mount_is_described_by_its_options() {
        let list = "uid=root,gid=7,umask=022,fmask=133,cache_size=64M,attr_timeout=0.5,noexec";
        let o = read(&given(&[list]).unwrap(), "s".into(), 9).unwrap();
        assert_eq!((o.view.uid, o.view.gid), (Some(0), Some(7)));
        assert_eq!((o.view.file_mask, o.view.dir_mask), (0o133, 0o022));
        assert_eq!((o.cache_bytes, o.timeout_ms, o.no_exec), (Some(64 << 20), 9, true));
        assert_eq!((o.view.attr_timeout, &*o.source), (Duration::from_millis(500), "s"));
        let off = read(&given(&["no_cache"]).unwrap(), String::new(), 1).unwrap();
        assert_eq!(off.cache_bytes, Some(0));
    }
}
