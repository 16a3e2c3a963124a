//! One test: its namespace, the clusters and pods in it, and their removal at the end.
//!
//! Knows nothing of what the test is about.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use futures::{FutureExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{AttachParams, DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use kvasir_client::{Client, ListOptions, RetryPolicy};
use kvasir_crds::KvCluster;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::lab::command;
use crate::{Lab, artifacts, until};

/// A test that takes this long hangs.
const TEST_TIMEOUT: Duration = Duration::from_mins(10);
/// The longest exec: the processes that tests start end much sooner.
const EXEC_TIMEOUT: Duration = Duration::from_mins(1);

/// Shared by tests that run in parallel, exclusive for a test that must not be disturbed. A failed test does not poison
/// it.
static TURN: RwLock<()> = RwLock::new(());

/// The environment of a test.
pub struct Trial {
    /// The Kubernetes under test.
    pub lab: Lab,
    /// Its own namespace.
    pub namespace: String,
}

/// An application pod with a shell and kvctl.
pub struct App<'a> {
    trial: &'a Trial,
    /// Its name.
    pub name: String,
}

/// A local port that leads to a port on a pod's loopback.
pub struct Tunnel {
    /// The local address.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The result of a program in a pod.
#[derive(Debug)]
pub struct Output {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a test in its own namespace, with the operator installed, in parallel with others. A failed test leaves its
/// artifacts in `target/e2e-artifacts/NAME`; the namespace is deleted in any case.
pub fn run(name: &str, test: impl AsyncFnOnce(&Trial) -> Result<()>) {
    let _turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
    conduct(name, test);
}

/// The same while no other test runs: for a test that changes the operator or measures time.
pub fn alone(name: &str, test: impl AsyncFnOnce(&Trial) -> Result<()>) {
    let _turn = TURN.write().unwrap_or_else(PoisonError::into_inner);
    conduct(name, test);
}

fn conduct(name: &str, test: impl AsyncFnOnce(&Trial) -> Result<()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads can be started");
    runtime.block_on(async {
        let lab = Lab::find().await.unwrap_or_else(|error| panic!("{name} cannot begin: {error:#}"));
        let trial = Trial { lab, namespace: format!("e2e-{name}") };
        let whole = async {
            trial.begin().await.context("the test cannot begin")?;
            test(&trial).await
        };
        let outcome = AssertUnwindSafe(tokio::time::timeout(TEST_TIMEOUT, whole)).catch_unwind().await;
        let failure = match outcome {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(format!("{error:#}")),
            Ok(Err(_)) => Some(format!("not done after {} s", TEST_TIMEOUT.as_secs())),
            Err(panic) => Some(match panic.downcast_ref::<String>() {
                Some(message) => message.clone(),
                None => panic.downcast_ref::<&str>().map_or("it panicked", |message| message).to_owned(),
            }),
        };
        let kept = match &failure {
            Some(failure) => Some(artifacts::collect(&trial.lab.client, name, &trial.namespace, failure).await),
            None => None,
        };
        let ended = trial.end().await;
        if let Some(failure) = failure {
            match kept {
                Some(Ok(folder)) => eprintln!("{name}: logs, events and descriptions are in {}", folder.display()),
                Some(Err(error)) => eprintln!("{name}: could not keep its logs: {error:#}"),
                None => {}
            }
            panic!("{name}: {failure}");
        }
        ended.unwrap_or_else(|error| panic!("{name}: {error:#}"));
    });
}

impl Trial {
    /// Installs the operator, if it is missing, and creates the namespace, after deleting an old one.
    pub async fn begin(&self) -> Result<()> {
        self.lab.operator().await.context("cannot install the operator")?;
        self.end().await?;
        let namespaces: Api<Namespace> = Api::all(self.lab.client.clone());
        until("an earlier run's namespace to be gone", async || {
            let there = namespaces.get_opt(&self.namespace).await?;
            ensure!(there.is_none(), "{} is still there", self.namespace);
            Ok(())
        })
        .await?;
        self.lab.restricted_namespace(&self.namespace).await?;
        // Pods are refused until their namespace has its default ServiceAccount.
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = self.api();
        until("the default ServiceAccount", async || Ok(accounts.get("default").await?)).await?;
        Ok(())
    }

    /// Deletes the namespace; does not wait for it.
    pub async fn end(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.lab.client.clone());
        match namespaces.delete(&self.namespace, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot delete the namespace {}", self.namespace)),
        }
    }

    /// The objects of one kind in the test's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.lab.client.clone(), &self.namespace)
    }

    /// The output of kubectl, in the test's namespace.
    pub async fn kubectl(&self, words: &[&str]) -> Result<String> {
        command("kubectl", &[&["-n", &self.namespace], words].concat()).await
    }

