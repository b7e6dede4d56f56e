//! Makes the document from the table of routes and the schemas of the views.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use flate2::read::GzDecoder;
use http_body_util::BodyExt;
use podmesh_protocol::access::Role;
use podmesh_views::http::Problem;
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::PREFIX;
use crate::route::Route;
use crate::routes::routes;

/// Returns the document: OpenAPI 3.1.
fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for route in &routes() {
        let path = paths.entry(format!("{PREFIX}{}", route.path)).or_insert_with(|| json!({}));
        path[route.method] = operation(route, &mut generator);
    }
    generator.subschema_for::<Problem>();
    let mut document = json!({
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://spec.openapis.org/oas/3.1/dialect/base",
        "info": {
            "title": "podmesh",
            "version": "1",
            "description": "Runs containers, commands and services on the machines of a LAN. Fields are only added; readers ignore those that they do not know. Words that a later version adds (states, events) may appear as well.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "token": [] }],
        "tags": [
            { "name": "manager" }, { "name": "jobs" }, { "name": "nodes" },
            { "name": "services" }, { "name": "access" },
        ],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API token: `podmesh token create --api --role operator`. At the unix socket `http.sock` users of the machine need none.",
                },
            },
        },
    });
    enumerate_words(&mut document);
    document
}

/// Writes words as `enum`: generators of clients do not understand a choice of constants. The
/// descriptions of the words go into that of the whole.
fn enumerate_words(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(enumerate_words);
            let Some(Value::Array(choices)) = fields.get("oneOf") else { return };
            let word = |choice: &Value| choice.get("const")?.as_str().map(str::to_owned);
            let Some(words) = choices.iter().map(word).collect::<Option<Vec<_>>>() else { return };
            let mut about =
                fields.get("description").and_then(Value::as_str).unwrap_or("").to_owned();
            for (word, choice) in words.iter().zip(choices) {
                if let Some(text) = choice.get("description").and_then(Value::as_str) {
                    about += &format!("\n* `{word}`: {text}");
                }
            }
            fields.remove("oneOf");
            fields.insert("type".into(), "string".into());
            fields.insert("enum".into(), words.into());
            fields.insert("description".into(), about.into());
        }
        Value::Array(values) => values.iter_mut().for_each(enumerate_words),
        _ => {}
    }
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut parameters: Vec<Value> = path_parameters(route.path);
    if let Some(query) = route.query {
        parameters.extend(query_parameters(&(query.make)(generator)));
    }
    parameters.extend(route.headers.iter().map(|(name, about)| {
        json!({ "name": name, "in": "header", "description": about, "schema": { "type": "string" } })
    }));
    let mut replies = Map::new();
    for reply in &route.replies {
        let mut content = Map::new();
        for (kind, schema) in &reply.content {
            let schema = schema.map_or_else(
                || json!({ "type": "string" }),
                |schema| (schema.make)(generator).to_value(),
            );
            content.insert((*kind).into(), json!({ "schema": schema }));
        }
        let mut object = json!({ "description": reply.about });
        if !content.is_empty() {
            object["content"] = content.into();
        }
        replies.insert(reply.status.to_string(), object);
    }
    replies.insert(
        "default".into(),
        json!({
            "description": "A problem: what happened, why, and what to do.",
            "content": { "application/problem+json": {
                "schema": { "$ref": "#/components/schemas/Problem" }
            } },
        }),
    );
    let mut operation = json!({
        "operationId": route.id,
        "summary": route.about,
        "tags": [tag(route)],
        "parameters": parameters,
        "responses": replies,
    });
    if let Some((body, required)) = route.body {
        operation["requestBody"] = json!({
            "required": required,
            "content": { "application/json": { "schema": (body.make)(generator).to_value() } },
        });
    }
    match route.role {
        None => operation["security"] = json!([]),
        Some(Role::Viewer) => {}
        Some(role) => operation["description"] = format!("Needs the role {role}.").into(),
    }
    operation
}

fn tag(route: &Route) -> &'static str {
    match route.path.split('/').nth(1) {
        Some("jobs") => "jobs",
        Some("nodes") => "nodes",
        Some("services") => "services",
        Some("tokens" | "users" | "key") => "access",
        _ => "manager",
    }
}

fn path_parameters(path: &str) -> Vec<Value> {
    let parts = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameter = |name: &str| {
        let (schema, about) = match name {
            "job" => (json!({ "type": "integer", "minimum": 0 }), "The job's number."),
            "index" => (json!({ "type": "integer", "minimum": 0 }), "The index of the task."),
            "id" => (json!({ "type": "integer", "minimum": 0 }), "The token's number."),
            "node" => (json!({ "type": "string" }), "The node."),
            "user" => (json!({ "type": "string" }), "The user."),
            _ => (json!({ "type": "string" }), "The service."),
        };
        json!({ "name": name, "in": "path", "required": true, "description": about, "schema": schema })
    };
    parts.map(parameter).collect()
}

/// Each field of a query is a parameter.
fn query_parameters(query: &Schema) -> Vec<Value> {
    let Some(fields) = query.get("properties").and_then(Value::as_object) else { return vec![] };
    let parameter = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        let about = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        let mut parameter = json!({ "name": name, "in": "query", "schema": schema });
        if let Some(about) = about {
            parameter["description"] = about;
        }
        parameter
    };
    fields.iter().map(parameter).collect()
}

/// Fails if the API has changed and the file has not. A route or field that is removed, or
/// changes its meaning, breaks programs that use it.
#[test]
fn the_checked_in_document_is_that_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let text = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    if std::env::var_os("PODMESH_UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == text,
        "{} differs from the code; if that is intended, run PODMESH_UPDATE_SCHEMA=1 cargo test -p podmesh-http openapi",
        path.display()
    );
}

#[tokio::test]
async fn the_checked_in_document_is_served_plain_and_compressed() {
    let checked_in = include_bytes!("../../openapi.json");
    for (headers, encoding) in [
        (HeaderMap::new(), None),
        (HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("gzip"))]), Some("gzip")),
    ] {
        let reply = super::document(headers).await;
        assert_eq!(reply.headers()[CONTENT_TYPE], "application/json");
        let sent = reply.headers().get(CONTENT_ENCODING).map(|value| value.to_str().unwrap());
        assert_eq!(sent, encoding);
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        let mut plain = Vec::new();
        match encoding {
            Some(_) => assert!(GzDecoder::new(&body[..]).read_to_end(&mut plain).is_ok()),
            None => plain.extend(body),
        }
        assert!(plain == checked_in);
    }
}

/// The official schema of OpenAPI 3.1 documents.
#[test]
fn the_document_is_valid() {
    let official = include_str!("../../schema/openapi-3.1.json");
    let official: Value = serde_json::from_str(official).unwrap();
    let validator = jsonschema::validator_for(&official).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(&document())
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    let mut broken = document();
    broken["paths"]["/api/v1/jobs"]["get"]["responses"] = json!({ "abc": {} });
    assert!(!validator.is_valid(&broken), "the validator finds mistakes");
}

#[test]
fn every_reference_leads_to_a_schema_and_every_operation_has_its_own_name() {
    let document = document();
    let mut references = BTreeSet::new();
    collect(&document, &mut references);
    assert!(references.len() > 30);
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    let ids: BTreeSet<&str> = routes().iter().map(|route| route.id).collect();
    assert_eq!(ids.len(), routes().len());
}

fn collect(value: &Value, references: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                references.insert(reference.to_owned());
            }
            fields.values().for_each(|value| collect(value, references));
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, references)),
        _ => {}
    }
}
