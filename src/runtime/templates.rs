//! The files of workspace templates, `<runtime.assets_dir>/workspaces/<template_id>.json`: which there are,
//! and their text, read anew on every call, for people edit them. What they say is the control plane's to
//! understand.

use crate::base::{Code, Error, Result, ResultExt};
use crate::config;
use crate::control::{Templates, is_template_id};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;

/// Most templates; a directory with more is not listed.
const TEMPLATES_MAX: usize = 256;
/// Largest file: as large as a request may be that says the same.
const SIZE_MAX: usize = 256 * 1024;
const SUFFIX: &str = ".json";
/// The directory, as messages name it: not everyone is to know where it lies on this host.
const SHOWN: &str = "workspaces in runtime.assets_dir";

/// The directory of templates.
pub struct TemplateDir(PathBuf);

impl TemplateDir {
    pub fn new(settings: &config::Runtime) -> TemplateDir {
        TemplateDir(settings.assets_dir.join("workspaces"))
    }
}

impl Templates for TemplateDir {
    fn ids(&self) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::from(e).context(SHOWN)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.context(SHOWN)?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            let Some(id) = id.filter(|id| is_template_id(id)) else { continue };
            if ids.len() == TEMPLATES_MAX {
                let message = format!("{SHOWN} has more than {TEMPLATES_MAX} templates");
                return Err(Error::new(Code::LimitExceeded, message));
            }
            ids.push(id.to_owned());
        }
        ids.sort();
        Ok(ids)
    }

    fn read(&self, template_id: &str) -> Result<String> {
        let missing = || {
            let message = format!("there is no template {template_id:?}");
            Error::new(Code::TemplateNotFound, message)
        };
        if !is_template_id(template_id) {
            return Err(missing());
        }
        let open = || -> Result<File> {
            // A link may lead to another file of the directory, and nowhere else; a pipe holds nobody up.
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
            let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
            let how = OpenHow::new().flags(flags).resolve(resolve);
            let dir = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let dir = nix::fcntl::open(&self.0, dir, Mode::empty())?;
            Ok(openat2(dir, &*format!("{template_id}{SUFFIX}"), how)?.into())
        };
        let file = open().map_err(|e| match e.errno() {
            libc::ENOENT => missing(),
            libc::EXDEV => Error::new(e.code, "it is a link that leads out of the directory"),
            _ => e,
        })?;
        if !file.metadata()?.is_file() {
            return Err(Error::invalid("it is not a file"));
        }
        let mut bytes = Vec::new();
        file.take(SIZE_MAX as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > SIZE_MAX {
            return Err(Error::invalid(format!("it is larger than {SIZE_MAX} bytes")));
        }
        String::from_utf8(bytes).map_err(|_| Error::invalid("it is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::TempDir;
    use std::os::unix::fs::symlink;

    fn open(dir: &TempDir) -> TemplateDir {
        std::fs::create_dir(dir.path("workspaces")).unwrap();
        TemplateDir::new(&config::Runtime {
            assets_dir: dir.path(""),
            ..config::Config::defaults().runtime
        })
    }

    #[test]
    fn files_with_the_name_of_a_template_are_one_and_are_read_anew() {
        let dir = TempDir::new();
        let none = TemplateDir(dir.path("none"));
        assert!(none.ids().unwrap().is_empty());
        assert_eq!(none.read("a").unwrap_err().code, Code::TemplateNotFound);
        let templates = open(&dir);
        for name in ["b.json", "a.1_x-Y.json", ".hidden.json", "a b.json", "a.json~", "README"] {
            std::fs::write(dir.path("workspaces").join(name), name).unwrap();
        }
        let long = format!("{}.json", "x".repeat(65));
        std::fs::write(dir.path("workspaces").join(long), "").unwrap();
        assert_eq!(templates.ids().unwrap(), ["a.1_x-Y", "b"]);
        assert_eq!(templates.read("b").unwrap(), "b.json");
        std::fs::write(dir.path("workspaces/b.json"), "new").unwrap();
        assert_eq!(templates.read("b").unwrap(), "new");
        for id in ["c", ".hidden", "a b", "../workspaces/b", "/etc/passwd", "", &"x".repeat(65)] {
            assert_eq!(templates.read(id).unwrap_err().code, Code::TemplateNotFound, "{id}");
        }
    }

    #[test]
    fn what_is_no_bounded_text_of_this_directory_is_refused() {
        let dir = TempDir::new();
        let templates = open(&dir);
        let at = |name: &str| dir.path("workspaces").join(name);
        std::fs::write(dir.path("outside.json"), "{}").unwrap();
        symlink("../outside.json", at("out.json")).unwrap();
        symlink("/etc/hostname", at("host.json")).unwrap();
        std::fs::create_dir(at("dir.json")).unwrap();
        nix::unistd::mkfifo(&at("pipe.json"), Mode::S_IRWXU).unwrap();
        std::fs::write(at("large.json"), vec![b' '; SIZE_MAX + 1]).unwrap();
        std::fs::write(at("bytes.json"), b"\"\xff\"").unwrap();
        std::fs::write(at("full.json"), vec![b' '; SIZE_MAX]).unwrap();
        symlink("full.json", at("within.json")).unwrap();
        for (id, words) in [
            ("out", "leads out"),
            ("host", "leads out"),
            ("dir", "not a file"),
            ("pipe", "not a file"),
            ("large", "larger than"),
            ("bytes", "UTF-8"),
        ] {
            let e = templates.read(id).unwrap_err();
            assert!(e.message.contains(words), "{id}: {e}");
        }
        assert_eq!(templates.read("full").unwrap(), templates.read("within").unwrap());
        assert_eq!(templates.ids().unwrap().len(), 8);
    }

    #[test]
    fn a_directory_with_too_many_is_not_listed_and_still_read() {
        let dir = TempDir::new();
        let templates = open(&dir);
        let write = |n: usize| std::fs::write(dir.path(format!("workspaces/{n}.json")), "{}");
        (0..TEMPLATES_MAX).for_each(|n| write(n).unwrap());
        assert_eq!(templates.ids().unwrap().len(), TEMPLATES_MAX);
        write(TEMPLATES_MAX).unwrap();
        let e = templates.ids().unwrap_err();
        assert_eq!(e.code, Code::LimitExceeded);
        assert!(!e.message.contains(dir.path("").to_str().unwrap()), "{e}");
        assert_eq!(templates.read("0").unwrap(), "{}");
    }
}
