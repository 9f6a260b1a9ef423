"""A web server with wrong answers, half ones and none, and what reading from it gives.

Flow: for each mode a child reads an archive from a server on the loopback, in a memory control
group; the server answers some questions well, and then as the mode says: once while the archive is
indexed, once while it is trained on. The child must end in time, with right rows or with an error
of Tidegate, without a wrong row, and with no more memory than its budget and 64 MiB.
Memory: the server has one archive of 4 MB.

    python hostile.py
"""

import argparse
import concurrent.futures
import hashlib
import http.server
import io
import json
import os
import sys
import tempfile
import threading
import time

import kinds
import runs

MIB = 1 << 20
SAMPLES = 200
# What the loader may take to give up: its stall_seconds and the retries of a store.
LIMIT_S = 150
# {mode: what is wrong with the answers}.
MODES = {
    "good": "nothing",
    "huge index": "index.json is said to have 32 TiB",
    "huge archive": "the archive is said to have 32 TiB",
    "huge lines": "a file of lines is said to have 32 TiB",
    "whole": "a range is answered with the whole file",
    "more": "50 MB more than was asked for",
    "other range": "a range 512 bytes further on, and it says so",
    "no range": "no header says which range it is",
    "other total": "the file is said to be twice as long",
    "negative": "a length below zero",
    "two lengths": "two headers of length that differ",
    "longer": "1,000 bytes fewer than were announced",
    "shorter": "half of the bytes, and a length of half",
    "cut": "the connection ends after a third",
    "404": "not found",
    "416": "the range cannot be satisfied",
    "500": "an error of the server",
    "redirect": "a redirection to itself",
    "away": "a redirection to a file of this machine",
    "other version": "another version tag each time",
    "garbage": "bytes that are no HTTP",
    "endless head": "a header without an end",
    "chunked": "chunks whose lengths are no numbers",
    "hang": "no answer",
    "hang at first": "no answer to the first question",
    "trickle": "a byte a second",
}


def content(i):
    return hashlib.sha256(str(i).encode()).digest() * 640


