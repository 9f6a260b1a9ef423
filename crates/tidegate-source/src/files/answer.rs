//! What a store answered to a request that failed: its status and its code, and what to do then.
//!
//! Flow: a response -> [`Answer`], noted beside the request -> [`Failure`]; called by `remote`.
//! Memory: the body of an answer that reports an error, up to 64 KiB.
//!
//! The client library gives its errors as text. Status and code are therefore taken from the
//! response itself, before the library sees it.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};
use serde::Deserialize;

/// How much of the body of an error is read.
const BODY_BYTES: usize = 64 << 10;

/// Why a request failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// A retry may succeed.
    Transient(String),
    /// No retry will succeed.
    Permanent(String),
    /// There is no object of this name.
    Missing(String),
    /// The object is another version than the one asked for.
    Changed,
}

/// An answer of a server that reports an error.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    status: u16,
    /// The `Code` of the document in the body, as S3, Google Cloud and Azure name it. A HEAD
    /// request has no body, and a proxy sends another one.
    code: Option<String>,
    /// The region of the bucket, where the answer names it.
    region: Option<String>,
    /// Whether the request had no credentials.
    anonymous: bool,
}

/// The document of an error in S3's protocol and in Azure's.
#[derive(Deserialize)]
struct Document {
    #[serde(rename = "Code")]
    code: String,
}

tokio::task_local! {
    /// The last answer to this request that reports an error.
    static LAST: RefCell<Option<Answer>>;
}

/// Runs a request, and says why it failed.
pub(super) async fn request<T>(work: impl Future<Output = object_store::Result<T>>) -> Result<T, Failure> {
    let noted = async {
        let outcome = work.await;
        let answer = LAST.with(RefCell::take);
        outcome.map_err(|error| failure(&error, answer))
    };
    LAST.scope(RefCell::default(), noted).await
}

/// Makes HTTP clients that note answers which report an error.
#[derive(Debug)]
pub(super) struct Noting {
    connector: ReqwestConnector,
    anonymous: bool,
    answered: Arc<AtomicBool>,
}

impl Noting {
    /// Whether the requests have no credentials, because none were found, is told with a refusal.
    /// The first answer of any kind is noted in `answered`.
    pub(super) fn new(anonymous: bool, answered: &Arc<AtomicBool>) -> Self {
        Self { connector: ReqwestConnector::default(), anonymous, answered: Arc::clone(answered) }
    }
}

impl HttpConnector for Noting {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = self.connector.connect(options)?;
        Ok(HttpClient::new(NotingClient {
            client,
            anonymous: self.anonymous,
            answered: Arc::clone(&self.answered),
        }))
    }
}

#[derive(Debug)]
struct NotingClient {
    client: HttpClient,
    anonymous: bool,
    answered: Arc<AtomicBool>,
}

