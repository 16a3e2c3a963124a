//! Defines structs of optional settings, and how the settings of one source are laid over those of another.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use crate::config::{
    AccessRule, DurationText, HostPort, Labels, LogFormat, MaxMemoryPolicy, Quantity, Role, Secret, Secrets, Servers,
};

/// Defines a struct of optional settings with its `over`. The fields are listed once, so `over` cannot miss one.
macro_rules! settings {
    (
        $(#[$struct_meta:meta])* $name:ident { $($(#[$meta:meta])* $field:ident: $type:ty,)* }
        $(and { $($(#[$group_meta:meta])* $group:ident: $group_type:ty,)* })?
    ) => {
        $(#[$struct_meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, serde::Deserialize, serde::Serialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$meta])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<$type>,)*
            $($($(#[$group_meta])* pub $group: $group_type,)*)?
        }

        impl $name {
            /// These settings; `below` supplies the ones that are absent.
            #[must_use]
            pub fn over(self, below: Self) -> Self {
                use $crate::config::settings::layers::Layer;

                Self {
                    $($field: Layer::over(self.$field, below.$field),)*
                    $($($group: self.$group.over(below.$group),)*)?
                }
            }
        }
    };
}
pub(super) use settings;

/// How the values of one setting from two sources are combined.
pub(super) trait Layer: Sized {
    fn over(above: Option<Self>, below: Option<Self>) -> Option<Self>;
}

/// For types whose value is replaced as a whole.
macro_rules! whole {
    ($($type:ty),*) => {$(
        impl Layer for $type {
            fn over(above: Option<Self>, below: Option<Self>) -> Option<Self> { above.or(below) }
        }
    )*};
}
whole!(String, bool, u16, u32, usize, IpAddr, SocketAddr, PathBuf, Role, MaxMemoryPolicy, LogFormat);
whole!(DurationText, Quantity, Labels, Secret, Secrets, Servers, Vec<HostPort>, Vec<SocketAddr>, Vec<AccessRule>);

/// For structs of settings, which are combined field by field.
macro_rules! by_field {
    ($($type:ty),*) => {$(
        impl $crate::config::settings::layers::Layer for $type {
            fn over(above: Option<Self>, below: Option<Self>) -> Option<Self> {
                match (above, below) {
                    (Some(above), Some(below)) => Some(above.over(below)),
                    (above, below) => above.or(below),
                }
            }
        }
    )*};
}
pub(super) use by_field;
