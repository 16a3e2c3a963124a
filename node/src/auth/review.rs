//! Tokens of Kubernetes service accounts: the API server reviews each token (`TokenReview`), and its answers are cached. The
//! reviews in progress and the cache are bounded.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::{Instant, timeout};

use super::identity::{Identity, Unknown};
use super::tokens::{Hash, hash};
use crate::config::TokenReviewConfig;

/// The most reviews at a time.
const MAX_REVIEWS: usize = 32;
/// The most cached answers.
const MAX_CACHED: usize = 4096;
/// How long a refusal is cached. It is short, because a token may become valid.
const REFUSAL_TTL: Duration = Duration::from_secs(10);
/// How long an answer may take, with the wait for other reviews.
const TIMEOUT: Duration = Duration::from_secs(5);
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Has the API server review tokens.
pub(super) struct Reviewer {
    config: TokenReviewConfig,
    client: OnceCell<Client>,
    slots: Semaphore,
    cache: Mutex<Cache>,
}

impl Reviewer {
    pub(super) fn new(config: TokenReviewConfig) -> Self {
        let cache = Mutex::new(Cache { answers: HashMap::new(), ttl: config.ttl });
        Self { config, client: OnceCell::new(), slots: Semaphore::new(MAX_REVIEWS), cache }
    }

    pub(super) async fn review(&self, token: &str) -> Result<Identity, Unknown> {
        // Only a JWT can be valid.
        if token.split('.').count() != 3 {
            return Err(Unknown::Token);
        }
        let key = hash(token);
        if let Some(answer) = self.cache.lock().get(&key, Instant::now()) {
            return answer;
        }
        let unavailable = |why: String| Unknown::Unavailable(why);
        let answer = timeout(TIMEOUT, self.ask(token))
            .await
            .map_err(|_| unavailable(format!("Kubernetes did not answer within {TIMEOUT:?}")))?
            .map_err(|error| unavailable(error.to_string()))?;
        let answer = identity(answer, &self.config.audiences).ok_or(Unknown::Token);
        self.cache.lock().put(key, answer.clone(), Instant::now());
        answer
    }

    async fn ask(&self, token: &str) -> Result<TokenReviewStatus, kube::Error> {
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        let client = self.client.get_or_try_init(Client::try_default).await?.clone();
        let audiences = (!self.config.audiences.is_empty()).then(|| self.config.audiences.clone());
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences },
            ..TokenReview::default()
        };
        let answer = Api::<TokenReview>::all(client).create(&PostParams::default(), &review).await?;
        Ok(answer.status.unwrap_or_default())
    }
}

/// The client's identity, by the API server's answer.
fn identity(status: TokenReviewStatus, audiences: &[String]) -> Option<Identity> {
    let TokenReviewStatus { audiences: matching, authenticated, user, .. } = status;
    if authenticated != Some(true) {
        return None;
    }
    // An API server without support for audiences returns none.
    if !audiences.is_empty() && !matching.unwrap_or_default().iter().any(|audience| audiences.contains(audience)) {
        return None;
    }
    let UserInfo { username, groups, .. } = user?;
    // Only service accounts are accepted, no other users of Kubernetes.
    let (namespace, name) =
        username?.strip_prefix(SERVICE_ACCOUNT)?.split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned()))?;
    let groups = groups.unwrap_or_default().into_iter().map(|group| format!("group:{group}"));
    Some(Identity { subjects: std::iter::once(format!("serviceaccount:{namespace}/{name}")).chain(groups).collect() })
}

type Answer = Result<Identity, Unknown>;

/// Answers, each with the time at which it expires.
struct Cache {
    answers: HashMap<Hash, (Answer, Instant)>,
    ttl: Duration,
}

impl Cache {
    fn get(&mut self, key: &Hash, now: Instant) -> Option<Answer> {
        let (answer, until) = self.answers.get(key)?;
        if *until > now {
            return Some(answer.clone());
        }
        self.answers.remove(key);
        None
    }

    fn put(&mut self, key: Hash, answer: Answer, now: Instant) {
        if self.answers.len() >= MAX_CACHED {
            self.answers.retain(|_, (_, until)| *until > now);
        }
        if self.answers.len() >= MAX_CACHED {
            // The cost is one more review for each client.
            self.answers.clear();
        }
        let ttl = if answer.is_ok() { self.ttl } else { self.ttl.min(REFUSAL_TTL) };
        self.answers.insert(key, (answer, now + ttl));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(username: &str, audiences: &[&str]) -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(audiences.iter().map(|&it| it.to_owned()).collect()),
            user: Some(UserInfo {
                username: Some(username.to_owned()),
                groups: Some(vec!["system:serviceaccounts:ns".to_owned()]),
                ..UserInfo::default()
            }),
            ..TokenReviewStatus::default()
        }
    }

    #[test]
    fn review_identifies_a_service_account() {
        let found = identity(status("system:serviceaccount:ns:app", &["kvasir"]), &["kvasir".to_owned()]).unwrap();
        assert_eq!(found.subjects, ["serviceaccount:ns/app", "group:system:serviceaccounts:ns"]);
        assert!(identity(status("system:serviceaccount:ns:app", &[]), &[]).is_some());
        let refused = TokenReviewStatus { authenticated: Some(false), ..status("system:serviceaccount:ns:app", &[]) };
        assert_eq!(identity(refused, &[]), None);
        assert_eq!(identity(status("system:serviceaccount:ns:app", &["other"]), &["kvasir".to_owned()]), None);
        assert_eq!(identity(status("system:serviceaccount:ns:app", &[]), &["kvasir".to_owned()]), None);
        assert_eq!(identity(status("admin", &[]), &[]), None);
        assert_eq!(identity(TokenReviewStatus::default(), &[]), None);
    }

    #[test]
    fn review_answers_expire_and_are_bounded() {
        let mut cache = Cache { answers: HashMap::new(), ttl: Duration::from_mins(1) };
        let (now, later) = (Instant::now(), |seconds| Instant::now() + Duration::from_secs(seconds));
        let known = Ok(Identity { subjects: vec!["a".to_owned()] });
        cache.put([1; 32], known.clone(), now);
        cache.put([2; 32], Err(Unknown::Token), now);
        assert_eq!(
            (cache.get(&[1; 32], now), cache.get(&[2; 32], now)),
            (Some(known.clone()), Some(Err(Unknown::Token)))
        );
        assert_eq!((cache.get(&[1; 32], later(30)), cache.get(&[2; 32], later(30))), (Some(known.clone()), None));
        assert_eq!(cache.get(&[1; 32], later(90)), None);
        for n in 0..3 * MAX_CACHED as u64 {
            cache.put(hash(&n.to_string()), known.clone(), now);
            assert!(cache.answers.len() <= MAX_CACHED);
        }
    }
}
