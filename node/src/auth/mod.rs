//! Authentication and access rules. From a certificate's names and a token to a [`Caller`], which decides what the client may
//! do. Knows nothing of gRPC.

mod identity;
mod review;
mod tokens;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use self::identity::{Identity, MAX_TOKEN_BYTES, Unknown};
use self::review::Reviewer;
use self::tokens::Tokens;
use crate::config::{AccessRule, AuthConfig, Settings, Verb};
use crate::reload::{self, Reloads};

/// How many characters of a key or prefix an error shows.
const SHOWN: usize = 64;

/// Why a call is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    who: String,
    verb: Verb,
    what: String,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { who, verb, what } = self;
        write!(f, "{who} may not {} {what}: no access rule allows it", verb.as_str())
    }
}

/// The calls that were refused since the start, by reason.
#[derive(Debug, Default)]
pub struct RefusedCalls {
    unknown: AtomicU64,
    unavailable: AtomicU64,
    read: AtomicU64,
    write: AtomicU64,
    delete: AtomicU64,
    watch: AtomicU64,
    admin: AtomicU64,
}

impl RefusedCalls {
    /// Each reason with its count.
    pub fn read(&self) -> [(&'static str, u64); 7] {
        [
            ("unauthenticated", &self.unknown),
            ("unavailable", &self.unavailable),
            ("read", &self.read),
            ("write", &self.write),
            ("delete", &self.delete),
            ("watch", &self.watch),
            ("admin", &self.admin),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }

    const fn of(&self, verb: Verb) -> &AtomicU64 {
        match verb {
            Verb::Read => &self.read,
            Verb::Write => &self.write,
            Verb::Delete => &self.delete,
            Verb::Watch => &self.watch,
            Verb::Admin => &self.admin,
        }
    }
}

/// Authenticates clients and holds the access rules.
#[derive(Clone)]
pub struct Auth(Option<Arc<Inner>>);

struct Inner {
    tokens: Option<Tokens>,
    certificates: bool,
    reviewer: Option<Reviewer>,
    /// `None`: every authenticated client may do everything.
    rules: watch::Receiver<Option<Arc<[AccessRule]>>>,
    counters: RefusedCalls,
    /// How to authenticate, for the error message.
    methods: &'static str,
}

impl Auth {
    /// Without authentication.
    pub const OFF: Self = Self(None);

    /// Reads the tokens. Follows changes of the token file, and of the access rules in `access_file`, the configuration file,
    /// until `stop` is cancelled.
    pub fn start(
        config: Option<&AuthConfig>,
        access: Option<Vec<AccessRule>>,
        access_file: Option<PathBuf>,
        reloads: &Reloads,
        stop: &CancellationToken,
    ) -> Result<Self, String> {
        let Some(config) = config else { return Ok(Self::OFF) };
        let AuthConfig { tokens_file, client_certificates, token_review } = config.clone();
        let methods = match (tokens_file.is_some() || token_review.is_some(), client_certificates) {
            (true, false) => "send `authorization: Bearer TOKEN` with each call",
            (false, _) => "present a client certificate",
            (true, true) => "present a client certificate, or send `authorization: Bearer TOKEN` with each call",
        };
        let tokens = tokens_file.map(|file| Tokens::start(file, reloads, stop.clone())).transpose()?;
        let (sender, rules) = watch::channel(access.map(Arc::from));
        if let Some(file) = access_file {
            let held = vec![reload::read(&file)?];
            let (path, of) = (file.clone(), config.clone());
            let take = move |held: &[Vec<u8>]| {
                let text = std::str::from_utf8(&held[0]).map_err(|error| error.to_string())?;
                let settings = Settings::from_yaml(&path, text).map_err(|error| error.to_string())?;
                let now: Option<Arc<[AccessRule]>> =
                    settings.access(Some(&of)).map_err(|error| error.to_string())?.map(Arc::from);
                sender.send_if_modified(|before| {
                    let changed = *before != now;
                    *before = now;
                    changed
                });
                Ok(())
            };
            let follow = reloads.clone().follow("access", vec![file], held, take);
            tokio::spawn(stop.clone().run_until_cancelled_owned(follow));
        }
        Ok(Self(Some(Arc::new(Inner {
            tokens,
            certificates: client_certificates,
            reviewer: token_review.map(Reviewer::new),
            rules,
            counters: RefusedCalls::default(),
            methods,
        }))))
    }

    /// The refused calls; `None` without authentication.
    pub fn counters(&self) -> Option<&RefusedCalls> {
        self.0.as_ref().map(|inner| &inner.counters)
    }

    /// Authenticates a client by a certificate's names or a token.
    pub async fn identify(&self, certificate: Option<&[String]>, token: Option<&str>) -> Result<Caller, Unknown> {
        let Some(inner) = &self.0 else { return Ok(Caller::ANYONE) };
        let found = inner.identify(certificate, token).await;
        match &found {
            Ok(_) => {}
            Err(Unknown::Unavailable(_)) => {
                count(&inner.counters.unavailable, "a client's token could not be reviewed");
            }
            Err(_) => count(&inner.counters.unknown, "refused a call of an unauthenticated client"),
        }
        Ok(Caller(Some((Arc::new(found?), inner.clone()))))
    }
}

/// Counts a refusal, and logs the first one.
fn count(counter: &AtomicU64, what: &str) {
    if counter.fetch_add(1, Ordering::Relaxed) == 0 {
        warn!("{what}; further ones are only counted");
    }
}

impl Inner {
    async fn identify(&self, certificate: Option<&[String]>, token: Option<&str>) -> Result<Identity, Unknown> {
        // The token goes first: it was sent for this call, while the certificate may be the machine's.
        if let Some(token) = token {
            if token.len() > MAX_TOKEN_BYTES {
                return Err(Unknown::Token);
            }
            if let Some(name) = self.tokens.as_ref().and_then(|tokens| tokens.find(token)) {
                return Ok(Identity { subjects: vec![format!("token:{name}")] });
            }
            return match &self.reviewer {
                Some(reviewer) => reviewer.review(token).await,
                None => Err(Unknown::Token),
            };
        }
        match certificate.filter(|names| self.certificates && !names.is_empty()) {
            Some(names) => Ok(Identity { subjects: names.iter().map(|name| format!("cert:{name}")).collect() }),
            None => Err(Unknown::Nothing(self.methods)),
        }
    }
}

/// The client of a call, with its rights.
#[derive(Clone)]
pub struct Caller(Option<(Arc<Identity>, Arc<Inner>)>);

impl Caller {
    /// Any client, without authentication.
    pub(crate) const ANYONE: Self = Self(None);

    /// Checks the right to a key.
    pub fn may(&self, verb: Verb, key: &str) -> Result<(), Denied> {
        self.check(verb, "key", key)
    }

    /// Checks the right to all keys under a prefix.
    pub fn may_all(&self, verb: Verb, prefix: &str) -> Result<(), Denied> {
        self.check(verb, "prefix", prefix)
    }

    /// Checks the right to the cluster's state and events.
    pub fn may_admin(&self) -> Result<(), Denied> {
        let Some((identity, inner)) = &self.0 else { return Ok(()) };
        let rules = inner.rules.borrow().clone();
        let allowed = rules.is_none_or(|rules| {
            rules.iter().any(|rule| rule.verbs.contains(&Verb::Admin) && applies_to(rule, identity))
        });
        if allowed { Ok(()) } else { Err(self.denied(Verb::Admin, "this cluster".to_owned())) }
    }

    fn check(&self, verb: Verb, kind: &str, what: &str) -> Result<(), Denied> {
        let Some((identity, inner)) = &self.0 else { return Ok(()) };
        let allows = |rule: &AccessRule| {
            what.starts_with(&rule.prefix) && rule.verbs.contains(&verb) && applies_to(rule, identity)
        };
        let rules = inner.rules.borrow().clone();
        if rules.is_none_or(|rules| rules.iter().any(allows)) {
            return Ok(());
        }
        let cut = what.chars().take(SHOWN).collect::<String>();
        let more = if cut.len() < what.len() { "..." } else { "" };
        Err(self.denied(verb, format!("the {kind} {cut:?}{more}")))
    }

    fn denied(&self, verb: Verb, what: String) -> Denied {
        let (identity, inner) = self.0.as_ref().expect("without authentication nothing is refused");
        inner.counters.of(verb).fetch_add(1, Ordering::Relaxed);
        Denied { who: identity.subjects.first().cloned().unwrap_or_default(), verb, what }
    }
}

fn applies_to(rule: &AccessRule, identity: &Identity) -> bool {
    rule.subjects.iter().any(|subject| subject == "*" || identity.subjects.contains(subject))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(rules: Option<Vec<AccessRule>>) -> Auth {
        let inner = Inner {
            tokens: None,
            certificates: true,
            reviewer: None,
            rules: watch::channel(rules.map(Arc::from)).1,
            counters: RefusedCalls::default(),
            methods: "present a client certificate",
        };
        Auth(Some(Arc::new(inner)))
    }

    fn rule(subject: &str, prefix: &str, verbs: &[Verb]) -> AccessRule {
        AccessRule { subjects: vec![subject.to_owned()], prefix: prefix.to_owned(), verbs: verbs.to_vec() }
    }

    async fn caller(auth: &Auth, name: &str) -> Caller {
        auth.identify(Some(&[name.to_owned()]), None).await.unwrap()
    }

    #[tokio::test]
    async fn access_without_a_rule_is_refused_and_counted() {
        let auth = auth(Some(vec![
            rule("cert:app", "app/", &[Verb::Read, Verb::Write]),
            rule("*", "public/", &[Verb::Read]),
            rule("cert:ops", "", &[Verb::Admin]),
        ]));
        let (app, ops) = (caller(&auth, "app").await, caller(&auth, "ops").await);
        assert!(app.may(Verb::Read, "app/x").is_ok() && app.may(Verb::Write, "app/").is_ok());
        assert!(app.may(Verb::Read, "public/x").is_ok() && ops.may(Verb::Read, "public/x").is_ok());
        for (verb, key) in [(Verb::Delete, "app/x"), (Verb::Write, "public/x"), (Verb::Read, "app"), (Verb::Read, "")] {
            let message = app.may(verb, key).unwrap_err().to_string();
            assert_eq!(
                message,
                format!("cert:app may not {} the key {key:?}: no access rule allows it", verb.as_str())
            );
        }
        assert!(app.may_all(Verb::Read, "app/sub").is_ok() && app.may_all(Verb::Read, "app").is_err());
        assert!(app.may_admin().is_err() && ops.may_admin().is_ok() && ops.may(Verb::Read, "app/x").is_err());
        let counted: Vec<_> = auth.counters().unwrap().read().into_iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(counted, [("read", 4), ("write", 1), ("delete", 1), ("admin", 1)]);
    }

    #[tokio::test]
    async fn access_without_rules_needs_authentication_only() {
        let auth = auth(None);
        assert!(caller(&auth, "app").await.may(Verb::Delete, "x").is_ok());
        assert_eq!(auth.identify(None, None).await.err(), Some(Unknown::Nothing("present a client certificate")));
        assert_eq!(auth.identify(Some(&[]), None).await.err(), Some(Unknown::Nothing("present a client certificate")));
        assert_eq!(auth.identify(Some(&["a".to_owned()]), Some("t")).await.err(), Some(Unknown::Token));
        assert!(Auth::OFF.identify(None, Some("t")).await.unwrap().may_admin().is_ok());
    }
}
