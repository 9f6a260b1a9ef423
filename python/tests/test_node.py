"""One budget for several processes: equal batches, one cached copy, nothing leaked by a kill."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tidegate as tg

RANK = """
import hashlib, json, sys
import tidegate as tg

data, rank, ranks, memory, name = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
shared = tg.Budget(memory, scope="node", processes=ranks, name=name)
loader = tg.Loader(data, global_batch_size=8, memory=shared, shuffle=True, seed=3, workers=1, rank=rank,
                   world_size=ranks, extras=("ids",), fields={"image": tg.Image(32, crop="random", flip=True)})
for epoch in range(3):
    rows = [[int(id), hashlib.sha256(row.tobytes()).hexdigest()] for batch in loader
            for id, row, real in zip(batch["ids"], batch["image"], batch.mask) if real]
    stages = loader.report()["stages"]
    print(json.dumps({"rows": rows, "hits": stages["hits"], "reads": stages["reads"]}), flush=True)
    sys.stdin.readline()
batches = iter(loader)
held = next(batches)
print(json.dumps(shared.node | {"held": shared.charged_bytes}), flush=True)
sys.stdin.readline()
print(loader.report(), flush=True)
"""


@pytest.fixture
def name(request):
    return f"{request.node.name[:40]}-{os.getpid()}"


class Rank:
    def __init__(self, data, rank, ranks, name, memory="48MiB"):
        arguments = [str(data), str(rank), str(ranks), memory, name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", RANK, *arguments], **pipes)

    def read(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line.startswith("{") else line or self.process.stderr.read()

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def ranks(folder, name):
    all = []

    def start(count, name=name):
        all.extend(Rank(folder, rank, count, name) for rank in range(count))
        return all

    yield start
    for rank in all:
        rank.end()


def memory_files(name):
    """Processes that have the memory file of a budget open."""
    found = []
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if f"-{name} (deleted)" in os.readlink(fd):
                found.append(int(fd.parts[2]))
        except OSError:
            continue
    return found


def wait_until(true, what):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.001)


def test_ranks_with_one_budget_deliver_what_one_process_delivers(folder, ranks):
    import hashlib

    alone = tg.Loader(
        str(folder),
        global_batch_size=8,
        memory=tg.Budget("64MiB"),
        shuffle=True,
        seed=3,
        extras=("ids",),
        fields={"image": tg.Image(32, crop="random", flip=True)},
    )
    epochs = [
        {
            int(i): hashlib.sha256(r.tobytes()).hexdigest()
            for b in alone
            for i, r in zip(b["ids"], b["image"], strict=True)
        }
        for _ in range(3)
    ]
    all = ranks(3)
    for number, expected in enumerate(epochs):
        told = [rank.read() for rank in all]
        rows = [row for rank in told for row in rank["rows"]]
        assert len(rows) == 40, "every sample once"
        assert dict(map(tuple, rows)) == expected
        if number:
            assert [rank["reads"] for rank in told] == [0, 0, 0], "what one process read, the others have"
            assert sum(rank["hits"] for rank in told) >= 40
        for rank in all:
            rank.go_on()
    node = all[0].read()
    assert len(node["processes"]) == 3
    assert node["held"] < node["charged_bytes"] <= node["cap_bytes"]
    all[0].go_on()
    report = all[0].process.stdout.read()
    assert "budget of the node 48.0 MiB" in report
    assert "by 3 processes" in report


def test_what_a_killed_rank_held_is_free_and_nothing_is_left_of_a_killed_job(ranks, name):
    all = ranks(3)
    for _ in range(3):
        for rank in all:
            rank.read()
            rank.go_on()
    nodes = [rank.read() for rank in all]
    victim = all[2].process
    before = max(node["charged_bytes"] for node in nodes)
    mine = nodes[2]["held"]
    assert mine > 1 << 20
    victim.send_signal(signal.SIGKILL)
    # Another process takes its place: it is refused as long as the dead one counts.
    budget, refused = None, []

    def joined():
        nonlocal budget
        try:
            budget = tg.Budget("48MiB", scope="node", processes=3, name=name)
        except tg.BudgetError as error:
            refused.append(str(error))
        return budget

    wait_until(joined, "the place of the dead is free")
    assert not [words for words in refused if "3 have joined" not in words]
    assert victim.pid not in budget.node["processes"]
    assert budget.node["charged_bytes"] <= before - mine
    assert len(set(memory_files(name))) >= 3
    for rank in all:
        rank.end()
    assert set(budget.node["processes"]) == {os.getpid()}
    del budget
    wait_until(lambda: not memory_files(name), "the memory file is gone with the last process")


def test_who_cannot_share_is_told_why(folder, name, monkeypatch):
    budget = tg.Budget("32MiB", scope="node", processes=2, name=name)
    assert budget.cap_bytes < 16 << 20
    assert tg.Budget("32MiB", scope="node", processes=2, name=name).node == budget.node
    with pytest.raises(tg.BudgetError, match=r"it has 32\.0 MiB for 2 processes here, and 64\.0 MiB for 2"):
        tg.Budget("64MiB", scope="node", processes=2, name=name)
    with pytest.raises(tg.ConfigError, match="give name="):
        tg.Budget("32MiB", scope="node", processes=2)
    with pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(budget)
    with pytest.raises(tg.ConfigError, match="give processes=N"):
        tg.Budget("32MiB", scope="node")
    with pytest.raises(tg.ConfigError, match="scope must be"):
        tg.Budget("32MiB", scope="world")
    with pytest.raises(tg.ConfigError, match="scope=.node"):
        tg.Budget("32MiB", processes=2)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
    assert tg.Budget("32MiB", scope="node").node["processes"].keys() == {os.getpid()}
    with pytest.raises(tg.Error, match="needs at least"):
        tg.Loader(folder, batch_size=128, memory=budget, fields={"image": tg.Image(224)})


def test_a_budget_does_not_reach_into_another_memory_group(name):
    sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
    import memory

    try:
        group = memory.Group("node-test")
    except OSError as error:
        pytest.skip(f"no memory control group can be made here ({error}); run as root")
    budget = tg.Budget("32MiB", scope="node", processes=2, name=name)
    join = f"import tidegate as tg; tg.Budget('32MiB', scope='node', processes=2, name={name!r})"
    enter = lambda: group.write("cgroup.procs", os.getpid())  # noqa: E731
    try:
        said = subprocess.run([sys.executable, "-c", join], capture_output=True, text=True, preexec_fn=enter).stderr
    finally:
        group.close()
    assert "no budget holds across memory groups" in said
    assert group.dir.name in said
    assert len(budget.node["processes"]) == 1


def test_ranks_come_from_the_environment(monkeypatch):
    options = {"global_batch_size": 8, "memory": "16MiB"}
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert [batch.rows for batch in tg.Loader(tg.synthetic(16, 8), **options)] == [2, 2]
    assert [batch.rows for batch in tg.Loader(tg.synthetic(16, 8), rank=0, world_size=1, **options)] == [8, 8]
    with pytest.raises(tg.ConfigError, match="both rank and world_size"):
        tg.Loader(tg.synthetic(16, 8), rank=1, **options)
    with pytest.raises(tg.ConfigError, match="rank=-1: expected an int of at least 0"):
        tg.Loader(tg.synthetic(16, 8), rank=-1, world_size=4, **options)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(tg.ConfigError, match="RANK=4 and WORLD_SIZE=4 name no rank"):
        next(iter(tg.Loader(tg.synthetic(16, 8), **options)))


def test_a_forked_child_takes_nothing_of_the_budget(folder, name):
    budget = tg.Budget("48MiB", scope="node", processes=2, name=name)
    before = budget.node["charged_bytes"]
    for _ in range(3):
        pid = os.fork()
        if not pid:
            try:
                tg.Loader(folder, batch_size=8, memory=budget)
                os._exit(1)
            except tg.ConfigError as error:
                os._exit(0 if "made before a fork" in str(error) else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert budget.node["charged_bytes"] == before
    pid = os.fork()
    if not pid:
        own = tg.Budget("48MiB", scope="node", processes=2, name=name)
        os._exit(0 if len(own.node["processes"]) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    wait_until(lambda: len(budget.node["processes"]) == 1, "the child has left")


SHRINKING = """
import json, sys
import tidegate as tg

