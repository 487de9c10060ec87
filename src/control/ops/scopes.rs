//! The second factor: tokens that mutations ask for where they are configured (spec: control 5.4).

use super::Scope;
use crate::base::{Code, Error, Result, id};
use crate::wire::Fields;

/// Scope tokens that are configured (spec: control 5.4).
#[derive(Clone, Debug, Default)]
pub struct Scopes {
    pub operator: Option<String>,
    pub project: Option<String>,
    pub node: Option<String>,
}

impl Scopes {
    /// From `SPIDERWEB_CONTROL_OPERATOR_TOKEN`, `…_PROJECT_SCOPE_TOKEN`, `…_NODE_SCOPE_TOKEN`.
    pub fn from_env() -> Scopes {
        let var = |name: &str| {
            let value = std::env::var(format!("SPIDERWEB_CONTROL_{name}_TOKEN")).ok()?;
            Some(value.trim().to_owned()).filter(|v| !v.is_empty())
        };
        Scopes { operator: var("OPERATOR"), project: var("PROJECT_SCOPE"), node: var("NODE_SCOPE") }
    }

    pub(super) fn check(&self, scope: Scope, payload: &Fields<'_>) -> Result<()> {
        let given = |name: &str| match payload.str(name)? {
            Some(s) if s.is_empty() => {
                Err(Error::new(Code::InvalidPayload, format!("{name} must not be empty")))
            }
            given => Ok(given),
        };
        let verify = |name: &str, token: &str, given: &str| {
            if id::same_secret(token, given) {
                Ok(())
            } else {
                Err(Error::new(Code::OperatorAuthFailed, format!("{name} is wrong")))
            }
        };
        // The operator's token satisfies every scope.
        if let Some(token) = &self.operator
            && let Some(given) = given("operator_token")?
        {
            return verify("operator_token", token, &given);
        }
        let (name, token) = match scope {
            Scope::Project => ("project_scope_token", &self.project),
            Scope::Node => ("node_scope_token", &self.node),
            Scope::Operator | Scope::None => ("operator_token", &None),
        };
        match (token, &self.operator) {
            (Some(token), _) => {
                let given = given(name)?.ok_or_else(|| Error::missing(name))?;
                verify(name, token, &given)
            }
            (None, Some(_)) => Err(Error::missing("operator_token")),
            (None, None) => Ok(()),
        }
    }
}
