"""Compact data, next to Python packages of the same kind. `make bench-compact`.

Flow: sparse products, error bounds, sparse training from files of 20 times the budget, training on
compressed copies -> each with its peer, in interleaved rounds of one run -> medians, one line of
JSON each.
Memory: a few hundred MiB of arrays; training runs in control groups of their own.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from memory import MIB, drop_cache, in_group

import tidegate as tg
from tidegate import compress
from tidegate.sparse import BSR, CSR

ROUNDS = 5


def interleaved(works):
    """Median seconds of each work. They take turns; the first round does not count."""
    seconds = {name: [] for name in works}
    for turn in range(ROUNDS + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in seconds.items()}


def sparse(report):
    """CSR and BSR next to SciPy's: 10^7 entries of float32 with 32-bit indices."""
    from scipy.sparse import bsr_array, csr_array

    rng = np.random.default_rng(0)
    rows, per_row = 100_000, 100
    indices = np.sort(rng.integers(0, rows, (rows, per_row)), axis=1).astype(np.int32).reshape(-1)
    indptr = np.arange(rows + 1, dtype=np.int32) * per_row
    data = rng.normal(size=rows * per_row).astype(np.float32)
    theirs = csr_array((data, indices, indptr), shape=(rows, rows))
    ours = CSR(indptr, indices, data, (rows, rows), sorted=False)
    x, wide = rng.normal(size=rows).astype(np.float32), rng.normal(size=(rows, 16)).astype(np.float32)
    largest = float(np.abs(ours @ x - theirs.astype(np.float64) @ x).max())
    for name, other, work in (("vector", x, 1), ("matrix of 16 columns", wide, 16)):
        found = interleaved({
            "scipy": lambda other=other: theirs @ other,
            "one thread": lambda other=other: ours.dot(other, threads=1),
            "two threads": lambda other=other: ours.dot(other, threads=2),
        })  # fmt: skip
        speeds = {f"{peer} G entries/s": round(work * len(data) / s / 1e9, 3) for peer, s in found.items()}
        report({"sparse": f"CSR times {name}", **speeds, "times scipy": round(found["scipy"] / found["two threads"], 2),
                "times scipy, one thread": round(found["scipy"] / found["one thread"], 2),
                "largest error": largest})  # fmt: skip
    for side in (4, 16):
        blocks = 10_000_000 // side**2
        brows = 100_000 // side
        places = np.sort(rng.integers(0, brows, (brows, blocks // brows)), axis=1).astype(np.int32)
        values = rng.normal(size=(places.size, side, side)).astype(np.float32)
        starts = np.arange(brows + 1, dtype=np.int32) * places.shape[1]
        size = brows * side
        theirs = bsr_array((values, places.reshape(-1), starts), shape=(size, size))
        ours = BSR(starts, places.reshape(-1), values, (size, size))
        assert np.allclose(ours @ x[:size], theirs @ x[:size], rtol=1e-3, atol=1e-3)
        found = interleaved({
            "scipy": lambda t=theirs, n=size: t @ x[:n],
            "one thread": lambda o=ours, n=size: o.dot(x[:n], threads=1),
            "two threads": lambda o=ours, n=size: o.dot(x[:n], threads=2),
        })  # fmt: skip
        speeds = {f"{peer} G entries/s": round(values.size / s / 1e9, 3) for peer, s in found.items()}
        report({"sparse": f"BSR of {side} by {side} times vector", **speeds,
                "times scipy": round(found["scipy"] / found["two threads"], 2)})  # fmt: skip


def fields():
    """Yield (name, float32 array): smooth, turbulent, noise, random walk."""
    rng = np.random.default_rng(0)
    i = np.arange(128) / 128
    z, y, x = np.meshgrid(i, i, i, indexing="ij")
    yield "smooth", (np.sin(9 * z + 5 * y) * np.cos(7 * x) + z * x).astype(np.float32)
    noise = np.fft.rfftn(rng.normal(size=(128, 128, 128)))
    k = np.sqrt(
        sum(
            np.square(f)
            for f in np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128), np.fft.rfftfreq(128), indexing="ij")
        )
    )
    spectrum = np.where(k > 0, np.maximum(k, 1e-9) ** (-11 / 6), 0)
    field = np.fft.irfftn(noise * spectrum, s=(128, 128, 128), axes=(0, 1, 2))
    yield "turbulent", (field / field.std()).astype(np.float32)
    yield "noise", rng.normal(size=(128, 128, 128)).astype(np.float32)
    yield "random walk", np.cumsum(rng.normal(size=2 << 20)).astype(np.float32)


def bounds(report):
    """Ratios and speeds next to SZ3 and zfp at the same absolute bound; checks each value."""
    import pysz
    import zfpy

    for name, field in fields():
        spread = float(field.max() - field.min())
        for share in (1e-2, 1e-3, 1e-4):
            error = share * spread
            made = {
                "tidegate": lambda f=field, e=error: compress.pack(f, f"abs:{e}"),
                "SZ3": lambda f=field, e=error: pysz.sz.compress(f, sz_config(pysz, f, e)),
                "zfp": lambda f=field, e=error: zfpy.compress_numpy(f, tolerance=e),
            }
            packed = {peer: make() for peer, make in made.items()}
            sizes = {"tidegate": len(packed["tidegate"]), "SZ3": packed["SZ3"][0].nbytes, "zfp": len(packed["zfp"])}
            back = {
                "tidegate": lambda p=packed: compress.unpack(p["tidegate"]),
                "SZ3": lambda p=packed, f=field: pysz.sz.decompress(p["SZ3"][0], np.float32, f.shape)[0],
                "zfp": lambda p=packed: zfpy.decompress_numpy(p["zfp"]),
            }
            errors = {peer: float(np.abs(np.asarray(work(), np.float64) - field).max()) for peer, work in back.items()}
            pack, unpack = interleaved(made), interleaved(back)
            for peer in made:
                report({
                    "bound": name, "share of range": share, "who": peer, "ratio": round(field.nbytes / sizes[peer], 2),
                    "pack GB/s": round(field.nbytes / pack[peer] / 1e9, 3),
                    "unpack GB/s": round(field.nbytes / unpack[peer] / 1e9, 3),
                    "largest error over bound": round(errors[peer] / error, 4),
                })  # fmt: skip


def sz_config(pysz, field, error):
    config = pysz.szConfig(field.shape)
    config.errorBoundMode = pysz.szErrorBoundMode.ABS
    config.absErrorBound = error
    return config


COLUMNS, ENTRIES = 50_000, 40


def libsvm(path, total, seed):
    """Write a LIBSVM file of about `size` bytes; a quarter of the columns decide the label."""
    rng = np.random.default_rng(0)
    weights = np.zeros(COLUMNS)
    weights[rng.integers(0, COLUMNS, COLUMNS // 4)] = rng.normal(0, 2, COLUMNS // 4)
    rng = np.random.default_rng(seed)
    rows = 0
    with open(path, "w") as file:
        while file.tell() < total:
            # Columns follow Zipf's law, as words do.
            places = (COLUMNS ** rng.random((2000, ENTRIES))).astype(int) - 1
            values = rng.random((2000, ENTRIES)).round(3) + 0.1
            score = (weights[places] * values).sum(axis=1) + rng.normal(0, 0.5, 2000)
            for line, entries, label in zip(places, values, score > 0, strict=True):
                order = np.unique(line, return_index=True)[1]
                text = " ".join(f"{line[k] + 1}:{entries[k]:.4g}" for k in order)
                file.write(f"{'+1' if label else '-1'} {text}\n")
            rows += 2000
    return rows


RATE, BATCH = 0.5, 512


def train_ours(path, test, memory):
    """Logistic regression by minibatches from disk, under the budget."""
    source = tg.open(path)
    # Lines are far smaller than a page: a full shuffle would read a page for each line.
    shuffle = tg.Window(8192)
    loader = tg.Loader(source, batch_size=BATCH, memory=memory, shuffle=shuffle, seed=0, drop_last=True)
    columns = source.columns
    weights, squares, bias, rows = np.zeros(columns, np.float32), np.full(columns, 1e-8, np.float32), 0.0, 0
    for batch in loader:
        matrix = CSR.from_batch(batch, columns)
        target = (batch["label"] > 0).astype(np.float32)
        wrong = (1 / (1 + np.exp(-(matrix.dot(weights, threads=1) + bias))) - target).astype(np.float32)
        gradient = matrix.transposed_dot(wrong)
        squares += gradient * gradient
        weights -= RATE * gradient / np.sqrt(squares)
        bias -= RATE / BATCH * float(wrong.sum())
        rows += batch.rows
    right = total = 0
    for batch in tg.Loader(test, batch_size=1024, memory=loader.budget):
        score = CSR.from_batch(batch, columns).dot(weights, threads=1) + bias
        right += int(((score > 0) == (batch["label"] > 0)).sum())
        total += batch.rows
    return rows, right / total


def narrow(x):
    """SGDClassifier takes 32-bit indices, the reader returns 64-bit ones."""
    x.indices, x.indptr = x.indices.astype(np.int32), x.indptr.astype(np.int32)
    return x


def train_theirs(path, test, memory):
    """scikit-learn, as its documentation shows: pieces of the file by offset, partial_fit."""
    from sklearn.datasets import load_svmlight_file
    from sklearn.linear_model import SGDClassifier

    model = SGDClassifier(loss="log_loss", alpha=1e-7, learning_rate="constant", eta0=0.3, average=True, random_state=0)
    size, offset, rows = os.path.getsize(path), 0, 0
    piece = memory // 8
    while offset < size:
        # With an offset, load_svmlight_file assumes indices from 0 unless told otherwise.
        x, y = load_svmlight_file(
            path, n_features=COLUMNS, dtype=np.float32, offset=offset, length=piece, zero_based=False
        )
        offset += piece
        if x.shape[0]:
            model.partial_fit(narrow(x), y > 0, classes=[False, True])
            rows += x.shape[0]
    x, y = load_svmlight_file(test, n_features=COLUMNS, dtype=np.float32, zero_based=False)
    return rows, model.score(narrow(x), y > 0)


def child(peer, folder, memory):
    work = {"tidegate": train_ours, "scikit-learn": train_theirs, "nothing": None}[peer]
    if work is None:
        import sklearn.linear_model  # noqa: F401

        source = tg.open(f"{folder}/train.libsvm")
        print(json.dumps({"samples": len(source)}))
        return
    began = time.perf_counter()
    rows, accuracy = work(f"{folder}/train.libsvm", f"{folder}/test.libsvm", memory)
    print(json.dumps({"rows": rows, "seconds": time.perf_counter() - began, "accuracy": accuracy}))


def regression(report, budget_mib=16):
    """A sparse logistic regression from a file of 20 budgets, in a control group."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        libsvm(f"{folder}/train.libsvm", 20 * budget_mib * MIB, seed=1)
        libsvm(f"{folder}/test.libsvm", 8 * MIB, seed=2)
        began = time.perf_counter()
        tg.open(f"{folder}/train.libsvm")
        index_s = time.perf_counter() - began
        tg.open(f"{folder}/test.libsvm")
        base = None
        found = {}
        for turn in range(3):
            for peer in ("nothing", "tidegate", "scikit-learn"):
                drop_cache(f"{folder}/train.libsvm")
                command = [
                    sys.executable,
                    __file__,
                    "--child",
                    peer,
                    "--folder",
                    folder,
                    "--memory",
                    str(budget_mib * MIB),
                ]
                limit = (
                    None
                    if base is None or peer != "tidegate"
                    else int((base + budget_mib + max(budget_mib / 50, 8)) * MIB)
                )
                done, peak = in_group(f"sparse-{peer}-{turn}", command, limit)
                if done.returncode:
                    raise SystemExit(done.stderr)
                result = json.loads(done.stdout.splitlines()[-1])
                if peer == "nothing":
                    base = peak if base is None and peak else base
                    continue
                found.setdefault(peer, []).append(
                    {**result, "peak MiB": peak, "limit MiB": limit and round(limit / MIB, 1)}
                )
        for peer, runs in found.items():
            speed = statistics.median(run["rows"] / run["seconds"] for run in runs)
            report({
                "regression": peer, "file MiB": 20 * budget_mib, "budget MiB": budget_mib, "rows/s": round(speed),
                "accuracy": round(statistics.median(run["accuracy"] for run in runs), 4), "rows": runs[0]["rows"],
                "baseline MiB": base, "peaks MiB": [run["peak MiB"] for run in runs],
                "limits MiB": [run["limit MiB"] for run in runs],
                "indexed once in s": round(index_s, 2) if peer == "tidegate" else None,
            })  # fmt: skip


def copies(report):
    """Accuracy and bytes read of a classifier trained on a data set and on its packed copies."""
    rng = np.random.default_rng(0)
    classes, side = 10, 24
    centres = np.cumsum(np.cumsum(rng.normal(size=(classes, side, side)), axis=1), axis=2)
    centres /= centres.std()

    def drawn(count):
        labels = rng.integers(0, classes, count)
        return (centres[labels] + rng.normal(0, 4, (count, side, side))).astype(np.float32), labels

    with tempfile.TemporaryDirectory(dir=".") as folder:
        x, labels = drawn(20_000)
        test, test_labels = drawn(20_000)
        Path(folder, "plain").mkdir()
        with tarfile.open(f"{folder}/plain/a.tar", "w") as tar:
            for i in range(len(x)):
                buffer = io.BytesIO()
                np.save(buffer, x[i])
                for name, data in (("x.npy", buffer.getvalue()), ("cls", str(labels[i]).encode())):
                    info = tarfile.TarInfo(f"{i:06}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        variants = {"as it is": [], "8 bits": ["--quantize", "x.npy=8"], "4 bits": ["--quantize", "x.npy=4"],
                    "packed": ["--codec", "shuffle+zstd"],
                    "within 1e-2 of the range": ["--codec", "rel:1e-2"]}  # fmt: skip
        for name, wishes in variants.items():
            out = f"{folder}/{name.replace(' ', '-')}"
            command = [Path(sys.executable).with_name("tidegate"), "pack", f"{folder}/plain", out, *wishes]
            subprocess.run(command, check=True, capture_output=True)
            source = tg.open(f"{folder}/plain" if name == "as it is" else out)
            spec = {"x.npy": tg.Array("float32", (side, side)), "cls": tg.Int()}
            accuracies = []
            for seed in range(5):
                loader = tg.Loader(
                    source, batch_size=100, memory=tg.Budget("32MiB"), shuffle=True, seed=seed, fields=spec
                )
                weights, bias = np.zeros((side * side, classes), np.float32), np.zeros(classes, np.float32)
                read = 0
                for _ in range(5):
                    for batch in loader:
                        inputs = batch["x.npy"].reshape(len(batch["cls"]), -1)
                        logits = inputs @ weights + bias
                        chance = np.exp(logits - logits.max(axis=1, keepdims=True))
                        chance /= chance.sum(axis=1, keepdims=True)
                        chance[np.arange(len(chance)), batch["cls"]] -= 1
                        weights -= 2e-3 * inputs.T @ chance / len(chance)
                        bias -= 2e-3 * chance.mean(axis=0)
                    read += loader.report()["stages"]["read_bytes"] + loader.report()["stages"]["hit_bytes"]
                guess = (test.reshape(len(test), -1) @ weights + bias).argmax(axis=1)
                accuracies.append(float((guess == test_labels).mean()))
            report({
                "copy": name, "accuracy %": round(100 * statistics.mean(accuracies), 2),
                "of seeds": [round(100 * a, 2) for a in accuracies], "MiB an epoch": round(read / 5 / MIB, 1),
            })  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="sparse,bounds,regression,copies")
    parser.add_argument("--child")
    parser.add_argument("--folder")
    parser.add_argument("--memory", type=int)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder, options.memory)
        return
    lines = []

    def report(line):
        print(json.dumps(line), flush=True)
        lines.append(line)

    for name in options.only.split(","):
        {"sparse": sparse, "bounds": bounds, "regression": regression, "copies": copies}[name](report)
    if options.out:
        options.out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
