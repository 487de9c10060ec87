//! What `--endpoint` says: an export of a node, and where it is mounted (spec: fs 17).

use crate::base::{Code, Error, Result, TreePath};
use crate::net::WsUrl;

/// What is mounted when nothing is named.
pub const DEFAULT: &str = "a=ws://127.0.0.1:18891/v2/fs";

/// An export to mount. Endpoints with the same mount path stand in for each other, the first first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// For people.
    pub name: String,
    pub url: WsUrl,
    /// `None`: the node's first.
    pub export: Option<String>,
    pub mount_path: TreePath,
    /// What the node asks of its clients.
    pub token: Option<String>,
}

/// `name=url[#export][@/mount]`. Errors: `usage`.
impl std::str::FromStr for Endpoint {
    type Err = Error;

    fn from_str(spec: &str) -> Result<Endpoint> {
        let bad = |what: &str| {
            let form =
                "write NAME=URL[#EXPORT][@/MOUNT], as in a=ws://127.0.0.1:18891/v2/fs#work@/src";
            Error::new(Code::Usage, format!("--endpoint {spec:?}: {what}; {form}"))
        };
        let (name, rest) = spec.split_once('=').ok_or_else(|| bad("there is no ="))?;
        if name.is_empty() {
            return Err(bad("the name is empty"));
        }
        // Only an @ before a path is the mount's; one in a URL's user part is for the URL to refuse.
        let (rest, mount) = match rest.rsplit_once("@/") {
            Some((rest, mount)) => (rest, mount),
            None => (rest, name),
        };
        let (url, export) = match rest.rsplit_once('#') {
            Some((_, "")) => return Err(bad("the export's name is empty")),
            Some((url, export)) => (url, Some(export.to_owned())),
            None => (rest, None),
        };
        if url.is_empty() {
            return Err(bad("the URL is empty"));
        }
        let path = |mount: &str| TreePath::parse(mount.trim());
        Ok(Endpoint {
            name: name.to_owned(),
            url: WsUrl::parse(url).map_err(|e| bad(&e.message))?.or_path("/v2/fs"),
            export,
            mount_path: path(mount).map_err(|e| bad(&e.message))?,
            token: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(spec: &str) -> (String, String, Option<String>, String) {
        let e: Endpoint = spec.parse().unwrap();
        (e.name, e.url.to_string(), e.export, e.mount_path.to_string())
    }

    #[test]
    fn every_form_is_understood() {
        let url = "ws://h:1/v2/fs";
        for (spec, name, export, mount) in [
            (DEFAULT, "a", None, "/a"),
            ("a=ws://h:1/v2/fs", "a", None, "/a"),
            ("a=ws://h:1/v2/fs#work", "a", Some("work"), "/a"),
            ("a=ws://h:1/v2/fs#work@/src", "a", Some("work"), "/src"),
            ("a=ws://h:1/v2/fs@/", "a", None, "/"),
            ("a=ws://h:1/v2/fs@/ x/y// ", "a", None, "/x/y"),
            ("a=ws://h:1/v2/fs#we=ird@/src", "a", Some("we=ird"), "/src"),
            ("a=ws://h:1/v2/fs#at@home", "a", Some("at@home"), "/a"),
            ("a=ws://h:1", "a", None, "/a"),
        ] {
            let url = if spec == DEFAULT { &DEFAULT[2..] } else { url };
            let expected =
                (name.to_owned(), url.to_owned(), export.map(str::to_owned), mount.to_owned());
            assert_eq!(parse(spec), expected, "{spec}");
        }
    }

    #[test]
    fn the_last_mark_counts() {
        let (_, _, export, mount) = parse("a=ws://h/v2/fs#x@/y@/z");
        assert_eq!((export.as_deref(), &*mount), (Some("x@/y"), "/z"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (spec, part) in [
            ("ws://h/v2/fs", "there is no ="),
            ("=ws://h", "name is empty"),
            ("a=", "URL is empty"),
            ("a=@/x", "URL is empty"),
            ("a=ws://h#", "export's name is empty"),
            ("a=ws://h#@/x", "export's name is empty"),
            ("a=http://h", "neither ws nor wss"),
            ("a=ws://h@/x/../y", "invalid child name"),
        ] {
            let e = spec.parse::<Endpoint>().unwrap_err();
            assert_eq!(e.code, Code::Usage, "{spec}");
            assert!(e.message.contains(part) && e.message.contains("NAME=URL"), "{spec}: {e}");
        }
    }
}
