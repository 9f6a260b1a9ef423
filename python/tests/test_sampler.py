"""`sampler=`: an array, a function of the epoch or an iterable; others are refused by name."""

import io
import json
import tarfile
import threading
import time

import numpy as np
import pytest
from PIL import Image

import tidegate as tg
from tidegate import _tidegate, samplers

N = 40


def loader(source, sampler, **more):
    options = {"batch_size": 8, "memory": tg.Budget("16MiB"), "extras": ("ids",), **more}
    return tg.Loader(str(source) if not isinstance(source, tg.Source) else source, sampler=sampler, **options)


def ids(loader):
    return [int(id) for batch in loader for id in batch["ids"]]


class Stepping:
    """An iterable like torch's samplers, that counts how far it was asked."""

    def __init__(self, length=100):
        self.length, self.epoch, self.asked = length, None, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.length

    def __iter__(self):
        for i in range(self.length):
            self.asked += 1
            yield (i * 7 + self.epoch) % N


def test_arrays_are_the_order_of_every_epoch(folder):
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, N, 100)
    for given in (drawn, drawn.tolist(), tuple(drawn.tolist()), drawn.astype(np.int16)):
        made = loader(folder, given)
        assert len(made) == 13
        assert ids(made) == ids(made) == drawn.tolist()
    assert ids(loader(folder, range(N - 1, -1, -1))) == list(range(N - 1, -1, -1))
    assert ids(loader(folder, [])) == []


def test_functions_give_an_array_for_each_epoch_and_need_not_know_of_more(folder):
    lists = [np.random.default_rng(epoch).permutation(N)[:30] for epoch in range(3)]
    made = loader(folder, lambda epoch: lists[epoch], shuffle=False)
    for epoch in range(3):
        assert ids(made) == lists[epoch].tolist()
        json.dumps(made.state_dict())
    with pytest.raises(tg.ConfigError, match="the sampler raised IndexError"):
        ids(made)


def test_iterables_are_asked_as_late_as_can_be(folder):
    sampler = Stepping()
    made = loader(folder, sampler, workers=1, prefetch=0)
    assert len(made) == 13
    batches = iter(made)
    next(batches)
    assert 8 <= sampler.asked <= 3 * 8
    assert [int(id) for batch in batches for id in batch["ids"]] == [i * 7 % N for i in range(8, 100)]
    assert ids(made) == [(i * 7 + 1) % N for i in range(100)]
    assert sampler.epoch == 1
    report = made.report()
    assert report["stages"]["cache_rule"] == "adaptive"
    assert "the order is not known ahead" in str(report)


def test_ranks_take_their_parts_of_one_order(folder):
    drawn = np.random.default_rng(2).integers(0, N, 64)
    for given in (lambda: drawn, lambda: lambda epoch: drawn, Stepping):
        whole = ids(loader(folder, given(), batch_size=None, global_batch_size=8))
        parts = [
            [batch["ids"].tolist() for batch in loader(folder, given(), batch_size=4, rank=rank, world_size=2)]
            for rank in range(2)
        ]
        assert [id for pair in zip(*parts, strict=True) for part in pair for id in part][: len(whole)] == whole


def test_a_saved_state_goes_on_and_knows_its_sampler(folder):
    drawn = np.random.default_rng(3).integers(0, N, 64)
    for given in (lambda: drawn, lambda: lambda epoch: np.roll(drawn, epoch), Stepping):
        first = loader(folder, given())
        batches = iter(first)
        seen = [int(id) for _ in range(3) for id in next(batches)["ids"]]
        state = json.loads(json.dumps(first.state_dict()))
        first.close()
        second = loader(folder, given(), workers=3)
        second.load_state_dict(state)
        assert seen + ids(second) == ids(loader(folder, given()))

    class Random(Stepping):
        """As torch's random samplers: others each time."""

        def __iter__(self):
            yield from np.random.default_rng().integers(0, N, self.length)

    first = loader(folder, Random())
    next(iter(first))
    state = json.loads(json.dumps(first.state_dict()))
    second = loader(folder, Random())
    second.load_state_dict(state)
    with pytest.raises(tg.StateError, match="first .* ids that the sampler gives for epoch 0 are others"):
        ids(second)
    with pytest.raises(tg.StateError, match="this loader has a sampler that lists its ids"):
        loader(folder, np.arange(100) % N).load_state_dict(state)
    listed = loader(folder, np.arange(100) % N).state_dict()
    with pytest.raises(tg.StateError, match="saved with a sampler that lists its ids"):
        loader(folder, Stepping()).load_state_dict(listed)
    state = loader(folder, drawn).state_dict()
    with pytest.raises(tg.StateError, match="gives other ids for epoch 0"):
        loader(folder, drawn[::-1]).load_state_dict(state)
    with pytest.raises(tg.StateError, match="a sampler of 64 ids, and this loader has a sampler of 63 ids"):
        loader(folder, drawn[1:]).load_state_dict(state)
    with pytest.raises(tg.StateError, match="this loader has no sampler"):
        loader(folder, None, shuffle=True).load_state_dict(state)


