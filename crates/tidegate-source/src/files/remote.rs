//! Objects in stores (S3, Google Cloud, Azure, HTTP), read by ranges and resumed after a failure.
//!
//! Flow: a URL -> [`Store`] -> listed [`Object`]s -> bytes of a range in the caller's memory;
//! called by `file_set`, `glob` and `keyed`.
//! Memory: the caller's for the bytes; the plan charges what connections take.
//!
//! All asynchronous code is in this file. Callers block, and several callers make several requests.
//! Credentials and endpoints come from where each provider's own tools have them. A read has a
//! timeout that starts again at each progress. A transient failure (503, a dropped connection, a
//! slow server) is retried with growing, jittered pauses. A permanent one (no permission, no such
//! bucket, another object under the name) is an error at once.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
pub(crate) use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, ObjectStoreScheme};
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use tidegate_core::sync::lock;

use super::address::{self, Address};
use super::answer::{Failure, request, text_of};
use super::credentials::client;
use super::stop::stopped;
use crate::{Error, Result};

/// The longest time without progress of a read, with retries and pauses.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest time until a store answers for the first time.
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest time without a byte of one request; then it is retried.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// The first pause between retries; it doubles up to the longest.
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MOST: Duration = Duration::from_secs(5);
/// Bytes that count as progress: they restart the timeout of a read.
const PROGRESS_BYTES: usize = 64 << 10;
/// How often a read checks the stop token.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The longest time of a list, which comes in pages.
const LIST_TIMEOUT: Duration = Duration::from_secs(600);
const CHANGED: &str =
    "the object is another one than when it was indexed: restore it, or run `tidegate index --force`";

/// An object as it was when it was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) key: Key,
    pub(crate) bytes: u64,
    /// The tag of this version; not every server has one.
    pub(crate) tag: Option<String>,
}

/// A client of a store, and the threads that drive it.
#[derive(Debug)]
struct Connection {
    client: Arc<dyn ObjectStore>,
    /// None only while it is dropped.
    runtime: Option<Runtime>,
    process: u32,
}

impl Connection {
    fn block_on<T>(&self, work: impl Future<Output = T>) -> io::Result<T> {
        let gone = || io::Error::other("the connection is being closed");
        Ok(self.runtime.as_ref().ok_or_else(gone)?.block_on(work))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // After a fork the threads belong to the parent; the child cannot join them.
            Box::leak(Box::new((Arc::clone(&self.client), self.runtime.take())));
        }
    }
}

/// A store: a bucket, a container or a host.
#[derive(Debug)]
pub(crate) struct Store {
    address: Address,
    connection: Mutex<Option<Arc<Connection>>>,
    /// Whether it has ever answered.
    answers: Arc<AtomicBool>,
    /// The shortest time from a request to its answer, in microseconds; longer ones waited for
    /// something else.
    latency_us: AtomicU64,
}

impl Store {
    /// The store of a URL, and the key or prefix in it.
    ///
    /// # Errors
    /// An unknown scheme, or a wrong setting, by name. It sends no request for data yet.
    pub(crate) fn open(url: &str) -> Result<(Arc<Self>, String)> {
        // The query of a web address gives access: it is not shown.
        let shown = if url.starts_with("http") { url.split('?').next().unwrap_or_default() } else { url };
        let wrong = |what: String| Error::Dataset { path: shown.into(), what };
        let (address, key) = Address::parse(url).map_err(wrong)?;
        let latency_us = AtomicU64::new(u64::MAX);
        let store = Self { address, connection: Mutex::default(), answers: Arc::default(), latency_us };
        store.connection().map_err(|e| wrong(e.to_string()))?;
        Ok((Arc::new(store), key))
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
        let client = runtime.block_on(client(&self.address, &self.answers)).map_err(io::Error::other)?;
        let made = Arc::new(Connection { client, runtime: Some(runtime), process });
        Ok(Arc::clone(connection.insert(made)))
    }

    /// The URL of a key.
    pub(crate) fn name(&self, key: &str) -> PathBuf {
        format!("{}{key}", self.address.root).into()
    }

    fn error(&self, key: &str, what: impl Into<String>) -> Error {
        Error::Io { path: self.name(key), source: io::Error::other(what.into()) }
    }

    /// A key, character for character.
    pub(crate) fn key(&self, name: &str) -> Result<Key> {
        address::key(name).map_err(|what| Error::Dataset { path: self.name(name), what })
    }

    /// The time from a request to its answer; a guess until the first one.
    pub(crate) fn latency(&self) -> Duration {
        match self.latency_us.load(Ordering::Relaxed) {
            u64::MAX => Duration::from_millis(20),
            shortest => Duration::from_micros(shortest),
        }
    }

