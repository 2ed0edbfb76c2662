//! `x-request-id`: one on every reply, the client's own if it sent a sane one.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument, debug, info_span};

use crate::random;

/// The header's name.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives the request an id, logs under it, and puts it on the reply.
pub(crate) async fn assign(request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(X_REQUEST_ID)
        .filter(|id| is_sane(id))
        .cloned()
        .unwrap_or_else(|| {
            HeaderValue::try_from(random::id("req_")).expect("hex digits are a header value")
        });
    let span = info_span!("request", id = id.to_str().unwrap_or_default());
    let mut response = async {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = next.run(request).await;
        debug!(%method, path, status = response.status().as_u16(), "answered");
        response
    }
    .instrument(span)
    .await;
    response.headers_mut().insert(X_REQUEST_ID, id);
    response
}

/// Short and printable, so that echoing and logging it is harmless.
fn is_sane(id: &HeaderValue) -> bool {
    (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}