def test_what_a_sampler_raises_is_the_cause(folder):
    class Failing(Stepping):
        def __iter__(self):
            yield from range(20)
            raise KeyError("boom")

    def function(epoch):
        return [1, 2, 3] if epoch == 0 else {}["boom"]

    for given in (Failing(), function):
        made = loader(folder, given, workers=3)
        if given is function:
            ids(made)
        with pytest.raises(tg.ConfigError, match="the sampler raised KeyError: 'boom'") as raised:
            ids(made)
        assert isinstance(raised.value.__cause__, KeyError)


def test_a_sampler_that_waits_for_training_gets_its_batches_and_one_that_hangs_is_named(folder):
    ready, asked = threading.Semaphore(3), []

    class Waiting(Stepping):
        def __iter__(self):
            for i in range(80):
                if i % 8 == 0:
                    ready.acquire()
                asked.append(i)
                yield i % N

    made = loader(folder, Waiting(80), prefetch=0, stall_seconds=1)
    seen = []
    for batch in made:
        seen += batch["ids"].tolist()
        del batch
        if len(seen) <= 40:
            ready.release()
        if len(seen) == 64:
            break
    assert seen == [i % N for i in range(64)]
    began = time.monotonic()
    with pytest.raises(tg.StalledError, match="the sampler was asked for its next id, and has not answered"):
        list(loader(folder, Waiting(80), prefetch=0, stall_seconds=1))
    assert time.monotonic() - began < 60
    ready.release(1000)


def test_a_sampler_may_ask_other_loaders_but_not_its_own(folder):
    class Asking(Stepping):
        def __iter__(self):
            scores = loader(folder, [3, 1, 2])
            yield from ids(scores) + ids(scores)
            yield self.own.report() and 3

    sampler = Asking(7)
    made = sampler.own = loader(folder, sampler)
    with pytest.raises(tg.ConfigError, match="a sampler cannot ask the loader that asks it"):
        ids(made)
    held = []
    # It knows its own length without asking.
    held.append(loader(folder, lambda epoch: [1, 2, len(held and held[0] or "abc")]))
    assert ids(held[0]) == [1, 2, 3]
    assert ids(held[0]) == [1, 2, 1]
    held[0] = loader(folder, lambda epoch: [1, 2, epoch and len(held[0].report())])
    assert ids(held[0]) == [1, 2, 0]
    with pytest.raises(tg.ConfigError, match="a sampler cannot ask the loader that asks it"):
        ids(held[0])