    /// Creates a cluster with this `spec`; does not wait.
    pub async fn ask_for_cluster(&self, name: &str, spec: Value) -> Result<KvCluster> {
        let cluster = json!({ "apiVersion": "kvasir.dev/v1alpha1", "kind": "KvCluster", "metadata": { "name": name }, "spec": spec });
        // Not through the typed object, which would fill in defaults and refuse what the API server must refuse.
        let kind = kube::api::ApiResource::erase::<KvCluster>(&());
        let api: Api<kube::api::DynamicObject> = Api::namespaced_with(self.lab.client.clone(), &self.namespace, &kind);
        let made = api.create(&PostParams::default(), &serde_json::from_value(cluster)?).await?;
        Ok(made.try_parse()?)
    }

    /// A cluster of this many members, all ready and equal.
    pub async fn cluster(&self, name: &str, replicas: usize) -> Result<()> {
        self.ask_for_cluster(name, json!({ "replicas": replicas })).await?;
        self.settled(name, replicas).await
    }

    /// Waits until exactly this many members are there, ready and equal.
    pub async fn settled(&self, name: &str, replicas: usize) -> Result<()> {
        until(&format!("{replicas} members of {name}, ready and equal"), async || {
            let cluster = self.get(name).await?;
            let status = cluster.status.unwrap_or_default();
            ensure!(
                Some(status.observed_generation) == cluster.metadata.generation,
                "the operator has not seen generation {:?}",
                cluster.metadata.generation
            );
            let pods = self.member_pods(name).await?;
            let ready = usize::try_from(status.ready_replicas)?;
            ensure!(ready == replicas && pods.len() == replicas && pods.iter().all(is_ready), "{}", json!(status));
            ensure!(status.converged, "not converged: {}", json!(status));
            Ok(())
        })
        .await
    }

    /// The cluster as it is now.
    pub async fn get(&self, name: &str) -> Result<KvCluster> {
        Ok(self.api::<KvCluster>().get(name).await?)
    }

    /// The member pods that are not terminating, by name.
    pub async fn member_pods(&self, cluster: &str) -> Result<Vec<Pod>> {
        let selector = format!("kvasir.dev/member-of={cluster}");
        let mut pods = self.api::<Pod>().list(&ListParams::default().labels(&selector)).await?.items;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        pods.sort_by_key(ResourceExt::name_any);
        Ok(pods)
    }

    /// The status from the admin port of a pod's node.
    pub async fn node_status(&self, pod: &str) -> Result<Value> {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}:7072/proxy/status", self.namespace);
        Ok(serde_json::from_str(&self.kubectl(&["get", "--raw", &path]).await?)?)
    }

    /// A client of one member, without retries.
    pub fn speak_to(&self, member: &Pod) -> Result<Client> {
        let address = format!("{}:7070", ip(member)?);
        Ok(Client::builder(address).retry(RetryPolicy::none()).build()?)
    }

    /// A client of the cluster's Service, with the default retries.
    pub async fn speak_to_service(&self, cluster: &str) -> Result<Client> {
        Ok(Client::builder(self.service_address(cluster).await?).build()?)
    }

    /// The address of the cluster's Service.
    pub async fn service_address(&self, cluster: &str) -> Result<String> {
        let service: k8s_openapi::api::core::v1::Service = self.api().get(cluster).await?;
        let address = service.spec.and_then(|spec| spec.cluster_ip).context("the Service has no address")?;
        Ok(format!("{address}:7070"))
    }

    /// Puts `key-0000`, `key-0001` and so on, spread over all members; returns the entries.
    pub async fn fill(&self, cluster: &str, count: usize) -> Result<BTreeMap<String, Vec<u8>>> {
        let pods = self.member_pods(cluster).await?;
        let clients = pods.iter().map(|pod| self.speak_to(pod)).collect::<Result<Vec<_>>>()?;
        let mut all = BTreeMap::new();
        for (n, client) in (0..count).zip(clients.iter().cycle()) {
            let (key, value) = (format!("key-{n:04}"), format!("value of {n}").into_bytes());
            client.put(key.clone(), value.clone(), kvasir_client::PutOptions::default()).await?;
            all.insert(key, value);
        }
        Ok(all)
    }

    /// Waits until every member holds exactly these entries; asks each directly.
    pub async fn all_hold(&self, cluster: &str, wanted: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        for pod in self.member_pods(cluster).await? {
            let client = self.speak_to(&pod)?;
            until(&format!("{} to hold every key", pod.name_any()), async || same(wanted, &held(&client).await?))
                .await?;
        }
        Ok(())
    }

    /// An application pod of `cluster` (unlabelled if there is none) on a Kubernetes node; waits until it is ready.
    pub async fn app(&self, name: &str, cluster: Option<&str>, node: &str) -> Result<App<'_>> {
        let app = self.start_app(name, cluster, node).await?;
        until(&format!("{name} to be ready"), async || {
            let pod = self.api::<Pod>().get(name).await?;
            ensure!(is_ready(&pod), "{}", json!(pod.status));
            Ok(())
        })
        .await?;
        Ok(app)
    }

    /// The same without waiting.
    pub async fn start_app(&self, name: &str, cluster: Option<&str>, node: &str) -> Result<App<'_>> {
        let pod = shell_pod(name, cluster, node, &self.lab.shell_image);
        self.api::<Pod>().create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        Ok(App { trial: self, name: name.to_owned() })
    }

    /// Forwards connections to a port on the loopback of an application's pod, which only its sidecar listens on.
    pub async fn tunnel(&self, app: &App<'_>, port: u16) -> Result<Tunnel> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen on loopback")?;
        let address = listener.local_addr()?;
        let (pods, name) = (self.api::<Pod>(), app.name.clone());
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let forwarded = pods.portforward(&name, &[port]).await.map(|mut all| all.take_stream(port));
                tokio::spawn(async move {
                    match forwarded {
                        // The user of the connection sees it break.
                        Ok(Some(mut far)) => drop(tokio::io::copy_bidirectional(&mut near, &mut far).await),
                        Ok(None) => eprintln!("the API server forwards no port"),
                        Err(error) => eprintln!("cannot forward a port: {error}"),
                    }
                });
            }
        });
        Ok(Tunnel { address, task })
    }

    /// Runs a program in a container to its end.
    pub async fn exec(&self, pod: &str, container: &str, words: &[&str]) -> Result<Output> {
        let shown = || format!("{} in {pod}", words.join(" "));
        let how = AttachParams::default().container(container).stdin(false).stdout(true).stderr(true);
        let mut process = self.api::<Pod>().exec(pod, words.iter().copied(), &how).await.with_context(shown)?;
        let (stdout, stderr) = (process.stdout(), process.stderr());
        let status = process.take_status().context("the status is taken once")?;
        let all = futures::future::join3(text(stdout), text(stderr), status);
        let (stdout, stderr, status) =
            tokio::time::timeout(EXEC_TIMEOUT, all).await.with_context(|| format!("{} does not end", shown()))?;
        let status = status.with_context(|| format!("{}: no exit status", shown()))?;
        let code = if status.status.as_deref() == Some("Success") {
            0
        } else {
            status
                .details
                .iter()
                .flat_map(|details| details.causes.iter().flatten())
                .find(|cause| cause.reason.as_deref() == Some("ExitCode"))
                .and_then(|cause| cause.message.as_deref()?.parse().ok())
                .ok_or_else(|| anyhow!("{}: {status:?}", shown()))?
        };
        Ok(Output { code, stdout: stdout?, stderr: stderr? })
    }
}

