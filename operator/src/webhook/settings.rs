//! The webhook's group of the operator's flags.

use std::net::SocketAddr;

/// Where the webhook listens, and the names of its objects.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sidecar webhook")]
pub struct Settings {
    /// Serve the webhook that injects sidecars into labelled pods.
    #[arg(
        id = "webhook",
        long = "webhook",
        env = "KVASIR_WEBHOOK",
        default_value_t = true,
        action = clap::ArgAction::Set,
        value_name = "BOOL"
    )]
    pub enabled: bool,
    /// Address of the webhook.
    #[arg(
        id = "webhook-listen",
        long = "webhook-listen",
        env = "KVASIR_WEBHOOK_LISTEN",
        default_value = "0.0.0.0:9443",
        value_name = "ADDRESS"
    )]
    pub listen: SocketAddr,
    /// Namespace of the webhook's Service and of the Secret with its certificate.
    #[arg(
        id = "webhook-namespace",
        long = "webhook-namespace",
        env = "KVASIR_NAMESPACE",
        default_value = "kvasir-system",
        value_name = "NAMESPACE"
    )]
    pub namespace: String,
    /// Service by which the API server reaches the webhook; the certificate is issued for its DNS name.
    #[arg(
        id = "webhook-service",
        long = "webhook-service",
        env = "KVASIR_WEBHOOK_SERVICE",
        default_value = "kvasir-webhook",
        value_name = "NAME"
    )]
    pub service: String,
    /// Secret with the webhook's certificate authority and certificate; the operator fills and renews it.
    #[arg(
        id = "webhook-secret",
        long = "webhook-secret",
        env = "KVASIR_WEBHOOK_SECRET",
        default_value = "kvasir-webhook-cert",
        value_name = "NAME"
    )]
    pub secret: String,
    /// `MutatingWebhookConfiguration` whose `caBundle` the operator keeps up to date.
    #[arg(
        id = "webhook-configuration",
        long = "webhook-configuration",
        env = "KVASIR_WEBHOOK_CONFIGURATION",
        default_value = "kvasir-sidecar",
        value_name = "NAME"
    )]
    pub configuration: String,
}

impl Settings {
    /// The DNS names that the serving certificate must have; the API server uses the first.
    pub fn names(&self) -> Vec<String> {
        let host = format!("{}.{}", self.service, self.namespace);
        vec![format!("{host}.svc"), host.clone(), format!("{host}.svc.cluster.local")]
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command};

    use super::*;

    #[test]
    fn webhook_flags_have_ids_of_their_own() {
        let command = Settings::augment_args(Command::new("operator"));
        for argument in command.get_arguments() {
            let id = argument.get_id().as_str();
            assert!(id.starts_with("webhook"), "{id} could be the name of another flag as well");
        }
        command.debug_assert();
    }
}
