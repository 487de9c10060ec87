//! One table per program says its commands and flags; help, parsing, and the check of the manual pages
//! come from it. Parsing itself is pico-args'.

use crate::base::{Code, Error, Result};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::process::ExitCode;
use std::str::FromStr;

/// A program's command line.
pub struct Program {
    pub name: &'static str,
    /// Section of its manual page.
    pub section: u8,
    /// One line, without a full stop.
    pub about: &'static str,
    /// The lines of the synopsis, without the program's name.
    pub usage: &'static [&'static str],
    pub commands: &'static [Command],
    pub flags: &'static [Flag],
    /// Shown at the end of the help: lines to type.
    pub examples: &'static [&'static str],
}

/// A word that says what to do.
pub struct Command {
    pub name: &'static str,
    /// Its arguments as the help shows them.
    pub args: &'static str,
    pub help: &'static str,
}

pub struct Flag {
    /// With its dashes, as in `--bind`.
    pub name: &'static str,
    /// A second, shorter name, as in `-r`.
    pub short: Option<&'static str>,
    /// What its value is called; `None` for a flag that is only there or not.
    pub value: Option<&'static str>,
    pub repeats: bool,
    pub help: &'static str,
}

impl Flag {
    pub const fn switch(name: &'static str, help: &'static str) -> Flag {
        Flag { name, short: None, value: None, repeats: false, help }
    }

    pub const fn value(name: &'static str, value: &'static str, help: &'static str) -> Flag {
        Flag { name, short: None, value: Some(value), repeats: false, help }
    }

    pub const fn repeated(name: &'static str, value: &'static str, help: &'static str) -> Flag {
        Flag { name, short: None, value: Some(value), repeats: true, help }
    }

    pub const fn or(self, short: &'static str) -> Flag {
        Flag { short: Some(short), ..self }
    }

    /// Both names, for people.
    fn names(&self) -> String {
        self.short.map_or_else(|| self.name.to_owned(), |short| format!("{short}, {}", self.name))
    }
}

/// A parsed command line.
#[derive(Debug, Default)]
pub struct Args {
    values: BTreeMap<&'static str, Vec<OsString>>,
    /// Everything that is no flag, in order.
    pub words: Vec<OsString>,
}

impl Args {
    /// Adds a value as if it had been given on the command line, in place of an earlier one.
    pub fn set(&mut self, flag: &'static str, value: impl Into<OsString>) {
        self.values.insert(flag, vec![value.into()]);
    }

    /// Adds a value to those of a flag that repeats.
    pub fn add(&mut self, flag: &'static str, value: impl Into<OsString>) {
        self.values.entry(flag).or_default().push(value.into());
    }

    pub fn unset(&mut self, flag: &str) {
        self.values.remove(flag);
    }

    pub fn has(&self, flag: &str) -> bool {
        self.values.contains_key(flag)
    }

    pub fn os(&self, flag: &str) -> Option<&OsStr> {
        self.values.get(flag)?.first().map(OsString::as_os_str)
    }

    pub fn all(&self, flag: &str) -> Result<Vec<String>> {
        let values = self.values.get(flag).map_or(&[][..], Vec::as_slice);
        values.iter().map(|v| text(flag, v)).collect()
    }

    /// All values as they were given, which for paths need not be UTF-8.
    pub fn all_os(&self, flag: &str) -> impl Iterator<Item = &OsStr> {
        self.values.get(flag).into_iter().flatten().map(OsString::as_os_str)
    }

    pub fn string(&self, flag: &str) -> Result<Option<String>> {
        self.os(flag).map(|v| text(flag, v)).transpose()
    }

    /// A value in the form that `T` is written in. Errors: `usage`, naming the flag.
    pub fn parsed<T: FromStr>(&self, flag: &str, what: &str) -> Result<Option<T>> {
        let Some(value) = self.string(flag)? else { return Ok(None) };
        let bad = |_| usage(format!("{flag}: {value:?} is not {what}"));
        value.parse().map(Some).map_err(bad)
    }