    fn answered(&self, asked: Instant) {
        self.latency_us.fetch_min(asked.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    /// Whether the store can list its objects; plain HTTP cannot.
    pub(crate) fn lists(&self) -> bool {
        self.address.scheme != ObjectStoreScheme::Http
    }

    /// Everything below a prefix, in the order of keys.
    ///
    /// # Errors
    /// What the server answers, with the fix.
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        let prefix = prefix.trim_matches('/');
        let key = self.key(prefix)?;
        let found: Vec<ObjectMeta> = self.retrying(prefix, LIST_TIMEOUT, async |client| {
            request(client.list(Some(&key)).try_collect()).await
        })?;
        let mut objects: Vec<Object> = found.into_iter().map(object).collect();
        objects.sort_by(|a, b| a.key.as_ref().cmp(b.key.as_ref()));
        Ok(objects)
    }

    /// One object; None if there is none of this name.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub(crate) fn find(&self, key: &str) -> Result<Option<Object>> {
        let path = self.key(key)?;
        let found = self.retrying(key, READ_TIMEOUT, async |client| {
            let asked = match self.address.secrets.is_empty() {
                true => request(client.head(&path)).await,
                // A signature is for one method, which is GET.
                false => {
                    let first = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
                    request(client.get_opts(&path, first)).await.map(|answer| answer.meta)
                }
            };
            match asked {
                Ok(meta) => Ok(Some(meta)),
                Err(Failure::Missing(_)) => Ok(None),
                Err(failure) => Err(failure),
            }
        })?;
        Ok(found.map(object))
    }

    /// Retries until there is an answer, within a timeout.
    fn retrying<T>(
        &self,
        key: &str,
        limit: Duration,
        ask: impl AsyncFn(&dyn ObjectStore) -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let work = async |client: &dyn ObjectStore| {
            let mut backoff = self.backoff(key);
            loop {
                let failure = match timeout(limit, ask(client)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(failure)) => failure,
                    Err(_) => Failure::Transient("no answer".into()),
                };
                if self.answers.load(Ordering::Relaxed) {
                    backoff.extend(READ_TIMEOUT);
                }
                backoff.pause(failure).await?;
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
    /// What the server answers, with the fix; an object that changed or is gone; the timeout.
    pub(crate) fn read(&self, object: &Object, offset: u64, into: &mut [u8]) -> Result<()> {
        let key = object.key.as_ref();
        let end = offset + into.len() as u64;
        if end > object.bytes {
            let what = format!(
                "the object ends after {} bytes, and {end} are wanted: it changed since it was indexed; \
                 run `tidegate index --force`",
                object.bytes
            );
            return Err(Error::format(self.name(object.key.as_ref()), offset, what));
        }
        if into.is_empty() {
            return Ok(());
        }
        let connection = self.connection().map_err(|e| self.error(key, e.to_string()))?;
        let wrong = |what: String| Error::format(self.name(object.key.as_ref()), offset, what);
        let work = unless_stopped(self.fetch(&*connection.client, object, offset, into));
        connection.block_on(work).unwrap_or_else(|e| Err(e.to_string())).map_err(wrong)
    }

    /// Reads an object of up to `into.len()` bytes and returns its length; None if there is none
    /// of this name. Without a failure it takes one request.
    ///
    /// # Errors
    /// As [`Store::read`]; an object that is longer.
    #[cfg(feature = "zarr")]
    pub(crate) fn whole(&self, key: &str, into: &mut [u8]) -> Result<Option<usize>> {
        let path = self.key(key)?;
        let connection = self.connection().map_err(|e| self.error(key, e.to_string()))?;
        let work = async {
            let mut backoff = self.backoff(key);
            loop {
                let request = self.request_whole(&*connection.client, &path, into);
                let failure = match timeout_at(backoff.until, request).await {
                    Ok(Ok(came)) => return Ok(came),
                    Ok(Err(failure)) => failure,
                    Err(_) => Failure::Transient("it came too slowly".into()),
                };
                backoff.pause(failure).await?;
            }
        };
        let came = connection.block_on(unless_stopped(work)).unwrap_or_else(|e| Err(e.to_string()));
        came.map_err(|what| Error::format(self.name(key), 0, what))
    }

    /// Requests an object, once.
    #[cfg(feature = "zarr")]
    async fn request_whole(
        &self,
        client: &dyn ObjectStore,
        key: &Key,
        into: &mut [u8],
    ) -> std::result::Result<Option<usize>, Failure> {
        let silent = |_| Failure::Transient(format!("nothing came for {} s", REQUEST_TIMEOUT.as_secs()));
        let began = Instant::now();
        let answer = match timeout(REQUEST_TIMEOUT, request(client.get(key))).await.map_err(silent)? {
            Ok(answer) => answer,
            Err(Failure::Missing(_)) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        self.answered(began);
        let (len, most) = (answer.meta.size, into.len());
        let longer = || {
            Failure::Permanent(format!(
                "an object of {len} bytes, where its codecs make at most {most}: restore it, or check the array's metadata"
            ))
        };
        let into = into.get_mut(..len as usize).ok_or_else(longer)?;
        let mut done = 0;
        receive(&mut answer.into_stream(), into, &mut done).await?;
        Ok(Some(len as usize))
    }

    /// Requests a range until it is complete, or too little of it comes within the timeout.
    async fn fetch(
        &self,
        client: &dyn ObjectStore,
        object: &Object,
        offset: u64,
        into: &mut [u8],
    ) -> std::result::Result<(), String> {
        let mut backoff = self.backoff(object.key.as_ref());
        let (mut done, mut before) = (0, 0);
        loop {
            let attempt =
                timeout_at(backoff.until, self.request(client, object, offset, into, &mut done)).await;
            let failure = match attempt {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Transient("it came too slowly".into()),
            };
            // A few bytes now and then are no progress.
            if done - before >= PROGRESS_BYTES {
                (backoff, before) = (self.backoff(object.key.as_ref()), done);
            }
            backoff
                .pause(failure)
                .await
                .map_err(|what| format!("{what} ({done} of {} bytes came)", into.len()))?;
        }
    }

    fn backoff(&self, key: &str) -> Backoff<'_> {
        let answers = self.answers.load(Ordering::Relaxed);
        let limit = if answers { READ_TIMEOUT } else { FIRST_TIMEOUT };
        Backoff::new(key, limit, &self.address.secrets)
    }

    /// Requests the missing part of a range, once.
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
        let silent = |_| Failure::Transient(format!("nothing came for {} s", REQUEST_TIMEOUT.as_secs()));
        let began = Instant::now();
        let work = request(client.get_opts(&object.key, options));
        let answer = timeout(REQUEST_TIMEOUT, work).await.map_err(silent)??;
        self.answered(began);
        if answer.meta.size != object.bytes {
            return Err(Failure::Changed);
        }
        if answer.range != asked {
            let what = format!("the server gave bytes {:?} where {asked:?} were asked for", answer.range);
            return Err(Failure::Transient(what));
        }
        receive(&mut answer.into_stream(), into, done).await
    }
}

/// Receives bytes until `into` is full; `done` of them are there.
async fn receive(
    stream: &mut (impl futures_util::Stream<Item = object_store::Result<bytes::Bytes>> + Unpin),
    into: &mut [u8],
    done: &mut usize,
) -> std::result::Result<(), Failure> {
    let silent = |_| Failure::Transient(format!("nothing came for {} s", REQUEST_TIMEOUT.as_secs()));
    while *done < into.len() {
        match timeout(REQUEST_TIMEOUT, stream.next()).await.map_err(silent)? {
            Some(Ok(bytes)) => {
                let target = into.get_mut(*done..*done + bytes.len());
                let target =
                    target.ok_or_else(|| Failure::Transient("more bytes than were asked for".into()))?;
                target.copy_from_slice(&bytes);
                *done += bytes.len();
            }
            Some(Err(error)) => return Err(Failure::Transient(text_of(&error))),
            None => return Err(Failure::Transient("the connection ended early".into())),
        }
    }
    Ok(())
}

/// Waits for work of this thread until its epoch is stopped.
async fn unless_stopped<T>(
    work: impl Future<Output = std::result::Result<T, String>>,
) -> std::result::Result<T, String> {
    let mut work = std::pin::pin!(work);
    loop {
        match timeout(POLL_INTERVAL, &mut work).await {
            Ok(outcome) => return outcome,
            Err(_) if stopped() => return Err("the epoch was ended".to_owned()),
            Err(_) => {}
        }
    }
}

fn object(meta: ObjectMeta) -> Object {
    Object { key: meta.location, bytes: meta.size, tag: meta.e_tag }
}

/// The retries of one request: their pauses, and their end.
struct Backoff<'a> {
    /// What no error may show.
    secrets: &'a [String],
    began: Instant,
    limit: Duration,
    until: Instant,
    attempt: u32,
    /// Spreads the pauses of requests that failed together.
    jitter: u64,
}