def archive():
    out = io.BytesIO()
    kinds.archive("x", [(f"{i:05}.bin", content(i)) for i in range(SAMPLES)], fileobj=out)
    return out.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Answers as its `mode` says."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.archive, self.mode, self.asked, self.good_answers = archive(), "good", 0, 0
        self.ended = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """Print nothing: the client may close connections."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Print nothing."""

    def head(self, code, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def do_HEAD(self):
        mode, size = self.server.mode, len(self.server.archive)
        if "index.json" in self.path and mode == "huge index":
            self.head(200, Content_Length=1 << 45)
            return
        if not self.path.endswith((".tar", ".jsonl")):
            self.head(404, Content_Length=0)
            return
        if mode == "hang at first":
            self.server.ended.wait(3600)
        self.server.asked += 1
        tag = self.server.asked if mode == "other version" else "a"
        huge = mode in ("huge archive", "huge lines")
        self.head(200, Content_Length=1 << 45 if huge else size, Accept_Ranges="bytes", ETag=f'"{tag}"')

    def do_GET(self):
        server, mode = self.server, self.server.mode
        if not self.path.endswith((".tar", ".jsonl")):
            self.head(404, Content_Length=0)
            return
        server.asked += 1
        first, last = 0, len(server.archive) - 1
        if "Range" in self.headers:
            first, last = (int(number or last) for number in self.headers["Range"].split("=")[1].split("-"))
        if server.asked > server.good_answers or mode.startswith("huge"):
            getattr(self, "mode_" + mode.replace(" ", "_"), self.good)(first, last)
        else:
            self.good(first, last)

    def part(self, first, last):
        data = self.server.archive
        # Of a file that is said to be huge the rest are zeros.
        return data[first : last + 1] if first < len(data) else bytes(min(last + 1 - first, MIB))

    def good(self, first, last, **headers):
        part = self.part(first, last)
        total = 1 << 45 if self.server.mode.startswith("huge") else len(self.server.archive)
        tag = self.server.asked if self.server.mode == "other version" else "a"
        about = {
            "Content_Range": f"bytes {first}-{first + len(part) - 1}/{total}", "ETag": f'"{tag}"',
            "Content_Length": len(part), **headers,
        }  # fmt: skip
        self.head(206, **{name: value for name, value in about.items() if value is not None})
        self.wfile.write(part)

    def mode_whole(self, *_):
        self.head(200, Content_Length=len(self.server.archive), ETag='"a"')
        self.wfile.write(self.server.archive)

    def mode_more(self, first, last):
        self.good(first, last, Content_Length=len(self.part(first, last)) + 50 * MIB)
        self.wfile.write(bytes(50 * MIB))

    def mode_other_range(self, first, last):
        part = self.part(first + 512, last + 512).ljust(last + 1 - first, b"x")
        at = f"bytes {first + 512}-{first + 511 + len(part)}/{len(self.server.archive)}"
        self.head(206, Content_Range=at, Content_Length=len(part), ETag='"a"')
        self.wfile.write(part)

    def mode_no_range(self, first, last):
        self.good(first, last, Content_Range=None)

    def mode_other_total(self, first, last):
        self.good(first, last, Content_Range=f"bytes {first}-{last}/{2 * len(self.server.archive)}")

    def mode_negative(self, first, last):
        self.good(first, last, Content_Length=-5)

    def mode_two_lengths(self, first, last):
        self.good(first, last, content_length=7)

    def mode_longer(self, first, last):
        self.good(first, last, Content_Length=len(self.part(first, last)) + 1000)
        self.close_connection = True

    def mode_shorter(self, first, last):
        part = self.part(first, last)
        part = part[: len(part) // 2]
        at = f"bytes {first}-{last}/{len(self.server.archive)}"
        self.head(206, Content_Range=at, Content_Length=len(part), ETag='"a"')
        self.wfile.write(part)

    def mode_cut(self, first, last):
        part = self.part(first, last)
        at = f"bytes {first}-{last}/{len(self.server.archive)}"
        self.head(206, Content_Range=at, Content_Length=len(part), ETag='"a"')
        self.wfile.write(part[: len(part) // 3])
        self.close_connection = True

    def mode_404(self, *_):
        self.head(404, Content_Length=0)

    def mode_416(self, *_):
        self.head(416, Content_Length=0)

    def mode_500(self, *_):
        self.head(500, Content_Length=0)

    def mode_redirect(self, *_):
        self.head(302, Location=self.path, Content_Length=0)

    def mode_away(self, *_):
        self.head(302, Location="file:///etc/passwd", Content_Length=0)

    def mode_garbage(self, *_):
        self.wfile.write(b"\0\xff" * 5000)
        self.close_connection = True

    def mode_endless_head(self, *_):
        self.wfile.write(b"HTTP/1.1 206 OK\r\nX: ")
        for _ in range(200):
            self.wfile.write(b"y" * MIB)

    def mode_chunked(self, *_):
        self.head(206, Transfer_Encoding="chunked")
        self.wfile.write(b"zz\r\nxxxx\r\n")
        self.close_connection = True

    def mode_hang(self, *_):
        self.server.ended.wait(3600)

    def mode_trickle(self, first, last):
        part = self.part(first, last)
        at = f"bytes {first}-{last}/{len(self.server.archive)}"
        self.head(206, Content_Range=at, Content_Length=len(part), ETag='"a"')
        for i in range(len(part)):
            self.wfile.write(part[i : i + 1])
            self.wfile.flush()
            time.sleep(1)


def child(url):
    """Read an epoch; say how many rows came, how many were wrong, and the error."""
    import tidegate as tg

    said = {"rows": 0, "wrong": 0, "error": None}
    try:
        source = tg.open(url)
        if len(source) > SAMPLES:
            said["wrong"] = len(source) - SAMPLES
        else:
            loader = tg.Loader(source, batch_size=8, memory=tg.Budget("24MiB"), stall_seconds=30)
            for batch in loader:
                for i, value in zip(batch.ids, batch["bin"], strict=True):
                    said["wrong"] += bytes(value) != content(int(i))
                said["rows"] += batch.rows
    except tg.Error as error:
        internal = isinstance(error, tg.InternalError) or "please report" in str(error)
        said["error"] = f"{'INTERNAL ' * internal}{type(error).__name__}: {error}"[:300]
    print(json.dumps(said))


def attacked(mode, good_answers, base):
    """Run a child against a mode; return whether it did well, and words."""
    server = Server()
    server.mode, server.good_answers = mode, good_answers
    name = {"huge index": "data", "huge lines": "x.jsonl"}.get(mode, "x.tar")
    began = time.monotonic()
    group = f"hostile-{mode.replace(' ', '-')}-{good_answers}"
    said, peak = reading(f"http://127.0.0.1:{server.server_address[1]}/{name}", group)
    server.ended.set()
    server.shutdown()
    if "failed" in said:
        return False, said["failed"]
    over, took = (peak - base) / MIB, time.monotonic() - began
    words = f"{said['rows']} rows, {said['wrong']} wrong, {took:.0f} s, {over:+.0f} MiB: {said['error']}"
    right = said["rows"] == SAMPLES and said["error"] is None
    told = said["error"] is not None and "INTERNAL" not in said["error"] and mode != "good"
    once = (said["error"] or "").count("/x.tar: at byte") <= 1
    return said["wrong"] == 0 and (right or told) and once and over <= 24 + 64, words


def reading(url, name):
    """Read a URL in a child in a group; return what it said, and the peak in bytes."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONWARNINGS": "ignore"}
        return runs.in_group(name, None, [url], program=__file__, limit_s=LIMIT_S, env=environment)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", metavar="URL")
    parser.add_argument("modes", nargs="*")
    given = parser.parse_args()
    if given.child:
        child(given.child)
        return
    try:
        # A server that is not there: what a child takes anyway.
        base = min(reading("http://127.0.0.1:1/x.tar", "hostile")[1] for _ in range(2))
    except OSError as error:
        print(f"SKIPPED: no memory control group can be made here ({error}); run as root")
        return
    # A HEAD and five ranges make the index.
    cases, failed = [(mode, answers) for mode in given.modes or MODES for answers in (2, 8)], 0
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        outcomes = pool.map(lambda case: attacked(*case, base), cases)
        for (mode, answers), (good, words) in zip(cases, outcomes, strict=True):
            print(
                f"{'ok  ' if good else 'FAIL'} {mode} ({MODES[mode]}) after {answers} good answers: {words}", flush=True
            )
            failed += not good
    print(f"{len(cases)} runs in {len(given.modes or MODES)} modes, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