#[async_trait]
impl HttpService for NotingClient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.client.execute(request).await?;
        self.answered.store(true, Ordering::Relaxed);
        let status = response.status();
        if status.is_success() || status.is_informational() {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let body = start_of(body).await;
        let code = quick_xml::de::from_reader(&*body).map(|document: Document| document.code).ok();
        let region = parts.headers.get("x-amz-bucket-region").and_then(|region| region.to_str().ok());
        let region = region.map(str::to_owned);
        let answer = Answer { status: status.as_u16(), code, region, anonymous: self.anonymous };
        // A request that nobody runs through `request` has no place for it.
        let _unheard = LAST.try_with(|last| last.replace(Some(answer)));
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

/// The start of a body; what fails to arrive is left out, because the status has arrived.
async fn start_of(body: HttpResponseBody) -> Bytes {
    let mut stream = body.bytes_stream();
    let mut start = BytesMut::new();
    while let Some(Ok(part)) = stream.next().await {
        let room = BODY_BYTES - start.len();
        start.extend_from_slice(part.get(..room).unwrap_or(&part));
        if start.len() == BODY_BYTES {
            break;
        }
    }
    start.freeze()
}

const NO_CREDENTIALS: &str = "permission denied: neither the environment nor a profile nor this machine gives \
                              credentials, so none were sent; set the environment variables of the provider's \
                              own tools (AWS_ACCESS_KEY_ID, …), or AWS_PROFILE";

/// Whether a failure is transient; else the fix.
fn failure(error: &object_store::Error, answer: Option<Answer>) -> Failure {
    let text = text_of(error);
    let permanent = |fix: &str| Failure::Permanent(format!("{fix} ({text})"));
    if let Some(Answer { status, code, region, anonymous }) = answer {
        match (code.as_deref().unwrap_or_default(), status) {
            (
                "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException",
                _,
            )
            | (_, 300..=303 | 305..=399) => {
                let own = region.map_or("its own".to_owned(), |region| format!("{region:?}"));
                return permanent(&format!("the bucket is in another region: set AWS_REGION to {own}"));
            }
            ("NoSuchBucket" | "ContainerNotFound", _) => return permanent("there is no such bucket"),
            (_, 404) => return Failure::Missing(format!("there is no such object ({text})")),
            (_, 412) => return Failure::Changed,
            (_, 401 | 403) if anonymous => return permanent(NO_CREDENTIALS),
            (_, 403) => {
                return permanent("permission denied: these credentials may not read it");
            }
            (_, 401) => {
                return permanent(
                    "no valid credentials: set the environment variables of the provider's own tools \
                     (AWS_ACCESS_KEY_ID, …)",
                );
            }
            _ => {}
        }
    }
    match error {
        object_store::Error::Unauthenticated { source, .. } => {
            Failure::Permanent(format!("no credentials: {}", text_of(&**source)))
        }
        object_store::Error::NotFound { .. } => Failure::Missing(format!("there is no such object ({text})")),
        object_store::Error::InvalidPath { .. }
        | object_store::Error::NotSupported { .. }
        | object_store::Error::NotImplemented { .. }
        | object_store::Error::UnknownConfigurationKey { .. } => permanent("this cannot be read"),
        _ => Failure::Transient(text),
    }
}

/// The texts of an error and its causes, each once.
pub(super) fn text_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    // Servers answer with documents of several lines.
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(600).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use futures_util::TryStreamExt;
    use object_store::aws::AmazonS3Builder;
    use object_store::path::Path;
    use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};

    use super::*;

    /// A store at a server that gives each connection one answer.
    fn store(answers: Vec<String>) -> impl ObjectStore {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let serve = move || {
            for (answer, stream) in answers.into_iter().zip(server.incoming()) {
                let mut stream = stream.unwrap();
                let request = BufReader::new(stream.try_clone().unwrap()).lines();
                assert!(request.map_while(Result::ok).any(|line| line.is_empty()), "the request ends");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        };
        std::thread::Builder::new().name("store".into()).spawn(serve).unwrap();
        AmazonS3Builder::new()
            .with_endpoint(format!("http://{address}"))
            .with_allow_http(true)
            .with_bucket_name("data")
            .with_access_key_id("key")
            .with_secret_access_key("secret")
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_http_connector(Noting::new(false, &Arc::default()))
            .build()
            .unwrap()
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    fn coded(status: &str, code: &str) -> String {
        // The message has the words of other codes.
        let message = "<Message>NoSuchBucket, 403 Forbidden, PermanentRedirect</Message>";
        answer(status, &format!("<?xml version=\"1.0\"?>\n<Error>{message}<Code>{code}</Code></Error>"))
    }

    /// The start of a failure's text; None where a retry may succeed.
    fn fix(failure: Failure) -> Option<String> {
        match failure {
            Failure::Transient(_) => None,
            Failure::Permanent(text) | Failure::Missing(text) => {
                Some(text.split(['(', ':']).next().unwrap().trim().to_owned())
            }
            Failure::Changed => Some("changed".to_owned()),
        }
    }

    #[test]
    fn a_failure_follows_from_status_and_code() {
        let cases = [
            (coded("404 Not Found", "NoSuchBucket"), Some("there is no such bucket")),
            (coded("404 Not Found", "ContainerNotFound"), Some("there is no such bucket")),
            (coded("404 Not Found", "NoSuchKey"), Some("there is no such object")),
            (coded("301 Moved Permanently", "PermanentRedirect"), Some("the bucket is in another region")),
            (answer("301 Moved Permanently", ""), Some("the bucket is in another region")),
            (
                coded("400 Bad Request", "AuthorizationHeaderMalformed"),
                Some("the bucket is in another region"),
            ),
            (coded("403 Forbidden", "AccessDenied"), Some("permission denied")),
            (answer("403 Forbidden", "<html>"), Some("permission denied")),
            (answer("401 Unauthorized", "{}"), Some("no valid credentials")),
            (answer("412 Precondition Failed", ""), Some("changed")),
            (coded("503 Slow Down", "SlowDown"), None),
            (answer("500 Oops", &"x".repeat(100_000)), None),
            (answer("429 Too Many Requests", ""), None),
            (
                "HTTP/1.1 403 Forbidden\r\ncontent-length: 99\r\n\r\n<Err".to_owned(),
                Some("permission denied"),
            ),
            (String::new(), None),
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store = store(cases.iter().flat_map(|(answer, _)| [answer.clone(), answer.clone()]).collect());
        let key = Path::from("a");
        for (sent, expected) in cases {
            let got = runtime.block_on(request(store.get(&key))).map(|_| ()).unwrap_err();
            assert_eq!(fix(got).as_deref(), expected, "{sent}");
            let listed = request(store.list(None).try_collect::<Vec<ObjectMeta>>());
            let got = runtime.block_on(listed).unwrap_err();
            assert_eq!(fix(got).as_deref(), expected, "{sent}");
        }
    }
}
