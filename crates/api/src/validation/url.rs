//! URLs as Go takes them apart, whose complaints messages quote.

use super::quote;

/// The parts of a URL that rules are about.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Url {
    pub scheme: String,
    /// Before the `@`.
    pub user: Option<String>,
    /// With the port.
    pub host: String,
    pub query: String,
    pub fragment: String,
}

impl Url {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// What Go says is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (main, fragment) = text.split_once('#').unwrap_or((text, ""));
        let failed = |shown: &str, why: String| format!("parse {}: {why}", quote(shown));
        let mut url = Self::parse_main(main).map_err(|why| failed(main, why))?;
        escapes(fragment).map_err(|why| failed(text, why))?;
        fragment.clone_into(&mut url.fragment);
        Ok(url)
    }

    fn parse_main(text: &str) -> Result<Self, String> {
        if text.bytes().any(|b| b < b' ' || b == 0x7f) {
            return Err("net/url: invalid control character in URL".to_owned());
        }
        let (scheme, rest) = scheme(text)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut url = Self {
            scheme: scheme.to_lowercase(),
            query: query.to_owned(),
            ..Self::default()
        };
        if !rest.starts_with('/') {
            let first = rest.split('/').next().unwrap_or_default();
            if scheme.is_empty() && first.contains(':') {
                return Err("first path segment in URL cannot contain colon".to_owned());
            }
            if !scheme.is_empty() {
                return Ok(url);
            }
        }
        let has_authority = !scheme.is_empty() || !rest.starts_with("///");
        let path = match rest.strip_prefix("//").filter(|_| has_authority) {
            Some(rest) => {
                let end = rest.find('/').unwrap_or(rest.len());
                url.authority(&rest[..end])?;
                &rest[end..]
            }
            None => rest,
        };
        escapes(path)?;
        Ok(url)
    }

    fn authority(&mut self, text: &str) -> Result<(), String> {
        let (user, host) = match text.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, text),
        };
        let port = match host.rsplit_once(']') {
            Some((_, port)) => port,
            None if host.starts_with('[') => return Err("missing ']' in host".to_owned()),
            None => host.find(':').map_or("", |at| &host[at..]),
        };
        let digits = port.strip_prefix(':');
        if !port.is_empty() && !digits.is_some_and(|d| d.bytes().all(|b| b.is_ascii_digit())) {
            return Err(format!("invalid port {} after host", quote(port)));
        }
        escapes(host)?;
        if let Some(wrong) = host.chars().find(|c| is_wrong_in_host(*c)) {
            let shown = quote(&wrong.to_string());
            return Err(format!("invalid character {shown} in host name"));
        }
        if user.is_some_and(|u| !u.chars().all(is_right_in_user)) {
            return Err("net/url: invalid userinfo".to_owned());
        }
        self.user = user.map(str::to_owned);
        host.clone_into(&mut self.host);
        Ok(())
    }
}

/// What is before the first colon, if it can be a scheme.
fn scheme(text: &str) -> Result<(&str, &str), String> {
    for (i, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if i > 0 => {}
            ':' if i == 0 => return Err("missing protocol scheme".to_owned()),
            ':' => return Ok((&text[..i], &text[i + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

/// Every `%` must have two digits.
fn escapes(text: &str) -> Result<(), String> {
    for (i, _) in text.match_indices('%') {
        let digits = text.as_bytes().get(i + 1..i + 3);
        if !digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit)) {
            let shown: String = text[i..].chars().take(3).collect();
            return Err(format!("invalid URL escape {}", quote(&shown)));
        }
    }
    Ok(())
}

fn is_wrong_in_host(c: char) -> bool {
    c.is_ascii() && !c.is_ascii_alphanumeric() && !"-_.~!$&'()*+,;=:[]<>\"%".contains(c)
}

fn is_right_in_user(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_as_go_does() {
        let url = Url::parse("HTTPS://u:p@a.example:8443/x?y=z#f").unwrap();
        assert_eq!(url.scheme, "https");
        assert_eq!(url.user.as_deref(), Some("u:p"));
        assert_eq!(url.host, "a.example:8443");
        assert_eq!((&*url.query, &*url.fragment), ("y=z", "f"));
        assert_eq!(Url::parse("no url").unwrap(), Url::default());
        assert_eq!(Url::parse("a:b").unwrap().host, "");
        for (text, why) in [
            (":a", "parse \":a\": missing protocol scheme"),
            (
                "1:2",
                "parse \"1:2\": first path segment in URL cannot contain colon",
            ),
            (
                "https://a/%zz#f",
                "parse \"https://a/%zz\": invalid URL escape \"%zz\"",
            ),
            (
                "https://a:b",
                "parse \"https://a:b\": invalid port \":b\" after host",
            ),
            (
                "https://a b",
                "parse \"https://a b\": invalid character \" \" in host name",
            ),
            (
                "https://[::1",
                "parse \"https://[::1\": missing ']' in host",
            ),
        ] {
            assert_eq!(Url::parse(text).unwrap_err(), why);
        }
    }
}
