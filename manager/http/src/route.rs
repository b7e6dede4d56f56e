//! What a route says about itself.

use axum::handler::Handler;
use axum::routing::{MethodRouter, delete, get, post};
use podmesh_protocol::access::Role;
use schemars::JsonSchema;
#[cfg(test)]
use schemars::{Schema, SchemaGenerator};

use crate::app::App;

/// Makes a schema. Only the OpenAPI document needs schemas, and a test makes it.
#[derive(Clone, Copy)]
pub(crate) struct SchemaOf {
    #[cfg(test)]
    pub(crate) make: fn(&mut SchemaGenerator) -> Schema,
}

/// A reply.
#[cfg_attr(not(test), expect(dead_code, reason = "for the document"))]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) about: &'static str,
    /// The media types, and the schema of JSON.
    pub(crate) content: Vec<(&'static str, Option<SchemaOf>)>,
}

/// A route: what the router does with it, and what the document says about it.
#[cfg_attr(not(test), expect(dead_code, reason = "for the document"))]
pub(crate) struct Route {
    pub(crate) method: &'static str,
    /// Below [`PREFIX`].
    pub(crate) path: &'static str,
    /// The name of the operation.
    pub(crate) id: &'static str,
    pub(crate) about: &'static str,
    /// The role that it needs; `None` if nobody is asked for a token.
    pub(crate) role: Option<Role>,
    pub(crate) query: Option<SchemaOf>,
    /// Headers of the request that it knows, and what they mean.
    pub(crate) headers: &'static [(&'static str, &'static str)],
    /// The schema of the body, and whether it is required.
    pub(crate) body: Option<(SchemaOf, bool)>,
    pub(crate) replies: Vec<Reply>,
    pub(crate) handler: MethodRouter<App>,
}

#[cfg_attr(not(test), expect(clippy::extra_unused_type_parameters, reason = "for the document"))]
pub(crate) fn schema_of<T: JsonSchema>() -> SchemaOf {
    SchemaOf {
        #[cfg(test)]
        make: |generator| generator.subschema_for::<T>(),
    }
}

/// A query becomes parameters, not a schema with a name.
#[cfg_attr(not(test), expect(clippy::extra_unused_type_parameters, reason = "for the document"))]
fn query_of<T: JsonSchema>() -> SchemaOf {
    SchemaOf {
        #[cfg(test)]
        make: |generator| T::json_schema(generator),
    }
}

impl Route {
    pub(crate) fn new(
        method: &'static str,
        path: &'static str,
        id: &'static str,
        about: &'static str,
        handler: MethodRouter<App>,
    ) -> Self {
        let (role, query, body, replies) = (Some(Role::Viewer), None, None, vec![]);
        Self { method, path, id, about, role, query, headers: &[], body, replies, handler }
    }

    pub(crate) fn needs(mut self, role: Role) -> Self {
        self.role = Some(role);
        self
    }

    pub(crate) fn public(mut self) -> Self {
        self.role = None;
        self
    }

    pub(crate) fn query<T: JsonSchema>(mut self) -> Self {
        self.query = Some(query_of::<T>());
        self
    }

    pub(crate) fn header(mut self, headers: &'static [(&'static str, &'static str)]) -> Self {
        self.headers = headers;
        self
    }

    pub(crate) fn body<T: JsonSchema>(mut self) -> Self {
        self.body = Some((schema_of::<T>(), true));
        self
    }

    pub(crate) fn optional_body<T: JsonSchema>(mut self) -> Self {
        self.body = Some((schema_of::<T>(), false));
        self
    }

    pub(crate) fn reply<T: JsonSchema>(self, status: u16, about: &'static str) -> Self {
        self.reply_as(status, about, vec![("application/json", Some(schema_of::<T>()))])
    }

    pub(crate) fn no_content(self, status: u16, about: &'static str) -> Self {
        self.reply_as(status, about, vec![])
    }

    pub(crate) fn reply_as(
        mut self,
        status: u16,
        about: &'static str,
        content: Vec<(&'static str, Option<SchemaOf>)>,
    ) -> Self {
        self.replies.push(Reply { status, about, content });
        self
    }
}

pub(crate) fn on_get<H: Handler<T, App>, T: 'static>(
    path: &'static str,
    id: &'static str,
    about: &'static str,
    handler: H,
) -> Route {
    Route::new("get", path, id, about, get(handler))
}

pub(crate) fn on_post<H: Handler<T, App>, T: 'static>(
    path: &'static str,
    id: &'static str,
    about: &'static str,
    handler: H,
) -> Route {
    Route::new("post", path, id, about, post(handler))
}

pub(crate) fn on_delete<H: Handler<T, App>, T: 'static>(
    path: &'static str,
    id: &'static str,
    about: &'static str,
    handler: H,
) -> Route {
    Route::new("delete", path, id, about, delete(handler))
}
