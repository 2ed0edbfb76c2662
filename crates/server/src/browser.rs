//! Keeping web pages out of a server that asks for no key.
//!
//! A server on the loopback interface is out of reach for other machines, but not for the pages in
//! this machine's browser: a page may send a plain-text `POST` anywhere without asking first, and one
//! whose name is made to resolve to 127.0.0.1 (DNS rebinding) may even read the reply. A browser
//! cannot be made to lie in `Origin` and `Host`, so these two tell; other clients send no `Origin`
//! and name the address they connect to.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::auth;
use crate::error::ApiError;

/// The origins whose pages may ask.
#[derive(Clone)]
pub(crate) struct Origins(Arc<[String]>);

impl Origins {
    pub(crate) fn new(origins: &[String]) -> Self {
        Self(origins.into())
    }

    pub(crate) fn allow(&self, origin: &[u8]) -> bool {
        self.0
            .iter()
            .any(|allowed| allowed == "*" || allowed.as_bytes() == origin)
    }

    /// Whether a page may reach this server under the name `host`: it must be one that no stranger's
    /// name server decides about, or that the user has named.
    fn allow_host(&self, host: &str) -> bool {
        is_address_or_localhost(host)
            || self
                .0
                .iter()
                .any(|allowed| allowed == "*" || authority(allowed) == Some(host))
    }
}

/// Lets a request through unless it shows that a strange web page has sent it.
pub(crate) async fn refuse_strange_pages(
    State(origins): State<Origins>,
    request: Request,
    next: Next,
) -> Response {
    match stranger(&origins, &request) {
        Some(stranger) if request.uri().path() != auth::OPEN_PATH => {
            let message = format!(
                "This server has no API key and does not answer requests {stranger}. Start it with --api-key-file FILE, \
                 or name the pages that may ask with --cors-origin ORIGIN."
            );
            ApiError::client(StatusCode::FORBIDDEN, "forbidden_origin", message).into_response()
        }
        _ => next.run(request).await,
    }
}

/// Returns what is strange about a request, if anything is.
fn stranger(origins: &Origins, request: &Request) -> Option<String> {
    let headers = request.headers();
    // HTTP/1.0 has no `Host`, and browsers have no HTTP/1.0.
    let host = headers
        .get(header::HOST)
        .map(|host| host.to_str().unwrap_or_default());
    if let Some(host) = host
        && !origins.allow_host(host)
    {
        return Some(format!(
            "for the host {host:?}, which is neither localhost nor an IP address"
        ));
    }
    let origin = headers.get(header::ORIGIN)?;
    let is_own = host.is_some() && origin.to_str().ok().and_then(authority) == host;
    (!is_own && !origins.allow(origin.as_bytes())).then(|| {
        let origin = String::from_utf8_lossy(origin.as_bytes());
        format!("from the web origin {origin:?}")
    })
}

/// Returns the host and port of an origin.
fn authority(origin: &str) -> Option<&str> {
    origin.split_once("://").map(|(_, authority)| authority)
}

fn is_address_or_localhost(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let name = authority.host();
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}
