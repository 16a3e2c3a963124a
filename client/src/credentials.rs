//! TLS and tokens. Certificate files are read for each connection, and a token file also between connections, so that
//! replaced files take effect without a restart.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::metadata::Ascii;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::Error;

/// How long a token from a file is used before the file is read again.
const TOKEN_AGE: Duration = Duration::from_secs(10);

/// A channel that adds the token to each call.
pub(crate) type Authorised = InterceptedService<Channel, Bearer>;

/// The client's token and certificate, and the authorities that it trusts.
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
#[must_use = "credentials do nothing until they are given to a builder"]
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
    /// The credentials that the environment names: `KVASIR_CA_FILE`, `KVASIR_CERT_FILE` with `KVASIR_KEY_FILE`,
    /// `KVASIR_SERVER_NAME` and `KVASIR_TOKEN_FILE`.
    pub fn from_env() -> Self {
        let file = |name| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        Self {
            ca_file: file("KVASIR_CA_FILE"),
            certificate: file("KVASIR_CERT_FILE").zip(file("KVASIR_KEY_FILE")),
            server_name: std::env::var("KVASIR_SERVER_NAME").ok().filter(|name| !name.is_empty()),
            token: file("KVASIR_TOKEN_FILE").map(Source::File),
        }
    }

    /// A file with the authorities that may issue the nodes' certificates (PEM). Default: the system's authorities.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// Files with the client's certificate and its key (PEM).
    pub fn certificate(mut self, cert_file: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        self.certificate = Some((cert_file.into(), key_file.into()));
        self
    }

    /// The name in the nodes' certificates, if it differs from the host in the address.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// A token to send with each call.
    pub fn token(mut self, token: &str) -> Result<Self, Error> {
        self.token = Some(Source::Text(bearer(token).map_err(Error::Credentials)?));
        Ok(self)
    }

    /// A file with the token to send with each call.
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token = Some(Source::File(path.into()));
        self
    }

    /// Applies the certificates to an endpoint, if its address asks for TLS.
    pub(crate) fn apply(&self, endpoint: Endpoint) -> Result<Endpoint, Error> {
        let Self { ca_file, certificate, server_name, token: _ } = self;
        if endpoint.uri().scheme_str() != Some("https") {
            if ca_file.is_some() || certificate.is_some() || server_name.is_some() {
                return Err(Error::Credentials("certificates need https:// before the address".to_owned()));
            }
            return Ok(endpoint);
        }
        self.encrypt(endpoint)
    }

    #[cfg(feature = "tls")]
    fn encrypt(&self, endpoint: Endpoint) -> Result<Endpoint, Error> {
        use tonic::transport::{Certificate, ClientTlsConfig, Identity};

        let mut tls = match &self.ca_file {
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((cert, key)) = &self.certificate {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        endpoint.tls_config(tls).map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Error::Credentials(format!("the certificates are not usable: {cause}"))
        })
    }

    #[cfg(not(feature = "tls"))]
    #[expect(clippy::unused_self, reason = "with the feature it has certificates to apply")]
    fn encrypt(&self, _: Endpoint) -> Result<Endpoint, Error> {
        Err(Error::Credentials("https:// needs the feature `tls` of kvasir-client".to_owned()))
    }

    /// Adds the token to calls.
    pub(crate) fn bearer(&self) -> Bearer {
        Bearer(self.token.clone().map(|source| Arc::new(Token { source, read: Mutex::new(None) })))
    }
}

#[cfg(feature = "tls")]
fn read(path: &std::path::Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| Error::Credentials(format!("cannot read {}: {error}", path.display())))
}

/// The header value with the token.
fn bearer(token: &str) -> Result<MetadataValue<Ascii>, String> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
        .parse()
        .map_err(|_| "the token has characters that a header must not have".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// Adds the token, if there is one, to each call.
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
        // Every write replaces the whole value, so a panic cannot have left it half written.
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
    fn token_goes_with_each_call_and_is_not_shown() {
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
    fn certificates_need_tls_and_readable_files() {
        let plain = Endpoint::from_static("http://127.0.0.1:1");
        let ca = Credentials::default().ca_file("/nonexistent/ca.crt");
        assert!(ca.apply(plain.clone()).unwrap_err().to_string().contains("https://"));
        assert!(Credentials::default().apply(plain).is_ok());
        let secure = Endpoint::from_static("https://127.0.0.1:1");
        let wanted = if cfg!(feature = "tls") { "/nonexistent/ca.crt" } else { "the feature `tls`" };
        assert!(ca.apply(secure).unwrap_err().to_string().contains(wanted));
    }
}
