//! What a client shows, and whom it trusts: TLS and tokens. Files are read when a connection is made, a token's also in
//! between, so that ones that are exchanged need no restart.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::metadata::Ascii;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use crate::Error;

/// How long a token that was read from a file is used until the file is looked at again.
const TOKEN_AGE: Duration = Duration::from_secs(10);

/// A channel whose calls carry the token.
pub(crate) type Authorised = InterceptedService<Channel, Bearer>;

/// What a client shows, and whom it trusts.
///
/// ```no_run
/// use kvasir_client::{Client, Credentials};
///
/// # fn run() -> Result<(), kvasir_client::Error> {
/// let credentials = Credentials::default().ca_file("/run/secrets/kvasir/ca.crt").token_file("/run/secrets/kvasir/token");
/// let client = Client::builder("https://demo.default.svc:7070").credentials(credentials).build()?;
/// # drop(client);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "credentials do nothing until a builder has them"]
pub struct Credentials {
    ca_file: Option<PathBuf>,
    certificate: Option<(PathBuf, PathBuf)>,
    server_name: Option<String>,
    token: Option<Source>,
}

#[derive(Clone)]
enum Source {
    Text(MetadataValue<Ascii>),
    File(PathBuf),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(_) => f.write_str("(secret)"),
            Self::File(path) => path.fmt(f),
        }
    }
}

impl Credentials {
    /// Those that the environment names: `KVASIR_CA_FILE`, `KVASIR_CERT_FILE` with `KVASIR_KEY_FILE`, `KVASIR_SERVER_NAME`
    /// and `KVASIR_TOKEN_FILE`.
    pub fn from_env() -> Self {
        let file = |name| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        Self {
            ca_file: file("KVASIR_CA_FILE"),
            certificate: file("KVASIR_CERT_FILE").zip(file("KVASIR_KEY_FILE")),
            server_name: std::env::var("KVASIR_SERVER_NAME").ok().filter(|name| !name.is_empty()),
            token: file("KVASIR_TOKEN_FILE").map(Source::File),
        }
    }

    /// The authorities that the nodes' certificates may come from (PEM); the system's without.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// The client's certificate and its key (PEM).
    pub fn certificate(mut self, cert_file: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        self.certificate = Some((cert_file.into(), key_file.into()));
        self
    }

    /// The name that the nodes' certificates have, where that is not the address's.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// The token that is sent with each call.
    pub fn token(mut self, token: &str) -> Result<Self, Error> {
        self.token = Some(Source::Text(bearer(token).map_err(Error::Credentials)?));
        Ok(self)
    }

    /// A file with the token that is sent with each call.
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token = Some(Source::File(path.into()));
        self
    }

    /// Gives an endpoint what of this is for connections.
    pub(crate) fn apply(&self, endpoint: Endpoint) -> Result<Endpoint, Error> {
        let Self { ca_file, certificate, server_name, token: _ } = self;
        if endpoint.uri().scheme_str() != Some("https") {
            if ca_file.is_some() || certificate.is_some() || server_name.is_some() {
                return Err(Error::Credentials(
                    "certificates are of use only with https:// before the address".to_owned(),
                ));
            }
            return Ok(endpoint);
        }
        let mut tls = match ca_file {
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((cert, key)) = certificate {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        if let Some(name) = server_name {
            tls = tls.domain_name(name);
        }
        endpoint.tls_config(tls).map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Error::Credentials(format!("the certificates are of no use: {cause}"))
        })
    }

    /// What of this is for calls.
    pub(crate) fn bearer(&self) -> Bearer {
        Bearer(self.token.clone().map(|source| Arc::new(Token { source, read: Mutex::new(None) })))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| Error::Credentials(format!("cannot read {}: {error}", path.display())))
}

/// The header of a token.
fn bearer(token: &str) -> Result<MetadataValue<Ascii>, String> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
        .parse()
        .map_err(|_| "the token has characters that no header may have".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// Puts the token into each call.
#[derive(Clone, Debug)]
pub(crate) struct Bearer(Option<Arc<Token>>);

#[derive(Debug)]
struct Token {
    source: Source,
    read: Mutex<Option<(MetadataValue<Ascii>, Instant)>>,
}

impl Token {
    fn value(&self) -> Result<MetadataValue<Ascii>, String> {
        let path = match &self.source {
            Source::Text(value) => return Ok(value.clone()),
            Source::File(path) => path,
        };
        // Every write replaces the whole value: a panic elsewhere cannot have left it half done.
        let mut kept = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((value, at)) = &*kept
            && at.elapsed() < TOKEN_AGE
        {
            return Ok(value.clone());
        }
        let token =
            std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let value = bearer(&token)?;
        *kept = Some((value.clone(), Instant::now()));
        Ok(value)
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.value().map_err(Status::unauthenticated)?);
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(bearer: &mut Bearer) -> Result<Option<String>, Status> {
        let request = bearer.call(Request::new(()))?;
        Ok(request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned()))
    }

    #[test]
    fn a_token_goes_with_each_call_and_is_shown_to_nobody() {
        let with = Credentials::default().token(" hush\n").unwrap();
        assert_eq!(header(&mut with.bearer()).unwrap().as_deref(), Some("Bearer hush"));
        assert!(!format!("{with:?} {:?}", with.bearer()).contains("hush"));
        assert_eq!(header(&mut Credentials::default().bearer()).unwrap(), None);
        assert!(Credentials::default().token("a\nb").is_err());
        let missing = Credentials::default().token_file("/nonexistent/token");
        let status = header(&mut missing.bearer()).unwrap_err();
        assert!(status.message().contains("/nonexistent/token"), "{status}");
    }

    #[test]
    fn certificates_without_tls_are_an_error_and_bad_ones_too() {
        let plain = Endpoint::from_static("http://127.0.0.1:1");
        let ca = Credentials::default().ca_file("/nonexistent/ca.crt");
        assert!(ca.apply(plain.clone()).unwrap_err().to_string().contains("https://"));
        assert!(Credentials::default().apply(plain).is_ok());
        let secure = Endpoint::from_static("https://127.0.0.1:1");
        assert!(ca.apply(secure).unwrap_err().to_string().contains("/nonexistent/ca.crt"));
    }
}