def test_memory_changes_while_an_iterable_is_asked(folder):
    class Slow(Stepping):
        def __iter__(self):
            for i in range(self.length):
                time.sleep(0.001)
                yield i % N

    made = loader(folder, Slow(), workers=1)
    seen = []
    for batch in made:
        seen += batch["ids"].tolist()
        del batch
        made.set_memory(["6MiB", "16MiB"][len(seen) // 8 % 2])
    assert seen == [i % N for i in range(100)]


def test_what_replaces_a_failed_sample_is_one_of_the_sampler(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for i in range(200):
            info = tarfile.TarInfo(f"{i:04}.json")
            data = b"{}" if i % 5 else b"{no"
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for given in (np.arange(100), lambda epoch: np.arange(100), Stepping(100)):
        source = tg.open(tmp_path / "s.tar")
        made = loader(source, given, on_error="replace", max_failure_rate=1.0, fields={"json": tg.Json()})
        seen = ids(made)
        assert len(seen) == 100
        assert max(seen) < 100
        assert all(id % 5 for id in seen)


def test_lists_count_when_memory_changes(folder):
    made = loader(folder, lambda epoch: np.zeros(500_000, int), memory=tg.Budget("32MiB"))
    with pytest.raises(tg.BudgetError):
        made.set_memory("10MiB")
    assert made.budget.cap_bytes == 32 << 20
    with pytest.raises(tg.BudgetError, match="the sampler's 500000 ids, which takes 11.4 MiB"):
        loader(folder, lambda epoch: np.zeros(500_000, int), memory=tg.Budget("8MiB"))


def test_torch_samplers(folder):
    import torch
    from torch.utils import data

    weights = torch.rand(N, generator=torch.Generator().manual_seed(1))
    for make in (
        lambda g: data.WeightedRandomSampler(weights, 90, generator=g),
        lambda g: data.RandomSampler(range(N), generator=g),
        lambda g: data.SubsetRandomSampler(range(5, 25), generator=g),
    ):
        expected = list(make(torch.Generator().manual_seed(5)))
        assert ids(loader(folder, make(torch.Generator().manual_seed(5)), output="numpy")) == expected
    with pytest.raises(tg.ConfigError, match="divides ids among ranks"):
        loader(folder, data.DistributedSampler(range(N), num_replicas=2, rank=0))
    batches = data.BatchSampler(range(N), 4, drop_last=False)
    with pytest.raises(tg.ConfigError, match="is no id: a sampler gives single ids"):
        ids(loader(folder, batches))
    assert ids(loader(folder, torch.arange(7))) == list(range(7))


@pytest.mark.parametrize(
    ("sampler", "what"),
    [
        ([1, N], f"the sampler gives id {N} at position 1, but there are {N} samples"),
        ([3, -1], "the sampler gives id -1 at position 1"),
        ([0.5, 1], "must be one row of integers, not float64"),
        ([True, False], "bool of shape .*np.flatnonzero makes ids of a mask"),
        ([[1, 2]], r"not int64 of shape \(1, 2\)"),
        ((i for i in range(3)), "has no length"),
        (7, "give an array of ids, a function of the epoch, or an iterable"),
        (lambda epoch: [epoch, N], "the sampler's epoch 0 gives id 40 at position 1"),
    ],
)
def test_what_is_no_sampler_is_named(folder, sampler, what):
    with pytest.raises(tg.ConfigError, match=what):
        loader(folder, sampler)


def test_wrong_ids_in_the_middle_and_a_wrong_length_are_named(folder):
    class Wrong(Stepping):
        def __iter__(self):
            yield from [1, 2, N]

    with pytest.raises(tg.ConfigError, match=f"gives id {N} at position 2"):
        ids(loader(folder, Wrong()))
    short = Stepping(12)
    short.__class__ = type("Short", (Stepping,), {"__len__": lambda _: 100})
    with pytest.raises(tg.ConfigError, match="ended after 12 ids, but its length is 100"):
        ids(loader(folder, short))
    lists = [[1, 2, 3], [1, 2]]
    made = loader(folder, lambda epoch: lists[epoch])
    assert ids(made) == [1, 2, 3]
    with pytest.raises(tg.ConfigError, match="gives 2 ids for epoch 1, not 3 as for others"):
        ids(made)
    with pytest.raises(tg.ConfigError, match="either a shuffle or a sampler"):
        loader(folder, [1, 2], shuffle=True)


def test_what_is_hit_is_what_was_foretold_and_said_to_be_the_most(folder):
    drawn = np.random.default_rng(4).integers(0, N, 400)
    made = loader(folder, drawn, batch_size=16)
    for _ in range(2):
        ids(made)
    stages = made.report()["stages"]
    assert stages["cache_rule"] == "min"
    assert 0 < stages["hit_bytes"] <= stages["could_hit_bytes"]
    assert "what comes next soonest is kept" in str(made.report())
    (point,) = tg.cache_curve(made, memory=["16MiB"], read=1e9)
    assert point["point"]["hits"] == stages["hits"] == 400
    with pytest.raises(tg.ConfigError, match="not known beforehand"):
        tg.cache_curve(loader(folder, Stepping()), memory=["16MiB"], read=1e9)


def _jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 99, 199)).save(buffer, "JPEG")
    return buffer.getvalue()


JPEG = _jpeg()
LABELS = np.repeat([7, 3, 9], [70, 25, 5])


def drawn(sampler, **options):
    loader = tg.Loader(tg.synthetic(100, 8), batch_size=20, memory=tg.Budget("16MiB"), sampler=sampler, **options)
    return [batch.ids.tolist() for batch in loader]


def test_classes_have_their_shares():
    names = np.array(["b", "a", "c"])[np.unique(LABELS, return_inverse=True)[1]]
    for labels in (LABELS, LABELS.tolist(), names, LABELS.astype(np.float32)):
        for ids in drawn(samplers.stratified(labels)):
            counts = [int((LABELS[ids] == label).sum()) for label in (7, 3, 9)]
            assert counts == [14, 5, 1]
        over = drawn(samplers.balanced(labels, block=30))
        assert len(over) == 11
        assert np.bincount(np.concatenate(over), minlength=100)[95:].tolist() == [14] * 5
    under = drawn(samplers.balanced(LABELS, "under"))
    assert len(np.concatenate(under)) == 15
    effective = np.concatenate(drawn(samplers.balanced(LABELS, "effective", beta=0.99, positions=1000)))
    share = (LABELS[effective] == 9).mean()
    assert 0.05 < share < 1 / 3


def test_weights_difficulties_and_mixtures():
    for dtype in (np.float32, np.float64, np.int64):
        ids = np.concatenate(drawn(samplers.weighted((np.arange(100) % 2).astype(dtype), 2000)))
        assert len(ids) == 2000
        assert (ids % 2 == 1).all()
    first = np.concatenate(drawn(samplers.curriculum(np.arange(100)[::-1], epochs=4, start=0.1, pace=4)))
    assert first.min() >= 90
    mixed = drawn(samplers.mixture([80, 20], [1, 1], until=60))
    assert [sum(id < 80 for id in ids) for ids in mixed] == [10, 10, 10]
    assert len(np.concatenate(drawn(samplers.replacement(45)))) == 45


def test_a_drawn_order_follows_from_the_seed_and_goes_on():
    sampler = samplers.weighted(np.arange(100), 100)
    assert drawn(sampler, seed=1) == drawn(sampler, seed=1, workers=3) != drawn(sampler, seed=2)
    ranks = [drawn(sampler, seed=1, rank=rank, world_size=2) for rank in range(2)]
    loader = tg.Loader(tg.synthetic(100, 8), batch_size=40, memory=tg.Budget("16MiB"), sampler=sampler, seed=1)
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)][:2] == [sorted(b.ids.tolist()) for b in loader][:2]
    loader = tg.Loader(tg.synthetic(100, 8), batch_size=20, memory=tg.Budget("16MiB"), sampler=sampler, seed=1)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    other = tg.Loader(tg.synthetic(100, 8), batch_size=20, memory=tg.Budget("16MiB"), sampler=sampler, seed=5)
    with pytest.warns(tg.DataWarning, match="seed=1"):
        other.load_state_dict(state)
    assert [b.ids.tolist() for b in other] == drawn(sampler, seed=1)[1:]
    third = tg.Loader(
        tg.synthetic(100, 8), batch_size=20, memory=tg.Budget("16MiB"), sampler=samplers.weighted(np.ones(100), 100)
    )
    with pytest.raises(tg.StateError, match="other ids"):
        third.load_state_dict(state)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: samplers.weighted([1.0] * 99), "99 weights for 100 samples"),
        (lambda: samplers.weighted([-1.0] + [1.0] * 99), "the weight of id 0 is -1"),
        (lambda: samplers.weighted(np.full(100, np.nan)), "the weight of id 0 is NaN"),
        (lambda: samplers.weighted(np.zeros(100)), "add up to 0"),
        (lambda: samplers.weighted(["a"] * 100), "one row of numbers"),
        (lambda: samplers.stratified(LABELS[:50]), "50 labels for 100 samples"),
        (lambda: samplers.stratified(LABELS, block=0), "block=0"),
        (lambda: samplers.weighted(np.ones(100), -1), "positions=-1"),
        (lambda: samplers.mixture([50, 50], [1, 1], until=-1), "until=-1"),
        (lambda: samplers.mixture([50, 50], [1, 1e-300], until="all"), "at most 2^50"),
        (lambda: samplers.curriculum(np.arange(100), epochs=1, pace=1.5), "pace=1.5"),
        (lambda: samplers.stratified(["a", None] * 50), "the label of id 1 is None"),
        (lambda: samplers.stratified(np.array([np.nan] * 100)), "the label of id 0 is NaN"),
        (lambda: samplers.balanced(LABELS, "more"), "how='more'"),
        (lambda: samplers.balanced(LABELS, "effective", beta=1.5), "beta=1.5: expected a number from 0 to 1"),
        (lambda: samplers.balanced(LABELS, positions=5), "positions=5 with how='over'"),
        (lambda: samplers.mixture([50, 40], [1, 1]), "90 samples in all sources for 100 samples"),
        (lambda: samplers.mixture([50, 50], [1]), "1 proportions for 2"),
        (lambda: samplers.mixture([50, 50], [1, -1]), "proportion 1 is -1"),
        (lambda: samplers.mixture([100, 0], [1, 1]), "source 1 of the mixture has no samples"),
        (lambda: samplers.curriculum(np.arange(100), epochs=0), "a positive number of epochs"),
        (lambda: samplers.curriculum(np.arange(100), epochs=1, start=0), "above 0 and up to 1"),
        (lambda: samplers.curriculum(np.full(100, np.nan), epochs=1), "the difficulty of id 0 is NaN"),
    ],
)
def test_a_drawn_order_that_cannot_be(made, says):
    with pytest.raises(tg.ConfigError) as error:
        drawn(made())
    assert says in str(error.value)


def learner(how, **options):
    return tg.Loader(tg.synthetic(100, 8), batch_size=20, memory=tg.Budget("16MiB"), sampler=how, **options)


def losses(ids):
    return np.where(ids < 10, 9.0, 1.0)


@pytest.mark.parametrize("how", [samplers.hard, samplers.focal, samplers.importance])
def test_feedback_counts_from_the_next_epoch_on(how):
    loader = learner(how(positions=1000), seed=3)
    first = []
    for batch in loader:
        first.append(batch.ids)
        loader.feedback(batch.indices, losses(batch.ids))
        assert (batch.weights == 1).all()
    assert np.bincount(np.concatenate(first)).tolist() == [10] * 100
    second, weights = map(np.concatenate, zip(*[(b.ids, b.weights) for b in loader], strict=True))
    assert (second < 10).mean() > (0.3 if how is not samplers.focal else 0.15)
    about = loader.report()["feedback"]
    assert about["drawn"]
    assert (about["epoch"], about["known"]) == (1, 100)
    assert "losses of 100 samples were known when epoch 1 began" in str(loader.report())
    if how is samplers.importance:
        assert (weights * losses(second)).mean() == pytest.approx(1.8, rel=0.05)
        assert weights[second < 10].max() < 0.5
    else:
        assert (weights == 1).all()


def test_feedback_goes_on_where_a_state_was_saved():
    loader = learner(samplers.hard(), seed=3)
    for batch in loader:
        loader.feedback(batch.indices, losses(batch.ids))
    batches = iter(loader)
    next(batches)
    loader.feedback([3], [0.0])
    state, fed = loader.state_dict(), loader.feedback_state()
    assert len(str(state)) < 1024
    rest = [b.ids.tolist() for b in batches]
    third = [b.ids.tolist() for b in loader]
    other = learner(samplers.hard(), seed=4)
    with pytest.raises(tg.StateError, match="load its feedback first"):
        other.load_state_dict(state)
    other.load_feedback_state(fed)
    with pytest.warns(tg.DataWarning, match="seed=3"):
        other.load_state_dict(state)
    assert [b.ids.tolist() for b in other] == rest
    assert [b.ids.tolist() for b in other] == third
    ranks = [learner(samplers.hard(), seed=3, rank=rank, world_size=2) for rank in range(2)]
    for rank in ranks:
        rank.load_feedback_state(fed)
        rank.set_epoch(1)
    parts = [[b.ids[b.mask].tolist() for b in rank] for rank in ranks]
    whole = learner(samplers.hard(), seed=3)
    whole.load_feedback_state(fed)
    whole.set_epoch(1)
    together = [id for b in range(len(parts[0])) for part in parts for id in part[b]]
    assert together == [id for b in whole for id in b.ids.tolist()]


def test_feedback_of_a_part_speaks_of_its_own_indices():
    whole = tg.synthetic(1000, 8)
    part = whole.select(list(range(99, -1, -1)))
    loader = tg.Loader(part, batch_size=20, memory=tg.Budget("16MiB"), sampler=samplers.importance(), seed=1)
    for batch in loader:
        assert (batch.ids == 99 - batch.indices).all()
        loader.feedback(batch.indices, np.where(batch.ids == 7, 99.0, 1.0))
    second = list(loader)
    ids, weights = (np.concatenate([getattr(b, name) for b in second]) for name in ("ids", "weights"))
    assert (ids == 7).mean() > 0.3
    assert weights[ids == 7].max() < weights[ids != 7].min()


def test_another_rule_is_another_order():
    loader = learner(samplers.hard(), seed=3)
    for batch in loader:
        loader.feedback(batch.indices, losses(batch.ids))
    next(iter(loader))
    state, fed = loader.state_dict(), loader.feedback_state()
    for other in (samplers.hard(2.0), samplers.hard(even=0.9), samplers.focal(), samplers.importance()):
        loader = learner(other, seed=3)
        loader.load_feedback_state(fed)
        before = loader.state_dict()
        with pytest.raises(tg.StateError, match="other ids"):
            loader.load_state_dict(state)
        assert loader.state_dict() == before


def test_feedback_that_makes_no_sense():
    loader = learner(samplers.hard())
    for ids, given, says in [
        ([100], [1.0], "id 100, but there are 100 samples"),
        ([5], [np.nan], "the loss of id 5 is NaN"),
        ([5], [-1.0], "the loss of id 5 is -1"),
        ([5, 6], [1.0], "1 losses for 2 ids"),
        ([-1], [1.0], "no sample -1"),
        (np.array([True]), [1.0], "not bool"),
        ([5], ["a"], "losses must be numbers"),
    ]:
        with pytest.raises(tg.ConfigError, match=says):
            loader.feedback(ids, given)
    with pytest.raises(tg.StateError, match="3 bytes are not the losses of 100 samples"):
        loader.load_feedback_state(b"abc")
    deaf = tg.Loader(tg.synthetic(100, 8), batch_size=20, memory=tg.Budget("16MiB"))
    with pytest.raises(tg.ConfigError, match="takes no feedback"):
        deaf.feedback([1], [1.0])
    assert deaf.feedback_state() is None


def test_tables_are_charged():
    with pytest.raises(tg.BudgetError, match="too small for the table of weights, which takes 76"):
        tg.Loader(
            tg.synthetic(10_000_000, 8),
            batch_size=8,
            memory=tg.Budget("64MiB"),
            sampler=samplers.weighted(np.ones(10**7)),
        )


def test_shuffle_quality_says_what_windows_are_worth(capfd, tmp_path):
    page = tmp_path / "quality.html"
    made = ["tidegate", "shuffle-quality", "--samples", "20000", "--shard", "1000", "--classes", "20"]
    assert _tidegate.cli([*made, "--windows", "2000", "--json", "--html", str(page)]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [c["reads"] for c in found] == [20, 200, 2000, 20000]
    variations = [c["quality"]["label_variation"] for c in found]
    assert variations == sorted(variations, reverse=True)
    assert "<svg" in page.read_text()
    assert _tidegate.cli([*made, "--windows", "5000", "--within", "1.3"]) == 0
    assert (
        "the fewest reads within 1.30x of a true shuffle: shuffle=tg.Window(5000, ranges=10)" in capfd.readouterr().out
    )
    assert _tidegate.cli(["tidegate", "shuffle-quality"]) == 1
    assert "give a dataset, or --samples and --shard" in capfd.readouterr().err
    loader = tg.Loader(
        tg.synthetic(1000, 8),
        batch_size=50,
        memory=tg.Budget("16MiB"),
        shuffle=tg.Window(200, range_samples=10),
        seed=1,
    )
    ids = np.concatenate([b.ids for b in loader])
    assert sorted(ids) == list(range(1000))
    # Of ranges of ten, two hundred in a window: each is whole in its window.
    assert all(len(set(ids[at : at + 200] // 10)) == 20 for at in range(0, 1000, 200))


def test_indices_are_of_what_took_a_row(tmp_path):
    """Of a sample that failed and was replaced, the index is the other's, as the id is."""
    for label in range(2):
        (tmp_path / str(label)).mkdir()
        for i in range(20):
            (tmp_path / str(label) / f"{i}.jpg").write_bytes(b"broken" if i % 10 == 3 else JPEG)
    part = tg.open(str(tmp_path)).select(list(range(39, -1, -1)))
    loader = tg.Loader(part, batch_size=8, memory=tg.Budget("32MiB"), on_error="replace", max_failure_rate=1.0)
    batches = list(loader)
    assert all((batch.ids == 39 - batch.indices).all() for batch in batches)
    assert any((batch.indices != batch.positions).any() for batch in batches)
