//! Objects in stores: S3, Google Cloud, Azure, HTTP, by ranged reads that go on where they broke off.
//!
//! Flow: a URL -> [`Store`] -> listed [`Object`]s -> bytes of a range in the caller's memory; called by `read::Files`.
//! Memory: the caller's for what is read; the plan charges what connections take.
//!
//! Everything asynchronous stays in this file: callers block, and several of them make several requests. Credentials and
//! endpoints come from the environment by each provider's own names. Each read has a deadline that starts anew whenever some
//! bytes came; what may pass (503, a dropped connection, a slow server) is tried again with growing, scattered pauses, what may not
//! (no permission, no such bucket, another object under the name) is an error at once.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidegate_core::sync::lock;

use futures_util::{StreamExt, TryStreamExt};
pub(crate) use object_store::path::Path as Key;
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, ObjectStoreScheme,
    RetryConfig,
};
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use url::Url;

use crate::{Error, Result};

/// How long a read may bring nothing, retries and pauses included.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long one request may bring nothing before it is given up and made again.
const SILENCE: Duration = Duration::from_secs(15);
/// The first pause; it doubles up to the longest.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_secs(5);
/// What must come for the deadline to start anew.
const PROGRESS_BYTES: usize = 64 << 10;
/// How often a read looks whether it is still wanted.
const LOOK_AROUND: Duration = Duration::from_millis(100);
/// How long a list may take, which comes in pages.
const LISTING: Duration = Duration::from_secs(600);
const DENIED: &str = "permission denied: these credentials may not read it";
const UNKNOWN: &str =
    "no valid credentials: set them as the provider's own tools want them (AWS_ACCESS_KEY_ID, …)";

/// An object as it was when it was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) key: Key,
    pub(crate) bytes: u64,
    /// What tells this version from others; not every server has one.
    pub(crate) tag: Option<String>,
}

/// A client of a store, and the threads that drive it.
#[derive(Debug)]
struct Connection {
    client: Arc<dyn ObjectStore>,
    /// Always there but while it is dropped.
    runtime: Option<Runtime>,
    process: u32,
}

impl Connection {
    fn block_on<T>(&self, work: impl Future<Output = T>) -> io::Result<T> {
        let gone = || io::Error::other("a connection that is being closed");
        Ok(self.runtime.as_ref().ok_or_else(gone)?.block_on(work))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // After a fork its threads are the parent's, and nobody here could wait for them.
            Box::leak(Box::new((Arc::clone(&self.client), self.runtime.take())));
        }
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Store {
    /// What comes before keys in words: "s3://bucket/".
    root: String,
    url: Url,
    http: bool,
    connection: Mutex<Option<Arc<Connection>>>,
    /// Microseconds from a request to its answer, the shortest seen: what is longer waited for something else.
    latency_us: AtomicU64,
}

/// Why a request brought nothing.
enum Failure {
    /// It may go well another time.
    Passing(String),
    /// It will not.
    Lasting(String),
}

impl Store {
    /// The store of a URL, and the key or prefix in it.
    ///
    /// # Errors
    /// A scheme that is not known, or settings that make no sense, by name. Nothing is asked of the server yet.
    pub(crate) fn open(url: &str) -> Result<(Arc<Self>, String)> {
        let wrong = |what: String| Error::Dataset { path: url.into(), what };
        // Patterns may have characters that URLs may not.
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("this is no URL".into()))?;
        let (host, key) = rest.split_once('/').unwrap_or((rest, ""));
        let root = format!("{scheme}://{host}/");
        let parsed = Url::parse(&root).map_err(|e| wrong(e.to_string()))?;
        let known = ObjectStoreScheme::parse(&parsed).map(|(scheme, _)| scheme);
        let http = match known {
            Ok(ObjectStoreScheme::Http) => true,
            Ok(
                ObjectStoreScheme::AmazonS3
                | ObjectStoreScheme::GoogleCloudStorage
                | ObjectStoreScheme::MicrosoftAzure,
            ) => false,
            _ => {
                return Err(wrong(format!(
                    "{scheme}:// is not known: expected s3://, gs://, az://, http(s)://, file:// or a path"
                )));
            }
        };
        let latency_us = AtomicU64::new(u64::MAX);
        let store = Self { root, url: parsed, http, connection: Mutex::default(), latency_us };
        store.connection().map_err(|e| wrong(e.to_string()))?;
        Ok((Arc::new(store), key.to_owned()))
    }

