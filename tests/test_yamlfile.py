from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raybench.errors import SuiteError
from raybench.yamlfile import Complaints, parse_yaml, write_yaml


def read(text: str) -> Any:
    return parse_yaml(text, "s.yaml")[0]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("'1e-3'", "1e-3"),
        ("off", "off"),
        ("no", "no"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("none", "none"),
        ("null", None),
        ("~", None),
        ("", None),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("2020-13-45", "2020-13-45"),
        (".inf", math.inf),
    ],
)
def test_values_are_those_of_yaml_1_2(written: str, value: Any) -> None:
    document = read(f"key: {written}")
    assert document == {"key": value}
    assert type(document["key"]) is type(value)


def test_keys_are_words_as_they_are_written() -> None:
    text = "{8: a, 1e-3: b, off: c, null: d, true: e, 2020-01-01: f, '9': g}"
    assert read(text) == {"8": "a", "1e-3": "b", "off": "c", "null": "d", "true": "e", "2020-01-01": "f", "9": "g"}


def test_anchors_and_merges() -> None:
    text = "base: &base {epochs: 3, lr: 1}\ntrain:\n  <<: *base\n  lr: 2\n"
    document, marks = parse_yaml(text, "s.yaml")
    assert document["train"] == {"epochs": 3, "lr": 2}
    assert (marks["train.lr"], marks["train.epochs"]) == ("s.yaml:4:3", "s.yaml:1:14")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a comment\n"])
def test_nothing_is_none(text: str) -> None:
    assert parse_yaml(text, "s.yaml") == (None, {})


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert read("\ufeffname: s\r\nabout: t\r\n") == {"name": "s", "about": "t"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\nb:\n  c: 1\n  c: 2\n",
            '4:3: not valid YAML: found duplicate key "c" with value "2" (original value: "1")',
        ),
        ("1: a\n'1': b\n", '2:1: not valid YAML: found duplicate key "1" with value "b" (original value: "a")'),
        ("a: [1, 2\nb: 3\n", "2:2: not valid YAML: expected ',' or ']', but got ':'"),
        ("a: b: c\n", "1:5: not valid YAML: mapping values are not allowed here"),
        ("a: 1\n\tb: 2\n", "2:1: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: *nowhere\n", "1:4: not valid YAML: found undefined alias 'nowhere'"),
        ("a: 'open\n", "2:1: not valid YAML: found unexpected end of stream"),
        (
            "a: 1\n---\nb: 2\n",
            "2:1: not valid YAML: expected a single document in the stream but found another document",
        ),
        ("? [a, b]\n: 1\n", "1:3: not valid YAML: a key must be a word"),
        ("{{a: 1}: 2}\n", "1:2: not valid YAML: a key must be a word"),
        ("a: !!int x\n", "1:1: not valid YAML: invalid literal for int() with base 10: 'x'"),
        (
            "a: !!python/name:os.system x\n",
            "1:4: not valid YAML: could not determine a constructor for the tag"
            " 'tag:yaml.org,2002:python/name:os.system'",
        ),
        ("a: &a [*a]\n", "1:1: not valid YAML: nested without end"),
        ("[" * 1_000, "1:1: not valid YAML: nested without end"),
        (
            "a: \x00\n",
            "1:1: not valid YAML: unacceptable character #x0000: special characters are not allowed in"
            ' "<unicode string>", position 3',
        ),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_not_yaml_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(SuiteError) as error:
        read(text)
    assert str(error.value) == f"s.yaml:{message}"


DOCUMENT = """\
name: s
train:
  epochs: 3
  optimizer.momentum: 0.9
compare:
  model: [mlp, {name: x}]
  v:
    8: {lr: 1}
"""


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (["name"], "1:1: name"),
        (["train", "epochs"], "3:3: train.epochs"),
        (["train", "optimizer", "momentum"], "4:3: train.optimizer.momentum"),
        (["train", "lr"], "2:1: train.lr"),
        (["compare", "model", 1], "6:16: compare.model.1"),
        (["compare", "model", 1, "name"], "6:17: compare.model.1.name"),
        (["compare", "model", 7], "6:3: compare.model.7"),
        (["compare", "v", "8", "lr"], "8:9: compare.v.8.lr"),
        (["dataset"], "1:1: dataset"),
    ],
)
def test_a_complaint_names_the_nearest_key(path: list[str | int], place: str) -> None:
    complain = Complaints("s.yaml", parse_yaml(DOCUMENT, "s.yaml")[1])
    assert str(complain.at(path, "is wrong")) == f"s.yaml:{place}: is wrong"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (["train", "epochs"], "--set train.epochs=x: train.epochs: is wrong"),
        (["train"], "--set train.epochs=x: train: is wrong"),
        (["compare", "v", "a", "lr"], "--set compare.v={a: b}: compare.v.a.lr: is wrong"),
        (["train", "lr"], "s.yaml:2:1: train.lr: is wrong"),
        (["name"], "s.yaml:1:1: name: is wrong"),
    ],
)
def test_a_complaint_names_the_override_that_is_to_blame(path: list[str], text: str) -> None:
    complain = Complaints("s.yaml", parse_yaml(DOCUMENT, "s.yaml")[1])
    complain.said_by = {"train.epochs": "train.epochs=x", "compare.v": "compare.v={a: b}"}
    assert str(complain.at(path, "is wrong")) == text


def test_without_a_file_the_place_is_its_beginning() -> None:
    assert str(Complaints("suite.json").at(["train", 0], "is wrong")) == "suite.json:1:1: train.0: is wrong"


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
DATA = st.recursive(PLAIN, lambda part: st.lists(part) | st.dictionaries(TEXT, part), max_leaves=8)


@settings(max_examples=100, deadline=None)
@given(DATA)
@example({"\x85": "\u2028", "ü": ["\u2029"]})
def test_what_is_written_is_read_again(data: Any) -> None:
    assert read(write_yaml(data)) == data


def test_written_yaml_is_short_and_in_order() -> None:
    document = {"name": "s", "compare": {"model": ["b", "a"]}, "train": {"lr": 1e-3, "loss": "off"}}
    assert write_yaml(document) == "name: s\ncompare:\n  model: [b, a]\ntrain: {lr: 0.001, loss: off}\n"
