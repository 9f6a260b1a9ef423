"""Finds duplicates planted in 10^5 documents, next to two peers. `make bench-dedup`.

Flow: documents of 50 to 900 words, some of them copies with a few words changed -> MDS ->
`tg.dedup(by="text")` in a memory control group, with spill; datatrove's MinHash and rensa's LSH in
a process each -> recall and false positives against the true Jaccard similarity of the 5-word
shingles, memory, time.
Memory: a budget of 256 MiB, and one that forces it to spill.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from memory import MIB, in_group

DOCUMENTS = 100_000
PLANTED = 4000
WORDS = 30_000


def similarity(one, other):
    """Return the Jaccard similarity of the 5-word shingles of two texts."""
    both = [{tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (one.split(), other.split())]
    return len(both[0] & both[1]) / len(both[0] | both[1])


def make(folder):
    """Write the documents as MDS, and the planted pairs with their similarity."""
    import numpy as np

    if folder.exists():
        return
    rng = np.random.default_rng(0)
    words = np.array(["".join(chr(97 + c) for c in rng.integers(0, 26, n)) for n in rng.integers(2, 11, WORDS)])
    draw = lambda n: words[np.minimum(rng.zipf(1.2, n) - 1, WORDS - 1)]  # noqa: E731
    texts = [draw(int(rng.integers(50, 900))) for _ in range(DOCUMENTS - PLANTED)]
    planted = []
    for _ in range(PLANTED):
        of = int(rng.integers(0, DOCUMENTS - PLANTED))
        copy = texts[of].copy()
        # A changed word changes five shingles.
        target = rng.uniform(0.55, 0.98)
        changed = rng.random(len(copy)) < 1 - (2 * target / (1 + target)) ** 0.2
        copy[changed] = draw(int(changed.sum()))
        planted.append((len(texts), of, similarity(" ".join(texts[of]), " ".join(copy))))
        texts.append(copy)
    order = rng.permutation(len(texts))
    place = np.argsort(order)
    part = folder.with_name(folder.name + "-part")
    shutil.rmtree(part, ignore_errors=True)
    write(part, [" ".join(texts[i]) for i in order])
    truth = [(int(place[a]), int(place[b]), s) for a, b, s in planted]
    (part / "planted.json").write_text(json.dumps(truth))
    part.rename(folder)


def write(folder, texts, shard=10_000):
    """Write texts as MDS version 2: a shard has its count, the offsets and the samples."""
    import struct

    folder.mkdir(parents=True)
    shards = []
    for s, at in enumerate(range(0, len(texts), shard)):
        samples = [text.encode() for text in texts[at : at + shard]]
        column = {"column_encodings": ["str"], "column_names": ["text"], "column_sizes": [None]}
        form = {"compression": None, "format": "mds", "hashes": [], "samples": len(samples), "size_limit": None}
        config = json.dumps(column | form, sort_keys=True).encode()
        rows = [struct.pack("<I", len(sample)) + sample for sample in samples]
        begin = 4 + 4 * (len(rows) + 1) + len(config)
        ends = [begin]
        for row in rows:
            ends.append(ends[-1] + len(row))
        name = f"shard.{s:05}.mds"
        head = struct.pack(f"<{len(rows) + 2}I", len(rows), *ends)
        (folder / name).write_bytes(head + config + b"".join(rows))
        raw = {"basename": name, "bytes": ends[-1], "hashes": {}}
        shards.append(column | form | {"raw_data": raw, "version": 2, "zip_data": None})
    (folder / "index.json").write_text(json.dumps({"shards": shards, "version": 2}))


def texts_of(data):
    import tidegate as tg

    return [sample["text"] for sample in tg.open(data)]


def ours(data, memory):
    import tidegate as tg

    source = tg.open(data)
    if memory == "opened":
        return {}
    began = time.perf_counter()
    found = tg.dedup(source, by="text", memory=memory, spill=data.parent)
    seconds = time.perf_counter() - began
    clusters = dict(zip(found.index.tolist(), found.of.tolist(), strict=True))
    return {"seconds": seconds, "clusters": clusters, "spilled_MiB": round(found["spilled_bytes"] / MIB, 1)}


def rensa(data):
    """rensa, as its documentation shows: R-MinHash, LSH of 14 bands of 8, first one kept."""
    from rensa import RMinHash, RMinHashLSH

    texts = texts_of(data)
    began = time.perf_counter()
    lsh = RMinHashLSH(threshold=0.8, num_perm=112, num_bands=14)
    clusters = {}
    for i, text in enumerate(texts):
        words = re.findall(r"\w+", text.lower())
        hashed = RMinHash(num_perm=112, seed=42)
        hashed.update([" ".join(words[j : j + 5]) for j in range(max(len(words) - 4, 1))])
        near = lsh.query(hashed)
        if near:
            clusters[i] = clusters.get(min(near), min(near))
        lsh.insert(i, hashed)
    return {"seconds": time.perf_counter() - began, "clusters": clusters}


def datatrove(data):
    """datatrove's four steps in one process; its defaults: 14 bands of 8, 5-grams of words."""
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    texts = texts_of(data)
    with tempfile.TemporaryDirectory(dir=data.parent) as folder:
        config = MinhashConfig()
        documents = [Document(text=text, id=str(i)) for i, text in enumerate(texts)]
        steps = [
            ([MinhashDedupSignature(output_folder=f"{folder}/sig", config=config)], 1),
            ([MinhashDedupBuckets(f"{folder}/sig", f"{folder}/buckets", config=config)], config.num_buckets),
            ([MinhashDedupCluster(f"{folder}/buckets", f"{folder}/ids", config=config, save_cluster_id=True)], 1),
        ]
        began = time.perf_counter()
        for i, (step, tasks) in enumerate(steps):
            if i == 0:
                list(step[0].run(documents, 0, 1) or [])
                continue
            LocalPipelineExecutor(step, tasks=tasks, logging_dir=f"{folder}/logs{i}").run()
        seconds = time.perf_counter() - began
        clusters = members(Path(folder) / "ids")
    return {"seconds": seconds, "clusters": clusters}