    /// The word at `index`, which the command calls `name`.
    pub fn word(&self, index: usize, name: &str) -> Result<String> {
        let word = self.words.get(index);
        text(name, word.ok_or_else(|| usage(format!("{name} is missing")))?)
    }

    /// The word at `index` as a path of this host, if it is there.
    pub fn path_word(&self, index: usize, name: &str) -> Result<Option<&OsStr>> {
        match self.words.get(index) {
            Some(word) if word.is_empty() => Err(usage(format!("{name} is empty"))),
            word => Ok(word.map(OsString::as_os_str)),
        }
    }

    /// Errors: `usage` when there are more than `n` words.
    pub fn at_most(&self, n: usize) -> Result<()> {
        match self.words.get(n) {
            Some(extra) => Err(usage(format!("unexpected argument {extra:?}"))),
            None => Ok(()),
        }
    }
}

fn text(name: &str, value: &OsStr) -> Result<String> {
    let s = value.to_str().ok_or_else(|| usage(format!("{name}: {value:?} is not UTF-8")))?;
    Ok(s.to_owned())
}

/// An error of the command line: exit status 64.
pub fn usage(message: impl Into<String>) -> Error {
    Error::new(Code::Usage, message.into())
}

/// A number and a unit, as in `30d`, that a flag has for its value.
pub fn duration_ms(flag: &str, text: &str) -> Result<i64> {
    const UNITS: [(char, i64); 5] =
        [('s', 1_000), ('m', 60_000), ('h', 3_600_000), ('d', 86_400_000), ('w', 604_800_000)];
    let wrong = || usage(format!("{flag}: {text:?} is not a number with s, m, h, d or w"));
    let (_, unit_ms) =
        UNITS.into_iter().find(|(unit, _)| text.ends_with(*unit)).ok_or_else(wrong)?;
    let number: u32 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    i64::from(number).checked_mul(unit_ms).ok_or_else(wrong)
}

/// Parses the process's arguments and runs the program; `--help` and `--version` answer by themselves.
/// Errors go to standard error, and their code decides the exit status (sysexits.h).
pub fn main(program: &Program, run: fn(Args) -> Result<()>) -> ExitCode {
    main_with(program, run, Code::exit)
}

/// As [`main`], for a program whose exit statuses are not those of sysexits.
pub fn main_with(
    program: &Program,
    run: fn(Args) -> Result<()>,
    status: fn(Code) -> u8,
) -> ExitCode {
    let outcome =
        parse(program, std::env::args_os().skip(1).collect()).and_then(|parsed| match parsed {
            Parsed::Show(text) => crate::cli::print(&text),
            Parsed::Run(args) => run(args),
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}: {e}", program.name);
            if e.code == Code::Usage {
                eprintln!("Try '{} --help'.", program.name);
            }
            ExitCode::from(status(e.code))
        }
    }
}

enum Parsed {
    Show(String),
    Run(Args),
}

fn parse(program: &Program, args: Vec<OsString>) -> Result<Parsed> {
    // Behind `--` everything is a word.
    let mut flags_part = args;
    let words_part = match flags_part.iter().position(|a| a == "--") {
        Some(at) => flags_part.split_off(at).into_iter().skip(1).collect(),
        None => Vec::new(),
    };
    let flags_part = flags_part.into_iter().flat_map(|arg| split_value(program, arg)).collect();
    let mut pico = pico_args::Arguments::from_vec(flags_part);
    if pico.contains(["-h", "--help"]) {
        return Ok(Parsed::Show(help(program)));
    }
    if pico.contains(["-V", "--version"]) {
        return Ok(Parsed::Show(format!("{} {}\n", program.name, env!("CARGO_PKG_VERSION"))));
    }
    let mut args = Args::default();
    for flag in program.flags {
        let values = take(&mut pico, flag)?;
        if !values.is_empty() {
            args.values.insert(flag.name, values);
        }
    }
    for rest in pico.finish() {
        if rest.len() > 1 && rest.to_string_lossy().starts_with('-') {
            return Err(unknown(program, &rest.to_string_lossy()));
        }
        args.words.push(rest);
    }
    args.words.extend(words_part);
    Ok(Parsed::Run(args))
}

