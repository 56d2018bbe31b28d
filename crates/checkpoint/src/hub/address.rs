//! Addresses: where a redirect leads, who may see a token, how a name is written into one.

use ureq::http::{HeaderMap, Uri, header};

use super::error::HubError;

/// Where a redirect leads. It may not lead from `https` to `http`.
pub(super) fn target(at: &str, headers: &HeaderMap) -> Result<String, HubError> {
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| HubError::bad_reply(at, "a redirect without an address"))?;
    let next = join(at, location);
    let secure = |url: &str| url.starts_with("https://");
    if !(secure(&next) || next.starts_with("http://") && !secure(at)) {
        return Err(HubError::bad_reply(at, format!("a redirect to `{next}`, which is not https")));
    }
    Ok(next)
}

/// Resolves `location` against the absolute address `at`.
fn join(at: &str, location: &str) -> String {
    let (scheme, rest) = at.split_once("://").unwrap_or(("https", at));
    let path = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    if location.split(['/', '?', '#']).next().is_some_and(|head| head.ends_with(':')) && location.contains("://") {
        location.to_owned()
    } else if let Some(host) = location.strip_prefix("//") {
        format!("{scheme}://{host}")
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", &rest[..path])
    } else {
        let plain = rest.find(['?', '#']).unwrap_or(rest.len());
        let folder = rest[..plain].rfind('/').map_or(rest[..plain].len(), |slash| slash);
        format!("{scheme}://{}/{location}", &rest[..folder])
    }
}

/// Same scheme, host and port.
pub(super) fn same_origin(a: &str, b: &str) -> bool {
    fn origin(url: &str) -> Option<(String, String, u16)> {
        let uri = url.parse::<Uri>().ok()?;
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some((scheme, uri.host()?.to_ascii_lowercase(), port))
    }
    origin(a).is_some_and(|a| Some(a) == origin(b))
}

/// `text` for a path or a query of an address: everything but letters, digits and `-._~` (and `/`, if `slash`) becomes
/// `%XX`.
pub(super) fn encode(text: &str, slash: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || slash && byte == b'/' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved() {
        let at = "https://hub.co/a/b?x=/1";
        assert_eq!(join(at, "http://cdn.net/f"), "http://cdn.net/f");
        assert_eq!(join(at, "//cdn.net/f"), "https://cdn.net/f");
        assert_eq!(join(at, "/c?u=http://x"), "https://hub.co/c?u=http://x");
        assert_eq!(join(at, "c"), "https://hub.co/a/c");
        assert_eq!(join("https://hub.co", "c"), "https://hub.co/c");
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert!(same_origin("https://Hub.co/a", "https://hub.co:443/b"));
        assert!(!same_origin("https://hub.co/a", "http://hub.co/a"));
        assert!(!same_origin("https://hub.co/a", "https://hub.co:444/a"));
        assert!(!same_origin("https://hub.co/a", "https://hub.co.evil/a"));
        assert!(!same_origin("https://hub.co/a", "https://hub.co@evil/a"));
        assert!(!same_origin("nonsense", "nonsense"));
    }

    #[test]
    fn a_redirect_stays_encrypted() {
        let headers = |to: &str| HeaderMap::from_iter([(header::LOCATION, to.parse().unwrap())]);
        assert!(target("https://hub.co/a", &headers("http://hub.co/a")).is_err());
        assert!(target("https://hub.co/a", &headers("file:///etc/passwd")).is_err());
        assert!(target("http://hub.co/a", &headers("https://hub.co/a")).is_ok());
        assert!(target("https://hub.co/a", &HeaderMap::new()).is_err());
    }

    #[test]
    fn names_are_encoded() {
        assert_eq!(encode("refs/pr 1", false), "refs%2Fpr%201");
        assert_eq!(encode("a/b?c#d%é", true), "a/b%3Fc%23d%25%C3%A9");
    }
}
