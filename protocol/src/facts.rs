//! Enums that grow: their variants are written as `{kind: fields}`, and readers of an older version
//! keep what they do not know.
//!
//! The rules:
//!
//! - A new kind may be added. A reader that does not know it keeps it as `Unknown`, with its fields,
//!   and writes the same bytes again.
//! - A kind with two or more fields may get another one at its end. Readers ignore fields that they
//!   do not know. A field that a version added has a default, because older values do not have it.
//! - A kind with one field never gets another one: a new kind takes its place.
//! - Readers also accept the fields as a map with their names.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The fields of a kind that this version does not know.
#[derive(Clone, Debug, PartialEq)]
pub struct RawFields(pub rmpv::Value);

// Two equal values have equal bytes, apart from numbers that are no numbers.
impl Eq for RawFields {}

impl Serialize for RawFields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RawFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        rmpv::Value::deserialize(deserializer).map(Self)
    }
}

/// Fields as they are written: an array, or the field itself if there is only one.
pub(crate) struct Row<T>(pub(crate) T);

impl<A: Serialize> Serialize for Row<(&A,)> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.0.serialize(serializer)
    }
}

/// Reads the fields of a kind with these names.
pub(crate) struct Fields<T> {
    names: &'static [&'static str],
    row: PhantomData<T>,
}

impl<T> Fields<T> {
    pub(crate) fn new(names: &'static [&'static str]) -> Self {
        Self { names, row: PhantomData }
    }
}

impl<'de, A: Deserialize<'de>> DeserializeSeed<'de> for Fields<(A,)> {
    type Value = (A,);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(A,), D::Error> {
        A::deserialize(deserializer).map(|field| (field,))
    }
}

macro_rules! rows {
    ($($($type:ident $at:tt)+;)+) => {$(
        impl<$($type: Serialize),+> Serialize for Row<($(&$type,)+)> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.serialize(serializer)
            }
        }

        impl<'de, $($type: Deserialize<'de>),+> DeserializeSeed<'de> for Fields<($($type,)+)> {
            type Value = ($($type,)+);

            fn deserialize<De: Deserializer<'de>>(
                self,
                deserializer: De,
            ) -> Result<Self::Value, De::Error> {
                deserializer.deserialize_any(self)
            }
        }

        impl<'de, $($type: Deserialize<'de>),+> Visitor<'de> for Fields<($($type,)+)> {
            type Value = ($($type,)+);

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "the fields {}", self.names.join(", "))
            }

            fn visit_seq<Se: SeqAccess<'de>>(self, mut seq: Se) -> Result<Self::Value, Se::Error> {
                let row = ($(
                    match seq.next_element::<$type>()? {
                        Some(field) => field,
                        None => return Err(Se::Error::missing_field(self.names[$at])),
                    },
                )+);
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(row)
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut row = ($(None::<$type>,)+);
                while let Some(name) = map.next_key::<String>()? {
                    match self.names.iter().position(|known| *known == name) {
                        $(Some($at) => row.$at = Some(map.next_value()?),)+
                        _ => _ = map.next_value::<IgnoredAny>()?,
                    }
                }
                Ok(($(
                    row.$at.ok_or_else(|| M::Error::missing_field(self.names[$at]))?,
                )+))
            }
        }
    )+};
}

rows! {
    A 0 B 1;
    A 0 B 1 C 2;
    A 0 B 1 C 2 D 3;
}

/// Defines an enum that grows: see the [module](self).
macro_rules! facts {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $(
                $(#[$kind_meta:meta])*
                $kind:ident = $word:literal {
                    $($(#[$field_meta:meta])* $field:ident: $type:ty,)+
                }
            )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $name {
            $(
                $(#[$kind_meta])*
                $kind { $($(#[$field_meta])* $field: $type,)+ },
            )+
            /// A kind that this version does not know.
            Unknown {
                /// The kind.
                kind: String,
                /// Its fields.
                fields: $crate::facts::RawFields,
            },
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeMap;
                let mut map = serializer.serialize_map(Some(1))?;
                match self {
                    $(Self::$kind { $($field,)+ } => {
                        map.serialize_entry($word, &$crate::facts::Row(($($field,)+)))?;
                    })+
                    Self::Unknown { kind, fields } => map.serialize_entry(kind, fields)?,
                }
                map.end()
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct FactVisitor;

                impl<'de> serde::de::Visitor<'de> for FactVisitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a map of one kind to its fields")
                    }

                    fn visit_map<M: serde::de::MapAccess<'de>>(
                        self,
                        mut map: M,
                    ) -> Result<$name, M::Error> {
                        use serde::de::Error;
                        let Some(kind) = map.next_key::<String>()? else {
                            return Err(M::Error::custom("the kind is missing"));
                        };
                        match kind.as_str() {
                            $($word => {
                                let seed = $crate::facts::Fields::<($($type,)+)>::new(
                                    &[$(stringify!($field)),+],
                                );
                                let ($($field,)+) = map.next_value_seed(seed)?;
                                Ok($name::$kind { $($field),+ })
                            })+
                            _ => Ok($name::Unknown { kind, fields: map.next_value()? }),
                        }
                    }
                }

                deserializer.deserialize_map(FactVisitor)
            }
        }
    };
}

pub(crate) use facts;
