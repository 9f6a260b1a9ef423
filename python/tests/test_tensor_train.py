"""Tensor trains: errors within what was asked for, and what other packages make of the same."""

import numpy as np
import pytest

import tidegate as tg
from tidegate.tensor_train import TensorTrain, TTMatrix


def smooth(side=16):
    i = np.arange(side) / side
    return 1 / (1 + i[:, None, None, None] + i[:, None, None] + i[:, None] + i)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6, 1e-12])
def test_the_error_is_within_the_tolerance(tolerance, tmp_path):
    x = smooth()
    train = TensorTrain.decompose(x, tolerance)
    assert np.linalg.norm(train.to_dense() - x) <= tolerance * np.linalg.norm(x)
    assert train.norm() == pytest.approx(np.linalg.norm(train.to_dense()))
    assert train.dot(train) == pytest.approx(train.norm() ** 2)
    assert train[3, 1, 4, 15] == pytest.approx(train.to_dense()[3, 1, 4, 15])
    np.testing.assert_allclose(train.slice(2, 5).to_dense(), train.to_dense()[:, :, 5])
    smaller = train.round(1e-1)
    assert max(smaller.ranks) <= max(train.ranks)
    assert np.linalg.norm(smaller.to_dense() - train.to_dense()) <= 0.1001 * train.norm()
    seen = []
    train.blocks(lambda start, block: seen.append((start, block)), memory=20_000)
    assert len(seen) > 1
    assert [start for start, _ in seen] == np.cumsum([0] + [len(b) for _, b in seen[:-1]]).tolist()
    np.testing.assert_allclose(np.concatenate([block for _, block in seen]), train.to_dense().reshape(-1))
    train.save(tmp_path / "x.safetensors")
    again = TensorTrain.load(tmp_path / "x.safetensors")
    assert again.ranks == train.ranks
    assert all((a == b).all() for a, b in zip(again.cores, train.cores, strict=True))
    built = TensorTrain.from_cores(train.cores)
    np.testing.assert_array_equal(built.to_dense(), train.to_dense())


def test_tables_give_their_rows(tmp_path):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(24, 3)) @ rng.normal(size=(3, 30))
    train = TTMatrix.decompose(table, (4, 6), (5, 6), 1e-10)
    assert train.shape == (24, 30)
    assert train.nbytes < 8 * table.size * 2
    np.testing.assert_allclose(train.rows([[3, 23], [0, 3]]), table[[[3, 23], [0, 3]]])
    x = rng.normal(size=30)
    np.testing.assert_allclose(train @ x, table @ x)
    train.save(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(TTMatrix.load(tmp_path / "t.safetensors") @ x, train @ x)
    with pytest.raises(tg.DataError, match="row 24 is beyond the 24 rows"):
        train.rows([24])
    with pytest.raises(tg.ConfigError, match="rows of"):
        TTMatrix.decompose(table, (4, 5), (5, 6))
    TensorTrain.decompose(table).save(tmp_path / "t.safetensors")
    with pytest.raises(tg.DataError, match="without the digits"):
        TTMatrix.load(tmp_path / "t.safetensors")


def test_what_is_no_array_says_why(tmp_path):
    with pytest.raises(tg.DataError, match="element 1 is NaN"):
        TensorTrain.decompose([0, np.nan], 0.1)
    with pytest.raises(tg.ConfigError, match="a tolerance of 2"):
        TensorTrain.decompose([0.0], 2)
    ones = TensorTrain.decompose(np.arange(6.0).reshape(3, 2))
    assert ones[-1, -1] == pytest.approx(5)
    assert ones.slice(-2, -1).to_dense() == pytest.approx([4, 5])
    for at, error in (((0, 9), IndexError), ((1.5, 0), TypeError), (0, tg.ConfigError)):
        with pytest.raises(error):
            _ = ones[at]
    with pytest.raises(tg.ConfigError, match="no axes"):
        TensorTrain.decompose(3.0)
    with pytest.raises(tg.ConfigError, match="complex"):
        TensorTrain.decompose([1j])
    with pytest.raises(tg.DataError, match="NaN"):
        TensorTrain.from_cores([np.full((1, 2, 1), np.nan)])
    with pytest.raises(tg.ConfigError, match="rank, side, rank"):
        TensorTrain.from_cores([np.ones((2, 2))])
    with pytest.raises(tg.DataError, match="after a rank of 1"):
        TensorTrain.from_cores([np.ones((2, 2, 1))])
    (tmp_path / "x").write_bytes(b"no train")
    with pytest.raises(tg.DataError, match="not a tensor train"):
        TensorTrain.load(tmp_path / "x")
    with pytest.raises(ZeroDivisionError):
        TensorTrain.decompose(np.ones((4, 4))).blocks(lambda start, block: 1 / 0)


@pytest.mark.slow
def test_tensorly_makes_the_same_of_it():
    import tensorly
    from tensorly.decomposition import tensor_train

    rng = np.random.default_rng(0)
    for shape, rank in (((5, 6, 7), 3), ((4, 4, 4, 4), 5), ((16, 16, 16, 16), 3)):
        x = rng.normal(size=shape) if len(shape) == 3 else smooth(shape[0])
        theirs = tensor_train(tensorly.tensor(x), rank)
        ours = TensorTrain.decompose(x, rank=rank)
        np.testing.assert_allclose(ours.to_dense(), tensorly.tt_to_tensor(theirs), atol=1e-10)
        assert ours.ranks == tuple(theirs.rank)
        np.testing.assert_allclose(TensorTrain.from_cores(list(theirs)).to_dense(), tensorly.tt_to_tensor(theirs))
