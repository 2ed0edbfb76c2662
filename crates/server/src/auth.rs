//! The API key.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::error::ApiError;

/// The one path that answers without a key: a watchdog only has to know that the process lives.
pub(crate) const OPEN_PATH: &str = "/health/live";

/// A key clients must send. Only its digest is kept.
#[derive(Clone)]
pub(crate) struct ApiKey {
    digest: Arc<[u8; 32]>,
}

impl ApiKey {
    pub(crate) fn new(key: &str) -> Self {
        Self {
            digest: Arc::new(Sha256::digest(key).into()),
        }
    }

    /// Compares digests without leaving early: neither the key's length nor how much of it is right shows in the time.
    fn matches(&self, candidate: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(candidate).into();
        let difference = self
            .digest
            .iter()
            .zip(digest)
            .fold(0, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

/// Lets a request through if it carries the key, or if its path needs none.
pub(crate) async fn require_key(
    State(key): State<ApiKey>,
    request: Request,
    next: Next,
) -> Response {
    if request.uri().path() == OPEN_PATH {
        return next.run(request).await;
    }
    let problem = match bearer(request.headers()) {
        Some(candidate) if key.matches(candidate) => return next.run(request).await,
        Some(_) => "Incorrect API key provided.",
        None => "You didn't provide an API key.",
    };
    let message = format!("{problem} Send it in the header 'Authorization: Bearer YOUR_KEY'.");
    ApiError::client(StatusCode::UNAUTHORIZED, "invalid_api_key", message).into_response()
}

/// Returns the key, as bytes: one with letters beyond ASCII is one as well.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(BEARER.len())?;
    scheme
        .eq_ignore_ascii_case(BEARER)
        .then(|| key.trim_ascii())
}

const BEARER: &[u8] = b"bearer ";

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_key_is_taken_byte_by_byte_and_its_scheme_in_any_case() {
        let key = ApiKey::new("schlüssel");
        let opens = |value: &str| {
            let mut headers = HeaderMap::new();
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("a header's bytes");
            headers.insert(header::AUTHORIZATION, value);
            bearer(&headers).map(|candidate| key.matches(candidate))
        };
        assert_eq!(opens("Bearer schlüssel"), Some(true));
        assert_eq!(opens("bEARER   schlüssel "), Some(true));
        for wrong in ["Bearer schlussel", "Bearer schlüssel2", "Bearer "] {
            assert_eq!(opens(wrong), Some(false), "{wrong}");
        }
        for none in ["", "Basic schlüssel", "schlüssel"] {
            assert_eq!(opens(none), None, "{none}");
        }
    }
}
