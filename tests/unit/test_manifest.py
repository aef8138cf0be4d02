from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from fixtures_models import manifest
from hypothesis import given
from hypothesis import strategies as st

from edgeall.edge_runtime.errors import BundleError
from edgeall.edge_runtime.manifest import parse_manifest

PACKED = manifest(flatbuffer_sha256="ab" * 32, flatbuffer_bytes=1000)
OPTIONAL = {"quality", "task"}
"""Fields that came within the schema: files packed before have none."""


def test_what_is_written_is_read_back() -> None:
    assert parse_manifest(PACKED.to_json(), "m") == PACKED


def test_lists_of_numbers_stand_on_one_line_and_texts_stay() -> None:
    """A reference for the drift alarm has hundreds of numbers; one on each line doubles the size of the text."""
    drift = {"image": {"means": [[1.5, -2e-05], [0.25, 3]]}}
    changed = dataclasses.replace(PACKED, name="[\n 1 ]", drift=drift)
    text = changed.to_json()
    assert "[ 1.5, -2e-05 ]" in text and "[ 0.25, 3 ]" in text
    found = json.loads(text)
    assert found["name"] == "[\n 1 ]" and found["drift"] == drift


def test_fields_of_a_later_minor_version_are_left_aside() -> None:
    values = json.loads(PACKED.to_json()) | {"signature": "later"}
    assert parse_manifest(json.dumps(values), "m") == PACKED


@pytest.mark.parametrize(("schema", "way_out"), [(2, "update edgeall"), (0, "pack the model again")])
def test_another_schema_is_refused(schema: int, way_out: str) -> None:
    values = json.loads(PACKED.to_json()) | {"schema": schema}
    with pytest.raises(BundleError, match=f"schema {schema} is unknown") as caught:
        parse_manifest(json.dumps(values), "m")
    assert way_out in caught.value.hint


def test_a_model_of_before_there_was_a_novelty_score() -> None:
    values = json.loads(PACKED.to_json())
    del values["novelty"]
    assert parse_manifest(json.dumps(values), "m").novelty == {}


@pytest.mark.parametrize("key", sorted(json.loads(PACKED.to_json()).keys() - {"novelty"}))
def test_a_missing_or_mistyped_field_is_named(key: str) -> None:
    values = json.loads(PACKED.to_json())
    missing = [] if key in OPTIONAL else [{k: v for k, v in values.items() if k != key}]
    for broken in (*missing, values | {key: None}, values | {key: True}):
        with pytest.raises(BundleError, match=f"`{key}`"):
            parse_manifest(json.dumps(broken), "m")


@pytest.mark.parametrize("key", ["height", "width", "fit", "mean", "std", "color", "resize"])
def test_a_missing_input_field_is_named(key: str) -> None:
    values = json.loads(PACKED.to_json())
    del values["input"][key]
    with pytest.raises(BundleError, match=f"`input.{key}`"):
        parse_manifest(json.dumps(values), "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["one"], "positive_labels": []}, "two or more"),
        ({"labels": ["one", "one"], "positive_labels": []}, "two or more distinct"),
        ({"labels": ["one", "t\nwo"], "positive_labels": []}, "line break"),
        ({"labels": ["one", 2], "positive_labels": []}, "list of texts"),
        ({"positive_labels": ["Other"]}, "positive_labels"),
        ({"task": "detection"}, "classification"),
        ({"unit": "slide"}, "field or cell"),
        ({"decision": {"review_below": 1.5}}, "review_below"),
        ({"decision": {"review_below": "high"}}, "review_below"),
        ({"decision": {"review_below": 10**400}}, "review_below"),
        ({"input": {**json.loads(PACKED.to_json())["input"], "mean": 10**400}}, "input.mean"),
        ({"input": {**json.loads(PACKED.to_json())["input"], "mean": 1e39}}, "is invalid"),
        ({"input": {**json.loads(PACKED.to_json())["input"], "std": 1e-39}}, "is invalid"),
        ({"input": {**json.loads(PACKED.to_json())["input"], "std": float("nan")}}, "not JSON"),
        ({"metrics": {"accuracy": float("inf")}}, "not JSON"),
        ({"input": {**json.loads(PACKED.to_json())["input"], "std": 0}}, "is invalid"),
        ({"input": {**json.loads(PACKED.to_json())["input"], "resize": "bicubic"}}, "bicubic"),
    ],
)
def test_nonsense_is_refused_in_its_own_words(change: dict[str, Any], message: str) -> None:
    values = json.loads(PACKED.to_json()) | change
    with pytest.raises(BundleError, match=message):
        parse_manifest(json.dumps(values), "m")


def test_numbers_that_json_has_no_word_for_are_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        manifest(metrics={"accuracy": float("nan")}).to_json()


def test_a_number_beyond_floats_is_refused_wherever_it_is() -> None:
    text = PACKED.to_json().replace('"accuracy": 0.75', '"accuracy": 1e999')
    assert "1e999" in text
    with pytest.raises(BundleError, match="not JSON"):
        parse_manifest(text, "m")


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_garbage_gives_a_bundle_error(text: bytes | str) -> None:
    with pytest.raises(BundleError):
        parse_manifest(text, "m")


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(sorted(json.loads(PACKED.to_json()))),
)
def test_any_json_in_any_field_is_read_or_refused(value: Any, key: str) -> None:
    values = json.loads(PACKED.to_json()) | {key: value}
    try:
        parse_manifest(json.dumps(values), "m")
    except BundleError as error:
        assert error.message.startswith("m: ")


def test_deeply_nested_json_is_refused() -> None:
    with pytest.raises(BundleError):
        parse_manifest("[" * 100_000, "m")