def members(folder):
    """Return the clusters that datatrove wrote, as document -> first document."""
    import struct

    groups = {}
    for path in sorted(folder.rglob("*.clusters")):
        for document, cluster in struct.iter_unpack("<II", path.read_bytes()):
            groups.setdefault(cluster, []).append(document)
    return {d: min(documents) for documents in groups.values() for d in documents if d != min(documents)}


def run(how, data, budget=None):
    """Return the figures of a child, with the peak of its group."""
    command = [sys.executable, __file__, "--child", how, "--data", str(data), "--memory", str(budget)]
    done, peak = in_group("dedup", command)
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1:]
        figures = {"error": words[0] if words else f"exit {done.returncode}"}
    else:
        figures = json.loads(done.stdout.splitlines()[-1])
    figures["peak_MiB"] = peak
    return figures


def scored(figures, planted, texts):
    """Return recall by similarity, and the share of found pairs below a similarity."""
    if "clusters" not in figures:
        return figures
    clusters = {int(a): b for a, b in figures.pop("clusters").items()}
    first = lambda i: clusters.get(i, i)  # noqa: E731
    recall = {}
    for low, high in ((0.6, 0.7), (0.7, 0.75), (0.75, 0.8), (0.8, 0.85), (0.85, 0.9), (0.9, 1.01)):
        those = [(a, b) for a, b, s in planted if low <= s < high]
        hit = sum(first(a) == first(b) for a, b in those)
        recall[f"{low}-{min(high, 1.0)}"] = [round(hit / max(len(those), 1), 3), len(those)]
    above = [(a, b) for a, b, s in planted if s >= 0.8]
    figures["recall_at_0.8_and_more"] = round(sum(first(a) == first(b) for a, b in above) / len(above), 4)
    figures["recall"] = recall
    alike = [similarity(texts[a], texts[b]) for a, b in clusters.items()]
    figures["found"] = len(alike)
    figures["false_below_0.8"] = round(sum(s < 0.8 for s in alike) / max(len(alike), 1), 3)
    figures["false_below_0.7"] = round(sum(s < 0.7 for s in alike) / max(len(alike), 1), 3)
    figures["false_below_0.5"] = sum(s < 0.5 for s in alike)
    return figures


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--data", type=Path, default=Path("target/bench-dedup"))
    arguments.add_argument("--child")
    arguments.add_argument("--memory")
    arguments.add_argument("--out", type=Path)
    arguments = arguments.parse_args()
    if arguments.child:
        found = {"ours": lambda d: ours(d, arguments.memory), "rensa": rensa, "datatrove": datatrove}
        print(json.dumps(found[arguments.child](arguments.data)))
        return
    make(arguments.data)
    planted = json.loads((arguments.data / "planted.json").read_text())
    texts = texts_of(arguments.data)
    run("ours", arguments.data, "opened")
    found = {
        "documents": len(texts),
        "planted": len(planted),
        "MiB": round(sum(map(len, texts)) / MIB),
        "opened": run("ours", arguments.data, "opened"),
        "tidegate, 256MiB": scored(run("ours", arguments.data, "256MiB"), planted, texts),
        "tidegate, 48MiB": scored(run("ours", arguments.data, "48MiB"), planted, texts),
        "rensa": scored(run("rensa", arguments.data), planted, texts),
        "datatrove": scored(run("datatrove", arguments.data), planted, texts),
    }
    print(json.dumps(found, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
