//! Typed values: text, protobuf messages, JSON, and types with a codec of the application's own.

use crate::client::Client;
use crate::error::Error;
use crate::kv::{PutOptions, Version};
use crate::pipe::Pipe;
use crate::session::Session;
use bytes::Bytes;

/// Encodes values of one type as bytes, and decodes them.
///
/// ```
/// use kvasir_client::{Bytes, Codec};
///
/// struct BigEndian;
///
/// impl Codec<u32> for BigEndian {
///     type Error = std::array::TryFromSliceError;
///
///     fn encode(&self, value: &u32) -> Result<Bytes, Self::Error> {
///         Ok(Bytes::copy_from_slice(&value.to_be_bytes()))
///     }
///
///     fn decode(&self, bytes: Bytes) -> Result<u32, Self::Error> {
///         Ok(u32::from_be_bytes(bytes[..].try_into()?))
///     }
/// }
///
/// let bytes = BigEndian.encode(&7).unwrap();
/// assert_eq!(BigEndian.decode(bytes).unwrap(), 7);
/// ```
pub trait Codec<T> {
    /// Why a value cannot be encoded or decoded.
    type Error: std::fmt::Display;

    /// Encodes a value.
    fn encode(&self, value: &T) -> Result<Bytes, Self::Error>;

    /// Decodes a value.
    fn decode(&self, bytes: Bytes) -> Result<T, Self::Error>;
}

/// UTF-8 text.
#[derive(Debug, Clone, Copy, Default)]
pub struct Text;

impl Codec<String> for Text {
    type Error = std::string::FromUtf8Error;

    fn encode(&self, value: &String) -> Result<Bytes, Self::Error> {
        Ok(Bytes::copy_from_slice(value.as_bytes()))
    }

    fn decode(&self, bytes: Bytes) -> Result<String, Self::Error> {
        String::from_utf8(bytes.into())
    }
}

/// Protobuf messages (feature `proto`).
#[cfg(feature = "proto")]
#[derive(Debug, Clone, Copy, Default)]
pub struct Proto;

#[cfg(feature = "proto")]
impl<M: prost::Message + Default> Codec<M> for Proto {
    type Error = prost::DecodeError;

    fn encode(&self, value: &M) -> Result<Bytes, Self::Error> {
        Ok(value.encode_to_vec().into())
    }

    fn decode(&self, bytes: Bytes) -> Result<M, Self::Error> {
        M::decode(bytes)
    }
}

/// JSON of any type that serde can write and read (feature `json`).
#[cfg(feature = "json")]
#[derive(Debug, Clone, Copy, Default)]
pub struct Json;

#[cfg(feature = "json")]
impl<T: serde::Serialize + serde::de::DeserializeOwned> Codec<T> for Json {
    type Error = serde_json::Error;

    fn encode(&self, value: &T) -> Result<Bytes, Self::Error> {
        serde_json::to_vec(value).map(Bytes::from)
    }

    fn decode(&self, bytes: Bytes) -> Result<T, Self::Error> {
        serde_json::from_slice(&bytes)
    }
}

/// The same calls on [`Client`], [`Pipe`] and [`Session`]. Not a trait, because users would have to import it, and the
/// calls of a session take `&mut self`.
macro_rules! typed {
    ($type:ident, $this:ident: $as:ty) => {
        impl $type {
            /// Encodes `value` with the codec and stores the result.
            pub async fn put_with<T, C: Codec<T>>(
                $this: $as,
                codec: &C,
                key: impl Into<String>,
                value: &T,
                options: PutOptions,
            ) -> Result<Version, Error> {
                let key = key.into();
                let bytes = codec.encode(value).map_err(|error| codec_error(&key, &error))?;
                $this.put(key, bytes, options).await
            }

            /// Reads a key and decodes its value with the codec; `None` if the key does not exist.
            pub async fn get_with<T, C: Codec<T>>(
                $this: $as,
                codec: &C,
                key: impl Into<String>,
            ) -> Result<Option<T>, Error> {
                let key = key.into();
                let Some(found) = $this.get(key.clone()).await? else { return Ok(None) };
                codec.decode(found.value).map(Some).map_err(|error| codec_error(&key, &error))
            }

            /// Stores text.
            pub async fn put_string(
                $this: $as,
                key: impl Into<String>,
                text: impl Into<String>,
                options: PutOptions,
            ) -> Result<Version, Error> {
                $this.put(key, text.into(), options).await
            }

            /// Reads text.
            pub async fn get_string($this: $as, key: impl Into<String>) -> Result<Option<String>, Error> {
                $this.get_with(&Text, key).await
            }
        }

        #[cfg(feature = "proto")]
        impl $type {
            /// Stores a protobuf message (feature `proto`).
            pub async fn put_proto<M: prost::Message + Default>(
                $this: $as,
                key: impl Into<String>,
                message: &M,
                options: PutOptions,
            ) -> Result<Version, Error> {
                $this.put_with(&Proto, key, message, options).await
            }

            /// Reads a protobuf message (feature `proto`).
            pub async fn get_proto<M: prost::Message + Default>(
                $this: $as,
                key: impl Into<String>,
            ) -> Result<Option<M>, Error> {
                $this.get_with(&Proto, key).await
            }
        }

        #[cfg(feature = "json")]
        impl $type {
            /// Stores a value as JSON (feature `json`).
            pub async fn put_json<T: serde::Serialize + serde::de::DeserializeOwned>(
                $this: $as,
                key: impl Into<String>,
                value: &T,
                options: PutOptions,
            ) -> Result<Version, Error> {
                $this.put_with(&Json, key, value, options).await
            }

            /// Reads a value from JSON (feature `json`).
            pub async fn get_json<T: serde::Serialize + serde::de::DeserializeOwned>(
                $this: $as,
                key: impl Into<String>,
            ) -> Result<Option<T>, Error> {
                $this.get_with(&Json, key).await
            }
        }
    };
}

typed!(Client, self: &Self);
typed!(Pipe, self: &Self);
typed!(Session, self: &mut Self);

fn codec_error(key: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Codec { key: key.to_owned(), reason: error.to_string() }
}
