"""LIBSVM files: the rows of scikit-learn's reader, or a refusal that names the line's cause.

Flow: lines -> `load_svmlight_file` in float32, which Tidegate's values are, and `tg.open` -> dense
rows.
Memory: a few lines a dataset.
"""

import numpy as np
import pytest
from compare import ours, refused, same
from made import text
from sklearn.datasets import dump_svmlight_file, load_svmlight_file, load_svmlight_files

import tidegate as tg
from tidegate.sparse import CSR


def ours_dense(data):
    """Return the rows as scikit-learn has them: dense values, label, qid."""
    source = tg.open(data)
    rows = ours(source)
    (batch,) = tg.Loader(source, batch_size=len(source), memory=tg.Budget("32MiB"))
    for row, values in zip(rows, CSR.from_batch(batch, source.columns).to_dense(), strict=True):
        row["x"] = np.zeros_like(values)
        row["x"][row.pop("indices")] = row.pop("values")
        assert np.array_equal(row["x"], values, equal_nan=True)
    return rows


def theirs(matrix, labels, queries=None):
    columns = {"x": matrix.toarray(), "label": labels} | ({} if queries is None else {"qid": queries})
    return [{name: column[i] for name, column in columns.items()} for i in range(len(labels))]


# {dataset: lines}.
SAME = {
    "from_one": "1 1:0.5 3:2\n-1 2:1\n",
    "from_zero": "1 0:0.5 3:2\n0 2:1\n",
    "from_zero_in_the_last_line": "1 1:0.5 3:2\n0 0:1\n",
    "comments_and_blank_lines": "# head\n1 1:0.5 # note: 2\n\n0 2:1\n#end\n",
    "rows_without_entries": "1\n2 1:1\n3\n",
    "stored_zeros": "1 1:0 2:1 5:0\n",
    "numbers_in_every_form": "+1 1:1e-3 2:-2.5E2\n-2.25 1:nan 2:inf\n1e2 1:.5 2:+1\n",
    "values_that_float32_rounds": "1 1:16777217 2:0.1\n0 1:1e-46\n",
    "blanks_and_tabs": "1  1:1   2:2 \n2\t1:3\t2:4\n",
    "crlf": "1 1:1\r\n2 2:2\r\n",
    "no_last_line_end": "1 1:1\n2 2:2",
}


@pytest.mark.parametrize("name", SAME)
def test_the_rows_are_scikit_learns(tmp_path, name):
    path = text(tmp_path / "a.libsvm", SAME[name])
    same(ours_dense(path), theirs(*load_svmlight_file(str(path), dtype=np.float32)))


def test_queries(tmp_path):
    path = text(tmp_path / "a.svm", "3 qid:1 1:0.5\n2 qid:1 2:1\n1 qid:2 1:7\n")
    same(ours_dense(path), theirs(*load_svmlight_file(str(path), dtype=np.float32, query_id=True)))


@pytest.mark.parametrize("zero_based", [True, False])
def test_what_scikit_learn_writes(tmp_path, zero_based):
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((50, 12)) < 0.3, rng.normal(size=(50, 12)), 0).astype(np.float32)
    dense[0, 0] = 1
    path = tmp_path / "a.svm"
    dump_svmlight_file(dense, rng.integers(0, 3, 50), str(path), zero_based=zero_based, comment="made")
    rows = theirs(*load_svmlight_file(str(path), dtype=np.float32, zero_based=zero_based))
    assert np.array_equal([row["x"] for row in rows], dense)
    same(ours_dense(path), rows)


def test_several_files_have_the_columns_of_all(tmp_path):
    paths = [text(tmp_path / f"{i}.svm", f"{i} 1:1 {3 + i}:2\n") for i in range(2)]
    a, y, b, z = load_svmlight_files([str(path) for path in paths], dtype=np.float32)
    same(ours_dense(f"{tmp_path}/*.svm"), theirs(a, y) + theirs(b, z))


# {dataset: (lines, words)}.
REFUSED = {
    "several_labels": ("1,2 1:0.5\n3 2:1\n", 'the label "1,2" is no number'),
    "no_label": (" 1:0.5\n3 2:1\n", 'the label "1:0.5" is no number'),
    "a_head_line_of_counts": ("2 3\n1 1:1\n", '"3" is no index:value'),
    "indices_out_of_order": ("1 3:1 2:1\n", "index 2 comes after 3"),
    "an_index_twice": ("1 2:1 2:3\n", "index 2 comes after 2"),
    "a_negative_index": ("1 -1:1 2:1\n", '"-1:1" is no index:value'),
    "a_value_that_is_a_word": ("1 1:x\n", '"x" is no index:value'),
    "a_label_that_is_a_word": ("cat 1:1\n", 'the label "cat" is no number'),
    "no_lines": ("# nothing\n", "no line with a sample"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_cause_is_named(tmp_path, name):
    lines, words = REFUSED[name]
    refused(text(tmp_path / "a.libsvm", lines), words)
