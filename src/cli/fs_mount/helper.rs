//! mount.spiderweb: what mount(8) runs for a file system of type `spiderweb`. The same program under
//! another name, which speaks of sources and `-o` and goes on in the background.

use super::options;
use crate::base::{Code, Result};
use crate::cli::{Args, Flag, Program, usage};
use crate::net::WsUrl;

pub const NAME: &str = "mount.spiderweb";

/// What the export that is the source is called where endpoints have names.
const ENDPOINT: &str = "source";

pub const PROGRAM: Program = Program {
    name: NAME,
    section: 8,
    about: "mount a spiderweb export or workspace, for mount(8)",
    usage: &["<source> <directory> [-fnrsvw] [-o options]"],
    commands: &[],
    flags: &[
        Flag::repeated("-o", "options", "Options, separated by commas"),
        Flag::switch("-f", "Check the command line and do nothing"),
        Flag::switch("-n", "Taken for the sake of mount(8)"),
        Flag::switch("-r", "Mount read-only, as -o ro"),
        Flag::switch("-s", "Pass over unknown options"),
        Flag::switch("-v", "Log more, as -o log_level=debug"),
        Flag::switch("-w", "Mount for reading and writing, as -o rw"),
        Flag::value("-t", "type", "Taken for the sake of mount(8)"),
    ],
    examples: &[
        "mount -t spiderweb ws://127.0.0.1:18891/v2/fs#work /mnt/work",
        "mount -t spiderweb -o workspace,project_id=proj-1 ws://127.0.0.1:18790/ /mnt/sw",
    ],
};

/// Exit statuses as mount(8) knows them: incorrect invocation, and a mount that failed.
pub fn status(code: Code) -> u8 {
    if code == Code::Usage { 1 } else { 32 }
}

pub fn run(mut args: Args) -> Result<()> {
    args.at_most(2)?;
    let source = args.word(0, "<source>")?;
    let directory = args.words.get(1).cloned().ok_or_else(|| usage("<directory> is missing"))?;
    let sloppy = args.has("-s");
    options::apply(&mut args, sloppy)?;
    if args.has("-o workspace") {
        args.set("--workspace-url", source.as_str());
    } else if source != "none" {
        let url = source.rsplit_once('#').map_or(&*source, |(url, _)| url);
        WsUrl::parse(url).map_err(|e| {
            let form = "write URL[#EXPORT], as in ws://host:18891/v2/fs#work";
            usage(format!("the source: {}; {form}", e.message))
        })?;
        args.add("--endpoint", format!("{ENDPOINT}={source}@/"));
    } else if !args.has("--endpoint") && !args.has("--workspace-url") {
        return Err(usage("the source none needs -o endpoint=… or -o workspace_url=…"));
    }
    // What `mount -a` compares with the table, to know what is mounted already.
    if !args.has("-o fsname") {
        args.set("-o fsname", source);
    }
    if args.has("-r") {
        args.set("--read-only", "");
    }
    if args.has("-w") {
        args.unset("--read-only");
    }
    if args.has("-v") && !args.has("--log-level") {
        args.set("--log-level", "debug");
    }
    args.words = vec!["mount".into(), directory];
    args.set("--daemon", "");
    let check_only = args.has("-f");
    super::start(&args, check_only)
}