impl<'a> Backoff<'a> {
    fn new(key: &str, limit: Duration, secrets: &'a [String]) -> Self {
        let now = Instant::now();
        let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.subsec_nanos());
        let jitter = xxhash_rust::xxh3::xxh3_64(key.as_bytes()) ^ u64::from(nanos);
        Self { secrets, began: now, limit, until: now + limit, attempt: 0, jitter }
    }

    /// Retries for so long from the first attempt on.
    fn extend(&mut self, limit: Duration) {
        (self.limit, self.until) = (limit, self.began + limit);
    }

    /// Waits before the next attempt; an error where there is none.
    async fn pause(&mut self, failure: Failure) -> std::result::Result<(), String> {
        let what = match failure {
            Failure::Permanent(what) | Failure::Missing(what) => return Err(self.shown(what)),
            Failure::Changed => return Err(CHANGED.to_owned()),
            Failure::Transient(what) => self.shown(what),
        };
        let longest = BACKOFF.saturating_mul(1 << self.attempt.min(16)).min(BACKOFF_MOST);
        self.jitter = self.jitter.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ 0x5851;
        let pause = longest.mul_f64(0.5 + (self.jitter >> 33) as f64 / f64::from(1u32 << 31) / 2.0);
        self.attempt += 1;
        if Instant::now() + pause > self.until {
            return Err(format!(
                "{what}; given up after {} attempts in {} s: check the network and the server, then resume",
                self.attempt,
                self.limit.as_secs()
            ));
        }
        sleep(pause).await;
        Ok(())
    }

    fn shown(&self, what: String) -> String {
        self.secrets.iter().fold(what, |what, secret| what.replace(secret, "…"))
    }
}
