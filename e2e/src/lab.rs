//! The Kubernetes under test: how to reach it, which images to use, and the operator on it.
//!
//! Knows nothing of single tests.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::process::Command;
use tokio::sync::OnceCell;

/// The operator's namespace.
pub const OPERATOR_NAMESPACE: &str = "kvasir-system";
/// The Helm release; the Deployment, `ServiceAccount` and the rest are named after it.
pub const RELEASE: &str = "kvasir";
/// Its Deployment and its `ServiceAccount`.
pub const OPERATOR: &str = "kvasir-operator";

/// The result of installing the operator, once this process has tried.
static INSTALLED: OnceCell<Result<(), String>> = OnceCell::const_new();

/// The Kubernetes under test.
#[derive(Clone)]
pub struct Lab {
    /// A client with an administrator's rights.
    pub client: Client,
    /// Names of the nodes, sorted.
    pub nodes: Vec<String>,
    /// The image of operator, members and sidecars, as `repository:tag`.
    pub image: String,
    /// The image with a shell and kvctl, for application pods.
    pub shell_image: String,
    /// The image of a NATS server.
    pub nats_image: String,
}

impl Lab {
    /// The cluster of `KUBECONFIG`. `KVASIR_IMAGE`, `KVASIR_SHELL_IMAGE` and `KVASIR_NATS_IMAGE` name images that it can pull.
    pub async fn find() -> Result<Self> {
        if std::env::var_os("KUBECONFIG").is_none() {
            bail!("KUBECONFIG is not set: run these tests with `make test-e2e`, which brings a Kubernetes for them");
        }
        let client = Client::try_default().await.context("cannot use the cluster of KUBECONFIG")?;
        let nodes: Api<Node> = Api::all(client.clone());
        let mut nodes: Vec<String> = nodes
            .list(&ListParams::default())
            .await
            .context("cannot list the nodes")?
            .iter()
            .map(kube::ResourceExt::name_any)
            .collect();
        nodes.sort();
        if nodes.len() < 2 {
            bail!("the cluster has {} node; the tests need at least 2", nodes.len());
        }
        let version = env!("CARGO_PKG_VERSION");
        let image = std::env::var("KVASIR_IMAGE").unwrap_or_else(|_| format!("kvasir.dev/kvasir:{version}"));
        let shell_image = std::env::var("KVASIR_SHELL_IMAGE").unwrap_or_else(|_| format!("kvasir.dev/shell:{version}"));
        let nats_image = std::env::var("KVASIR_NATS_IMAGE").unwrap_or_else(|_| "kv.local/nats:1".to_owned());
        Ok(Self { client, nodes, image, shell_image, nats_image })
    }

    /// Installs the operator, unless this process already has; a failed installation is not retried either.
    pub async fn operator(&self) -> Result<()> {
        let install = async || self.install_operator().await.map_err(|error| format!("{error:#}"));
        INSTALLED.get_or_init(install).await.clone().map_err(anyhow::Error::msg)
    }

    /// Installs or upgrades the operator, and waits until it is ready.
    pub async fn install_operator(&self) -> Result<()> {
        self.install_operator_of(&workspace().join("charts/kvasir"), &[]).await
    }

    /// The same with another chart or other values.
    pub async fn install_operator_of(&self, chart: &Path, values: &[&str]) -> Result<()> {
        self.restricted_namespace(OPERATOR_NAMESPACE).await?;
        let (repository, tag) = self.image.rsplit_once(':').context("KVASIR_IMAGE must be REPOSITORY:TAG")?;
        let chart = chart.to_str().context("the path of the chart is not UTF-8")?;
        let repository = format!("image.repository={repository}");
        let tag = format!("image.tag={tag}");
        let words = ["upgrade", "--install", RELEASE, chart, "-n", OPERATOR_NAMESPACE, "--wait", "--timeout", "3m"];
        let images = ["--reset-values", "--set", &repository, "--set", &tag];
        command("helm", &[&words[..], &images[..], values].concat()).await.map(drop)
    }

    /// Creates a namespace, if it is missing, that accepts only pods of the restricted Pod Security Standard.
    pub async fn restricted_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": name, "labels": { "pod-security.kubernetes.io/enforce": "restricted" } },
        });
        namespaces
            .patch(name, &PatchParams::apply("kvasir-e2e"), &Patch::Apply(namespace))
            .await
            .with_context(|| format!("cannot make the namespace {name}"))?;
        Ok(())
    }

    /// Runs a command of the throwaway cluster (`e2e/cluster/ctl.sh`); false on another cluster.
    pub async fn control(&self, words: &[&str]) -> Result<bool> {
        let Some(ctl) = std::env::var_os("KV_CTL") else { return Ok(false) };
        let ctl = ctl.to_str().context("KV_CTL is not UTF-8")?;
        command(ctl, words).await?;
        Ok(true)
    }

    /// Kills a container's first process with SIGKILL. Only possible on the throwaway cluster: false on another.
    pub async fn kill_container(&self, id: &str) -> Result<bool> {
        self.control(&["kill-container", id]).await
    }

    /// An image of nodes that speak another version of the peers' protocol than [`Self::image`], as a release may. Only
    /// for the throwaway cluster: `None` on another.
    pub async fn image_of_another_release(&self) -> Result<Option<String>> {
        let name = "kv.local/kvasir-next:1";
        let folder = workspace();
        let at = |path: String| folder.join(path).to_str().map(str::to_owned).context("the path is not UTF-8");
        let built = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
        let program = at(format!("{built}/{}-unknown-linux-musl/release/kvasir-node", std::env::consts::ARCH))?;
        let (make, archive) = (at("e2e/cluster/mkimage".to_owned())?, at("target/e2e-kvasir-next.tar".to_owned())?);
        if std::env::var_os("KV_CTL").is_none() {
            return Ok(None);
        }
        let speaks = "KVASIR_TEST_LINKS_VERSION=2";
        command(&make, &[name, &archive, &program, "--user", "65532:65532", "--no-tmp", "--env", speaks]).await?;
        self.control(&["load", &archive]).await?;
        Ok(Some(name.to_owned()))
    }

    /// Whether cert-manager is installed; the throwaway cluster starts it.
    pub async fn cert_manager(&self) -> Result<bool> {
        if let Some(ctl) = std::env::var_os("KV_CTL") {
            let ctl = ctl.to_str().context("KV_CTL is not UTF-8")?;
            command(ctl, &["add", "cert-manager"]).await?;
            return Ok(true);
        }
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        Ok(definitions.get_opt("certificates.cert-manager.io").await?.is_some())
    }
}

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the workspace").to_owned()
}

/// Runs a program to its end and returns its output; an error contains its standard error.
pub async fn command(program: &str, words: &[&str]) -> Result<String> {
    let shown = || format!("{program} {}", words.join(" "));
    let output = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {}", shown()))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{}: {}: {}{stdout}", shown(), output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(stdout)
}
