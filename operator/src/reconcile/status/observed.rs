//! What a reconcile observed of a cluster: the input of the status.

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::Pod},
    jiff::Timestamp,
};
use kube::ResourceExt;
use kvasir_crds::KvCluster;

use crate::{
    obstacle::Obstacle,
    reconcile::{
        poll::{Answers, NodeStatus},
        warnings::Warning,
    },
    webhook::pods::Sidecars,
};

/// What was observed of a cluster.
#[derive(Debug)]
pub struct Observed<'a> {
    /// The cluster, with its last status.
    pub cluster: &'a KvCluster,
    /// What keeps the spec from being carried out.
    pub obstacle: Option<Obstacle>,
    /// What a person should fix although the spec is carried out.
    pub concern: Option<Obstacle>,
    /// The `StatefulSet` before this reconcile.
    pub stateful_set: Option<&'a StatefulSet>,
    /// Whether this reconcile changed the `StatefulSet`.
    pub changed: bool,
    /// The member pods.
    pub pods: &'a [Pod],
    /// The members' answers.
    pub answers: &'a Answers,
    /// The application pods; `None` if they could not be read.
    pub sidecars: Option<&'a Sidecars>,
    /// Warning events on the cluster's objects, oldest first.
    pub warnings: &'a [Warning],
    /// What could not be read: one sentence each, with the reason.
    pub unknown: &'a [String],
    /// The current time.
    pub now: Timestamp,
}

impl Observed<'_> {
    /// The answer of the member in this pod.
    pub(super) fn answer(&self, pod: &Pod) -> Option<&NodeStatus> {
        self.answers.get(&pod.name_any()).and_then(|answer| answer.as_ref().ok())
    }

    /// The answers of all members that answered.
    pub(super) fn all_answers(&self) -> impl Iterator<Item = &NodeStatus> {
        self.pods.iter().filter_map(|pod| self.answer(pod))
    }
}