impl App<'_> {
    /// Runs kvctl in the application's container; it talks to the sidecar.
    pub async fn kvctl(&self, words: &[&str]) -> Result<Output> {
        self.exec(&[&["kvctl"], words].concat()).await
    }

    /// The same, with a non-zero exit code as an error.
    pub async fn kvctl_ok(&self, words: &[&str]) -> Result<String> {
        let output = self.kvctl(words).await?;
        if output.code != 0 {
            bail!("kvctl {} in {}: {output:?}", words.join(" "), self.name);
        }
        Ok(output.stdout)
    }

    /// Runs a program in the application's container.
    pub async fn exec(&self, words: &[&str]) -> Result<Output> {
        self.trial.exec(&self.name, "app", words).await
    }

    /// The pod as it is now.
    pub async fn pod(&self) -> Result<Pod> {
        Ok(self.trial.api::<Pod>().get(&self.name).await?)
    }
}

/// A pod that sleeps, passes the restricted standard, and has kvctl.
fn shell_pod(name: &str, cluster: Option<&str>, node: &str, image: &str) -> Value {
    let labels: BTreeMap<&str, &str> = cluster.iter().map(|cluster| ("kvasir.dev/cluster", *cluster)).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": labels },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "terminationGracePeriodSeconds": 5,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "app",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "infinity"],
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
                },
            }],
        },
    })
}

async fn text(stream: Option<impl AsyncRead + Unpin>) -> Result<String> {
    let mut text = String::new();
    if let Some(mut stream) = stream {
        stream.read_to_string(&mut text).await?;
    }
    Ok(text)
}

/// Every key and value that a node holds.
pub async fn held(client: &Client) -> Result<BTreeMap<String, Vec<u8>>> {
    let entries: Vec<_> = client.list("", ListOptions::default()).try_collect().await?;
    Ok(entries.into_iter().map(|entry| (entry.key, entry.value.to_vec())).collect())
}

/// Whether two maps are equal; an error shows where they differ.
pub fn same(wanted: &BTreeMap<String, Vec<u8>>, found: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    let lost: Vec<_> =
        wanted.iter().filter(|(key, value)| found.get(*key) != Some(value)).map(|(key, _)| key).collect();
    ensure!(lost.is_empty(), "{} of {} keys are missing or different: {:?}", lost.len(), wanted.len(), lost);
    let extra: Vec<_> = found.keys().filter(|key| !wanted.contains_key(*key)).collect();
    ensure!(extra.is_empty(), "keys that should not be there: {extra:?}");
    Ok(())
}

/// Whether Kubernetes reports a pod as ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// A pod's address.
pub fn ip(pod: &Pod) -> Result<&str> {
    pod.status
        .as_ref()
        .and_then(|status| status.pod_ip.as_deref())
        .with_context(|| format!("{} has no address", pod.name_any()))
}

/// How often the containers of a pod were restarted.
pub fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.iter();
    status
        .flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses).flatten())
        .map(|c| c.restart_count)
        .sum()
}
