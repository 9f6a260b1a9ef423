"""When an epoch begins, what an iterator does that was cut off, and where a state goes on."""

import copy
import pickle

import numpy as np
import pytest

import tidegate as tg


def made(samples=40, **options):
    options = {"batch_size": 10, "memory": tg.Budget("16MiB"), "shuffle": True, "seed": 1, **options}
    return tg.Loader(tg.synthetic(samples, 8), **options)


def ids(batches):
    return [batch["id"].tolist() for batch in batches]


def test_an_epoch_begins_with_its_first_batch():
    loader, plain = made(), made()
    iter(loader)
    iter(loader)
    assert ids(loader) == ids(plain)
    assert next(iter(loader)).epoch == 1


def test_an_iterator_that_was_cut_off_raises_and_never_just_ends():
    loader = made()
    first = iter(loader)
    next(first)
    second = iter(loader)
    next(first)
    next(second)
    for _ in range(2):
        with pytest.raises(tg.Error, match="cut off"):
            next(first)
    assert len(list(second)) == 3
    assert list(second) == [], "an iterator at its end stays there"
    outer = iter(loader)
    next(outer)
    next(iter(loader))
    with pytest.raises(tg.Error, match="cut off"):
        next(outer)


def test_two_at_once_are_an_error_not_nothing():
    loader = made()
    with pytest.raises(tg.Error, match="cut off"):
        list(zip(loader, loader, strict=False))


@pytest.mark.parametrize("end", ["close", "load", "seek"])
def test_what_ends_an_epoch_is_said_when_it_is_asked(end):
    loader = made()
    iterator = iter(loader)
    next(iterator)
    {
        "close": loader.close,
        "load": lambda: loader.load_state_dict(made().state_dict()),
        "seek": lambda: loader.seek(2),
    }[end]()
    with pytest.raises(tg.Error, match="cut off"):
        next(iterator)


def test_a_loaded_state_survives_iter_and_set_epoch():
    loader = made()
    iterator = iter(loader)
    next(iterator)
    state, rest = loader.state_dict(), ids(iterator)
    resumed = made()
    resumed.load_state_dict(state)
    # As Lightning does, and then as a loop over epochs does.
    iter(resumed)
    resumed.set_epoch(state["epoch"])
    batches = list(resumed)
    assert ids(batches) == rest
    assert [(batch.epoch, batch.number, batch.last) for batch in batches] == [
        (0, 1, False),
        (0, 2, False),
        (0, 3, True),
    ]
    resumed.load_state_dict(state)
    resumed.set_epoch(4)
    assert [batch.epoch for batch in resumed] == [4] * 4


@pytest.mark.parametrize("remainder", ["uneven", "pad", "drop"])
@pytest.mark.parametrize("samples", [40, 43])
def test_the_state_after_the_last_batch_is_the_next_epoch(samples, remainder):
    loader = made(samples, remainder=remainder)
    iterator = iter(loader)
    for _ in range(len(loader)):
        assert next(iterator).last == (_ == len(loader) - 1)
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    assert list(iterator) == []
    assert loader.state_dict() == state
    resumed = made(samples, remainder=remainder)
    resumed.load_state_dict(state)
    assert ids(resumed) == ids(loader)
    # An earlier version saved the end of the epoch itself.
    resumed.load_state_dict({**state, "epoch": 0, "position": len(loader) * 10 if remainder == "drop" else samples})
    assert next(iter(resumed)).epoch == 1


def test_seek_is_exact_and_checked():
    loader = made(43)
    epochs = [ids(loader) for _ in range(3)]
    for epoch, batch in [(2, 0), (1, 3), (0, 4), (2, 1)]:
        loader.seek(epoch, batch)
        assert ids(loader) == epochs[epoch][batch:]
    loader.seek(0, 5)
    assert ids(loader) == epochs[1]
    for wrong in [(0, 6), (-1, 0), (0, "1"), (1.5, 0)]:
        with pytest.raises(tg.ConfigError, match=r"batch|epoch"):
            loader.seek(*wrong)


