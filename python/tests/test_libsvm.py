"""LIBSVM files: the rows of scikit-learn's reader, in any order and budget; bad lines by name."""

import numpy as np
import pytest

import tidegate as tg
from tidegate.sparse import CSR, product


def written(path, rows=300, columns=50, seed=0, first=1):
    """A file of drawn rows, some of them empty, and the dense matrix and labels that it holds."""
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((rows, columns)) < 0.2, rng.normal(0, 10, (rows, columns)).round(3), 0).astype(
        "float32"
    )
    labels = rng.integers(0, 2, rows) * 2.0 - 1
    with open(path, "w") as file:
        for label, row in zip(labels, dense, strict=True):
            entries = (f"{column + first}:{row[column]:g}" for column in np.flatnonzero(row))
            file.write(" ".join([f"{label:+g}", *entries]) + "\n")
    return dense, labels


def test_rows_come_as_they_are_written(tmp_path):
    dense, labels = written(tmp_path / "a.libsvm")
    source = tg.open(tmp_path / "a.libsvm")
    assert source.schema == {"label": "float", "indices": "sparse indices", "values": "sparse values"}
    assert len(source) == 300
    assert source.columns == 50
    for options in ({}, {"shuffle": True, "workers": 3}, {"memory": tg.Budget("4MiB"), "shuffle": True, "seed": 7}):
        loader = tg.Loader(source, **({"batch_size": 16, "memory": tg.Budget("32MiB")} | options))
        seen = np.zeros(300, int)
        for batch in loader:
            matrix = CSR.from_batch(batch, source.columns)
            assert np.shares_memory(matrix.data, batch["values"].values)
            np.testing.assert_array_equal(matrix.to_dense(), dense[batch.ids])
            np.testing.assert_array_equal(batch["label"], labels[batch.ids])
            seen[batch.ids] += 1
        assert (seen == 1).all()
    weights = np.random.default_rng(1).normal(size=(50, 3)).astype("float32")
    whole = product(tg.Loader(source, batch_size=32, memory=tg.Budget("4MiB"), shuffle=True), weights)
    np.testing.assert_allclose(whole, dense @ weights, rtol=1e-3, atol=1e-3)
    # Whatever the name, from 0 where any line says so, and several files as one.
    first, _ = written(tmp_path / "rcv1_train.binary", first=0)
    np.testing.assert_allclose(
        product(tg.Loader(f"libsvm:{tmp_path}/rcv1_train.binary", batch_size=8, memory=tg.Budget("8MiB")), weights),
        first @ weights,
        rtol=1e-3,
        atol=1e-3,
    )
    both = tg.open(f"libsvm:{tmp_path}/{{a.libsvm,rcv1_train.binary}}")
    assert len(both) == 600


def test_readers_of_others_agree(tmp_path):
    from sklearn import datasets

    dense, _ = written(tmp_path / "a.svm")
    theirs, labels = datasets.load_svmlight_file(str(tmp_path / "a.svm"), dtype=np.float32, n_features=50)
    source = tg.open(tmp_path / "a.svm")
    (batch,) = tg.Loader(source, batch_size=300, memory=tg.Budget("32MiB"))
    ours = CSR.from_batch(batch, source.columns)
    np.testing.assert_array_equal(ours.data, theirs.data)
    np.testing.assert_array_equal(ours.indices, theirs.indices)
    np.testing.assert_array_equal(batch["label"], labels)
    np.testing.assert_array_equal(dense, theirs.toarray())


