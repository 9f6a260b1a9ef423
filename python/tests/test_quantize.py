"""Quantized arrays: what NumPy says of the formula, and what cannot be quantized."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidegate as tg
from tidegate.quantize import Calibrator, Quantized, quantize


@given(
    st.integers(2, 8),
    st.sampled_from(["affine", "symmetric", "offset"]),
    st.sampled_from(["tensor", "row", ("channel", 0), ("channel", 1), ("block", 7)]),
    st.integers(0, 2**32),
)
def test_codes_are_those_that_numpy_makes(bits, scheme, per, seed):
    x = np.random.default_rng(seed).normal(1, 2, (3, 4, 5)).astype("float32")
    small = quantize(x, bits, scheme=scheme, per=per)
    scale, zero, base = small.grids.T
    # The grid of each value.
    index = np.arange(60).reshape(3, 4, 5)
    group = {
        "tensor": index * 0,
        "row": index // 5,
        ("channel", 0): index // 20,
        ("channel", 1): index // 5 % 4,
        ("block", 7): index // 7,
    }[per]
    scale, zero, base = scale[group], zero[group], base[group]
    first = 1 if scheme == "symmetric" else 0
    codes = np.clip(np.rint((x - base) / scale) + zero, first, 2**bits - 1).astype("float32")
    values = (codes - zero) * scale + base
    np.testing.assert_array_equal(small.dequantize(), values)
    packed = np.packbits(
        (codes.reshape(-1, 1).astype("uint8") >> np.arange(bits, dtype="uint8") & 1).reshape(-1), bitorder="little"
    )
    np.testing.assert_array_equal(small.codes, packed)
    for dtype in ("float16", ml_dtypes.bfloat16):
        np.testing.assert_array_equal(small.dequantize(dtype), values.astype(dtype))
    again = Quantized.from_bytes(small.to_bytes())
    np.testing.assert_array_equal(again.dequantize(), values)
    fidelity = small.fidelity(x)
    error = values.astype("float64") - x
    assert fidelity["sqnr_db"] == pytest.approx(10 * np.log10((x.astype("float64") ** 2).sum() / (error**2).sum()))
    assert fidelity["largest_error"] == pytest.approx(abs(error).max())
    assert small.nbytes == len(packed) + len(small.grids) * (4 if scheme == "symmetric" else 8)


def test_a_calibrator_sees_what_comes_piece_by_piece():
    rng = np.random.default_rng(0)
    x = rng.normal(0, [[1], [10]], (64, 2, 50)).astype("float32")
    seen = Calibrator(6, scheme="symmetric", range="best", channel=1, channels=2)
    for piece in x:
        seen.observe(piece[None])
    whole = quantize(x, 6, scheme="symmetric", range="best", per=("channel", 1))
    np.testing.assert_allclose(seen.grids, whole.grids, rtol=1e-2)
    assert seen.nbytes == 2 * (8 + 8192 * 16)
    assert seen.quantize(x).fidelity(x)["sqnr_db"] > 28
    # Values beyond those that were seen become the ends.
    assert seen.quantize(np.full((1, 2, 1), 1e9)).dequantize().max() < 50
    one = quantize(x, 4, stochastic=7)
    np.testing.assert_array_equal(one.codes, quantize(x, 4, stochastic=7).codes)
    assert abs(one.fidelity(x)["bias"]) < abs(one.grids[0, 0]) * 0.02


def test_what_cannot_be_quantized_says_why():
    with pytest.raises(tg.DataError, match="value 1 is NaN"):
        quantize([0, np.nan])
    with pytest.raises(tg.DataError, match="value 0 is inf"):
        Calibrator().observe([np.inf])
    with pytest.raises(tg.DataError, match="nothing was observed"):
        _ = Calibrator().grids
    with pytest.raises(tg.ConfigError, match="2 to 8"):
        quantize([1.0], 9)
    for options in ({"bits": "4"}, {"bits": 2.5}, {"bits": -3}, {"stochastic": -1}, {"range": (0, 1)}):
        with pytest.raises(tg.ConfigError, match=f"{next(iter(options))}="):
            quantize([1.0], **options)
    with pytest.raises(tg.ConfigError, match="complex"):
        quantize([1j])
    with pytest.raises(tg.DataError, match="a value is NaN"):
        quantize([1.0]).fidelity([np.nan])
    with pytest.raises(tg.ConfigError, match=r"\(2, 3\) for codes of shape \(3, 2\)"):
        quantize(np.eye(3)[:, :2]).fidelity(np.eye(3)[:2])
    assert quantize(np.arange(4.0)).dequantize(">f4").tolist() == [0, 1, 2, 3]
    assert Calibrator(channel=0, channels=1).channels == 1
    with pytest.raises(tg.ConfigError, match="axis 3"):
        quantize([1.0], per=("channel", 3))
    with pytest.raises(tg.ConfigError, match="4 channels along axis 0"):
        Calibrator(channel=0, channels=4).observe(np.zeros((8, 16)))
    np.testing.assert_array_equal(
        quantize(np.eye(3), per=("channel", -1)).grids, quantize(np.eye(3), per=("channel", 1)).grids
    )
    with pytest.raises(tg.ConfigError, match="both"):
        Calibrator(channel=1)
    with pytest.raises(tg.ConfigError, match="dtype=.int8.: expected"):
        quantize([1.0]).dequantize("int8")
    data = quantize(np.arange(9)).to_bytes()
    for wrong, word in ((data[:-1], "cut short"), (b"TGQ1", "cut short"), (b"something", "something else")):
        with pytest.raises(tg.DataError, match=word):
            Quantized.from_bytes(wrong)
    assert quantize(np.full(5, 3.5)).dequantize().tolist() == [3.5] * 5
    assert quantize([]).dequantize().shape == (0,)
