"""Samples a second from a distant store, by the requests that fit a budget. `make bench-latency`.

Flow: one shard of 6,000 samples of 63 KiB on a server in a child process, which waits before each
answer -> shuffled epochs with three budgets for each latency, one line of JSON each.
Memory: the budgets that are named; the server is a process of its own.
"""

import argparse
import asyncio
import io
import json
import multiprocessing
import socket
import tarfile
import tempfile
import time
from pathlib import Path

import tidegate as tg

SAMPLES, SIZE = 6000, 63 << 10
VERSION = 'ETag: "1"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n\r\n'


def shard():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for i in range(SAMPLES):
            info = tarfile.TarInfo(f"{i:06}.bin")
            info.size = SIZE
            archive.addfile(info, io.BytesIO(i.to_bytes(4, "little") * (SIZE // 4)))
    return memoryview(out.getvalue())


def serve(listener, latency):
    data = shard()

    async def answer(reader, writer):
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
                await asyncio.sleep(latency)
                asked = [line.split("=")[1] for line in lines if line.startswith("range:")]
                first, last = (int(at or len(data) - 1) for at in (asked or ["0-"])[0].split("-"))
                status = "206 Partial Content" if asked else "200 OK"
                head = f"HTTP/1.1 {status}\r\nContent-Length: {last + 1 - first}\r\n"
                head += f"Content-Range: bytes {first}-{last}/{len(data)}\r\n" if asked else ""
                writer.write((head + VERSION).encode())
                if not lines[0].startswith("head"):
                    writer.write(data[first : last + 1])
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def forever():
        async with await asyncio.start_server(answer, sock=listener, limit=1 << 20) as server:
            await server.serve_forever()

    asyncio.run(forever())


def epoch(source, memory):
    fields = {"bin": tg.Bytes()}
    loader = tg.Loader(source, batch_size=64, memory=tg.Budget(memory), fields=fields, workers=2, shuffle=True)
    began = time.perf_counter()
    samples = sum(batch.rows for batch in loader)
    seconds = time.perf_counter() - began
    assert samples == SAMPLES
    stages = loader.report()["stages"]
    line = {"memory": memory, "samples_per_s": round(samples / seconds), "at_once": stages["readers"]}
    return line | {"latency_ms": round(stages["latency_us"] / 1000, 1)}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--latency", nargs="*", type=float, default=[0.1, 0.02, 0.002])
    arguments.add_argument("--memory", nargs="*", default=["144MiB", "288MiB", "1GiB"])
    arguments.add_argument("--out", type=Path)
    arguments = arguments.parse_args()
    lines = []
    for latency in arguments.latency:
        with socket.create_server(("127.0.0.1", 0)) as listener, tempfile.TemporaryDirectory() as folder:
            # Without it a body waits for the acknowledgement of its header.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server = multiprocessing.Process(target=serve, args=(listener, latency), daemon=True)
            server.start()
            source = tg.open(f"http://127.0.0.1:{listener.getsockname()[1]}/{Path(folder).name}.tar")
            for memory in arguments.memory:
                lines.append(json.dumps(epoch(source, memory)))
                print(lines[-1], flush=True)
            server.terminate()
            server.join()
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
