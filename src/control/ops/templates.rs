//! workspace_template_list, workspace_template_get (spec: control 13), and what the file of a template may
//! say: it is read as strictly as a request, and more so, for people write it.

use super::mounts::Layout;
use super::{Call, Context, identifier, shortened, text};
use crate::base::{Code, Error, Result, ResultExt};
use crate::control::TEMPLATE_ID_MAX;
use crate::control::policy::Policy;
use crate::wire::{Fields, Object};

const MEMBERS: &[&str] = &["description", "vision", "access_policy", "mounts", "binds"];
/// Members of the lists' entries.
const ENTRIES: [(&str, &[&str]); 2] = [
    ("mounts", &["mount_path", "node_id", "node_name", "export_name"]),
    ("binds", &["bind_path", "target_path"]),
];

/// What a project can begin with; `None` is left to who makes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Template {
    description: Option<String>,
    pub vision: Option<String>,
    pub policy: Option<Policy>,
    pub layout: Layout,
}

impl Template {
    /// Errors: those of a request with these fields; `invalid` for what is not JSON, or a member that is
    /// not known, by its name.
    fn parse(json: &str) -> Result<Template> {
        let f = Fields::parse(json).map_err(|e| {
            Error::invalid(e.map_or("it is not an object".into(), |e| format!("not JSON: {e}")))
        })?;
        all_known(&f, MEMBERS)?;
        let limited = |name: &str| f.string(name)?.map(|v| text(name, v, 1024)).transpose();
        let policy = f.object("access_policy")?;
        let template = Template {
            description: limited("description")?,
            vision: limited("vision")?,
            policy: policy.as_ref().map(Policy::read).transpose()?,
            layout: Layout::read(&f, "mounts", "binds")?,
        };
        if let Some(name) = policy.and_then(|p| Policy::passed_over(&p)) {
            return Err(unknown(&name).context("access_policy"));
        }
        for (list, members) in ENTRIES {
            for (n, entry) in f.array(list)?.unwrap_or_default().into_iter().enumerate() {
                let name = format!("{list}[{n}]");
                all_known(&Fields::of(&name, entry)?, members).context(name)?;
            }
        }
        Ok(template)
    }

    /// How many mounts and binds it has.
    fn counts(&self) -> [usize; 2] {
        let Layout { mounts, binds } = &self.layout;
        [mounts.as_ref().map_or(0, Vec::len), binds.as_ref().map_or(0, Vec::len)]
    }
}

fn all_known(f: &Fields<'_>, members: &[&str]) -> Result<()> {
    f.unknown(members).map_or(Ok(()), |name| Err(unknown(name)))
}

fn unknown(name: &str) -> Error {
    Error::invalid(format!("unknown field {name:?}"))
}

pub(super) fn template_id(id: String) -> Result<String> {
    identifier("template_id", id, TEMPLATE_ID_MAX)
}

/// Errors: `template_not_found`; `invalid`, with what is wrong with it.
pub(super) fn find(cx: &Context, id: &str) -> Result<Template> {
    let found = cx.templates.read(id).and_then(|json| Template::parse(&json));
    found.map_err(|e| match e.code {
        Code::TemplateNotFound => e,
        _ => e.recode(Code::Invalid).context(format!("template {id:?}")),
    })
}

pub(super) fn list(call: &mut Call<'_>) -> Result<Object> {
    let one = |id: &String| {
        let (template, e) = match find(call.cx, id) {
            Ok(template) => (template, None),
            Err(e) => (Template::default(), Some(shortened(e.message))),
        };
        let [mounts, binds] = template.counts();
        Object::new()
            .put("template_id", id)
            .put("description", &template.description)
            .put("mount_count", mounts)
            .put("bind_count", binds)
            .put_some("error", e)
            .finish()
    };
    let list: Vec<_> = call.cx.templates.ids()?.iter().map(one).collect();
    Ok(Object::new().raw("templates", &format!("[{}]", list.join(","))))
}

pub(super) fn get(call: &mut Call<'_>) -> Result<Object> {
    let id = template_id(call.payload.required("template_id")?)?;
    let template = find(call.cx, &id)?;
    let shown = Object::new()
        .put("template_id", id)
        .put("description", &template.description)
        .put("vision", &template.vision)
        .put("access_policy", &template.policy)
        .put("mounts", &template.layout.mounts)
        .put("binds", &template.layout.binds);
    Ok(Object::new().object("template", shown))
}
