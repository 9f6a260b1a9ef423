"""The cost of a profile: the same loader with and without it. `make bench-profile`.

Flow: tar shards of images, text, labels and embeddings -> plain epochs, profiled epochs and
`tg.profile` in turn, each in a process and a memory control group of its own -> samples a second
as ratios within the round, the peak of the group above that of a process that only opens the
data; then profiles by 1, 2 and 4 workers, compared bit for bit.
Memory: a budget of 128 MiB.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from memory import in_group

MEMORY = "128MiB"
WORDS = 50_000


def make(folder, samples):
    """Write shards of jpg, txt, cls and npy."""
    import numpy as np

    if folder.exists():
        return
    images = folder.with_name(folder.name + "-images")
    cli = [str(Path(sys.executable).with_name("tidegate"))]
    subprocess.run(
        [*cli, "synth", str(images), "--samples", str(samples), "--form", "tar"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, n)) for n in rng.integers(2, 11, WORDS)]
    part = folder.with_name(folder.name + "-part")
    part.mkdir()
    for shard in sorted(images.glob("*.tar")):
        with tarfile.open(shard) as source, tarfile.open(part / shard.name, "w") as out:
            for member in source:
                add(out, member.name, source.extractfile(member).read())
                if member.name.endswith(".jpg"):
                    length = int(rng.lognormal(5.5, 0.8)) + 1
                    text = " ".join(words[int(w) % WORDS] for w in rng.zipf(1.3, length) - 1)
                    add(out, member.name[:-3] + "txt", text.encode())
                    npy = io.BytesIO()
                    np.save(npy, rng.standard_normal(512, np.float32))
                    add(out, member.name[:-3] + "npy", npy.getvalue())
        shard.unlink()
    part.rename(folder)


def add(out, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    out.addfile(info, io.BytesIO(data))


def crops():
    import tidegate as tg

    return {"batch_size": 64, "shuffle": True, "fields": {"jpg": tg.Image(224, crop="random", flip=True)}}


def child(how, data, workers):
    import tidegate as tg

    source = tg.open(f"{data}/*.tar")
    if how == "opened":
        return
    began = time.perf_counter()
    if how == "profile":
        found = tg.profile(source, memory=MEMORY, workers=workers, save=False)
        rows = found.summary["samples"]
    else:
        options = crops() if how.startswith("crops") else {"batch_size": 16, "fields": {}}
        options["fields"]["npy"] = tg.Array("float32", (512,))
        loader = tg.Loader(source, memory=MEMORY, workers=workers, profile=how.endswith("profiled"), **options)
        rows = sum(batch.rows for batch in loader)
        found = loader.profile() if how.endswith("profiled") else None
    seconds = time.perf_counter() - began
    figures = {"rows": rows, "seconds": seconds, "bytes": source.stats["total_bytes"]}
    if found is not None:
        figures["bits"] = bits(json.loads(found.__reduce__()[1][0]))
    print(json.dumps(figures))


def bits(document):
    """Hash everything except the sketches whose library draws random numbers."""
    import hashlib

    def without(value):
        if isinstance(value, dict):
            drawn = ("kll", "req", "summary")
            return {key: without(inner) for key, inner in value.items() if key not in drawn}
        return [without(inner) for inner in value] if isinstance(value, list) else value

    return hashlib.sha256(json.dumps(without(document), sort_keys=True).encode()).hexdigest()[:16]


def run(how, data, workers=None):
    """Return the figures of a child and the peak of its group in MiB, if groups can be made."""
    command = [sys.executable, __file__, "--child", how, "--data", str(data)]
    command += [] if workers is None else ["--workers", str(workers)]
    done, peak = in_group(f"profile-{how.replace(' ', '-')}", command)
    if done.returncode:
        sys.exit(done.stderr)
    figures = json.loads(done.stdout) if done.stdout.strip() else {}
    figures["peak_MiB"] = peak
    return figures


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--data", type=Path, default=Path("target/bench-profile"))
    arguments.add_argument("--samples", type=int, default=22_500)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--child")
    arguments.add_argument("--workers", type=int)
    arguments.add_argument("--out", type=Path)
    arguments = arguments.parse_args()
    if arguments.child:
        child(arguments.child, arguments.data, arguments.workers)
        return
    make(arguments.data, arguments.samples)
    run("opened", arguments.data)
    baseline = run("opened", arguments.data)["peak_MiB"]
    ways = ["plain", "plain profiled", "profile", "crops", "crops profiled"]
    rounds = [{way: run(way, arguments.data) for way in ways} for _ in range(arguments.rounds)]
    rate = lambda of: of["rows"] / of["seconds"]  # noqa: E731

    def ratio(way, to):
        return statistics.median(rate(r[way]) / rate(r[to]) for r in rounds)

    peaks = [r["profile"]["peak_MiB"] for r in rounds]
    workers = {n: run("profile", arguments.data, n)["bits"] for n in (1, 2, 4)}
    found = {
        "GiB": round(rounds[0]["plain"]["bytes"] / 2**30, 2),
        "samples": rounds[0]["plain"]["rows"],
        "plain_samples_per_s": round(statistics.median(rate(r["plain"]) for r in rounds)),
        "profile_of_plain": round(ratio("profile", "plain"), 3),
        "profiled_of_plain": round(ratio("plain profiled", "plain"), 3),
        "crops_samples_per_s": round(statistics.median(rate(r["crops"]) for r in rounds)),
        "profiled_of_crops": round(ratio("crops profiled", "crops"), 3),
        "budget_MiB": 128,
        "peak_over_opened_MiB": None if baseline is None else round(max(peaks) - baseline, 1),
        "same_bits_for_1_2_4_workers": len(set(workers.values())) == 1,
        "rounds": rounds,
        "bits": workers,
    }
    print(json.dumps({key: value for key, value in found.items() if key != "rounds"}, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
