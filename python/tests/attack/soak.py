"""Two hours of training: killed, resumed, with other workers and limits, and in one process.

Flow: «killed»: a child reads epochs of one order and writes the ids of each batch with the state
behind it; it is killed (SIGKILL) after seconds, and another one goes on from that state with other
workers and another budget. Of each epoch every sample must come once, in the same order as in one
go. «steady»: a second child runs settings of `runs.py` one after another, ends epochs in the
middle, and changes limits while they run; its memory, threads and descriptors must stay flat.
Memory: a child at a time in each half; the data are those of `runs.py`.

    python soak.py --seconds 7200
"""

import argparse
import gc
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import kinds
import runs

import tidegate as tg

MIB = 1 << 20
# What is read while it is killed: kinds with cheap and with dear samples.
KILLED = ("jpeg, drafts", "tar", "parquet", "jsonl")
# Epochs of each that are read again to compare their order.
READ_AGAIN = 50


# «killed»


def training(kind, folder, workers, budget):
    """The loader that is killed and resumed."""
    return tg.Loader(
        kinds.opened(kind, folder), batch_size=16, memory=tg.Budget(budget), fields=kind.fields,
        shuffle=True, seed=7, workers=workers,
    )  # fmt: skip


def reader(kind, folder, log, workers, budget):
    """Read epochs from the last line of the log on; a line for each batch: ids and the state."""
    loader = training(kind, folder, workers, budget)
    written = complete_lines(log)
    if written:
        loader.load_state_dict(written[-1]["state"])
    with open(log, "a") as file:
        file.write("\n")  # behind a line that was cut off
        # It ends with its parent, which may have been killed itself.
        parent = os.getppid()
        while os.getppid() == parent:
            for batch in loader:
                line = {"epoch": batch.epoch, "ids": batch.ids.tolist(), "state": loader.state_dict()}
                file.write(json.dumps(line) + "\n")
                file.flush()
                if random.random() < 0.05:
                    loader.set_memory(random.choice([32, 48, 64, 96]) * MIB)


def complete_lines(log):
    lines = []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def killed(root, names, seconds, seed):
    """Kill readers for some time; return what is wrong, and (kills, epochs)."""
    rng, wrong, kills, epochs = random.Random(seed), [], 0, 0
    names = [name for name in KILLED if name in names]
    for name in names:
        log, end = root / f"{name}.log", time.monotonic() + seconds / len(names)
        while time.monotonic() < end:
            workers, budget = rng.choice([1, 2, 4]), rng.choice([32, 48, 64, 96]) * MIB
            arguments = ["--reader", name, str(root / name), str(log), str(workers), str(budget)]
            process = subprocess.Popen([sys.executable, __file__, *arguments], stderr=subprocess.PIPE, text=True)
            try:
                _, said = process.communicate(timeout=rng.uniform(1.5, 8))
                wrong.append(f"{name}: a reader ended with {process.returncode}: {said[-500:]}")
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
        found, whole = misread(kinds.made()[name], root / name, complete_lines(log))
        wrong += found
        epochs += whole
    return wrong, (kills, epochs)


