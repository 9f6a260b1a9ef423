//! Clients of stores, with credentials from where each provider's own tools have them.
//!
//! Flow: an [`Address`] -> the environment, else a profile of AWS, else what the machine gives ->
//! a client; called by `remote`.
//! Memory: two small files of settings; the keys.
//!
//! Where nobody gives credentials, requests go without: a public bucket answers, and the refusal
//! of another one says so.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as S3Key, AwsCredential};
use object_store::azure::{AzureConfigKey as AzureKey, MicrosoftAzureBuilder};
use object_store::client::{HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey as GoogleKey};
use object_store::http::HttpBuilder;
use object_store::{ClientOptions, CredentialProvider, ObjectStore, ObjectStoreScheme, RetryConfig};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::address::Address;
use super::answer::{Noting, text_of};

/// How long a machine may take to say that it gives credentials.
const MACHINE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a command or a sign-on may take to give credentials.
const ASK_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a command is looked after.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Credentials are asked for again when so little of their time is left.
const MARGIN: Duration = Duration::from_secs(120);
/// AWS's own tool gives the credentials of any profile.
const EXPORT: &str = "aws configure export-credentials --format process";
/// Where machines of AWS and Azure give credentials.
const METADATA: &str = "169.254.169.254:80";

/// A client of a store, which notes that the store has answered. It never retries: `remote` does,
/// with one timeout for all attempts.
///
/// # Errors
/// A wrong setting, by name.
pub(super) async fn client(
    address: &Address,
    answered: &Arc<AtomicBool>,
) -> Result<Arc<dyn ObjectStore>, String> {
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let url = address.url.to_string();
    // The URL or endpoint says whether the server has no encryption.
    macro_rules! build {
        ($found:expr) => {{
            let (builder, anonymous) = $found;
            let builder = builder.with_url(url).with_config("allow_http".parse().map_err(text)?, "true");
            let builder = builder.with_retry(retry).with_http_connector(Noting::new(anonymous, answered));
            Arc::new(builder.build().map_err(text)?)
        }};
    }
    Ok(match address.scheme {
        ObjectStoreScheme::AmazonS3 => build!(of_aws(AmazonS3Builder::from_env()).await?),
        ObjectStoreScheme::GoogleCloudStorage => {
            build!(of_google(GoogleCloudStorageBuilder::from_env()).await)
        }
        ObjectStoreScheme::MicrosoftAzure => build!(of_azure(MicrosoftAzureBuilder::from_env()).await),
        _ => {
            let options = ClientOptions::new().with_allow_http(true);
            let builder = HttpBuilder::new().with_client_options(options).with_url(url).with_retry(retry);
            Arc::new(builder.with_http_connector(Noting::new(false, answered)).build().map_err(text)?)
        }
    })
}

fn text(error: object_store::Error) -> String {
    text_of(&error)
}

/// A builder with credentials of Google Cloud, and whether it has none.
async fn of_google(builder: GoogleCloudStorageBuilder) -> (GoogleCloudStorageBuilder, bool) {
    let given = [GoogleKey::ServiceAccount, GoogleKey::ServiceAccountKey]
        .into_iter()
        .chain([GoogleKey::ApplicationCredentials, GoogleKey::BearerToken])
        .any(|key| builder.get_config_value(&key).is_some());
    let saved = home().map(|home| home.join(".config/gcloud/application_default_credentials.json"));
    let machine = setting("GCE_METADATA_HOST").unwrap_or_else(|| "metadata.google.internal".into());
    if given
        || saved.is_some_and(|file| file.is_file())
        || builder.get_config_value(&GoogleKey::SkipSignature).as_deref() == Some("true")
        || answers(&with_port(&machine)).await
    {
        return (builder, false);
    }
    (builder.with_skip_signature(true), true)
}

