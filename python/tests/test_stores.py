"""Names and credentials of object stores as people have them: keys, addresses, profiles, logins."""
# ruff: noqa: F811

import json
import stat
import time
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import boto3
import pytest

# The fixtures are found by name here.
from test_remote import content, server, store, tar  # noqa: F401

import tidegate as tg

NAMES = ["a#b", "a%20b", "a+b", "a b", "a~b", "a[1]b", "a[b", "ä", "a=b&c", "a'b"]


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home folder without AWS's variables; `configure` writes its files."""
    for name in ["ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "REGION", "PROFILE"]:
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    folder = tmp_path / "home/.aws"
    folder.mkdir(parents=True)

    def configure(config="", credentials=""):
        (folder / "config").write_text(config)
        (folder / "credentials").write_text(credentials)
        return folder

    return configure


@pytest.fixture
def one(server, store):
    """One shard behind a proxy that notes what requests are signed with."""
    server.put("one/shard.tar", tar(range(3)))
    return store()


def signed_by(proxy):
    keys = [text.partition("Credential=")[2].split("/")[0] if text else None for text in proxy.authorizations]
    assert len(set(keys)) == 1
    return keys[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_key_is_what_is_written(server, store, name):
    store()
    server.put(f"odd/{name}/{name}.tar", tar(range(3)))
    # Object of another name, which an encoded key would have named.
    server.put("odd/a%2520b/a%2520b.tar", tar(range(9)))
    for url in [f"s3://data/odd/{name}/{name}.tar", f"s3://data/odd/{name}", f"s3://data/odd/{name}/"]:
        source = tg.open(url)
        assert (len(source), source[1]["bin"]) == (3, content(1)), url


def test_a_web_address_is_decoded(server, store):
    proxy = store()
    for name, written in [("a b", "a%20b"), ("a#b", "a%23b"), ("a%20b", "a%2520b"), ("a+b", "a+b"), ("a~[1]", "a~[1]")]:
        server.put(f"web/{name}.tar", tar(range(3)))
        source = tg.open(f"{proxy.url}/data/web/{written}.tar")
        assert (len(source), source[2]["bin"]) == (3, content(2)), name
    for written, words in [("a#b.tar", "%23"), ("x//a.tar", "empty part"), ("%ff.tar", "UTF-8")]:
        with pytest.raises(tg.Error, match=words):
            tg.open(f"{proxy.url}/data/web/{written}")
    for url in ["s3://data//web/a.tar", "s3://data/web//a.tar"]:
        with pytest.raises(tg.Error, match="empty part"):
            tg.open(url)


def test_a_signed_address_is_asked_for_as_it_is_and_its_signature_is_not_told(server, store):
    proxy = store()
    server.put("signed/a.tar", tar(range(4)))
    client = boto3.client(
        "s3",
        endpoint_url=proxy.url,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    url = client.generate_presigned_url("get_object", Params={"Bucket": "data", "Key": "signed/a.tar"})
    assert "Signature=" in url
    source = tg.open(url)
    assert [sample["bin"] for sample in source] == [content(i) for i in range(4)]
    assert "Signature" not in repr(source)
    assert proxy.counts["HEAD"] == 0, "the signature is for GET"
    proxy.rate, proxy.faults = 1.0, ["403"]
    with pytest.raises(tg.Error, match="permission denied") as refused:
        tg.open(url)
    assert url.partition("?")[2] not in str(refused.value)
    for path in ("a//b.tar", "%ff.tar", "a#.tar", "a.tar"):
        with pytest.raises(tg.Error) as refused:
            tg.open(f"{proxy.url}/data/{path}?sig='SECRET'&x=<b>")
        assert "SECRET" not in str(refused.value)


def test_a_signed_address_keeps_its_percent_signs(server, store):
    proxy = store()
    server.put("signed/a+b {1}.tar", tar(range(2)))
    source = tg.open(f"{proxy.url}/data/signed/a%2Bb%20%7B1%7D.tar?X-Signature=0")
    assert [sample["bin"] for sample in source] == [content(0), content(1)]


def test_keys_of_a_profile(one, home, monkeypatch):
    home(
        "[default]\nregion = eu-west-1\n[profile other]\nregion=us-east-1 # ours\ns3 =\n    addressing_style = path\n",
        "[default]\naws_access_key_id = first\naws_secret_access_key = a\n"
        "# a comment\n[other]\naws_access_key_id=second\naws_secret_access_key=b=/+\naws_session_token=c\n",
    )
    assert len(tg.open("s3://data/one/*.tar")) == 3
    assert signed_by(one) == "first"
    assert "/eu-west-1/s3/" in one.authorizations[0]
    one.authorizations.clear()
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert len(tg.open("s3://data/one/shard.tar")) == 3
    assert signed_by(one) == "second"
    monkeypatch.setenv("AWS_PROFILE", "third")
    with pytest.raises(tg.Error, match=r"AWS_PROFILE names the profile \"third\", which neither .*credentials nor"):
        tg.open("s3://data/one/shard.tar")


PARSED = {
    "quoted": ('[profile "p"]\nregion = us-east-1\naws_access_key_id = quoted\naws_secret_access_key = s\n', ""),
    "colons": ("", "[p]\naws_access_key_id: colons\naws_secret_access_key: s\n"),
    "indented": ("", "[p]\n  aws_access_key_id = indented\naws_secret_access_key = s\n"),
    "command": (
        "[profile p]\naws_access_key_id = no\naws_secret_access_key = s\n"
        """credential_process = echo '{"AccessKeyId": "command", "SecretAccessKey": "s"}'\n""",
        "",
    ),
}


@pytest.mark.parametrize("name", PARSED)
def test_files_of_profiles_as_the_tools_of_aws_read_them(one, home, monkeypatch, name):
    home(*PARSED[name])
    monkeypatch.setenv("AWS_PROFILE", "p")
    assert len(tg.open("s3://data/one/*.tar")) == 3
    assert signed_by(one) == name


def test_without_a_home_folder_nothing_of_the_working_folder_is_used(one, home, monkeypatch, tmp_path):
    home()
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text(f"[default]\ncredential_process = touch {tmp_path}/ran\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "")
    assert len(tg.open("s3://data/one/*.tar")) == 3
    assert signed_by(one) is None
    assert not (tmp_path / "ran").exists()
    # What cannot be read is as good as none.
    monkeypatch.setenv("HOME", "/dev/null")
    assert len(tg.open("s3://data/one/*.tar")) == 3


def test_variables_come_before_a_profile(one, home, monkeypatch):
    home(credentials="[default]\naws_access_key_id = first\naws_secret_access_key = a\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "variable")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert len(tg.open("s3://data/one/*.tar")) == 3
    assert signed_by(one) == "variable"


def test_a_command_gives_keys_until_their_time_is_over(one, home, tmp_path):
    program = tmp_path / "give keys"
    runs = tmp_path / "runs"
    soon = (datetime.now(timezone.utc) + timedelta(seconds=60)).isoformat()

    def give(text):
        program.write_text(f"#!/bin/sh\necho run >> {runs}\n{text}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    keys = {"Version": 1, "AccessKeyId": "printed", "SecretAccessKey": "s", "SessionToken": "t"}
    home(f"[default]\ncredential_process = '{program}' --for tests\n")
    give(f"echo '{json.dumps(keys)}'")
    assert len(tg.open("s3://data/one/*.tar")) == 3
    assert signed_by(one) == "printed"
    assert runs.read_text().count("run") == 1
    give(f"echo '{json.dumps(keys | {'Expiration': soon})}'")
    assert tg.open("s3://data/one/*.tar")[0]["bin"] == content(0)
    assert runs.read_text().count("run") > 2, "each time that less than two minutes are left"
    began = time.monotonic()
    for text, words in [("echo not now >&2; exit 3", "exit status: 3.*not now"), ("echo nothing", "did not print")]:
        give(text)
        with pytest.raises(tg.Error, match=f"no credentials.*{words}"):
            tg.open("s3://data/one/*.tar")
    assert time.monotonic() - began < 10


def test_a_role_is_asked_of_the_tool_of_aws(one, home, tmp_path, monkeypatch):
    home("[default]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = base\n")
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin/aws"
    tool.write_text(
        "#!/bin/sh\n"
        '[ "$*" = "configure export-credentials --format process" ] || exit 2\n'
        'echo "{\\"Version\\":1,\\"AccessKeyId\\":\\"role-$AWS_PROFILE\\",\\"SecretAccessKey\\":\\"s\\"}"\n'
    )
    tool.chmod(0o755)
    with monkeypatch.context() as changed:
        changed.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        assert len(tg.open("s3://data/one/*.tar")) == 3
    assert signed_by(one) == "role-default"
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(tg.Error, match="`aws configure export-credentials --format process`, which failed"):
        tg.open("s3://data/one/*.tar")


class Portal(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers["x-amz-sso_bearer_token"]))
        later = int((time.time() + 3600) * 1000)
        keys = {"accessKeyId": "granted", "secretAccessKey": "s", "sessionToken": "t", "expiration": later}
        text = json.dumps({"roleCredentials": keys}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("session", [False, True])
def test_a_single_sign_on(one, home, monkeypatch, session):
    here = "sso_start_url = https://us.awsapps.com/start\nsso_region = us-east-1\n"
    role = "sso_account_id = 12\nsso_role_name = Reader\nregion = us-east-1\n"
    text = f"[profile p]\nsso_session = s\n{role}[sso-session s]\n{here}" if session else f"[profile p]\n{role}{here}"
    folder = home(text)
    monkeypatch.setenv("AWS_PROFILE", "p")
    portal = HTTPServer(("127.0.0.1", 0), Portal)
    portal.asked = []
    Thread(target=portal.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_SSO", f"http://127.0.0.1:{portal.server_port}")

    def login(name, url, token, hours):
        until = (datetime.now(timezone.utc) + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")
        (folder / "sso/cache").mkdir(parents=True, exist_ok=True)
        kept = {"startUrl": url, "region": "us-east-1", "accessToken": token, "expiresAt": until}
        (folder / f"sso/cache/{name}.json").write_text(json.dumps(kept))

    login("a", "https://other.awsapps.com/start", "wrong", 1)
    login("b", "https://us.awsapps.com/start", "over", -1)
    with pytest.raises(tg.Error, match="run `aws sso login --profile p`"):
        tg.open("s3://data/one/*.tar")
    login("c", "https://us.awsapps.com/start", "right", 1)
    assert len(tg.open("s3://data/one/*.tar")) == 3
    assert portal.asked == [("/federation/credentials?account_id=12&role_name=Reader", "right")]
    assert signed_by(one) == "granted"
    portal.shutdown()
    portal.server_close()


def test_without_credentials_a_public_bucket_is_read_and_another_refused(one, home):
    home()
    assert len(tg.open("s3://data/one/*.tar")) == 3
    assert signed_by(one) is None
    one.rate, one.faults = 1.0, ["403"]
    with pytest.raises(tg.Error, match="none were sent.*AWS_ACCESS_KEY_ID.*AWS_PROFILE"):
        tg.open("s3://data/one/*.tar")


def test_a_machine_that_gives_no_credentials_is_found_out_in_seconds(one, home, monkeypatch):
    home()
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    # Addresses of documentation: nobody answers.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://192.0.2.1")
    monkeypatch.setenv("GCE_METADATA_HOST", "192.0.2.1")
    monkeypatch.setenv("GOOGLE_BASE_URL", one.url)
    began = time.monotonic()
    assert len(tg.open("s3://data/one/*.tar")) == 3
    with pytest.raises(tg.Error):
        tg.open("gs://none/one/shard.tar")
    assert time.monotonic() - began < 20


def test_a_server_that_refuses_is_given_up_in_seconds_before_it_ever_answered(home, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    began = time.monotonic()
    with pytest.raises(tg.Error, match="refused.*given up.*in 10 s"):
        tg.open("http://127.0.0.1:9/a.tar")
    assert time.monotonic() - began < 30