def test_bad_lines_follow_the_policy_by_name(tmp_path):
    path = tmp_path / "a.libsvm"
    path.write_text("1 1:1 3:2\n0 3:1 2:1\n1 2:1\nx 1:1\n0 1:1 2\n1 3:nan\n")
    loader = tg.Loader(path, batch_size=6, memory=tg.Budget("8MiB"), on_error="skip")
    (batch,) = loader
    np.testing.assert_array_equal(batch.ids, [0, 2, 5])
    failures = loader.report()["failures"]
    words = [failure["what"] if isinstance(failure, dict) else str(failure) for failure in failures]
    assert any("index 2 comes after 3" in what for what in words), words
    assert any('"2" is no index:value' in what.replace("\\", "") for what in words), words
    with pytest.raises(tg.SampleError, match="index 2 comes after 3") as caught:
        list(tg.Loader(path, batch_size=6, memory=tg.Budget("8MiB")))
    assert "line 2" in str(caught.value)
    assert "a.libsvm" in str(caught.value)
    with pytest.raises(tg.ConfigError, match="leave its type and shape out"):
        tg.Loader(path, batch_size=1, memory=tg.Budget("8MiB"), fields={"values": tg.Array("float64", (3,))})
    with pytest.raises(tg.DataError, match="no such file"):
        tg.open(f"libsvm:{tmp_path}/nothing")
    path.write_text("# nothing\n")
    with pytest.raises(tg.DataError, match="no line with a sample"):
        tg.open(path)


def test_products_have_all_rows_or_say_which_are_left(tmp_path):
    (tmp_path / "a.libsvm").write_text("".join(f"1 1:{i} 3:1\n" for i in range(1, 6)))

    def made(weights, **options):
        loader = tg.Loader(tmp_path / "a.libsvm", batch_size=2, memory=tg.Budget("8MiB"), **options)
        return product(loader, np.asarray(weights, "float32"))

    assert made([1, 0, 2], shuffle=True, seed=0).tolist() == [3, 4, 5, 6, 7]
    for options in ({"drop_last": True}, {"rank": 0, "world_size": 2, "remainder": "pad"}):
        with pytest.raises(tg.DataError, match="left out . of 5 samples, the first is"):
            made([1, 0, 2], **options)
    with pytest.raises(tg.ConfigError, match="rows of 3 columns"):
        made([1, 0])
    names = ["indices", "values"]
    (batch,) = tg.Loader(tmp_path / "a.libsvm", batch_size=5, memory=tg.Budget("8MiB"), fields=names)
    assert sorted(batch) == names


def test_lists_of_parquet_are_rows_too(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    dense, _ = written(tmp_path / "a.svm")
    places = [np.flatnonzero(row).astype("int32") for row in dense]
    table = pa.table({
        "where": pa.array([row.tolist() for row in places], pa.list_(pa.int32())),
        "what": pa.array([dense[i, row].tolist() for i, row in enumerate(places)], pa.list_(pa.float32())),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=64)
    weights = np.eye(50, dtype="float32")
    loader = tg.Loader(tmp_path / "a.parquet", batch_size=16, memory=tg.Budget("32MiB"))
    np.testing.assert_array_equal(product(loader, weights, indices="where", values="what"), dense)
    # Rows of one length are arrays of one shape.
    places, entries = np.arange(12, dtype="int32").reshape(4, 3) * 4, np.ones((4, 3), "float32")
    fixed = pa.table({
        name: pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), 3)
        for name, array in (("where", places), ("what", entries))
    })  # fmt: skip
    pq.write_table(fixed, tmp_path / "fixed.parquet")
    (batch,) = tg.Loader(tmp_path / "fixed.parquet", batch_size=4, memory=tg.Budget("32MiB"))
    rows = CSR.from_batch(batch, 50, indices="where", values="what").to_dense()
    assert [np.flatnonzero(row).tolist() for row in rows] == places.tolist()
    with pytest.raises(tg.DataError, match="is in column"):
        product(loader, weights[:10], indices="where", values="what")
    with pytest.raises(tg.ConfigError, match="differ in length"):
        CSR.from_batch(_mixed(loader), 50)


def _mixed(loader):
    batch = next(iter(loader))
    batch["indices"], batch["values"] = (
        batch["where"],
        tg.Ragged(batch["what"].values, batch["what"].offsets + 1, [], False),
    )
    return batch
