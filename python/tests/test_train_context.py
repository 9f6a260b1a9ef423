"""`tidegate.torch.training_context`: a loader and a step under one number, which may change."""

import io
import json
import logging
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import tidegate as tg  # noqa: E402
from tidegate.torch import kept, limit, process, training_context  # noqa: E402
from tidegate.torch.context import RESERVE_BYTES  # noqa: E402

MIB = 1 << 20


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch):
    """What this process takes besides depends on the tests that ran before."""
    monkeypatch.setattr(process, "begin_peak", lambda: None)


@pytest.fixture
def rows(tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(512, 256)).astype("float32"))
    return tmp_path / "rows.npy"


def loader_of(rows, memory=8 * MIB):
    return tg.Loader(
        tg.mapped(rows).rows(), batch_size=128, memory=tg.Budget(memory), shuffle=True, seed=3, output="torch"
    )


def net_of(layers=12, drop=0.1):
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Dropout(drop)) for _ in range(layers)]
    return nn.Sequential(*parts)


HOW = {"inputs": "data", "targets": "data"}


def test_step_and_loader_share_one_number(rows):
    loader, net = loader_of(rows), net_of()
    optimizer = torch.optim.AdamW(net.parameters())
    memory = RESERVE_BYTES + 26 * MIB
    with training_context(loader, net, F.mse_loss, optimizer, memory=memory, micro_batches=1, **HOW) as step:
        losses = [step(batch).item() for batch in loader]
        report = step.report()
        peak = report.plan.peak_bytes
        assert len(losses) == 4
        assert peak + report.loader_bytes + report.besides_bytes <= memory == report.memory_bytes
        # The step got all that the loader does not wish for, and the loader what the step left.
        assert report.loader_bytes == loader.budget.cap_bytes >= 8 * MIB
        assert [moment.step for moment in report.moments] == [1, 2, 3, 4]
        assert {moment.step_bytes for moment in report.moments} == {peak}
        assert f"the step {peak / MIB:.1f} + the loader " in str(report)
        # Half as much: the loader lives with less, and the step recomputes more.
        step.set_memory(RESERVE_BYTES + 18 * MIB)
        step(next(iter(loader)))
        less = step.report()
        assert less.plan.peak_bytes + less.loader_bytes + less.besides_bytes <= RESERVE_BYTES + 18 * MIB
        assert less.plan.recomputed_stages > report.plan.recomputed_stages
        assert less.loader_bytes < report.loader_bytes
        with pytest.raises(tg.BudgetError, match="do not fit 33.0 MiB together"):
            step.set_memory(RESERVE_BYTES + MIB)
        assert step.report().memory_bytes == RESERVE_BYTES + 18 * MIB
    assert loader.budget.cap_bytes == 8 * MIB


def test_a_resumed_run_goes_on_bit_for_bit(rows):
    memory, saved, losses = RESERVE_BYTES + 20 * MIB, io.BytesIO(), []
    loader, net = loader_of(rows), net_of()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    with training_context(loader, net, F.mse_loss, optimizer, memory=memory, **HOW) as step:
        for batch in loader:
            losses.append(step(batch).item())
            if len(losses) == 2:
                state = json.dumps(step.state_dict())
                torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, saved)
        plan = step.report().plan
    saved.seek(0)
    weights = torch.load(saved, weights_only=True)
    loader, net = loader_of(rows), net_of()
    net.load_state_dict(weights["net"])
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    optimizer.load_state_dict(weights["optimizer"])
    torch.manual_seed(99)
    with training_context(loader, net, F.mse_loss, optimizer, memory=memory, **HOW) as step:
        step.load_state_dict(json.loads(state))
        assert [step(batch).item() for batch in loader] == losses[2:]
        assert (step.report().steps, step.report().plan.schedule) == (4, plan.schedule)
        for wrong in ({"version": 1}, {**json.loads(state), "version": 2}, {**json.loads(state), "random": {}}):
            with pytest.raises(tg.StateError):
                step.load_state_dict(wrong)


