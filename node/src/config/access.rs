//! Access rules: what they are, and which are refused.

pub use kvasir_formats::access::Verb;

use kvasir_formats::access::{SUBJECT_FORMS, is_subject};
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};

/// The most access rules.
pub const MAX_RULES: usize = 1024;
/// The most subjects of one rule.
const MAX_SUBJECTS: usize = 256;
const MAX_PREFIX_BYTES: usize = 64 << 10;

/// Allows subjects to do something with the keys under a prefix. What no rule allows is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessRule {
    /// Such as `token:app`, `cert:app`, `serviceaccount:NAMESPACE/NAME`, `group:NAME`, or `*` for every authenticated
    /// client.
    pub subjects: Vec<String>,
    /// The prefix of the keys; if empty, the rule is for all keys.
    #[serde(default)]
    pub prefix: String,
    /// What the subjects may do.
    pub verbs: Vec<Verb>,
}

/// Checks access rules. `authenticated`: whether clients authenticate, without which rules mean nothing.
pub(super) fn checked_access(
    rules: Option<Vec<AccessRule>>,
    authenticated: bool,
) -> Result<Option<Vec<AccessRule>>, ConfigError> {
    let Some(rules) = rules else { return Ok(None) };
    let wrong = |n: usize, message: &str| invalid("access", format!("rule {n}: {message}"));
    if !authenticated {
        return Err(invalid("access", "needs a way for clients to authenticate: set auth"));
    }
    if rules.len() > MAX_RULES {
        return Err(invalid("access", format!("{} rules: give at most {MAX_RULES}", rules.len())));
    }
    for (n, AccessRule { subjects, prefix, verbs }) in rules.iter().enumerate() {
        if subjects.is_empty() || subjects.len() > MAX_SUBJECTS {
            return Err(wrong(n, &format!("subjects: give 1 to {MAX_SUBJECTS}")));
        }
        if let Some(other) = subjects.iter().find(|subject| !is_subject(subject)) {
            return Err(wrong(n, &format!("subjects: {other:?} is not a subject: give {SUBJECT_FORMS}")));
        }
        if verbs.is_empty() {
            return Err(wrong(n, "verbs: give at least one of read, write, delete, watch, admin"));
        }
        if prefix.len() > MAX_PREFIX_BYTES {
            return Err(wrong(n, &format!("prefix: has {} bytes: give at most {MAX_PREFIX_BYTES}", prefix.len())));
        }
    }
    Ok(Some(rules))
}