def test_a_transform_sees_the_same_number_after_a_resume():
    def numbered(batch):
        return batch.number, batch["id"].tolist()

    loader = made(batch_transform=numbered)
    whole = list(loader)
    loader.seek(0, 2)
    assert list(loader) == whole[2:]


def test_index_is_the_old_name_of_number():
    batch = next(iter(made()))
    with pytest.warns(DeprecationWarning, match=r"Batch\.number"):
        assert batch.index == 0


def test_an_epoch_that_failed_says_so():
    def fails(batch):
        if batch.number == 1:
            raise KeyError("x")
        return batch

    iterator = iter(made(batch_transform=fails))
    next(iterator)
    with pytest.raises(KeyError):
        next(iterator)
    with pytest.raises(tg.Error, match="ended with an error"):
        next(iterator)


def test_what_a_framework_drops_is_named_with_the_fix():
    batch = next(iter(tg.Loader(tg.synthetic(4, 8), batch_size=2, memory=tg.Budget("16MiB"))))
    again = type(batch)(batch.items())
    with pytest.raises(AttributeError, match=r"has no mask: it was made again.*extras=\('mask',\)"):
        _ = again.mask
    with pytest.raises(AttributeError, match="'Batch' object has no attribute 'masks'"):
        _ = again.masks


def test_extras_are_columns():
    loader = made(extras=("mask", "ids", "weights", "positions"), remainder="pad", samples=43)
    last = list(loader)[-1]
    rebuilt = type(last)(last.items())
    assert rebuilt["mask"].tolist() == [True] * 3 + [False] * 7
    assert rebuilt["weights"].tolist() == [1.0] * 3 + [0.0] * 7
    assert rebuilt["positions"].tolist() == list(range(40, 50))
    tensors = next(iter(made(extras=("mask", "ids"), output="torch")))
    assert tensors["mask"].dtype.is_floating_point is False
    assert tensors["ids"].tolist() == tensors["id"].tolist()
    with pytest.raises(tg.ConfigError, match="did you mean 'mask'"):
        made(extras=("masks",))
    with pytest.raises(tg.ConfigError, match="have a field"):
        made(extras=("ids",), fields={"ids": tg.Int()})


def test_sources_are_pickled_and_loaders_say_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "lines.jsonl").write_text("".join(f'{{"x": {i}}}\n' for i in range(20)))
    np.save(tmp_path / "x.npy", np.arange(12).reshape(4, 3))
    np.arange(100, dtype="uint16").tofile(tmp_path / "train.bin")
    monkeypatch.chdir(tmp_path)
    source = tg.open("lines.jsonl")
    sources = [
        source,
        source.select([3, 1, 4]),
        source.split({"train": 0.5, "val": 0.5}, seed=7)["val"].select(range(4)),
        source.filter("x", lambda x: x > 10),
        tg.mapped("x.npy").rows(),
        tg.tokens("train.bin", 9, dtype="uint16"),
        tg.synthetic(5, 8),
    ]
    pickled = [(pickle.dumps(one), one.fingerprint, list(one)) for one in sources]
    monkeypatch.chdir("/")
    for text, fingerprint, samples in pickled:
        again = pickle.loads(text)
        assert again.fingerprint == fingerprint
        assert list(again) == samples
    assert list(copy.deepcopy(sources[1])) == list(sources[1])
    (tmp_path / "lines.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(tg.DataError, match="the data are others"):
        pickle.loads(pickled[0][0])
    with pytest.raises(TypeError, match=r"make one in each process.*source"):
        pickle.dumps(made())


def test_a_state_of_another_order_is_said(recwarn):
    state = made(seed=7, shuffle=tg.Window(8)).state_dict()
    with pytest.warns(tg.DataWarning, match=r"goes on with seed=7 and shuffle=.*window"):
        made().load_state_dict(state)
    made(seed=7, shuffle=tg.Window(8)).load_state_dict(state)
    assert not recwarn.list