def misread(kind, folder, lines):
    """What is wrong with the epochs in the lines of a log, and how many are whole.

    Every epoch has every sample once. Some are read again in one go, which costs as much as reading
    them did, and have the same order.
    """
    epochs, wrong = {}, []
    for line in lines:
        epochs.setdefault(line["epoch"], []).extend(line["ids"])
    whole = max(epochs, default=0)  # the last one was cut off
    one_go = training(kind, folder, 1, 64 * MIB)
    for epoch in range(whole):
        ids = epochs.get(epoch, [])
        if sorted(ids) != list(range(len(one_go.source))):
            wrong.append(f"{kind.name}: epoch {epoch} has {len(ids)} rows of {len(set(ids))} samples")
        if epoch % max(whole // READ_AGAIN, 1) == 0:
            one_go.set_epoch(epoch)
            if ids != [i for batch in one_go for i in batch.ids.tolist()]:
                wrong.append(f"{kind.name}: epoch {epoch} has another order than in one go")
    return wrong, whole


# «steady»


def anonymous_mib():
    """Memory of this process that is in no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0


def steady(root, names, seconds, seed):
    """Run settings in this process; print a line of figures for each, and wrong ids."""
    rng, began = random.Random(seed), time.monotonic()
    all_kinds = kinds.made()
    number = 0
    while time.monotonic() - began < seconds:
        number += 1
        given = runs.settings(rng, sorted(names))
        kind = all_kinds[given["kind"]]
        wrong = None
        try:
            source = kinds.opened(kind, root / given["kind"])
            loader = runs.loader(source, kind, given)
            if rng.random() < 0.4:
                wrong = ended_and_resumed(loader, source, kind, given, rng)
            else:
                wrong = runs.misses(runs.epoch(loader, source, given), source, given)
            loader.close()
            del loader, source
        except (tg.BudgetError, tg.ConfigError):
            pass  # a budget that is too small for these settings
        gc.collect()
        descriptors, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        figures = {"run": number, "mib": round(anonymous_mib(), 1), "descriptors": descriptors, "threads": threads}
        print(
            json.dumps({**figures, "at": round(time.monotonic() - began), "wrong": wrong and f"{given}: {wrong}"}),
            flush=True,
        )


def ended_and_resumed(loader, source, kind, given, rng):
    """End an epoch in the middle, change the limit, go on in another loader; what is wrong?"""
    seen, stop = runs.Counter(), rng.randrange(max(len(loader), 1)) + 1
    for number, batch in enumerate(loader, 1):
        seen.update(batch.ids[batch.mask].tolist())
        if number == stop // 2 + 1:
            loader.set_memory(given["memory"] + rng.choice([-4, 8, 32]) * MIB)
        if number == stop:
            break
    state = loader.state_dict()
    del batch
    if loader.state_dict() == state and stop < len(loader):
        other = runs.loader(source, kind, {**given, "workers": rng.choice([1, 2, 5])})
        other.load_state_dict(json.loads(json.dumps(state)))
        seen.update(runs.epoch(other, source, given))
        other.close()
    return runs.misses(seen, source, given)


def flat(figures):
    """What grows: the last quarter against the second."""
    quarter = len(figures) // 4
    if quarter < 5:
        print("too few runs to tell whether anything grows")
        return []
    grown = []
    for name, allowed in [("mib", 24), ("descriptors", 8), ("threads", 3)]:
        early, late = (
            sorted(f[name] for f in part)[quarter // 2] for part in (figures[quarter : 2 * quarter], figures[-quarter:])
        )
        if late > early + allowed:
            grown.append(f"{name} grow: median {early} in the second quarter, {late} in the last")
    return grown


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=7200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(runs.COUNTS), help="kinds of data, such as png,tar")
    parser.add_argument("--reader", nargs=5)
    parser.add_argument("--steady", nargs=2)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.reader:
        name, folder, log, workers, budget = given.reader
        reader(kinds.made()[name], Path(folder), Path(log), int(workers), int(budget))
    if given.steady:
        steady(Path(given.steady[0]), runs.kinds_of(given.kinds), float(given.steady[1]), given.seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        root, outcome = Path(folder), []
        names = runs.kinds_of(given.kinds)
        runs.make(root, names)
        thread = threading.Thread(target=lambda: outcome.append(killed(root, names, given.seconds, given.seed)))
        thread.start()
        command = [sys.executable, __file__, "--steady", str(root), str(given.seconds), "--seed", str(given.seed)]
        command += ["--kinds", given.kinds]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        thread.join()
        figures = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    wrong = [f["wrong"] for f in figures if f["wrong"]] + flat(figures)
    if done.returncode:
        wrong.append(f"the steady process ended with {done.returncode}: {done.stderr[-800:]}")
    found, (kills, epochs) = outcome[0]
    for what in wrong + found:
        print(f"FAIL {what}")
    for f in figures[:: max(len(figures) // 12, 1)]:
        print({name: f[name] for name in ("at", "run", "mib", "descriptors", "threads")})
    print(f"{len(figures)} runs in one process; {kills} kills and {epochs} whole epochs; {len(wrong + found)} findings")
    sys.exit(1 if wrong or found else 0)


if __name__ == "__main__":
    main()