    /// A connection of this process.
    fn connection(&self) -> io::Result<Arc<Connection>> {
        let mut connection = lock(&self.connection);
        let process = std::process::id();
        if let Some(connection) = connection.as_ref().filter(|c| c.process == process) {
            return Ok(Arc::clone(connection));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("tg-remote")
            .enable_all()
            .build()?;
        let client = client(&self.url).map_err(|e| io::Error::other(words(&e)))?;
        let made = Arc::new(Connection { client, runtime: Some(runtime), process });
        Ok(Arc::clone(connection.insert(made)))
    }

    /// The name of a key in words.
    pub(crate) fn name(&self, key: &Key) -> PathBuf {
        format!("{}{key}", self.root).into()
    }

    fn error(&self, key: &str, what: impl Into<String>) -> Error {
        Error::Io { path: format!("{}{key}", self.root).into(), source: io::Error::other(what.into()) }
    }

    /// How long a request takes before its answer begins; some time, as long as none was made.
    pub(crate) fn latency(&self) -> Duration {
        match self.latency_us.load(Ordering::Relaxed) {
            u64::MAX => Duration::from_millis(20),
            shortest => Duration::from_micros(shortest),
        }
    }

    fn answered(&self, asked: Instant) {
        self.latency_us.fetch_min(asked.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    /// Whether what is there can be listed: not over plain HTTP.
    pub(crate) fn lists(&self) -> bool {
        !self.http
    }

    /// Everything below a prefix, in the order of keys.
    ///
    /// # Errors
    /// What the server says, with the fix.
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        let prefix = prefix.trim_matches('/');
        let key = Key::from(prefix);
        let found = self.patiently(prefix, LISTING, async |client| {
            let listed: Vec<ObjectMeta> = client.list(Some(&key)).try_collect().await?;
            Ok(listed)
        })?;
        let mut objects: Vec<Object> = found.into_iter().map(object).collect();
        objects.sort_by(|a, b| a.key.as_ref().cmp(b.key.as_ref()));
        Ok(objects)
    }

    /// One object; nothing if there is none of this name.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub(crate) fn find(&self, key: &str) -> Result<Option<Object>> {
        let path = Key::from(key);
        let found = self.patiently(key, DEADLINE, async |client| match client.head(&path).await {
            Ok(meta) => Ok(Some(meta)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        })?;
        Ok(found.map(object))
    }

    /// Asks until there is an answer, within the deadline.
    fn patiently<T>(
        &self,
        key: &str,
        longest: Duration,
        ask: impl AsyncFn(&dyn ObjectStore) -> object_store::Result<T>,
    ) -> Result<T> {
        let work = async |client: &dyn ObjectStore| {
            let mut patience = Patience::new(key);
            loop {
                let failure = match timeout(longest, ask(client)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(error)) => sort(&error),
                    Err(_) => Failure::Passing("no answer".into()),
                };
                patience.pause(failure).await?;
            }
        };
        let connection = self.connection().map_err(|e| self.error(key, e.to_string()))?;
        let answer =
            connection.block_on(work(&*connection.client)).map_err(|e| self.error(key, e.to_string()))?;
        answer.map_err(|what: String| self.error(key, what))
    }

    /// Reads the bytes of `object` from `offset` on until `into` is full.
    ///
    /// # Errors
    /// What the server says, with the fix; an object that changed or is gone; the deadline.
    pub(crate) fn read(&self, object: &Object, offset: u64, into: &mut [u8]) -> Result<()> {
        let key = object.key.as_ref();
        let end = offset + into.len() as u64;
        if end > object.bytes {
            let what = format!(
                "the object ends after {} bytes, and {end} are wanted: it changed since it was indexed; run `tidegate index \
                 --force`",
                object.bytes
            );
            return Err(Error::format(self.name(&object.key), offset, what));
        }
        if into.is_empty() {
            return Ok(());
        }
        let connection = self.connection().map_err(|e| self.error(key, e.to_string()))?;
        let wrong = |what: String| Error::format(self.name(&object.key), offset, what);
        let work = unless_stopped(self.fetch(&*connection.client, object, offset, into));
        connection.block_on(work).unwrap_or_else(|e| Err(e.to_string())).map_err(wrong)
    }

    /// Reads an object of any length up to that of `into`, by one request where it goes well, and says how long it is; nothing if
    /// there is none of this name.
    ///
    /// # Errors
    /// As [`Store::read`]; an object that is longer.
    #[cfg(feature = "zarr")]
    pub(crate) fn whole(&self, key: &str, into: &mut [u8]) -> Result<Option<usize>> {
        let path = Key::from(key);
        let connection = self.connection().map_err(|e| self.error(key, e.to_string()))?;
        let work = async {
            let mut patience = Patience::new(key);
            loop {
                let request = self.request_whole(&*connection.client, &path, into);
                let failure = match timeout_at(patience.until, request).await {
                    Ok(Ok(came)) => return Ok(came),
                    Ok(Err(failure)) => failure,
                    Err(_) => Failure::Passing("it came too slowly".into()),
                };
                patience.pause(failure).await?;
            }
        };
        let came = connection.block_on(unless_stopped(work)).unwrap_or_else(|e| Err(e.to_string()));
        came.map_err(|what| Error::format(self.name(&path), 0, what))
    }

    /// Requests an object, once.
    #[cfg(feature = "zarr")]
    async fn request_whole(
        &self,
        client: &dyn ObjectStore,
        key: &Key,
        into: &mut [u8],
    ) -> std::result::Result<Option<usize>, Failure> {
        let silent = |_| Failure::Passing(format!("nothing came for {} s", SILENCE.as_secs()));
        let began = Instant::now();
        let answer = match timeout(SILENCE, client.get(key)).await.map_err(silent)? {
            Ok(answer) => answer,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(sort(&error)),
        };
        self.answered(began);
        let (len, most) = (answer.meta.size, into.len());
        let longer = || {
            Failure::Lasting(format!(
                "an object of {len} bytes, where its codecs make at most {most}: restore it, or check the array's metadata"
            ))
        };
        let into = into.get_mut(..len as usize).ok_or_else(longer)?;
        let mut done = 0;
        receive(&mut answer.into_stream(), into, &mut done).await?;
        Ok(Some(len as usize))
    }

    /// Requests a range until it is there, or the deadline has passed in which too little of it came.
    async fn fetch(
        &self,
        client: &dyn ObjectStore,
        object: &Object,
        offset: u64,
        into: &mut [u8],
    ) -> std::result::Result<(), String> {
        let mut patience = Patience::new(object.key.as_ref());
        let (mut done, mut before) = (0, 0);
        loop {
            let attempt =
                timeout_at(patience.until, self.request(client, object, offset, into, &mut done)).await;
            let failure = match attempt {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Passing("it came too slowly".into()),
            };
            // A server that gives a byte now and then makes no progress.
            if done - before >= PROGRESS_BYTES {
                (patience, before) = (Patience::new(object.key.as_ref()), done);
            }
            patience
                .pause(failure)
                .await
                .map_err(|what| format!("{what} ({done} of {} bytes came)", into.len()))?;
        }
    }

    /// Requests what is missing of a range, once.
    async fn request(
        &self,
        client: &dyn ObjectStore,
        object: &Object,
        offset: u64,
        into: &mut [u8],
        done: &mut usize,
    ) -> std::result::Result<(), Failure> {
        let asked = offset + *done as u64..offset + into.len() as u64;
        let options = GetOptions {
            range: Some(GetRange::Bounded(asked.clone())),
            // Weak tags match nothing (RFC 9110, section 13.1.1).
            if_match: object.tag.clone().filter(|tag| !tag.starts_with("W/")),
            ..GetOptions::default()
        };
        let silent = |_| Failure::Passing(format!("nothing came for {} s", SILENCE.as_secs()));
        let changed = || {
            Failure::Lasting(
            "the object is another one than when it was indexed: restore it, or run `tidegate index --force`"
                .into(),
        )
        };
        let began = Instant::now();
        let answer = timeout(SILENCE, client.get_opts(&object.key, options)).await.map_err(silent)?;
        let answer = answer.map_err(|error| match error {
            object_store::Error::Precondition { .. } => changed(),
            error => sort(&error),
        })?;
        self.answered(began);
        if answer.meta.size != object.bytes {
            return Err(changed());
        }
        if answer.range != asked {
            let what = format!("the server gave bytes {:?} where {asked:?} were asked for", answer.range);
            return Err(Failure::Passing(what));
        }
        receive(&mut answer.into_stream(), into, done).await
    }
}

/// Takes what comes until `into` is full; `done` of it are there.
async fn receive(
    stream: &mut (impl futures_util::Stream<Item = object_store::Result<bytes::Bytes>> + Unpin),
    into: &mut [u8],
    done: &mut usize,
) -> std::result::Result<(), Failure> {
    let silent = |_| Failure::Passing(format!("nothing came for {} s", SILENCE.as_secs()));
    while *done < into.len() {
        match timeout(SILENCE, stream.next()).await.map_err(silent)? {
            Some(Ok(bytes)) => {
                let target = into.get_mut(*done..*done + bytes.len());
                let target =
                    target.ok_or_else(|| Failure::Passing("more bytes than were asked for".into()))?;
                target.copy_from_slice(&bytes);
                *done += bytes.len();
            }
            Some(Err(error)) => return Err(sort(&error)),
            None => return Err(Failure::Passing("the connection ended early".into())),
        }
    }
    Ok(())
}

/// Waits for work of this thread, unless its epoch is ended.
async fn unless_stopped<T>(
    work: impl Future<Output = std::result::Result<T, String>>,
) -> std::result::Result<T, String> {
    let mut work = std::pin::pin!(work);
    loop {
        match timeout(LOOK_AROUND, &mut work).await {
            Ok(outcome) => return outcome,
            Err(_) if super::read::stopped() => return Err("the epoch was ended".to_owned()),
            Err(_) => {}
        }
    }
}

fn object(meta: ObjectMeta) -> Object {
    Object { key: meta.location, bytes: meta.size, tag: meta.e_tag }
}

/// How often and how long something is tried again.
struct Patience {
    until: Instant,
    attempt: u32,
    /// Spreads the pauses of those who failed together.
    scatter: u64,
}

impl Patience {
    fn new(key: &str) -> Self {
        let now = Instant::now();
        let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.subsec_nanos());
        let scatter = xxhash_rust::xxh3::xxh3_64(key.as_bytes()) ^ u64::from(nanos);
        Self { until: now + DEADLINE, attempt: 0, scatter }
    }

