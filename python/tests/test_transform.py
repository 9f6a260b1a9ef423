"""What a `transform` takes and returns: arrays, tensors, rows of any length, and what is wrong."""

import numpy as np
import pytest
import torch

import tidegate as tg


def loader(transform, samples=24, **options):
    options = {"batch_size": 8, "memory": tg.Budget("32MiB"), **options}
    return tg.Loader(tg.synthetic(samples, 8), transform=transform, **options)


def tensors(sample, rng):
    assert isinstance(sample["id"], torch.Tensor)
    return {"x": sample["id"] * torch.ones(3), "id": sample["id"], "name": f"sample {int(sample['id'])}"}


@pytest.mark.parametrize("processes", [0, 2])
def test_torch_samples_are_tensors_and_become_tensors(processes):
    with loader(tensors, output="torch", processes=processes, extras=("mask", "ids")) as made:
        batches = list(made)
    assert torch.cat([batch["x"] for batch in batches]).tolist() == [[float(i)] * 3 for i in range(24)]
    assert batches[0]["x"].dtype == torch.float32
    assert batches[0]["id"].dtype == torch.int64
    assert batches[1]["name"][0] == "sample 8"
    assert batches[2]["ids"].tolist() == list(range(16, 24)), "extras outlive a transform"
    assert all(batch["mask"].all() for batch in batches)


def ragged(sample, rng):
    number = int(sample["id"])
    return {"tokens": np.arange(number % 5, dtype=np.int32), "box": np.full((number % 3, 4), number, np.float32)}


def ragged_tensors(sample, rng):
    return {name: torch.from_numpy(value) for name, value in ragged(sample, rng).items()}


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("transform", [ragged, ragged_tensors])
def test_rows_of_several_lengths_become_ragged(transform, processes):
    with loader(transform, processes=processes) as made:
        batches = list(made)
    tokens = [row.tolist() for batch in batches for row in batch["tokens"]]
    assert tokens == [list(range(i % 5)) for i in range(24)]
    boxes = [row for batch in batches for row in batch["box"]]
    assert [row.shape for row in boxes] == [(i % 3, 4) for i in range(24)]
    assert all((row == i).all() for i, row in enumerate(boxes))
    assert batches[0]["tokens"].values.dtype == np.int32


@pytest.mark.parametrize(
    ("later", "words"),
    [
        (None, "returned NoneType: expected a dict"),
        (np.zeros(3), "returned ndarray: expected a dict"),
        ({"y": 1}, "others for the first sample of the batch .* differ in x, y"),
        ({"x": 1, "y": 2}, "differ in y"),
        ({}, "differ in x"),
        ({"x": 0.5}, "'x' of float64 where the first sample has int64: return one dtype"),
        ({"x": [1, 2]}, r"'x' of shape \(2,\) where the first sample has \(\)"),
        ({"x": "text"}, "'x' of str"),
    ],
)
def test_a_wrong_result_says_what_was_expected(later, words):
    def transform(sample, rng):
        return later if sample["id"] == 3 else {"x": 1}

    with pytest.raises(tg.ConfigError, match=words):
        next(iter(loader(transform)))


def test_numbers_widen_but_are_not_cut():
    batch = next(iter(loader(lambda sample, rng: {"x": 0.5 if sample["id"] == 0 else int(sample["id"])})))
    assert batch["x"].tolist() == [0.5, 1, 2, 3, 4, 5, 6, 7]


def test_sparse_tensors_are_refused_by_name():
    with pytest.raises(tg.ConfigError, match="'x' as torch.sparse_coo on cpu: return dense CPU tensors"):
        next(iter(loader(lambda sample, rng: {"x": torch.eye(2).to_sparse()})))
