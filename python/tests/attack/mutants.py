"""Changes files at random, reads them, and counts what may never happen.

Flow: for each kind of data a child process makes it, changes one file or the index, reads all, and
says a line for each mutant; the parent ends a child that says nothing for too long, and begins
another behind that mutant.
Memory: a child holds one small data set; what a mutant makes it take is measured and bounded.

What may never happen: a crash, a hang (100 seconds), an `InternalError`, a `StalledError`, an
untouched sample with other values or lost under on_error="skip", 160 MiB more of memory, threads or
descriptors that stay. A mutant is repeated with `--kind KIND --first N --count 1`.

    python mutants.py --count 20000 --index 2000
"""

import argparse
import concurrent.futures
import contextlib
import gc
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import kinds

import tidegate as tg

LIMIT_S = 100
MOST_MIB = 160
SAMPLES = 18
POLICIES = ("raise", "skip", "replace")


# Changes of bytes: each returns what was changed, {places}, or where everything behind moved.


def change(data, rng):
    """Change bytes; return them, the places, and from where on all has moved or None."""
    data, places, moved = bytearray(data), set(), None
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        size = len(data)
        if size < 8:
            break
        at, kind = rng.randrange(size), rng.randrange(10)
        if kind == 9:  # heads and tails are where sizes are
            at, kind = rng.choice([rng.randrange(min(size, 64)), size - 1 - rng.randrange(min(size, 64))]), 1
        if kind == 0:
            put(data, places, at, bytes([data[at] ^ 1 << rng.randrange(8)]))
        elif kind == 1:
            put(data, places, at, bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF, *b' ,"[{'])]))
        elif kind == 2:
            wide = rng.choice([2, 4, 8])
            top = 1 << 8 * wide
            number = rng.choice([0, 1, top - 1, top // 2, size, rng.randrange(top)]) % top
            put(data, places, at, number.to_bytes(wide, rng.choice(["little", "big"])))
        elif kind in (3, 4):
            wide = rng.choice([8, 64, 512, 4096])
            put(data, places, at, rng.randbytes(wide) if kind == 3 else bytes(wide))
        elif kind == 5:
            wide = min(rng.choice([4, 32, 512]), size)
            start = rng.randrange(size - wide + 1)
            put(data, places, at, bytes(data[start : start + wide]))
        else:
            if kind == 6:
                del data[at:]
            elif kind == 7:
                data[at:at] = rng.randbytes(rng.choice([1, 4, 64, 512]))
            else:
                del data[at : at + rng.choice([1, 4, 64, 512])]
            moved = at if moved is None else min(at, moved)
    return bytes(data), places, moved


def put(data, places, at, new):
    new = new[: len(data) - at]
    data[at : at + len(new)] = new
    places.update(range(at, at + len(new)))


def change_json(text, rng):
    """Change some values of a JSON text."""
    value, leaves = json.loads(text), []

    def walk(node):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(child, (dict, list)) and child:
                walk(child)
            else:
                leaves.append((node, key))

    walk(value)
    for _ in range(rng.choice([1, 1, 2, 4]) if leaves else 0):
        node, key = rng.choice(leaves)
        old = node[key]
        if isinstance(old, bool):
            node[key] = not old
        elif isinstance(old, int):
            near = [old + 1, max(old - 1, 0), old * 2]
            node[key] = rng.choice(
                [0, 1, *near, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1, -1, rng.getrandbits(20)]
            )
        elif isinstance(old, str):
            node[key] = rng.choice(["", "image", "int", "text", "json", "bytes", old + "x", "../x", "/etc/passwd"])
        else:
            node[key] = rng.choice([0, None, "", [], {}])
    return json.dumps(value).encode()


# One mutant.


def peak_mib():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1024
    return 0


def own():
    """Threads and open files of this process."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def read(kind, source, policy, seen):
    """Read an epoch; add to `seen` {key: hashes}."""
    loader = tg.Loader(
        source, batch_size=4, memory=tg.Budget("48MiB"), fields=kind.fields, on_error=policy, max_failure_rate=1.0,
        workers=2, stall_seconds=15.0,
    )  # fmt: skip
    try:
        for batch in loader:
            for i, hashes in kinds.rows(batch).items():
                seen.setdefault(source.key(i), hashes)
    finally:
        loader.close()


class Attack:
    """A data set, its files and what its samples are."""

    def __init__(self, kind, folder, index):
        self.kind, self.folder, self.index = kind, folder, index
        kind.make(folder, SAMPLES)
        self.reference = {}
        read(kind, kinds.opened(kind, folder), "raise", self.reference)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        self.files = {path: path.read_bytes() for path in files if (".tidegate" in path.parts) == index}
        self.spans = {} if index else {path: kinds.spans_of(kind, path, data) for path, data in self.files.items()}
        self.changed = set()

    def restore(self):
        for path in self.changed:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.files[path])
        self.changed.clear()
        if not self.index:
            for path in self.folder.rglob(".tidegate"):
                shutil.rmtree(path, ignore_errors=True)

    def untouched(self, path, data, places, moved):
        """The keys of samples that the change did not reach."""
        if self.index:
            return set(self.reference)
        spans, names = self.spans[path], {key.rpartition(":")[0] for key in self.reference}
        if spans is None:
            by_file = path.name in names
            return {key for key in self.reference if by_file and key.rpartition(":")[0] != path.name}
        keys = set()
        for key in self.reference:
            reached = [
                moved is not None and end > moved or any(start <= place < end for place in places)
                for start, end in spans.get(key, [])
            ]
            if not any(reached):
                keys.add(key)
        return keys

    def mutant(self, rng):
        """Change one file, read all; return what is wrong, in words."""
        self.restore()
        path = rng.choice(sorted(self.files))
        data = self.files[path]
        is_json = path.suffix == ".json" or path.name in (".zarray", ".zattrs")
        if is_json and rng.random() < 0.7:
            new, places, moved = change_json(data, rng), set(), 0
        else:
            new, places, moved = change(data, rng)
        if not self.index and rng.random() < 0.4:
            with contextlib.suppress(tg.Error):
                kinds.opened(self.kind, self.folder)  # an index of the file before the change
        if self.index:
            # Of the index all files are there again, since opening may have made it again.
            for other, content in self.files.items():
                other.parent.mkdir(parents=True, exist_ok=True)
                other.write_bytes(content)
            self.changed.update(self.files)
        path.write_bytes(new)
        self.changed.add(path)
        return self.outcome(rng.choice(POLICIES), self.untouched(path, data, places, moved))

    def outcome(self, policy, untouched):
        found, seen, error = [], {}, None
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_mib()
        try:
            source = kinds.opened(self.kind, self.folder)
            if len(source) < 10_000:
                read(self.kind, source, policy, seen)
            if self.index and len(source) != len(self.reference):
                found.append(f"{len(source)} samples where there are {len(self.reference)}")
        except tg.Error as raised:
            error = raised
            words = f"{type(raised).__name__}: {raised}"
            if isinstance(raised, (tg.InternalError, tg.StalledError)) or "please report" in words:
                found.append(words[:300])
        except Exception:
            found.append(traceback.format_exc()[-600:])
        if peak_mib() - before > MOST_MIB:
            found.append(f"it took {peak_mib() - before} MiB")
        wrong = [key for key in seen if key in untouched and seen[key] != self.reference[key]]
        if wrong:
            found.append(f"other values of untouched samples under {policy}: {sorted(wrong)[:4]}")
        lost = untouched - set(seen)
        if lost and policy != "replace" and error is None:
            found.append(f"untouched samples are lost: {sorted(lost)[:4]}")
        if self.index and error is not None:
            found.append(f"a damaged index is an error: {error}"[:300])
        return found


def child(kind, index, first, end, folder):
    """Say a line before and behind each mutant."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    attack = Attack(kinds.made()[kind], folder / "data", index)
    for number in range(first, end):
        print(json.dumps({"begins": number}), flush=True)
        found = attack.mutant(random.Random(f"{kind} {index} {number}"))
        if number == first:
            began = own()
        print(json.dumps({"ends": number, "found": found}), flush=True)
    gc.collect()
    time.sleep(0.1)
    left = own()
    stay = left[0] > began[0] + 2 or left[1] > began[1] + 8
    print(json.dumps({"left": [began, left] if stay else None}), flush=True)


# The parent.


def lines(process):
    """The lines of a process; None where it says nothing for too long."""
    while True:
        if not select.select([process.stdout], [], [], LIMIT_S)[0]:
            yield None
            return
        line = process.stdout.readline()
        if not line:
            return
        yield json.loads(line)


def attack(kind, index, first, count):
    """Run mutants of a kind; return {number: what is wrong}."""
    found, end, place = {}, first + count, first
    while place < end:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "data").mkdir()
            arguments = [
                "--child",
                "--kind",
                kind,
                "--first",
                str(place),
                "--count",
                str(end - place),
                "--folder",
                folder,
            ]
            if index:
                arguments.append("--of-index")
            command = [sys.executable, __file__, *arguments]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                at, hung, finished = None, False, False
                for line in lines(process):
                    if line is None:
                        hung = True
                        break
                    at = line.get("begins", at)
                    if line.get("found"):
                        found[line["ends"]] = line["found"]
                    if "left" in line:
                        finished = True
                        if line["left"]:
                            found[end] = [f"threads and descriptors were and are {line['left']}"]
                process.kill()
                said = process.stderr.read().decode(errors="replace")
            if finished:
                break
            if at is None:
                raise RuntimeError(f"{kind}: no mutant began: {said[-2000:]}")
            found[at] = ["it hangs" if hung else f"the process ended with {process.returncode}: {said[-500:]}"]
            place = at + 1
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=20_000, help="mutants of files, over all kinds")
    parser.add_argument("--index", type=int, default=2_000, help="mutants of side-car indexes")
    parser.add_argument("--kind")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--of-index", action="store_true")
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.child:
        child(given.kind, given.of_index, given.first, given.first + given.count, given.folder)
        return
    if given.kind:
        tasks = [(given.kind, given.of_index, given.first, given.count)]
    else:
        every = list(kinds.made())
        # These have no index beside them.
        indexed = [kind for kind in every if not kind.startswith("zarr") and kind not in ("tokens", "npy")]
        tasks = [(kind, False, given.first, -(-given.count // len(every))) for kind in every]
        tasks += [(kind, True, given.first, -(-given.index // len(indexed))) for kind in indexed]
    began, bad = time.monotonic(), 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for (kind, index, _, count), found in zip(tasks, pool.map(lambda task: attack(*task), tasks), strict=True):
            print(f"{'index of ' if index else ''}{kind}: {count} mutants, {len(found)} findings", flush=True)
            for number, what in found.items():
                print(f"  {kind}{' --of-index' if index else ''} --first {number}: {what}", flush=True)
            bad += len(found)
    total = sum(count for *_, count in tasks)
    print(f"{total} mutants in {time.monotonic() - began:.0f} s, {bad} findings")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
