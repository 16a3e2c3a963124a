//! Artifacts of a failed test: objects, descriptions, events and logs of its namespace and of the operator.
//!
//! Knows nothing of why it failed.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use kube::ResourceExt as _;
use kube::api::ListParams;
use kube::{Api, Client};

use k8s_openapi::api::core::v1::Pod;

use crate::lab::{self, OPERATOR_NAMESPACE};

/// Saves everything about the namespace of the test `name`, and returns the folder.
pub async fn collect(client: &Client, name: &str, namespace: &str, failure: &str) -> Result<PathBuf> {
    let folder = lab::workspace().join("target/e2e-artifacts").join(name);
    tokio::fs::create_dir_all(&folder).await.with_context(|| format!("cannot make {}", folder.display()))?;
    tokio::fs::write(folder.join("failure.txt"), failure).await?;
    for space in [namespace, OPERATOR_NAMESPACE] {
        let all =
            "kvclusters,pods,statefulsets,deployments,jobs,services,endpointslices,configmaps,poddisruptionbudgets";
        keep(&folder, &format!("{space}-objects.txt"), &["get", all, "-n", space, "-o", "wide"]).await?;
        keep(&folder, &format!("{space}-objects.yaml"), &["get", all, "-n", space, "-o", "yaml"]).await?;
        keep(&folder, &format!("{space}-events.txt"), &["get", "events", "-n", space, "--sort-by=.lastTimestamp"])
            .await?;
        keep(&folder, &format!("{space}-describe.txt"), &["describe", "kvclusters,statefulsets,pods", "-n", space])
            .await?;
        logs(client, &folder, space).await?;
    }
    Ok(folder)
}

/// The logs of every container in a namespace, and of its predecessor if that crashed.
async fn logs(client: &Client, folder: &Path, namespace: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    for pod in pods.list(&ListParams::default()).await.context("cannot list the pods")? {
        let name = pod.name_any();
        let status = pod.status.unwrap_or_default();
        let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        for container in containers {
            let file = format!("{namespace}-{name}-{}", container.name);
            let words = ["logs", "-n", namespace, &name, "-c", &container.name];
            keep(folder, &format!("{file}.log"), &words).await?;
            if container.restart_count > 0 {
                keep(folder, &format!("{file}-before.log"), &[&words[..], &["--previous"]].concat()).await?;
            }
        }
    }
    Ok(())
}

/// Writes the output of kubectl, or its error, into a file.
async fn keep(folder: &Path, file: &str, words: &[&str]) -> Result<()> {
    let text = match lab::command("kubectl", words).await {
        Ok(text) => text,
        Err(complaint) => format!("{complaint:#}\n"),
    };
    tokio::fs::write(folder.join(file), text).await.with_context(|| format!("cannot write {file}"))
}
