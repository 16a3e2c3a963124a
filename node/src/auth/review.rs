//! Tokens of Kubernetes' service accounts: the API server is asked about each
//! (`TokenReview`), and its answer kept for a while. What waits for an answer
//! and what is kept is bounded.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::{Instant, timeout};

use super::tokens::{Hash, hash};
use super::{Identity, Unknown};
use crate::config::TokenReviewConfig;

/// Questions that may be open at a time.
const MAX_REVIEWS: usize = 32;
/// Answers that are kept.
const MAX_KEPT: usize = 4096;
/// How long a refusal is kept: a token may become valid.
const REFUSAL_TTL: Duration = Duration::from_secs(10);
/// How long an answer may take, the wait for one's turn included.
const TIMEOUT: Duration = Duration::from_secs(5);
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Asks the API server about tokens.
pub(super) struct Reviewer {
    config: TokenReviewConfig,
    client: OnceCell<Client>,
    turns: Semaphore,
    kept: Mutex<Kept>,
}

impl Reviewer {
    pub(super) fn new(config: TokenReviewConfig) -> Self {
        let kept = Mutex::new(Kept { answers: HashMap::new(), ttl: config.ttl });
        Self { config, client: OnceCell::new(), turns: Semaphore::new(MAX_REVIEWS), kept }
    }

    pub(super) async fn review(&self, token: &str) -> Result<Identity, Unknown> {
        // Others are not worth the API server's time.
        if token.split('.').count() != 3 {
            return Err(Unknown::Token);
        }
        let key = hash(token);
        if let Some(answer) = self.kept.lock().get(&key, Instant::now()) {
            return answer;
        }
        let unavailable = |why: String| Unknown::Unavailable(why);
        let answer = timeout(TIMEOUT, self.ask(token))
            .await
            .map_err(|_| unavailable(format!("Kubernetes did not answer within {TIMEOUT:?}")))?
            .map_err(|error| unavailable(error.to_string()))?;
        let answer = identity(answer, &self.config.audiences).ok_or(Unknown::Token);
        self.kept.lock().put(key, answer.clone(), Instant::now());
        answer
    }

    async fn ask(&self, token: &str) -> Result<TokenReviewStatus, kube::Error> {
        let _turn = self.turns.acquire().await.expect("nobody closes it");
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

/// Who it is by the API server's answer.
fn identity(status: TokenReviewStatus, audiences: &[String]) -> Option<Identity> {
    let TokenReviewStatus { audiences: fitting, authenticated, user, .. } = status;
    if authenticated != Some(true) {
        return None;
    }
    // An API server that knows nothing of audiences says of none that they fit.
    if !audiences.is_empty() && !fitting.unwrap_or_default().iter().any(|fits| audiences.contains(fits)) {
        return None;
    }
    let UserInfo { username, groups, .. } = user?;
    // A user of Kubernetes who is no ServiceAccount is nobody here.
    let (namespace, name) =
        username?.strip_prefix(SERVICE_ACCOUNT)?.split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned()))?;
    let groups = groups.unwrap_or_default().into_iter().map(|group| format!("group:{group}"));
    Some(Identity { subjects: std::iter::once(format!("serviceaccount:{namespace}/{name}")).chain(groups).collect() })
}

/// Who it is, or that it is nobody.
type Answer = Result<Identity, Unknown>;

/// Answers, each until its time is over.
struct Kept {
    answers: HashMap<Hash, (Answer, Instant)>,
    ttl: Duration,
}

impl Kept {
    fn get(&mut self, key: &Hash, now: Instant) -> Option<Answer> {
        let (answer, until) = self.answers.get(key)?;
        if *until > now {
            return Some(answer.clone());
        }
        self.answers.remove(key);
        None
    }

    fn put(&mut self, key: Hash, answer: Answer, now: Instant) {
        if self.answers.len() >= MAX_KEPT {
            self.answers.retain(|_, (_, until)| *until > now);
        }
        if self.answers.len() >= MAX_KEPT {
            // Those who are known cost a question again; nothing else is lost.
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
    fn a_service_account_is_known_by_namespace_and_name() {
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
    fn answers_are_kept_for_a_while_and_in_bounds() {
        let mut kept = Kept { answers: HashMap::new(), ttl: Duration::from_mins(1) };
        let (now, later) = (Instant::now(), |seconds| Instant::now() + Duration::from_secs(seconds));
        let known = Ok(Identity { subjects: vec!["a".to_owned()] });
        kept.put([1; 32], known.clone(), now);
        kept.put([2; 32], Err(Unknown::Token), now);
        assert_eq!(
            (kept.get(&[1; 32], now), kept.get(&[2; 32], now)),
            (Some(known.clone()), Some(Err(Unknown::Token)))
        );
        assert_eq!((kept.get(&[1; 32], later(30)), kept.get(&[2; 32], later(30))), (Some(known.clone()), None));
        assert_eq!(kept.get(&[1; 32], later(90)), None);
        for n in 0..3 * MAX_KEPT as u64 {
            kept.put(hash(&n.to_string()), known.clone(), now);
            assert!(kept.answers.len() <= MAX_KEPT);
        }
    }
}