def test_a_lower_limit_counts_at_once_and_a_higher_one_when_it_stays(rows, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "tidegate.training")
    limits = iter([200, 200, 150, 300, 150] + [300] * limit.STEADY)
    monkeypatch.setattr(limit, "size_of", lambda share: int(next(limits) * share) * MIB)
    found = limit.Limit(0.5)
    changes = [(found.changed(), found.bytes // MIB) for _ in range(4 + limit.STEADY)]
    assert changes[:4] == [(False, 100), (True, 75), (False, 75), (False, 75)]
    assert changes[4:] == [(False, 75)] * (limit.STEADY - 1) + [(True, 150)]
    monkeypatch.undo()
    fixed = limit.Limit("1MiB")
    assert (fixed.changed(), fixed.bytes) == (False, MIB)
    # The same within a context: what the process takes is taken off.
    loader, net = loader_of(rows), net_of()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    base = process.anonymous_bytes() / 0.5
    now = [base + 200 * MIB]
    monkeypatch.setattr(limit, "size_of", lambda share: int(now[0] * share))
    with training_context(loader, net, F.mse_loss, optimizer, memory=0.5, micro_batches=1, **HOW) as step:
        for number, batch in enumerate(loader):
            now[0] = base + (200 if number < 2 else 100) * MIB
            step(batch)
        before, after = step.report().moments[0], step.report().moments[-1]
        assert after.memory_bytes == before.memory_bytes - 50 * MIB
        assert after.step_bytes + after.loader_bytes + after.besides_bytes <= after.memory_bytes
    assert "step 3:" in caplog.text


def test_under_pressure_the_step_takes_less_and_goes_on(rows, monkeypatch, caplog, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "cgroup.type").write_text("domain")
    file = tmp_path / "own" / "memory.pressure"
    monkeypatch.setattr(process, "GROUPS", str(tmp_path))
    monkeypatch.setattr(process.Path, "read_text", lambda path: read(path))

    def read(path):
        with open(path) as opened:
            return "0::/own\n" if str(path) == "/proc/self/cgroup" else opened.read()

    now = [0.0]
    monkeypatch.setattr(limit.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(limit, "size_of", lambda _: 1 << 30)
    budget = limit.Limit(0.5)

    def after(seconds, percent):
        file.write_text(f"some avg10={percent} avg60=0.00 avg300=0.00 total=5\nfull avg10=0.00 total=0\n")
        now[0] += seconds
        return budget.changed(), round(budget.bytes / (1 << 30), 4)

    assert after(5, "55.00") == (False, 1.0)
    assert after(6, "55.00") == (True, 0.9)
    # The kernel's mean still has what was before the change.
    assert after(6, "40.00") == (False, 0.9)
    assert after(6, "12.50") == (True, 0.81)
    assert after(11, "5.00") == (False, 0.81)
    assert after(11, "0.10") == (True, 0.9)
    assert [after(11, "99.00")[1] for _ in range(8)][-1] == 0.5
    assert budget.forgive()
    assert after(11, "99.00")[1] == 0.5556
    file.unlink()
    now[0] += 11
    assert [budget.changed() for _ in range(3)] == [True, False, False]
    assert process.pressure() == 0.0
    assert not limit.Limit(1 << 20).changed()


def test_pressure_alone_does_not_end_a_run(rows, monkeypatch, caplog):
    loader, net = loader_of(rows), net_of()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    now, seconds = [process.anonymous_bytes() + 300 * MIB], [0.0]
    monkeypatch.setattr(limit, "size_of", lambda share: int(now[0] * share))
    monkeypatch.setattr(limit.time, "monotonic", lambda: seconds[0])
    batch = next(iter(loader))
    with training_context(loader, net, F.mse_loss, optimizer, memory=1.0, **HOW) as step:
        step(batch)
        now[0] = step._base + step.report().plan.floor_bytes + RESERVE_BYTES + 3 * MIB
        step(batch)
        before = step.report().memory_bytes
        monkeypatch.setattr(process, "pressure", lambda: 50.0)
        seconds[0] += 11
        step(batch)
        assert step.report().memory_bytes == before
        assert "the process waits for memory, and no smaller plan fits" in caplog.text
        caplog.clear()
        seconds[0] += 11
        step(batch)
        assert caplog.text == ""


def test_what_was_set_aside_is_kept_where_a_plan_fits_with_it(rows):
    loader, net = loader_of(rows), net_of()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with training_context(loader, net, F.mse_loss, optimizer, memory=RESERVE_BYTES + 64 * MIB, **HOW) as step:
        step(next(iter(loader)))
        step._besides = RESERVE_BYTES + 8 * MIB
        step.set_memory(RESERVE_BYTES + 48 * MIB)
        assert step.report().besides_bytes == RESERVE_BYTES + 8 * MIB
        step.set_memory(RESERVE_BYTES + step.report().plan.floor_bytes + 3 * MIB)
        assert step.report().besides_bytes == RESERVE_BYTES


def test_states_of_generators_are_shared_until_one_draws():
    first, same = kept.Draws(), kept.Draws()
    assert first._states is same._states
    random.random()
    assert kept.Draws()._states is not first._states
    drawn = np.random.random()
    after = kept.Draws()
    first.set()
    random.random()
    assert np.random.random() == drawn
    after.set()


def test_what_a_context_cannot_be_made_of(rows):
    loader, net = loader_of(rows), net_of(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(tg.ConfigError, match=r"loader=.*expected a tidegate.Loader"):
        training_context([1], net, F.mse_loss, optimizer, memory="64MiB").__enter__()
    net = nn.Linear(4, 4, device="meta")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(tg.ConfigError, match="on a device"):
        training_context(loader, net, F.mse_loss, optimizer, memory="64MiB").__enter__()


def test_what_fails_leaves_all_as_it_was(rows, monkeypatch):
    loader, net = loader_of(rows), net_of()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    how = {"memory": RESERVE_BYTES + 24 * MIB, "micro_batches": 1, **HOW}
    batches = [{"data": torch.randn(128, 256)} for _ in range(3)]
    with training_context(loader, net, F.mse_loss, optimizer, **how) as step:
        with pytest.raises(tg.ConfigError, match="in another training_context"):
            training_context(loader, net, F.mse_loss, optimizer, **how).__enter__()
        for batch in batches[:2]:
            step(batch)
        before = step.report()
        with pytest.raises(tg.BudgetError, match=r"do not fit 34.0 MiB together"):
            step.set_memory(RESERVE_BYTES + 2 * MIB)
        state = step.state_dict()
        for wrong in ({**state, "loader": {}}, {**state, "besides": True}, {**state, "steps": -1}):
            torch.manual_seed(11)
            with pytest.raises(tg.StateError):
                step.load_state_dict(wrong)
            assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(11).get_state())
        after = step.report()
        assert (after.memory_bytes, after.loader_bytes, after.plan.schedule, after.steps) == (
            before.memory_bytes, before.loader_bytes, before.plan.schedule, 2)  # fmt: skip
        assert loader.budget.cap_bytes == before.loader_bytes
        step(batches[2])
        # More than was set aside: it is planned for where that fits, and else the step goes on.
        above = [how["memory"] + 300 * MIB]
        monkeypatch.setattr(process, "begin_peak", lambda: 0)
        monkeypatch.setattr(process, "peak_bytes", lambda _: step._base + above[0])
        for grows in (False, True):
            for batch in batches:
                step(batch)
            assert (step.report().besides_bytes > RESERVE_BYTES) == grows
            assert step.report().loader_bytes == loader.budget.cap_bytes
            above[0] = how["memory"] + 4 * MIB
    with training_context(loader, net, F.mse_loss, optimizer, **how) as step:
        assert step(batches[0]) > 0


def test_a_limit_that_falls_too_low_is_said_at_every_step(rows, monkeypatch):
    loader, net = loader_of(rows), net_of()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    now = [process.anonymous_bytes() + 300 * MIB]
    monkeypatch.setattr(limit, "size_of", lambda share: int(now[0] * share))
    batch = next(iter(loader))
    for memory in (1.0, "1.0", np.float32(1)):
        now[0] = process.anonymous_bytes() + 300 * MIB
        with training_context(loader, net, F.mse_loss, optimizer, memory=memory, **HOW) as step:
            step(batch)
            assert step.report().memory_bytes == int(now[0]) - step._base
            now[0] = step._base + MIB
            for _ in range(2):
                with pytest.raises(tg.BudgetError, match=r"do not fit 1.0 MiB"):
                    step(batch)


def test_sizes_that_are_parts_of_the_limit():
    parts = [0.5, "0.5", " 1.0 ", np.float32(0.5), torch.tensor(0.25), 1.0]
    assert [limit.share_of(part) for part in parts] == [0.5, 0.5, 1.0, 0.5, 0.25, 1.0]
    assert [limit.share_of(size) for size in (1, True, "8GiB", "1048576", np.int64(1), None, 2.5)] == [None] * 7
