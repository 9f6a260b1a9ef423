//! The address of a store, and the key or pattern in it, from a URL as people write it.
//!
//! Flow: "s3://bucket/a#b/*.tar", "https://host/a%20b.tar?X-Amz-Signature=…" -> [`Address`] and a
//! key; called by `remote`.
//! Memory: holds none.
//!
//! What follows the bucket in s3://, gs:// and az:// is a key, character for character. An http(s)
//! address is percent-encoded, and may be signed by its query.

use object_store::ObjectStoreScheme;
use object_store::path::Path as Key;
use percent_encoding::percent_decode_str;
use url::Url;

/// A store as its URL names it.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) scheme: ObjectStoreScheme,
    /// The URL before the key; the whole of a signed address, whose key is empty.
    pub(super) url: Url,
    /// The URL before the key, to show: "s3://bucket/".
    pub(super) root: String,
    /// The query that gives access, as it is written and as it is sent: no error may show it.
    pub(super) secrets: Vec<String>,
}

impl Address {
    /// The store of a URL, and the key or pattern in it.
    ///
    /// # Errors
    /// An unknown scheme, and what would name another object than it seems to.
    pub(super) fn parse(url: &str) -> Result<(Self, String), String> {
        let (scheme, rest) = url.split_once("://").ok_or("this is no URL")?;
        let (host, key) = rest.split_once('/').unwrap_or((rest, ""));
        let root = format!("{scheme}://{host}/");
        match scheme {
            "http" | "https" => Self::of_web(root, key),
            _ => {
                let url = Url::parse(&root).map_err(|e| e.to_string())?;
                let known = match ObjectStoreScheme::parse(&url) {
                    Ok((ObjectStoreScheme::Local | ObjectStoreScheme::Memory, _)) | Err(_) => None,
                    Ok((known, _)) => Some(known),
                };
                let unknown = || {
                    format!(
                        "{scheme}:// is not known: expected s3://, gs://, az://, http(s)://, file:// or a path"
                    )
                };
                let scheme = known.ok_or_else(unknown)?;
                Ok((Self { scheme, url, root, secrets: Vec::new() }, whole(key)?))
            }
        }
    }

    /// An address of a web server, or one of a bucket that is written so.
    fn of_web(mut root: String, path: &str) -> Result<(Self, String), String> {
        if path.contains('#') {
            return Err("a # in an address begins what is not sent: write it as %23".into());
        }
        // Without a "=" the question mark belongs to a pattern.
        if let Some((path, query)) = path.split_once('?').filter(|(_, query)| query.contains('=')) {
            // Only this very address is signed: it is asked for as it is.
            root = format!("{root}{path}");
            let url = Url::parse(&format!("{root}?{query}")).map_err(|_| "this is no address")?;
            let sent = url.query().unwrap_or_default().to_owned();
            let scheme = ObjectStoreScheme::Http;
            return Ok((Self { scheme, url, root, secrets: vec![query.to_owned(), sent] }, String::new()));
        }
        let decoded = percent_decode_str(path).decode_utf8();
        let decoded = decoded.map_err(|_| "the address is not UTF-8 behind its percent signs")?;
        let mut key = whole(&decoded)?;
        let parsed = |url: &str| Url::parse(url).map_err(|e| e.to_string());
        let (scheme, left) =
            ObjectStoreScheme::parse(&parsed(&format!("{root}a/b"))?).map_err(|e| e.to_string())?;
        if left.as_ref() == "b" {
            let (bucket, rest) = key.split_once('/').unwrap_or((&key, ""));
            root = format!("{root}{bucket}/");
            key = rest.to_owned();
        }
        Ok((Self { scheme, url: parsed(&root)?, root, secrets: Vec::new() }, key))
    }
}

/// A key that can be asked for as it is.
fn whole(key: &str) -> Result<String, String> {
    match key.starts_with('/') || key.contains("//") {
        true => {
            Err("a key with an empty part (//) cannot be asked for: copy the objects to keys without".into())
        }
        false => Ok(key.to_owned()),
    }
}

/// The key of an object, character for character.
///
/// # Errors
/// A part `.` or `..`, and control characters.
pub(super) fn key(name: &str) -> Result<Key, String> {
    Key::parse(name).map_err(|e| format!("no key can be called so: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> (String, String, String) {
        let (address, key) = Address::parse(url).unwrap();
        (format!("{:?}", address.scheme), address.url.to_string(), key)
    }

    #[test]
    fn a_key_is_taken_character_by_character_and_a_web_address_is_decoded() {
        let cases = [
            ("s3://b/a#b%20c+~[1].tar", "AmazonS3", "s3://b/", "a#b%20c+~[1].tar"),
            ("gs://b/x/*.tar", "GoogleCloudStorage", "gs://b/", "x/*.tar"),
            ("https://host/a%20b%23+.tar", "Http", "https://host/", "a b#+.tar"),
            ("https://host/x-{0..3}.tar", "Http", "https://host/", "x-{0..3}.tar"),
            ("https://host/x-?.tar", "Http", "https://host/", "x-?.tar"),
            ("https://host/x%2By.tar?sig=a%2Fb&c=d", "Http", "https://host/x%2By.tar?sig=a%2Fb&c=d", ""),
            (
                "https://s3.eu-west-1.amazonaws.com/b/x/y.tar",
                "AmazonS3",
                "https://s3.eu-west-1.amazonaws.com/b/",
                "x/y.tar",
            ),
            (
                "https://b.s3.eu-west-1.amazonaws.com/x/y.tar",
                "AmazonS3",
                "https://b.s3.eu-west-1.amazonaws.com/",
                "x/y.tar",
            ),
            (
                "https://s3.amazonaws.com/b/x.tar?X-Amz-Signature=0",
                "Http",
                "https://s3.amazonaws.com/b/x.tar?X-Amz-Signature=0",
                "",
            ),
            (
                "https://acc.blob.core.windows.net/c/x.tar",
                "MicrosoftAzure",
                "https://acc.blob.core.windows.net/c/",
                "x.tar",
            ),
        ];
        for (url, scheme, root, key) in cases {
            assert_eq!(parsed(url), (scheme.into(), root.into(), key.into()), "{url}");
        }
    }

    #[test]
    fn what_would_be_another_object_is_refused() {
        let cases = [
            ("s3://b//x.tar", "empty part"),
            ("s3://b/raw//x.tar", "empty part"),
            ("https://host/a%2F%2Fb", "empty part"),
            ("https://host/a#b", "%23"),
            ("https://host/%ff.tar", "UTF-8"),
            ("ftp://host/x", "not known"),
            ("memory:///x", "not known"),
        ];
        for (url, words) in cases {
            let error = Address::parse(url).unwrap_err();
            assert!(error.contains(words), "{url}: {error}");
        }
        assert_eq!(key("a[1] %20#~+").unwrap().as_ref(), "a[1] %20#~+");
        assert!(key("a/../b").is_err());
    }
}