data, rank, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
shared = tg.Budget("96MiB", scope="node", processes=2, name=name)
loader = tg.Loader(data, batch_size=4, memory=shared, shuffle=True, seed=3, workers=1, rank=rank, world_size=2,
                   extras=("ids",), fields={"image": tg.Image(64)})
for epoch in range(3):
    ids = []
    for number, batch in enumerate(loader):
        ids += batch["ids"].tolist()
        if epoch == 1 and number == 2:
            print("there", flush=True)
            sys.stdin.readline()
            if rank == 0:
                loader.set_memory("24MiB")
            print(shared.cap_bytes, flush=True)
            sys.stdin.readline()
    print(json.dumps(sorted(ids)), flush=True)
print(json.dumps(shared.node), flush=True)
"""


def test_one_rank_lowers_the_budget_of_all_and_no_epoch_is_lost(folder, name):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [
        subprocess.Popen([sys.executable, "-c", SHRINKING, str(folder), str(rank), name], **pipes) for rank in range(2)
    ]
    try:
        epochs = [[json.loads(rank.stdout.readline()) for rank in ranks]]
        assert [rank.stdout.readline() for rank in ranks] == ["there\n"] * 2
        for rank in ranks:
            print(file=rank.stdin, flush=True)
            assert int(rank.stdout.readline()) < 12 << 20
        for rank in ranks:
            print(file=rank.stdin, flush=True)
        epochs += [[json.loads(rank.stdout.readline() or rank.stderr.read()) for rank in ranks] for _ in range(2)]
        assert all(sorted(a + b) == list(range(40)) for a, b in epochs)
        node = json.loads(ranks[0].stdout.readline())
        assert node["charged_bytes"] <= node["cap_bytes"] == 24 << 20
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


JOINERS = """
import os, signal, sys, time
import tidegate as tg