/// `--flag=value` and `-fvalue` as two arguments; pico-args splits only values that are UTF-8.
fn split_value(program: &Program, arg: OsString) -> Vec<OsString> {
    use std::os::unix::ffi::OsStrExt;
    let value = |f: &Flag| {
        f.value?;
        let rest = arg.as_bytes().strip_prefix(f.name.as_bytes())?;
        let glued = (f.name.len() == 2 && !rest.is_empty()).then_some(rest);
        rest.strip_prefix(b"=").or(glued)
    };
    match program.flags.iter().find_map(|f| Some((f, value(f)?))) {
        Some((f, value)) => vec![f.name.into(), OsStr::from_bytes(value).to_owned()],
        None => match cluster(program, arg.as_bytes()) {
            Some(flags) => flags.into_iter().map(OsString::from).collect(),
            None => vec![arg],
        },
    }
}

/// The flags in `-abc`, where all are there or not.
fn cluster(program: &Program, arg: &[u8]) -> Option<Vec<&'static str>> {
    let letters = arg.strip_prefix(b"-").filter(|l| l.len() > 1)?;
    let flag = |letter: &u8| {
        let is_it = |name: &&str| name.as_bytes() == [b'-', *letter];
        let switches = program.flags.iter().filter(|f| f.value.is_none());
        switches.flat_map(|f| std::iter::once(f.name).chain(f.short)).find(is_it)
    };
    letters.iter().map(flag).collect()
}

fn take(pico: &mut pico_args::Arguments, flag: &Flag) -> Result<Vec<OsString>> {
    if flag.value.is_none() {
        let mut times = 0;
        while pico.contains(flag.name) || flag.short.is_some_and(|short| pico.contains(short)) {
            times += 1;
        }
        return Ok(if times > 0 { vec![OsString::new()] } else { vec![] });
    }
    let as_is = |s: &OsStr| Ok::<_, std::convert::Infallible>(s.to_owned());
    let values = pico
        .values_from_os_str(flag.name, as_is)
        .map_err(|_| usage(format!("{} needs a value", flag.name)))?;
    if values.len() > 1 && !flag.repeats {
        return Err(usage(format!("{} is given twice", flag.name)));
    }
    // A path that leads nowhere, as of a variable that is not set.
    if matches!(flag.value, Some("file" | "dir" | "mountpoint"))
        && values.iter().any(|v| v.is_empty())
    {
        return Err(usage(format!("{} is empty", flag.name)));
    }
    Ok(values)
}

/// The error for a flag that the program does not have, with the one that was probably meant.
fn unknown(program: &Program, given: &str) -> Error {
    let bare = given.split('=').next().unwrap_or(given);
    // Every short flag is near every other one.
    let long = program.flags.iter().map(|f| f.name).filter(|name| name.len() > 2);
    let near = long.min_by_key(|name| distance(name, bare));
    match near.filter(|name| distance(name, bare) <= 3) {
        Some(name) => usage(format!("unknown flag {bare}; did you mean {name}?")),
        None => usage(format!("unknown flag {bare}")),
    }
}

/// Edit distance, for suggestions.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let next = (diagonal + usize::from(ca != *cb)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

/// The text of `--help`.
pub fn help(program: &Program) -> String {
    let mut s = format!("{} - {}\n\nUsage:\n", program.name, program.about);
    for usage in program.usage {
        let _ = writeln!(s, "  {} {usage}", program.name);
    }
    if !program.commands.is_empty() {
        s.push_str("\nCommands:\n");
        let name = |c: &Command| format!("{} {}", c.name, c.args).trim_end().to_owned();
        let width = program.commands.iter().map(|c| name(c).len()).max().unwrap_or(0).min(30);
        for command in program.commands {
            row(&mut s, &name(command), width, command.help);
        }
    }
    s.push_str("\nOptions:\n");
    let name = |f: &Flag| match f.value {
        Some(value) => format!("{} <{value}>{}", f.names(), if f.repeats { " ..." } else { "" }),
        None => f.names(),
    };
    let standard = [
        Flag::switch("-h, --help", "Show this help"),
        Flag::switch("-V, --version", "Show the version"),
    ];
    let flags = || program.flags.iter().chain(&standard);
    let width = flags().map(|f| name(f).len()).max().unwrap_or(0).min(34);
    for flag in flags() {
        row(&mut s, &name(flag), width, flag.help);
    }
    if !program.examples.is_empty() {
        s.push_str("\nExamples:\n");
        for example in program.examples {
            let _ = writeln!(s, "  {example}");
        }
    }
    let _ =
        writeln!(s, "\nMore in {}({}) and spiderweb-protocol(7).", program.name, program.section);
    s
}

