"""A slow and faulty proxy in front of an HTTP server, for tests and benchmarks.

Flow: a request -> a pause -> the server's answer; at a given rate an error instead, a body that is
cut off, or another range than the request's. Faults follow from a seed and the number of the
request, and are counted by name.
Memory: one response body for each connection.
"""

import collections
import http.client
import random
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ["500", "503", "429", "drop", "cut", "short", "range"]


class Proxy(ThreadingHTTPServer):
    """Forwards to (host, port) after `latency` seconds, with faults in a share `rate` of GETs."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, target, latency=0.0, rate=0.0, faults=tuple(FAULTS), seed=0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.latency, self.rate, self.faults = target, latency, rate, list(faults)
        self.random, self.lock = random.Random(seed), threading.Lock()
        self.counts = collections.Counter()
        self.authorizations = []
        self.connections = threading.local()
        self.heal_after = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def fault(self, method, path, authorization=None):
        with self.lock:
            self.counts[method] += 1
            self.authorizations.append(authorization)
            self.counts["object"] += method == "GET" and "list-type" not in path
            if self.heal_after is not None and self.counts["GET"] > self.heal_after:
                self.rate = 0.0
            if method != "GET" or self.random.random() >= self.rate:
                return None
            fault = self.random.choice(self.faults)
            self.counts[fault] += 1
            return fault

    def handle_error(self, request, client_address):
        """Print nothing: clients may close connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_):
        pass

    def _upstream(self, body):
        local = self.server.connections
        for _ in range(2):
            connection = getattr(local, "connection", None) or http.client.HTTPConnection(*self.server.target)
            local.connection = connection
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                return answer, answer.read()
            except (http.client.HTTPException, OSError):
                connection.close()
                local.connection = None
        raise OSError("the server is gone")

    def _forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        if self.server.latency:
            time.sleep(self.server.latency)
        fault = self.server.fault(self.command, self.path, self.headers.get("Authorization"))
        if fault == "drop":
            self.close_connection = True
            return
        if fault == "301":
            text = b"<Error><Code>PermanentRedirect</Code><Message>use the other endpoint</Message></Error>"
            self._send(301, {"Content-Type": "application/xml"}, text)
            return
        if fault in ("500", "503", "429", "403"):
            self._send(int(fault), {"Content-Type": "text/plain"}, b"not now")
            return
        answer, data = self._upstream(body)
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding", "date")}
        if fault == "range" and "Content-Range" in headers:
            first, rest = headers["Content-Range"].removeprefix("bytes ").split("-", 1)
            headers["Content-Range"] = f"bytes {int(first) + 1}-{rest}"
        if fault == "short" and answer.status == 206:
            data = data[: len(data) // 2]
            headers["Content-Length"] = str(len(data))
        self._send(answer.status, headers, data, cut=fault == "cut")

    def _send(self, status, headers, data, cut=False):
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward
