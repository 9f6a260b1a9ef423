"""`sampler=`: an array, a function of the epoch, or an iterable gives the order; what cannot be one is named."""

import json

import numpy as np
import pytest

import tidegate as tg

N = 40


def loader(source, sampler, **more):
    options = {"batch_size": 8, "memory": tg.Budget("16MiB"), "ids": True, **more}
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
    state = loader(folder, drawn).state_dict()
    with pytest.raises(tg.StateError, match="gives other ids for epoch 0"):
        loader(folder, drawn[::-1]).load_state_dict(state)
    with pytest.raises(tg.StateError, match="a sampler of 64 ids, and this loader has a sampler of 63 ids"):
        loader(folder, drawn[1:]).load_state_dict(state)
    with pytest.raises(tg.StateError, match="this loader has no sampler"):
        loader(folder, None, shuffle=True).load_state_dict(state)


def test_torch_samplers(folder):
    data = pytest.importorskip("torch.utils.data")
    import torch

    weights = torch.rand(N, generator=torch.Generator().manual_seed(1))
    for make in (
        lambda g: data.WeightedRandomSampler(weights, 90, generator=g),
        lambda g: data.RandomSampler(range(N), generator=g),
        lambda g: data.SubsetRandomSampler(range(5, 25), generator=g),
    ):
        expected = list(make(torch.Generator().manual_seed(5)))
        assert ids(loader(folder, make(torch.Generator().manual_seed(5)), output="numpy")) == expected
    with pytest.raises(tg.ConfigError, match="gives each rank its part"):
        loader(folder, data.DistributedSampler(range(N), num_replicas=2, rank=0))
    batches = data.BatchSampler(range(N), 4, drop_last=False)
    with pytest.raises(tg.ConfigError, match="is no id: a sampler gives one id after another"):
        ids(loader(folder, batches))
    assert ids(loader(folder, torch.arange(7))) == list(range(7))


@pytest.mark.parametrize(
    ("sampler", "what"),
    [
        ([1, N], f"the sampler gives id {N} at position 1, but there are {N} samples"),
        ([3, -1], "the sampler gives id -1 at position 1"),
        ([0.5, 1], "must be a list of ids, not float64"),
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
    with pytest.raises(tg.ConfigError, match="gives 2 ids for epoch 1, not 3"):
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
