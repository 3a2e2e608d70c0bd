"""Texts as tokens and counts."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pyarrow as pa
import pytest

from minitrain.data.preprocessors import (
    CountVectorizer,
    FeatureHasher,
    HashingVectorizer,
    Tokenizer,
)
from minitrain.exceptions import TransformError
from tests.data.tables import columns_of, dataset

CORPUS = ["Jimmy likes volleyball", "Bob likes volleyball too", "Bob also likes fruit jerky"]


def words(text):
    return re.findall(r"\w+", text)


def rows(column):
    return column.to_pylist()


def place(token):
    """Return where a token is counted: as in ray.data."""
    return int(hashlib.sha256(token.encode()).hexdigest(), 16) % 8


def test_texts_are_split_at_each_space():
    table = pa.table({"t": ["Hello, world!", "foo  bar\nbaz", "", None]})
    result = Tokenizer(["t"]).transform_batch(table)["t"]
    assert rows(result) == [["Hello,", "world!"], ["foo", "", "bar\nbaz"], [""], None]
    assert rows(result)[:3] == [text.split(" ") for text in rows(table["t"])[:3]]


def test_a_function_of_ones_own_splits_what_is_there():
    table = pa.table({"t": ["Hello, world!", None]})
    result = Tokenizer(["t"], words, ["tokens"]).transform_batch(table)
    assert rows(result["tokens"]) == [["Hello", "world"], None]
    assert rows(result["t"]) == rows(table["t"])


@pytest.mark.parametrize("make", [Tokenizer, CountVectorizer])
def test_an_error_of_the_function_names_the_text(make):
    def fails(text):
        raise KeyError("no")

    with pytest.raises(TransformError) as info:
        columns_of(make(["t"], fails).fit_transform(dataset({"t": CORPUS})))
    errors = [info.value]
    while errors[-1].__cause__:
        errors.append(errors[-1].__cause__)
    assert "'t': tokenization_fn raised KeyError('no') for 'Jimmy likes" in str(errors[-2])
    assert isinstance(errors[-1], KeyError)


def lengths(text):
    return [len(word) for word in text.split()]


def test_tokens_may_be_numbers():
    table = pa.table({"t": ["ab c", None, ""]})
    result = Tokenizer(["t"], lengths).transform_batch(table)["t"]
    assert rows(result) == [[2, 1], None, []]
    assert result.type == pa.list_(pa.int64())
    missing = Tokenizer(["t"], words).transform_batch(table.slice(1))["t"]
    assert missing.type == pa.list_(pa.string())


@pytest.mark.parametrize(
    ("make", "function", "words"),
    [
        (Tokenizer, str.lower, "tokenization_fn returned a str for 'Jimmy likes volleyball'; it"),
        (Tokenizer, str.encode, "returned a bytes for 'Jimmy"),
        (Tokenizer, lambda text: {"ids": [1]}, "returned a dict for 'Jimmy"),
        (Tokenizer, lambda text: None, "returned a NoneType for 'Jimmy"),
        (Tokenizer, lambda text: ["a", 1], "returned tokens that do not fit in one column: "),
        (lambda c, f: HashingVectorizer(c, 8, f), lengths, "tokens that do not fit in a column of"),
        (CountVectorizer, lengths, "tokens that do not fit in a column of type list<item: string>"),
        (CountVectorizer, str.lower, "returned a str for 'Jimmy"),
    ],
)
def test_what_are_no_tokens_is_refused(make, function, words):
    preprocessor = make(["t"], function)
    with pytest.raises(TransformError, match="er: column 't': tok") as info:
        preprocessor.fit(dataset({"t": CORPUS})).transform_batch(pa.table({"t": CORPUS}))
    assert words in str(info.value)


def test_what_is_no_text_is_refused():
    with pytest.raises(TransformError, match="'t' is of type int64; it must be text"):
        Tokenizer(["t"]).transform_batch(pa.table({"t": [1]}))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), "str")])
def test_tokens_are_counted_where_their_hash_points(kind):
    expected = np.zeros((4, 8), int)
    for row, text in enumerate(CORPUS):
        for token in text.split(" "):
            expected[row, place(token)] += 1
    table = pa.table({"t": pa.array([*CORPUS, None]).cast(kind)})
    table = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    result = HashingVectorizer(["t"], 8).transform_batch(table)["t"]
    np.testing.assert_array_equal(rows(result), expected)
    assert result.type == pa.fixed_shape_tensor(pa.int64(), [8])


def test_known_tokens_are_counted_the_most_frequent_first():
    vectorizer = CountVectorizer(["t"]).fit(dataset({"t": CORPUS[:1]}, {"t": [*CORPUS[1:], None]}))
    assert list(vectorizer.stats_["token_counts(t)"].items()) == [
        ("likes", 3),
        ("Bob", 2),
        ("volleyball", 2),
        ("Jimmy", 1),
        ("also", 1),
        ("fruit", 1),
        ("jerky", 1),
        ("too", 1),
    ]
    result = vectorizer.transform_batch(pa.table({"t": ["likes too likes new", "new", None]}))["t"]
    assert rows(result) == [[2, 0, 0, 0, 0, 0, 0, 1], [0] * 8, [0] * 8]


def test_only_the_most_frequent_tokens_are_counted():
    vectorizer = CountVectorizer(["t"], words, max_features=2, output_columns=["n"])
    result = columns_of(vectorizer.fit_transform(dataset({"t": CORPUS})))
    assert list(vectorizer.stats_["token_counts(t)"]) == ["likes", "Bob"]
    assert result == {"t": CORPUS, "n": [[1, 0], [1, 1], [1, 1]]}


def test_counts_are_scikit_learns():
    from sklearn.feature_extraction.text import CountVectorizer as Theirs

    theirs = Theirs(token_pattern=r"\S+", lowercase=False)
    expected = theirs.fit_transform(CORPUS).toarray()
    ours = CountVectorizer(["t"]).fit(dataset({"t": CORPUS}))
    result = np.array(rows(ours.transform_batch(pa.table({"t": CORPUS}))["t"]))
    order = [theirs.vocabulary_[token] for token in ours.stats_["token_counts(t)"]]
    np.testing.assert_array_equal(result, expected[:, order])


def test_a_column_without_texts_has_no_tokens():
    with pytest.raises(TransformError, match="'t' has no texts to learn tokens from"):
        CountVectorizer(["t"]).fit(dataset({"t": pa.array([None], pa.string())}))


def test_columns_are_added_up_where_the_hash_of_their_name_points():
    table = pa.table({"I": [1, 1], "like": [1, 0], "dislike": [0, 1], "Python": [1, 1]})
    hasher = FeatureHasher(table.column_names, 8, "hashed")
    result = hasher.transform_batch(table)
    expected = np.zeros((2, 8), int)
    for name in table.column_names:
        expected[:, place(name)] += table[name].to_numpy()
    np.testing.assert_array_equal(rows(result["hashed"]), expected)
    assert result.column_names == [*table.column_names, "hashed"]
    halves = pa.table({"I": [0.5]})
    assert sum(rows(FeatureHasher(["I"], 4, "h").transform_batch(halves)["h"])[0]) == 0.5