/// A builder with credentials of Azure, and whether it has none.
async fn of_azure(builder: MicrosoftAzureBuilder) -> (MicrosoftAzureBuilder, bool) {
    let keys = [AzureKey::AccessKey, AzureKey::SasKey, AzureKey::Token, AzureKey::ClientId];
    let more = [AzureKey::FederatedTokenFile, AzureKey::MsiEndpoint];
    let is = |key| builder.get_config_value(&key).as_deref() == Some("true");
    let chosen = [AzureKey::SkipSignature, AzureKey::UseAzureCli, AzureKey::UseEmulator].into_iter().any(is);
    let given = keys.into_iter().chain(more).any(|key| builder.get_config_value(&key).is_some());
    if given || chosen || answers(METADATA).await {
        return (builder, false);
    }
    (builder.with_skip_signature(true), true)
}

/// A builder with credentials of AWS, and whether it has none: of the environment, of a profile, of
/// the container, of the machine, in this order, as AWS's own tools look for them.
async fn of_aws(mut builder: AmazonS3Builder) -> Result<(AmazonS3Builder, bool), String> {
    let profile = Profile::read()?;
    for (key, name) in [(S3Key::Region, "region"), (S3Key::Endpoint, "endpoint_url")] {
        if builder.get_config_value(&key).is_none()
            && let Some(value) = profile.as_ref().and_then(|profile| profile.get(name))
        {
            builder = builder.with_config(key, value);
        }
    }
    let is_set = |key| builder.get_config_value(&key).is_some();
    let given = [S3Key::AccessKeyId, S3Key::SecretAccessKey, S3Key::WebIdentityTokenFile];
    if given.into_iter().any(is_set)
        || builder.get_config_value(&S3Key::SkipSignature).as_deref() == Some("true")
    {
        return Ok((builder, false));
    }
    match profile.as_ref().map(Profile::origin).transpose()?.flatten() {
        Some(Origin::Keys(keys)) => {
            let keys = Arc::new(object_store::StaticCredentialProvider::new(keys));
            return Ok((builder.with_credentials(keys), false));
        }
        Some(Origin::Asked(asked)) => {
            return Ok((builder.with_credentials(Arc::new(Renewed::new(asked))), false));
        }
        None => {}
    }
    let container = [S3Key::ContainerCredentialsRelativeUri, S3Key::ContainerCredentialsFullUri];
    let off = setting("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let machine = builder.get_config_value(&S3Key::MetadataEndpoint);
    let machine = machine.map_or(METADATA.into(), |url| with_port(url.trim_start_matches("http://")));
    if container.into_iter().any(is_set) || (!off && answers(&machine).await) {
        return Ok((builder, false));
    }
    Ok((builder.with_skip_signature(true), true))
}

/// Whether a machine that gives credentials is there.
async fn answers(host: &str) -> bool {
    timeout(MACHINE_TIMEOUT, TcpStream::connect(host)).await.is_ok_and(|connected| connected.is_ok())
}

/// A host with the port of plain HTTP where it names none.
fn with_port(host: &str) -> String {
    let host = host.split('/').next().unwrap_or_default();
    if host.contains(':') { host.to_owned() } else { format!("{host}:80") }
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The user's folder; without one no files are read, least of all from the working folder.
fn home() -> Option<PathBuf> {
    setting("HOME").map(PathBuf::from).filter(|home| home.is_absolute())
}

/// The settings of a file of AWS, by section and by name in lower case.
type Sections = HashMap<String, HashMap<String, String>>;

/// Reads a file of AWS; one that cannot be read is as good as none. In `config` the profiles but
/// `default` are called "profile NAME", in `credentials` by their names.
fn sections(path: Option<&Path>, are_named: bool) -> Sections {
    let text = path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let mut found = Sections::new();
    let mut section: Option<&mut HashMap<String, String>> = None;
    for line in text.lines().filter(|line| !line.trim_start().starts_with(['#', ';'])) {
        // An indented line belongs to the setting before it.
        if line.starts_with([' ', '\t']) && section.as_ref().is_some_and(|known| !known.is_empty()) {
            continue;
        }
        let line =
            [" #", " ;"].into_iter().fold(line, |line, mark| line.split(mark).next().unwrap_or_default());
        let line = line.trim();
        if let Some((name, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let name = name.trim();
            let plain = name.strip_prefix("profile ").map(|name| name.trim().trim_matches(['"', '\'']));
            let is_plain = are_named || name == "default" || name.starts_with("sso-session ");
            let name = plain.or_else(|| is_plain.then_some(name));
            section = name.map(|name| found.entry(name.to_owned()).or_default());
        } else if let (Some(section), Some((name, value))) = (section.as_mut(), line.split_once(['=', ':'])) {
            section.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found
}

/// A profile of `aws configure`.
#[derive(Debug)]
struct Profile {
    name: String,
    settings: HashMap<String, String>,
    /// The single sign-on that it names.
    session: HashMap<String, String>,
    /// Whether the file of credentials has its keys; those of the other file come after a command.
    keys_first: bool,
}

/// Where the keys of a profile come from.
#[derive(Debug)]
enum Origin {
    Keys(AwsCredential),
    Asked(Asked),
}

/// What gives keys for a time.
#[derive(Debug)]
enum Asked {
    /// A command that prints them.
    Command { command: String, profile: String },
    /// The portal of a single sign-on, and the token of its last login.
    Portal { url: String, start: String, profile: String },
}

impl Profile {
    /// The profile that `AWS_PROFILE` names, or `default`; None where nothing was configured.
    fn read() -> Result<Option<Self>, String> {
        let path = |name: &str, file: &str| {
            let home = home();
            match setting(name) {
                Some(given) => match (given.strip_prefix("~/"), &home) {
                    (Some(below), Some(home)) => Some(home.join(below)),
                    _ => Some(given.into()),
                },
                None => home.map(|home| home.join(".aws").join(file)),
            }
        };
        let config = path("AWS_CONFIG_FILE", "config");
        let keys = path("AWS_SHARED_CREDENTIALS_FILE", "credentials");
        let (mut configured, mut keyed) =
            (sections(config.as_deref(), false), sections(keys.as_deref(), true));
        let named = setting("AWS_PROFILE").or_else(|| setting("AWS_DEFAULT_PROFILE"));
        let name = named.clone().unwrap_or_else(|| "default".into());
        let (from_config, from_keys) = (configured.remove(&name), keyed.remove(&name));
        if from_config.is_none() && from_keys.is_none() {
            let missing = |name| {
                let shown = |path: Option<PathBuf>| path.unwrap_or_default().display().to_string();
                let (keys, config) = (shown(keys), shown(config));
                format!("AWS_PROFILE names the profile {name:?}, which neither {keys} nor {config} has")
            };
            return named.map_or(Ok(None), |name| Err(missing(name)));
        }
        let mut settings = from_config.unwrap_or_default();
        let from_keys = from_keys.unwrap_or_default();
        let keys_first = from_keys.contains_key("aws_access_key_id");
        settings.extend(from_keys);
        let session =
            settings.get("sso_session").and_then(|of| configured.remove(&format!("sso-session {of}")));
        Ok(Some(Self { name, settings, session: session.unwrap_or_default(), keys_first }))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.settings.get(name).or_else(|| self.session.get(name)).map(String::as_str)
    }

    /// Where the keys come from; None where the profile says nothing of it.
    ///
    /// # Errors
    /// A setting that is missing.
    fn origin(&self) -> Result<Option<Origin>, String> {
        let wanted = |name| {
            self.get(name)
                .map(str::to_owned)
                .ok_or_else(|| format!("the profile {:?} lacks {name}", self.name))
        };
        let profile = || self.name.clone();
        // Roles, logins and tokens of other kinds are left to AWS's own tool.
        if ["role_arn", "login_session", "web_identity_token_file"]
            .iter()
            .any(|name| self.get(name).is_some())
        {
            return Ok(Some(Origin::Asked(Asked::Command { command: EXPORT.into(), profile: profile() })));
        }
        if self.get("sso_account_id").is_some() {
            let portal = setting("AWS_ENDPOINT_URL_SSO");
            let region = wanted("sso_region")?;
            let china = if region.starts_with("cn-") { ".cn" } else { "" };
            let portal =
                portal.unwrap_or_else(|| format!("https://portal.sso.{region}.amazonaws.com{china}"));
            let (account, role) = (wanted("sso_account_id")?, wanted("sso_role_name")?);
            let role = utf8_percent_encode(&role, NON_ALPHANUMERIC);
            let url = format!("{portal}/federation/credentials?account_id={account}&role_name={role}");
            let start = wanted("sso_start_url")?;
            return Ok(Some(Origin::Asked(Asked::Portal { url, start, profile: profile() })));
        }
        let command = self.get("credential_process").filter(|_| !self.keys_first);
        if let Some(command) = command {
            let (command, profile) = (command.to_owned(), profile());
            return Ok(Some(Origin::Asked(Asked::Command { command, profile })));
        }
        if self.get("aws_access_key_id").is_none() {
            return Ok(None);
        }
        Ok(Some(Origin::Keys(AwsCredential {
            key_id: wanted("aws_access_key_id")?,
            secret_key: wanted("aws_secret_access_key")?,
            token: self.get("aws_session_token").map(str::to_owned),
        })))
    }
}

/// Keys and the end of their time.
type Keys = (Arc<AwsCredential>, Option<SystemTime>);

/// Keys that are asked for again before their time ends.
#[derive(Debug, Clone)]
struct Renewed {
    asked: Arc<Asked>,
    kept: Arc<Mutex<Option<Keys>>>,
}

impl Renewed {
    fn new(asked: Asked) -> Self {
        Self { asked: Arc::new(asked), kept: Arc::default() }
    }

    async fn keys(self) -> Result<Arc<AwsCredential>, String> {
        let mut kept = self.kept.lock().await;
        let fresh = |until: &Option<SystemTime>| until.is_none_or(|until| SystemTime::now() + MARGIN < until);
        if let Some((keys, _)) = kept.as_ref().filter(|(_, until)| fresh(until)) {
            return Ok(Arc::clone(keys));
        }
        match (self.asked.ask().await, kept.as_ref()) {
            (Ok(keys), _) => Ok(Arc::clone(&kept.insert(keys).0)),
            // They hold for a little longer.
            (Err(_), Some((keys, Some(until)))) if SystemTime::now() < *until => Ok(Arc::clone(keys)),
            (Err(what), _) => Err(what),
        }
    }
}

#[async_trait]
impl CredentialProvider for Renewed {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        // A request may be given up before they come; the next one then finds them.
        let asking = tokio::spawn(self.clone().keys());
        let keys = asking.await.map_err(|e| e.to_string()).and_then(|keys| keys);
        let refused = |what: String| object_store::Error::Unauthenticated {
            path: "credentials".into(),
            source: what.into(),
        };
        keys.map_err(refused)
    }
}

/// What `credential_process` prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<DateTime<Utc>>,
}

/// What the portal of a single sign-on answers.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Granted {
    role_credentials: RoleKeys,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RoleKeys {
    access_key_id: String,
    secret_access_key: String,
    session_token: String,
    /// Milliseconds since 1970.
    expiration: u64,
}

/// What `aws sso login` keeps.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Login {
    start_url: String,
    access_token: String,
    expires_at: DateTime<Utc>,
}

impl Asked {
    async fn ask(&self) -> Result<Keys, String> {
        match self {
            Self::Command { command, profile } => run(command, profile).await,
            Self::Portal { url, start, profile } => {
                match login(start) {
                    Some(token) => grant(url, &token).await,
                    // AWS's own tool renews logins.
                    None => run(EXPORT, profile).await.map_err(|_| {
                        format!(
                            "the login of the profile {profile:?} is missing or over: run `aws sso login --profile \
                             {profile}`"
                        )
                    }),
                }
            }
        }
    }
}

/// Runs the command of a profile, and reads the keys that it prints.
async fn run(command: &str, profile: &str) -> Result<Keys, String> {
    let failed =
        |what: &str| format!("the profile {profile:?} takes its credentials from `{command}`, which {what}");
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).env("AWS_PROFILE", profile);
    let ran = output(shell).await;
    let (status, printed, said) = ran.map_err(|e| failed(&format!("cannot be run: {e}")))?;
    if !status.success() {
        return Err(failed(&format!("failed ({status}): {}", String::from_utf8_lossy(&said).trim())));
    }
    let wrong = |_| failed("did not print AccessKeyId and SecretAccessKey as JSON");
    let Printed { access_key_id: key_id, secret_access_key: secret_key, session_token: token, expiration } =
        serde_json::from_slice(&printed).map_err(wrong)?;
    Ok((Arc::new(AwsCredential { key_id, secret_key, token }), expiration.map(SystemTime::from)))
}

/// Runs a command to its end, and returns what it printed and what it said.
async fn output(mut command: Command) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    // Files in memory never make the command wait, and the keys reach no disk.
    let in_memory = || rustix::fs::memfd_create("tidegate", rustix::fs::MemfdFlags::CLOEXEC).map(File::from);
    let (mut printed, mut said) = (in_memory()?, in_memory()?);
    command.stdin(Stdio::null()).stdout(printed.try_clone()?).stderr(said.try_clone()?);
    let mut child = command.spawn()?;
    let until = Instant::now() + ASK_TIMEOUT;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() < until => sleep(POLL_INTERVAL).await,
            None => {
                child.kill()?;
                child.wait()?;
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    };
    let read = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes).map(|_| bytes)
    };
    Ok((status, read(&mut printed)?, read(&mut said)?))
}

