"""Random augmentation: what draws from the global generators repeats nothing, or is warned of."""

import hashlib
import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch

import tidegate as tg
from tidegate.generators import Seeder, Watch, _word


def draws(sample, rng):
    """One number of each generator."""
    return {
        "id": sample["id"],
        "random": random.random(),
        "numpy": np.random.rand(),
        "torch": torch.rand(1, dtype=torch.float64).item(),
        "rng": rng.random(),
    }


def batch_draws(batch):
    batch["noise"] = np.random.rand(batch.rows)
    return batch


def only_rng(sample, rng):
    return {"id": sample["id"], "rng": rng.random()}


def made(samples=400, batch_size=50, **options):
    options = {"memory": tg.Budget("32MiB"), "shuffle": True, "seed": 3, **options}
    return tg.Loader(tg.synthetic(samples, 8), batch_size=batch_size, **options)


def column(batches, name):
    return np.concatenate([np.asarray(batch[name]) for batch in batches])


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_generators_of_worker_processes_follow_from_seed_epoch_and_position(context):
    def run(processes):
        loader = made(
            transform=draws, batch_transform=batch_draws, processes=processes, multiprocessing_context=context
        )
        with loader:
            return [list(loader), list(loader)]

    one, two = run(1), run(3)
    for name in ("random", "numpy", "torch", "rng", "noise"):
        values = [column(epoch, name) for epoch in one]
        assert [column(epoch, name).tolist() for epoch in two] == [v.tolist() for v in values], name
        assert len(np.unique(np.concatenate(values))) == 800, f"{name} repeats"


def test_a_resumed_epoch_draws_what_it_would_have_drawn():
    with made(transform=draws, batch_transform=batch_draws, processes=2) as loader:
        iterator = iter(loader)
        for _ in range(3):
            next(iterator)
        state = loader.state_dict()
        rest = list(iterator)
    with made(transform=draws, batch_transform=batch_draws, processes=3) as other:
        other.load_state_dict(state)
        again = list(other)
    for name in ("id", "random", "numpy", "torch", "noise"):
        assert column(again, name).tolist() == column(rest, name).tolist(), name
    assert [batch.number for batch in again] == [3, 4, 5, 6, 7]


def states():
    return hashlib.sha256(
        repr((random.getstate(), np.random.get_state())).encode() + torch.get_rng_state().numpy().tobytes()
    ).hexdigest()


@pytest.mark.parametrize("processes", [0, 2])
def test_the_generators_of_the_training_process_are_left_alone(processes):
    before = states()
    with made(transform=only_rng, processes=processes) as loader, warnings.catch_warnings():
        warnings.simplefilter("error")
        values = column(loader, "rng")
    assert states() == before
    assert len(np.unique(values)) == 400


def test_draws_on_threads_are_found_and_taken_back():
    before = states()
    loader = made(samples=50, transform=draws)
    with pytest.warns(tg.DataWarning, match=r"numpy\.random and torch.*rng.*processes=N|rng.*processes"):
        next(iter(loader))
    assert states() == before, "one batch, which was watched"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader)


def test_the_warning_can_be_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error", tg.DataWarning)
        with pytest.raises(tg.DataWarning, match=r"draws from numpy\.random"):
            list(made(batch_transform=batch_draws))


class Compose:
    """As Albumentations' `Compose`: a generator of its own, and a method to seed it."""

    def __init__(self):
        self.set_random_seed(None)

    def set_random_seed(self, seed):
        self.generator = np.random.default_rng(seed)

    def __call__(self):
        return self.generator.random()


AUGMENT = Compose()


def by_global(sample, rng):
    return {"id": sample["id"], "x": AUGMENT()}


class ByAttribute:
    def __init__(self):
        self.steps = [Compose()]

    def __call__(self, sample, rng):
        return {"id": sample["id"], "x": self.steps[0]()}

    def method(self, sample, rng):
        return self(sample, rng)


def by_argument(augment, sample, rng):
    return {"id": sample["id"], "x": augment()}


def by_default(sample, rng, augment=Compose()):  # noqa: B008
    return {"id": sample["id"], "x": augment()}


@pytest.mark.parametrize(
    "function",
    [by_global, ByAttribute(), ByAttribute().method, partial(by_argument, Compose()), by_default],
    ids=["global", "attribute", "method", "partial", "default"],
)
def test_objects_with_a_generator_of_their_own_are_seeded(function):
    values = []
    for processes in (1, 3):
        with made(transform=function, processes=processes) as loader:
            values.append(column(loader, "x").tolist())
    assert values[0] == values[1]
    assert len(set(values[0])) == 400
    with pytest.warns(tg.DataWarning, match="Compose"):
        next(iter(made(transform=function)))


def test_a_closure_is_looked_into():
    augment = Compose()
    assert Seeder([lambda sample, rng: augment()], 0).objects == [augment]
    assert Seeder([only_rng], 0).objects == []


def test_a_call_that_fails_gives_the_state_back():
    before = states()

    def fails():
        np.random.rand()
        raise KeyError("x")

    with pytest.warns(tg.DataWarning), pytest.raises(KeyError):
        Watch([])(fails)
    assert states() == before


def torchvision_steps():
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(8, antialias=True), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4)])


class WithTorchvision:
    def __init__(self):
        self.steps = torchvision_steps()

    def __call__(self, sample, rng):
        image = torch.arange(3 * 12 * 12, dtype=torch.uint8).reshape(3, 12, 12)
        return {"id": sample["id"], "image": self.steps(image).numpy()}


class WithAlbumentations:
    def __init__(self):
        import albumentations as A

        self.steps = A.Compose([A.RandomResizedCrop((8, 8)), A.HorizontalFlip(), A.RandomBrightnessContrast(p=1)])

    def __call__(self, sample, rng):
        image = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
        return {"id": sample["id"], "image": self.steps(image=image)["image"]}


@pytest.mark.parametrize("steps", [WithTorchvision, WithAlbumentations])
def test_the_libraries_of_augmentation_repeat_nothing(steps):
    found = []
    for processes in (2, 4):
        with made(samples=300, batch_size=30, transform=steps(), processes=processes) as loader:
            batches = list(loader)
        ids, images = column(batches, "id"), column(batches, "image")
        found.append([hashlib.sha256(image.tobytes()).hexdigest() for image in images[np.argsort(ids)]])
    assert found[0] == found[1]
    # Few crops, flips and strengths may look alike; draws that repeat look alike by the dozen.
    assert len(set(found[0])) > 290


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_no_draw_repeats_in_a_hundred_thousand_samples(processes):
    with made(samples=100_000, batch_size=1000, transform=draws, processes=processes) as loader:
        batches = list(loader)
    for name in ("random", "numpy", "torch", "rng"):
        assert len(np.unique(column(batches, name))) == 100_000, name


def test_no_two_positions_of_an_epoch_have_the_same_half_of_a_seed():
    for epoch in (0, 7):
        halves = {_word(3, 0, epoch, position) & 0xFFFFFFFF for position in range(100_000)}
        assert len(halves) == 100_000
    assert _word(3, 0, 0, 5) != _word(3, 1, 0, 5) != _word(4, 0, 0, 5)
