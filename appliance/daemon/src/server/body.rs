//! Bodies of requests: their kind, their size, and what is said when they cannot be had.

use appliance_api::{ApiError, sse::CONTENT_TYPE_JSON};
use appliance_edge::{BodyError, Request};
use bytes::Bytes;
use http::{HeaderMap, header};

/// Reads a whole body of JSON. Without a content type it is taken for JSON, as it always was.
pub(super) async fn json(request: Request, bytes_max: usize) -> Result<Bytes, ApiError> {
    expect_type(&request.head.headers, CONTENT_TYPE_JSON)?;
    whole(request, bytes_max).await
}

/// Reads a whole body, whatever it says it is: Ollama's own examples are `curl -d` without a content type of their own, which
/// says that it is a form.
pub(super) async fn whole(request: Request, bytes_max: usize) -> Result<Bytes, ApiError> {
    request.body.collect(bytes_max).await.map_err(refused)
}

/// Refuses a body longer than its function allows.
pub(super) fn within(body: &Bytes, bytes_max: u64) -> Result<(), ApiError> {
    if body.len() as u64 > bytes_max { Err(ApiError::payload_too_large(bytes_max)) } else { Ok(()) }
}

/// What a caller is told whose body cannot be had.
pub(super) fn refused(error: BodyError) -> ApiError {
    match error {
        BodyError::TooLarge { limit } => ApiError::payload_too_large(limit as u64),
        BodyError::TimedOut => ApiError::request_timeout("the request's body did not come in time"),
        BodyError::Broken => ApiError::invalid_request(error.to_string()),
    }
}

fn expect_type(headers: &HeaderMap, expected: &str) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let got = String::from_utf8_lossy(value.as_bytes());
    let essence = got.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case(expected) { Ok(()) } else { Err(ApiError::unsupported_media_type(&got)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_known_by_its_essence() {
        let check = |value: &str| {
            let headers = [(header::CONTENT_TYPE, value.parse().unwrap())].into_iter().collect();
            expect_type(&headers, CONTENT_TYPE_JSON).map_err(|error| error.status)
        };
        assert_eq!(check("application/json"), Ok(()));
        assert_eq!(check("Application/JSON ; charset=utf-8"), Ok(()));
        assert_eq!(check("text/plain"), Err(415));
        assert_eq!(check(""), Err(415));
        assert_eq!(expect_type(&HeaderMap::new(), CONTENT_TYPE_JSON), Ok(()));
    }
}
