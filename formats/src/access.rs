//! The words of access rules: verbs, and subjects such as `token:app`.

use std::str::FromStr;

/// What a client does to keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum Verb {
    /// Get, exists, list.
    Read,
    /// Put, touch.
    Write,
    /// Delete.
    Delete,
    /// Watch.
    Watch,
    /// Read the state and the events of the cluster, which no prefix limits.
    Admin,
}

impl Verb {
    /// All verbs, in the order in which messages list them.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Delete, Self::Watch, Self::Admin];

    /// The word in a rule.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::Watch => "watch",
            Self::Admin => "admin",
        }
    }
}

/// A word that is not a verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownVerb;

impl FromStr for Verb {
    type Err = UnknownVerb;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == text).ok_or(UnknownVerb)
    }
}

/// What precedes the name in a subject: how the client authenticates.
const KINDS: [&str; 4] = ["token:", "cert:", "serviceaccount:", "group:"];

/// The forms of subjects, for messages.
pub const SUBJECT_FORMS: &str = "token:NAME, cert:NAME, serviceaccount:NAMESPACE/NAME, group:NAME or *";

/// Whether the text is a subject of a rule: `*` for every known client, or one of the four kinds with a name.
pub fn is_subject(text: &str) -> bool {
    text == "*" || KINDS.iter().any(|kind| text.strip_prefix(kind).is_some_and(|name| !name.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_words() {
        for verb in Verb::ALL {
            assert_eq!(verb.as_str().parse(), Ok(verb));
        }
        for text in ["", "Read", "read ", "list"] {
            assert_eq!(text.parse::<Verb>(), Err(UnknownVerb), "{text}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn serde_has_the_same_words() {
        for verb in Verb::ALL {
            assert_eq!(serde_yaml::from_str::<Verb>(verb.as_str()).unwrap(), verb);
        }
    }

    #[test]
    fn subjects_have_a_kind_and_a_name() {
        for subject in ["*", "token:a", "cert:a b", "serviceaccount:ns/a", "group:system:authenticated"] {
            assert!(is_subject(subject), "{subject}");
        }
        for text in ["", "app", "token:", "user:a", "*a", " token:a"] {
            assert!(!is_subject(text), "{text}");
        }
    }
}
