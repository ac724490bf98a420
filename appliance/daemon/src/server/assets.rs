//! The dashboard's files, as they are sent: with the policy that a browser holds their scripts to, and named by what is in
//! them, so that what a browser has already is not sent again.

use super::reply::{Reply, set, with_type};
use appliance_edge::ReplyBody;
use appliance_ui::{Asset, POLICY};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header, request::Parts};

/// How a browser is to treat each of them.
const HEADERS: [(&str, &str); 6] = [
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    // Kept, and asked for again each time: an update is seen at once.
    ("cache-control", "no-cache"),
];

/// The reply to `GET` or `HEAD` of a file.
pub(super) fn reply(asset: &'static Asset, head: &Parts) -> Reply {
    let known = has(&head.headers, &asset.etag);
    let body = if known || head.method == Method::HEAD { Bytes::new() } else { Bytes::from_static(asset.body) };
    let mut reply = with_type(asset.content_type, ReplyBody::Full(body));
    if known {
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
        reply.headers_mut().remove(header::CONTENT_TYPE);
    } else {
        reply.headers_mut().insert(header::CONTENT_LENGTH, asset.body.len().into());
    }
    HEADERS.iter().for_each(|(name, value)| set(&mut reply, name, value));
    set(&mut reply, "etag", &asset.etag);
    reply
}

/// Whether who asks has it already, by `if-none-match`.
fn has(headers: &HeaderMap, etag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|tag| tag.trim().trim_start_matches("W/")).any(|tag| tag == etag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use appliance_ui::find;
    use http::Request;

    fn asked(method: Method, tags: Option<&str>) -> Reply {
        let mut request = Request::builder().method(method).uri("/");
        if let Some(tags) = tags {
            request = request.header(header::IF_NONE_MATCH, tags);
        }
        reply(find("/").unwrap(), &request.body(()).unwrap().into_parts().0)
    }

    fn bytes(reply: &Reply) -> usize {
        match reply.body() {
            ReplyBody::Full(bytes) => bytes.len(),
            ReplyBody::Stream(_) => panic!("a stream"),
        }
    }

    #[test]
    fn a_file_comes_with_its_policy() {
        let reply = asked(Method::GET, None);
        let page = find("/").unwrap();
        assert_eq!((reply.status(), bytes(&reply)), (StatusCode::OK, page.body.len()));
        for (name, value) in HEADERS {
            assert_eq!(reply.headers()[name], value);
        }
        assert!(!POLICY.contains("unsafe") && POLICY.starts_with("default-src 'none'"));
    }

    #[test]
    fn a_head_has_the_length_and_nothing_of_it() {
        let reply = asked(Method::HEAD, None);
        let length = find("/").unwrap().body.len().to_string();
        assert_eq!((bytes(&reply), &reply.headers()[header::CONTENT_LENGTH]), (0, &length.parse().unwrap()));
    }

    #[test]
    fn what_a_browser_has_is_not_sent_again() {
        let etag = find("/").unwrap().etag.clone();
        for tags in [etag.clone(), format!("\"x\", W/{etag}")] {
            let reply = asked(Method::GET, Some(&tags));
            assert_eq!((reply.status(), bytes(&reply)), (StatusCode::NOT_MODIFIED, 0), "{tags}");
            assert_eq!(reply.headers()[header::ETAG], etag);
        }
        assert_eq!(asked(Method::GET, Some("\"other\"")).status(), StatusCode::OK);
    }
}
