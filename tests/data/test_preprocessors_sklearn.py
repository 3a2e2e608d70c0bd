"""The same numbers as scikit-learn's, on its real data sets."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn import datasets, decomposition, impute, preprocessing
from sklearn.pipeline import make_pipeline

from minitrain.data.context import DataContext
from minitrain.data.preprocessors import (
    Chain,
    Concatenator,
    LabelEncoder,
    MaxAbsScaler,
    MinMaxScaler,
    MultiHotEncoder,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PowerTransformer,
    RobustScaler,
    SimpleImputer,
    SklearnPreprocessor,
    StandardScaler,
)
from tests.data.tables import in_parts

WIDE = [pytest.param(name, marks=pytest.mark.campaign) for name in ("breast_cancer", "digits")]
NAMES = (*WIDE, "diabetes", "iris", "wine")


def load(name, *, missing=False):
    """Return a data set as a matrix; with some values missing if that is asked for."""
    matrix = np.array(getattr(datasets, f"load_{name}")().data, dtype=np.float64)
    if missing:
        matrix[np.random.default_rng(0).random(matrix.shape) < 0.1] = np.nan
    return matrix


def names_of(matrix):
    return [f"x{place}" for place in range(matrix.shape[1])]


def transformed(preprocessor, matrix):
    """Return what a preprocessor, fitted to a matrix in five parts, makes of it."""
    names = names_of(matrix)
    table = pa.table({name: matrix[:, place] for place, name in enumerate(names)})
    rows = len(matrix)
    ds = in_parts(table, rows // 7, rows // 3, rows // 3 + 1, rows - 2)
    result = preprocessor.fit(ds).transform(ds)
    parts = list(result.iter_batches(batch_size=None, batch_format="numpy"))
    return np.concatenate(
        [np.stack([part[name] for name in part], axis=1).reshape(len(part["x0"]), -1)
         if "x0" in part else next(iter(part.values())) for part in parts]
    )  # fmt: skip


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (StandardScaler, preprocessing.StandardScaler()),
        (MinMaxScaler, preprocessing.MinMaxScaler()),
        (MaxAbsScaler, preprocessing.MaxAbsScaler()),
        (RobustScaler, preprocessing.RobustScaler()),
        (
            lambda c: RobustScaler(c, (0.05, 0.9)),
            preprocessing.RobustScaler(quantile_range=(5, 90)),
        ),
        (SimpleImputer, impute.SimpleImputer()),
        (
            lambda c: SimpleImputer(c, "most_frequent"),
            impute.SimpleImputer(strategy="most_frequent"),
        ),
        (
            lambda c: SimpleImputer(c, "constant", 3.5),
            impute.SimpleImputer(strategy="constant", fill_value=3.5),
        ),
        (OrdinalEncoder, preprocessing.OrdinalEncoder()),
    ],
)
def test_each_that_learns_gives_scikit_learns_numbers(ours, theirs, name, missing):
    matrix = load(name, missing=missing)
    result = transformed(ours(names_of(matrix)), matrix)
    np.testing.assert_allclose(result, theirs.fit_transform(matrix), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_norms_are_scikit_learns(norm, name):
    matrix = load(name)
    matrix[3] = 0  # a row of zeros stays one
    matrix[4] *= 1e-20  # and so does what is next to nothing
    result = transformed(Normalizer(names_of(matrix), norm), matrix)
    np.testing.assert_allclose(result, preprocessing.normalize(matrix, norm), rtol=1e-6, atol=1e-9)


@pytest.mark.campaign
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["yeo-johnson", "box-cox"])
@pytest.mark.parametrize("power", [-2.5, -1, 0, 1e-9, 0.5, 1, 2, 2 + 1e-9, 3])
def test_powers_are_scikit_learns(method, power, name):
    matrix = load(name)
    if method == "box-cox":
        matrix -= matrix.min() - 0.5
    theirs = preprocessing.PowerTransformer(method, standardize=False).fit([[1.0], [2.0], [4.0]])
    theirs.lambdas_ = np.array([float(power)])  # ours is given it
    result = transformed(PowerTransformer(names_of(matrix), power, method), matrix)
    for place in range(matrix.shape[1]):
        expected = theirs.transform(matrix[:, place : place + 1])[:, 0]
        np.testing.assert_allclose(result[:, place], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 7.0, 1e9, 0.1])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (StandardScaler, preprocessing.StandardScaler()),
        (MinMaxScaler, preprocessing.MinMaxScaler()),
        (MaxAbsScaler, preprocessing.MaxAbsScaler()),
        (RobustScaler, preprocessing.RobustScaler()),
    ],
)
def test_constant_columns_are_treated_as_scikit_learn_does(ours, theirs, value):
    matrix = np.full((50, 2), value)
    matrix[:, 1] = np.arange(50)
    result = transformed(ours(["x0", "x1"]), matrix)
    np.testing.assert_allclose(result, theirs.fit_transform(matrix), rtol=1e-9, atol=1e-9)


def test_quantiles_that_did_not_fit_into_memory_are_the_same(monkeypatch, tmp_path):
    matrix = load("breast_cancer")
    expected = preprocessing.RobustScaler().fit_transform(matrix)
    monkeypatch.setattr(DataContext, "_current", None)
    context = DataContext.get_current()
    context.memory_budget_bytes = 30 * 100 * 8  # 100 of 569 values of each of 30 columns
    context.spill_folder = str(tmp_path)
    opened = []
    import tempfile

    real = tempfile.TemporaryFile
    monkeypatch.setattr(
        tempfile, "TemporaryFile", lambda **options: opened.append(real(**options)) or opened[-1]
    )
    result = transformed(RobustScaler(names_of(matrix)), matrix)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-9)
    assert len(opened) == 30
    assert all(file.closed for file in opened)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["iris", "wine"])
def test_one_hot_vectors_are_scikit_learns(name):
    matrix = np.round(load(name)).astype(int)
    encoder = OneHotEncoder(names_of(matrix))
    seen, new = matrix[::2], matrix  # some categories are unknown
    frame = pd.DataFrame(seen, columns=names_of(matrix))
    encoder.fit(in_parts(pa.Table.from_pandas(frame), 11))
    result = encoder.transform_batch({n: new[:, i] for i, n in enumerate(names_of(matrix))})
    theirs = preprocessing.OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(seen)
    joined = np.concatenate([result[n] for n in names_of(matrix)], axis=1)
    np.testing.assert_array_equal(joined, theirs.transform(new))
    assert not joined[:, : result["x0"].shape[1]].all()


def test_labels_are_scikit_learns():
    wine = datasets.load_wine()
    labels = np.array(["barolo", "grignolino", "barbera"])[wine.target]
    table = pa.table({"label": labels})
    encoder = LabelEncoder("label").fit(in_parts(table, 40, 100))
    result = encoder.transform_batch({"label": labels})["label"]
    np.testing.assert_array_equal(result, preprocessing.LabelEncoder().fit_transform(labels))
    assert result.dtype == np.int64


def test_multi_hot_vectors_are_scikit_learns():
    iris = np.round(datasets.load_iris().data).astype(int)
    rows = [sorted(set(row)) for row in iris.tolist()]
    encoder = MultiHotEncoder(["v"]).fit(in_parts(pa.table({"v": rows}), 10, 90))
    result = encoder.transform_batch(pa.table({"v": rows}))
    expected = preprocessing.MultiLabelBinarizer().fit_transform(rows)
    np.testing.assert_array_equal(np.array(result["v"].to_pylist()), expected)


def test_a_chain_is_scikit_learns_pipeline():
    matrix = load("breast_cancer", missing=True)
    names = names_of(matrix)
    ours = Chain(SimpleImputer(names), StandardScaler(names), Concatenator(names, "x"))
    theirs = make_pipeline(impute.SimpleImputer(), preprocessing.StandardScaler())
    result = transformed(ours, matrix)
    np.testing.assert_allclose(result, theirs.fit_transform(matrix), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "theirs",
    [
        preprocessing.QuantileTransformer(n_quantiles=50),
        preprocessing.StandardScaler(),  # has partial_fit
        preprocessing.PowerTransformer(),
    ],
)
def test_an_estimator_of_scikit_learn_gives_what_it_gives_by_itself(theirs):
    matrix = load("diabetes")
    result = transformed(SklearnPreprocessor(theirs, names_of(matrix)), matrix)
    np.testing.assert_allclose(result, theirs.fit_transform(matrix), rtol=1e-6, atol=1e-9)


def test_an_estimator_may_return_another_number_of_columns_as_vectors_or_by_name():
    matrix = load("digits")
    names = names_of(matrix)
    table = pa.table({name: matrix[:, place] for place, name in enumerate(names)})
    pca = decomposition.PCA(2, svd_solver="full")
    expected = pca.fit_transform(matrix)
    vectors = SklearnPreprocessor(pca, names, ["v"]).fit(in_parts(table, 500))
    result = vectors.transform_batch(dict(zip(names, matrix.T, strict=True)))
    np.testing.assert_allclose(result["v"], expected, rtol=1e-6, atol=1e-9)
    named = SklearnPreprocessor(pca, names, ["a", "b"]).fit(in_parts(table, 500))
    result = named.transform_batch(pd.DataFrame(matrix, columns=names))
    np.testing.assert_allclose(result[["a", "b"]].to_numpy(), expected, rtol=1e-6, atol=1e-9)


def test_sparse_results_of_an_estimator_become_vectors():
    encoder = preprocessing.OneHotEncoder()
    table = pa.table({"c": ["b", "a", "b"]})
    result = SklearnPreprocessor(encoder, ["c"], ["v"]).fit(in_parts(table)).transform_batch(table)
    assert result["v"].to_pylist() == [[0, 1], [1, 0], [0, 1]]


def test_partial_fit_does_not_depend_on_how_rows_come(monkeypatch):
    from minitrain.data.preprocessors import estimator

    # 569 rows: were the last call given one row alone, three components could not come of it.
    monkeypatch.setattr(estimator, "ROWS_PER_PARTIAL_FIT", 142)
    matrix = load("breast_cancer")
    names = names_of(matrix)
    table = pa.table({name: matrix[:, place] for place, name in enumerate(names)})
    results = []
    for places in [(), (1, 2, 3, 568), tuple(range(7, 560, 7))]:
        pca = SklearnPreprocessor(decomposition.IncrementalPCA(3), names, ["v"])
        pca.fit(in_parts(table, *places))
        results.append(pca.transform_batch(table)["v"].to_pylist())
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_float32_columns_stay_float32_and_are_computed_with_in_float64():
    matrix = load("breast_cancer").astype(np.float32)
    table = pa.table({name: matrix[:, place] for place, name in enumerate(names_of(matrix))})
    scaler = StandardScaler(names_of(matrix)).fit(in_parts(table, 100))
    result = scaler.transform_batch(table)
    assert set(result.schema.types) == {pa.float32()}
    expected = preprocessing.StandardScaler().fit_transform(matrix.astype(np.float64))
    np.testing.assert_allclose(result["x3"].to_numpy(), expected[:, 3], rtol=1e-5, atol=1e-6)