signal.alarm(80)
count, name = int(sys.argv[1]), sys.argv[2]
ready, go, end = os.pipe(), os.pipe(), os.pipe()
children = []
for _ in range(count):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.read(go[0], 1)
            budget = tg.Budget("256MiB", scope="node", processes=64, name=name)
            code = 0
        finally:
            os.write(ready[1], b"x")
            os.read(end[0], 1)
            os._exit(code)
    children.append(child)
began = time.monotonic()
os.write(go[1], b"x" * count)
joined = 0
while joined < count:
    joined += len(os.read(ready[0], count))
print(joined, time.monotonic() - began)
os.write(end[1], b"x" * count)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_many_ranks_join_at_the_same_time(name):
    done = subprocess.run([sys.executable, "-c", JOINERS, "48", name], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "48"


def test_a_fork_while_joining_does_not_keep_others_from_it(name):
    """The child has the parent's ticket open for as long as it lives."""
    code = """
import os, sys, threading, time
import tidegate as tg
name = sys.argv[1]
join = lambda: tg.Budget("64MiB", scope="node", processes=8, name=name)
threads = [threading.Thread(target=join) for _ in range(4)]
[thread.start() for thread in threads]
children = []
while any(thread.is_alive() for thread in threads):
    child = os.fork()
    if child == 0:
        time.sleep(100)
        os._exit(0)
    children.append(child)
    time.sleep(0.002)
tg.Budget("64MiB", scope="node", processes=8, name=name + "2")
tg.Budget("64MiB", scope="node", processes=8, name=name)
[os.kill(child, 9) for child in children]
print("joined")
"""
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, timeout=95)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "joined\n"
