"""Google Cloud Storage and Azure Blob Storage, by small servers that speak their protocols.

The servers answer listings, HEAD and ranges as the services' references say, check who asks, and
break off answers now and then.
"""

import base64
import hashlib
import hmac
import json
import re
import threading
import urllib.parse
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

import pytest
from test_remote import content, tar

import tidegate as tg

# The account and key that Azure's emulators have, as its reference prints them.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Cloud(ThreadingHTTPServer):
    """Objects of one bucket or container."""

    daemon_threads = True

    def __init__(self, handler, objects):
        super().__init__(("127.0.0.1", 0), handler)
        self.objects, self.asked, self.wrong = objects, [], []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root = "/bucket"
    prefix_of_list = "prefix"

    def log_message(self, *_):
        """Print nothing."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, _, query = self.path.partition("?")
        self.server.asked.append(self.command)
        if not self.allowed(path, query):
            self.server.wrong.append((self.path, dict(self.headers)))
            self.answer(403, b"")
        elif path.rstrip("/") == self.root:
            prefix = urllib.parse.parse_qs(query).get("prefix", [""])[0]
            found = {key: data for key, data in self.server.objects.items() if key.startswith(prefix)}
            self.answer(200, self.listing(found).encode())
        else:
            self.object(urllib.parse.unquote(path.removeprefix(self.root + "/")))

    def object(self, key):
        data = self.server.objects.get(key)
        if data is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or self.headers.get("x-ms-range") or "")
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Last-Modified": formatdate(0, usegmt=True)}
        if not asked or self.command == "HEAD":
            self.answer(200, data, **headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        # Every seventh answer breaks off.
        self.answer(206, data[first : last + 1], broken=len(self.server.asked) % 7 == 0, **headers)

    def answer(self, code, data, broken=False, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[: len(data) // 2] if broken else data)
        self.close_connection = broken


class Google(Handler):
    """The XML API of Google Cloud Storage."""

    def allowed(self, path, query):
        return path.startswith(self.root) and self.headers.get("Authorization") is None

    def listing(self, found):
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"{hashlib.md5(data).hexdigest()}"</ETag><Size>{len(data)}</Size></Contents>'
            for key, data in sorted(found.items())
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"


class Azure(Handler):
    """Blob Storage with a shared key, whose signature is checked."""

    root = f"/{ACCOUNT}/bucket"

    def allowed(self, path, query):
        names = ("Content-Encoding", "Content-Language", "Content-Length", "Content-MD5", "Content-Type", "Date")
        # A length of zero is left out since version 2015-02-21.
        given = {name.lower(): value for name, value in self.headers.items()}
        given["content-length"] = given.get("content-length", "").removeprefix("0")
        lines = [self.command, *(given.get(name.lower(), "") for name in names)]
        lines += [self.headers.get(name, "") for name in ("If-Modified-Since", "If-Match", "If-None-Match")]
        lines += [self.headers.get(name, "") for name in ("If-Unmodified-Since", "Range")]
        lines += sorted(f"{n.lower()}:{v.strip()}" for n, v in self.headers.items() if n.lower().startswith("x-ms-"))
        asked = urllib.parse.parse_qs(query)
        lines += [f"/{ACCOUNT}{path}", *sorted(f"{name}:{','.join(values)}" for name, values in asked.items())]
        signed = hmac.new(base64.b64decode(KEY), "\n".join(lines).encode(), "sha256").digest()
        return self.headers.get("Authorization") == f"SharedKey {ACCOUNT}:{base64.b64encode(signed).decode()}"

    def listing(self, found):
        blobs = "".join(
            f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{formatdate(0, usegmt=True)}</Last-Modified>"
            f'<Etag>"{hashlib.md5(data).hexdigest()}"</Etag><Content-Length>{len(data)}</Content-Length>'
            "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
            for key, data in sorted(found.items())
        )
        return f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker /></EnumerationResults>"


@pytest.fixture(params=["gs", "az"])
def cloud(request, monkeypatch, tmp_path):
    """(the scheme, a server, with the environment that leads to it)."""
    objects = {f"train/shard {n}.tar": tar(range(10 * n, 10 * n + 10)) for n in range(4)}
    server = Cloud({"gs": Google, "az": Azure}[request.param], objects)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "gs":
        account = {
            "gcs_base_url": server.url,
            "disable_oauth": True,
            "client_email": "",
            "private_key": "",
            "private_key_id": "",
        }
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
        monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    else:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
        monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
        monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", server.url)
    yield request.param, server
    server.shutdown()
    server.server_close()


def test_a_shuffled_epoch_comes_whole_in_spite_of_answers_that_break_off(cloud):
    scheme, server = cloud
    source = tg.open(f"{scheme}://bucket/train/*.tar")
    assert len(source) == 40
    for _ in range(2):
        seen = {}
        for batch in tg.Loader(source, batch_size=8, memory=tg.Budget("32MiB"), shuffle=True, seed=1):
            seen |= {int(i): bytes(value) for i, value in zip(batch.ids, batch["bin"], strict=True)}
        assert seen == {i: content(i) for i in range(40)}
    assert not server.wrong


def test_what_is_missing_or_forbidden_is_said(cloud, monkeypatch):
    scheme, server = cloud
    with pytest.raises(tg.DataError, match="none.tar: there is no"):
        tg.open(f"{scheme}://bucket/train/none.tar")
    with pytest.raises(tg.DataError, match="bucket/none"):
        tg.open(f"{scheme}://bucket/none/*.tar")
    monkeypatch.setattr(server.RequestHandlerClass, "allowed", lambda *_: False)
    with pytest.raises(tg.DataError, match="permission denied"):
        tg.open(f"{scheme}://bucket/train/*.tar")