    /// Waits before another attempt; says what is wrong if there is to be none.
    async fn pause(&mut self, failure: Failure) -> std::result::Result<(), String> {
        let what = match failure {
            Failure::Lasting(what) => return Err(what),
            Failure::Passing(what) => what,
        };
        let longest = PAUSE.saturating_mul(1 << self.attempt.min(16)).min(PAUSE_MOST);
        self.scatter = self.scatter.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ 0x5851;
        let pause = longest.mul_f64(0.5 + (self.scatter >> 33) as f64 / f64::from(1u32 << 31) / 2.0);
        self.attempt += 1;
        if Instant::now() + pause > self.until {
            return Err(format!(
                "{what}; given up after {} attempts in {} s: check the network and the server, then resume",
                self.attempt,
                DEADLINE.as_secs()
            ));
        }
        sleep(pause).await;
        Ok(())
    }
}

/// Everything an error and its causes say, once.
fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        next = cause.source();
    }
    // Servers answer with documents.
    words.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(600).collect()
}

/// Whether an error passes, and what to do if it does not.
fn sort(error: &object_store::Error) -> Failure {
    let said = words(error);
    let lasting = |fix: &str| Failure::Lasting(format!("{fix} ({said})"));
    let region = [
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "301 Moved",
        "IllegalLocationConstraint",
        "configured region",
    ];
    if region.iter().any(|word| said.contains(word)) {
        return lasting("the bucket is in another region: set AWS_REGION to its own");
    }
    if said.contains("NoSuchBucket") || said.contains("ContainerNotFound") {
        return lasting("there is no such bucket");
    }
    // Answers to lists have no kind of their own.
    let answered = |status: &str| said.contains(status);
    match error {
        object_store::Error::NotFound { .. } => lasting("there is no such object"),
        object_store::Error::PermissionDenied { .. } => lasting(DENIED),
        object_store::Error::Unauthenticated { .. } => lasting(UNKNOWN),
        _ if answered("403 Forbidden") => lasting(DENIED),
        _ if answered("401 Unauthorized") => lasting(UNKNOWN),
        object_store::Error::Precondition { .. } => lasting("the object changed"),
        object_store::Error::InvalidPath { .. }
        | object_store::Error::NotSupported { .. }
        | object_store::Error::NotImplemented { .. }
        | object_store::Error::UnknownConfigurationKey { .. } => lasting("this cannot be read"),
        _ => Failure::Passing(said),
    }
}

/// A client, with what the environment says of this provider. Retries are ours: one deadline for all of them.
fn client(url: &Url) -> object_store::Result<Arc<dyn ObjectStore>> {
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    // A server without encryption is asked for by its URL or endpoint.
    macro_rules! from_env {
        ($builder:ty) => {
            Arc::new(
                <$builder>::from_env()
                    .with_url(url.to_string())
                    .with_config("allow_http".parse()?, "true")
                    .with_retry(retry)
                    .build()?,
            )
        };
    }
    Ok(match ObjectStoreScheme::parse(url)?.0 {
        ObjectStoreScheme::AmazonS3 => from_env!(object_store::aws::AmazonS3Builder),
        ObjectStoreScheme::GoogleCloudStorage => from_env!(object_store::gcp::GoogleCloudStorageBuilder),
        ObjectStoreScheme::MicrosoftAzure => from_env!(object_store::azure::MicrosoftAzureBuilder),
        _ => {
            let options = ClientOptions::new().with_allow_http(true);
            let builder = object_store::http::HttpBuilder::new().with_client_options(options);
            Arc::new(builder.with_url(url.to_string()).with_retry(retry).build()?)
        }
    })
}