/// The token of the last login to a single sign-on, while its time lasts.
fn login(start: &str) -> Option<String> {
    let kept = std::fs::read_dir(home()?.join(".aws/sso/cache")).ok()?.flatten();
    let logins =
        kept.filter_map(|file| serde_json::from_slice::<Login>(&std::fs::read(file.path()).ok()?).ok());
    let mut valid: Vec<Login> =
        logins.filter(|login| login.start_url == start && login.expires_at > Utc::now()).collect();
    valid.sort_by_key(|login| login.expires_at);
    Some(valid.pop()?.access_token)
}

/// Asks the portal of a single sign-on for the keys of a role.
async fn grant(url: &str, token: &str) -> Result<Keys, String> {
    let failed = |what: String| format!("the single sign-on did not give credentials: {what}");
    let options = ClientOptions::new().with_allow_http(true).with_timeout(ASK_TIMEOUT);
    let client = ReqwestConnector::default().connect(&options);
    let mut request = HttpRequest::new(HttpRequestBody::empty());
    *request.uri_mut() = url.parse().map_err(|e| failed(format!("{url} is no address: {e}")))?;
    let token = token.parse().map_err(|_| failed("the token of the login cannot be sent".into()))?;
    request.headers_mut().insert("x-amz-sso_bearer_token", token);
    let answer = client.map_err(text)?.execute(request).await.map_err(|e| failed(text_of(&e)))?;
    let status = answer.status();
    let mut body = Vec::new();
    let mut stream = answer.into_body().bytes_stream();
    while let Some(part) = stream.next().await {
        body.extend_from_slice(&part.map_err(|e| failed(text_of(&e)))?);
    }
    if !status.is_success() {
        return Err(failed(format!("{status}: {}", String::from_utf8_lossy(&body))));
    }
    let granted = serde_json::from_slice(&body);
    let Granted { role_credentials: keys } =
        granted.map_err(|_| failed("another answer than expected".into()))?;
    let until = SystemTime::UNIX_EPOCH + Duration::from_millis(keys.expiration);
    let (key_id, secret_key) = (keys.access_key_id, keys.secret_access_key);
    Ok((Arc::new(AwsCredential { key_id, secret_key, token: Some(keys.session_token) }), Some(until)))
}