fn row(s: &mut String, name: &str, width: usize, help: &str) {
    if name.len() > width {
        let _ = writeln!(s, "  {name}\n  {:width$}  {help}", "");
    } else {
        let _ = writeln!(s, "  {name:width$}  {help}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: Program = Program {
        name: "demo",
        section: 1,
        about: "shows things",
        usage: &["[options] <command>"],
        commands: &[Command { name: "cat", args: "<path>", help: "Print a file" }],
        flags: &[
            Flag::value("--port", "n", "Port"),
            Flag::repeated("--export", "spec", "Export"),
            Flag::switch("--json", "JSON").or("-j"),
            Flag::repeated("-o", "options", "Options"),
            Flag::switch("-q", "Say nothing"),
        ],
        examples: &["demo cat /x"],
    };

    fn run(args: &[&str]) -> Result<Args> {
        match parse(&PROGRAM, args.iter().map(OsString::from).collect())? {
            Parsed::Run(args) => Ok(args),
            Parsed::Show(text) => panic!("{text}"),
        }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration_ms("--x", "30d").unwrap(), 30 * 86_400_000);
        assert_eq!(duration_ms("--x", "90s").unwrap(), 90_000);
        for bad in ["", "d", "30", "-1d", "1.5h", "30 d", "99999999999d", "1ü"] {
            assert!(duration_ms("--x", bad).unwrap_err().message.starts_with("--x: "), "{bad}");
        }
    }

    #[test]
    fn flags_stand_anywhere_and_repeat_only_where_they_may() {
        let a = run(&["cat", "--export=a=b", "/x", "--json", "--export", "c=d", "--", "--port"])
            .unwrap();
        assert_eq!(a.words, ["cat", "/x", "--port"]);
        assert_eq!(a.all("--export").unwrap(), ["a=b", "c=d"]);
        assert!(a.has("--json") && !a.has("--port"));
        assert_eq!(
            run(&["--port", "1", "--port", "2"]).unwrap_err().message,
            "--port is given twice"
        );
        assert_eq!(run(&["--port"]).unwrap_err().message, "--port needs a value");
        let a = run(&["-j", "-oro,x=1", "-o", "y", "-o=z"]).unwrap();
        assert!(a.has("--json"));
        assert_eq!(a.all("-o").unwrap(), ["ro,x=1", "y", "z"]);
        let a = run(&["-qj"]).unwrap();
        assert!(a.has("--json") && a.has("-q") && run(&["-qx"]).is_err());
    }

    #[test]
    fn wrong_values_and_unknown_flags_are_named() {
        let e = run(&["--prot", "1"]).unwrap_err();
        assert_eq!(e.message, "unknown flag --prot; did you mean --port?");
        assert_eq!(run(&["-3"]).unwrap_err().message, "unknown flag -3");
        let a = run(&["--port", "x"]).unwrap();
        let e = a.parsed::<u16>("--port", "a port").unwrap_err();
        assert_eq!((e.code.exit(), &*e.message), (64, "--port: \"x\" is not a port"));
        assert!(a.at_most(0).is_ok() && a.word(0, "<command>").is_err());
    }

    #[test]
    fn help_shows_every_flag_and_command() {
        let text = help(&PROGRAM);
        for part in
            ["demo - shows things", "cat <path>", "--export <spec> ...", "--json", "--version"]
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
