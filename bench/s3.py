"""An epoch from an S3 server, next to a plain downloader and the peers. `make bench-s3`.

Also an epoch that fills a disk cache, and an epoch of another process that reads from it.

Flow: 1,000 shards of 1 MiB on moto's server, behind a proxy with 20 ms of latency and 1 % of
faults -> bytes a second, peak memory and requests of each loader, in processes of their own, one
after the other in several rounds.
Memory: that of the children, read from /proc; the server is another process.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
SAMPLES, SIZE = 16, 63 << 10
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


def content(i):
    return hashlib.sha256(str(i).encode()).digest() * (SIZE // 32)


def shard(number):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for i in range(number * SAMPLES, (number + 1) * SAMPLES):
            info = tarfile.TarInfo(f"{i:06}.bin")
            info.size = len(content(i))
            archive.addfile(info, io.BytesIO(content(i)))
    return out.getvalue()


def client(url):
    import boto3
    from botocore.config import Config

    retries = Config(retries={"max_attempts": 10}, max_pool_connections=64)
    return boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=retries)


def wait_for(port):
    for _ in range(300):
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"nothing listens on port {port}")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# The work of each child, which prints one line of JSON: samples, bytes, seconds.


def downloader(args):
    """Get every object by one request, `concurrency` in flight."""
    keys = [f"train/{i:05}.tar" for i in range(args.shards)]
    local = threading.local()

    def get(key):
        if not hasattr(local, "client"):
            local.client = client(args.url)
        for attempt in range(10):
            try:
                return len(local.client.get_object(Bucket="data", Key=key)["Body"].read())
            except Exception:
                time.sleep(0.05 * 2**attempt)
        raise SystemExit(f"{key} could not be read")

    with ThreadPoolExecutor(args.concurrency) as pool:
        list(pool.map(get, keys[: args.concurrency]))
        began = time.perf_counter()
        total = sum(pool.map(get, keys))
    return args.shards * SAMPLES, total, time.perf_counter() - began


def tidegate(args, disk=None):
    import tidegate as tg

    source = tg.open("s3://data/train")
    options = {"batch_size": 64, "memory": tg.Budget(args.memory), "workers": 2, "disk": disk}
    loader = tg.Loader(source, fields={"bin": tg.Bytes()}, **options)
    began = time.perf_counter()
    samples = total = 0
    for batch in loader:
        samples += batch.rows
        total += int(batch["bin"].offsets[-1])
    return samples, total, time.perf_counter() - began


def to_disk(args):
    """An epoch that fills the disk cache; as `from_disk`, the next one in another process."""
    import tidegate as tg

    return tidegate(args, tg.DiskCache(Path(os.environ["XDG_CACHE_HOME"]) / "disk", "4GiB"))


from_disk = to_disk


def mosaicml(args):
    os.environ["S3_ENDPOINT_URL"] = args.url
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    with tempfile.TemporaryDirectory() as folder:
        data = StreamingDataset(
            remote="s3://data/mds", local=folder, shuffle=False, batch_size=64, download_timeout=300
        )
        loader = DataLoader(data, batch_size=64, num_workers=2, collate_fn=list)
        return counted(loader)


def webdataset(args):
    import webdataset as wds
    from torch.utils.data import DataLoader

    # One curl for each shard, as its users write it; a shard that is cut off is lost in part.
    names = f"{args.url}/data/train/{{00000..{args.shards - 1:05}}}.tar"
    urls = f"pipe:curl -s --fail --retry 9 --retry-delay 1 --retry-all-errors {names}"
    data = wds.WebDataset(urls, shardshuffle=False, empty_check=False, handler=wds.warn_and_continue).batched(
        64, collation_fn=None
    )
    return counted(DataLoader(data, batch_size=None, num_workers=2))


def counted(loader):
    began = time.perf_counter()
    samples = total = 0
    for batch in loader:
        samples += len(batch)
        total += sum(len(row["bin"]) for row in batch)
    return samples, total, time.perf_counter() - began


CHILDREN = {f.__name__: f for f in (downloader, tidegate, mosaicml, webdataset)}
CHILDREN |= {"to_disk": to_disk, "from_disk": from_disk}
OWN = ["downloader", "tidegate", "to_disk", "from_disk"]


def tree(pid):
    found = [pid]
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [p for c in child.read_text().split() for p in tree(int(c))]
        except OSError:
            continue
    return found


def pss(pid):
    """The proportional set size of a process and its descendants, in bytes."""
    total = 0
    for process in tree(pid):
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))
        except OSError:
            continue
    return total


def measure(name, python, args, url):
    command = [python, __file__, "--child", name, "--url", url, "--shards", str(args.shards), "--memory", args.memory]
    command += ["--concurrency", str(args.concurrency)]
    environment = os.environ | ENVIRONMENT | {"AWS_ENDPOINT_URL": url, "XDG_CACHE_HOME": str(args.work / "cache")}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    peak = 0
    while child.poll() is None:
        peak = max(peak, pss(child.pid))
        time.sleep(0.25)
    lines = child.stdout.read().strip().splitlines()
    if child.returncode or not lines:
        return {"name": name, "failed": child.returncode}
    samples, total, seconds = json.loads(lines[-1])
    return {"name": name, "samples": samples, "bytes": total, "seconds": seconds, "peak_bytes": peak}


def fill(url, args):
    s3 = client(url)
    s3.create_bucket(Bucket="data")

    def put(key, data):
        s3.put_object(Bucket="data", Key=key, Body=data, ACL="public-read")

    for i in range(args.shards):
        put(f"train/{i:05}.tar", shard(i))
    if "mosaicml" in args.peers:
        script = (
            "import sys; sys.path.insert(0, sys.argv[2]); import s3; from streaming import MDSWriter\n"
            "with MDSWriter(out=sys.argv[1], columns={'bin': 'bytes'}, size_limit=1 << 20) as w:\n"
            "    [w.write({'bin': s3.content(i)}) for i in range(int(sys.argv[3]) * s3.SAMPLES)]"
        )
        folder = args.work / "mds"
        subprocess.run([args.peers_python, "-c", script, folder, HERE, str(args.shards)], check=True)
        for path in sorted(folder.iterdir()):
            put(f"mds/{path.name}", path.read_bytes())
        shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", default="128MiB")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--faults", type=float, default=0.01)
    parser.add_argument("--peers", default="", help="such as mosaicml,webdataset")
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child")
    parser.add_argument("--url")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child](args)))
        return
    import faulty

    args.peers = [peer for peer in args.peers.split(",") if peer]
    port = free_port()
    program = Path(sys.executable).with_name("moto_server")
    server = subprocess.Popen([program, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ.update(ENVIRONMENT)
    args.work = Path(tempfile.mkdtemp())
    try:
        wait_for(port)
        fill(f"http://127.0.0.1:{port}", args)
        proxy = faulty.Proxy(("127.0.0.1", port), args.latency, args.faults)
        runs = []
        for round in range(args.rounds):
            shutil.rmtree(args.work / "cache" / "disk", ignore_errors=True)
            for name in [*OWN, *args.peers]:
                python = args.peers_python if name in args.peers else sys.executable
                proxy.counts.clear()
                run = measure(name, python, args, proxy.url) | {"round": round, "requests": proxy.counts["object"]}
                runs.append(run)
                print(json.dumps(run), flush=True)
        names = [*OWN, *args.peers]
        good = {n: [r for r in runs if r["name"] == n and "seconds" in r] for n in names}
        rate = {n: statistics.median(r["bytes"] / r["seconds"] for r in rs) for n, rs in good.items() if rs}
        for name, value in rate.items():
            peak = statistics.median(r["peak_bytes"] for r in good[name])
            share = value / rate["downloader"]
            asked = statistics.median(r["requests"] for r in good[name])
            print(
                f"{name:<12} {value / 2**20:8.1f} MiB/s {100 * share:6.1f} % of the downloader "
                f"{peak / 2**20:8.0f} MiB, {asked:.0f} requests of objects"
            )
        if args.out:
            asked = ["shards", "rounds", "memory", "concurrency", "latency", "faults", "peers"]
            result = {"arguments": {name: getattr(args, name) for name in asked}, "runs": runs}
            args.out.write_text(json.dumps(result, indent=1))
    finally:
        server.kill()
        shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
