"""What `edgeall deploy` reports, from the answers of the device."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from edgeall.deploy.release import _result, deploy_text
from edgeall.deploy.remote import verify_output
from edgeall.deploy.shell import Finished
from edgeall.edge_runtime.errors import BundleError

GOLDEN = {"name": "a.png", "ok": True, "pixels_ok": True, "difference": 0.0, "tolerance": 0.0, "unit": "units"}
FIRST = {
    "name": "smears",
    "sha256": "0123456789abcdef" * 4,
    "edgeall": "env-1",
    "previous": None,
    "deployed": "2026-11-30T10:00:00Z",
    "release": "0123456789ab-env-1",
}
SECOND = FIRST | {"sha256": "f" * 64, "previous": FIRST["release"], "release": "ffffffffffff-env-1"}


def inspected(*results: dict[str, Any]) -> Finished:
    facts = {"golden": list(results), "golden_ok": all(result["ok"] for result in results)}
    return Finished(0, json.dumps(facts), "")


@pytest.mark.parametrize("previous", [None, FIRST])
def test_the_result_holds_what_the_device_answered(previous: dict[str, Any] | None) -> None:
    shell: Any = SimpleNamespace(name="pi@lab")
    status = {"root": "/home/pi/.edgeall", "current": SECOND, "previous": previous}
    result = _result(shell, status, verify_output("pi@lab", inspected(GOLDEN)))
    assert json.dumps(result.to_json()) == json.dumps(
        {
            "device": "pi@lab",
            "model": "/home/pi/.edgeall/current/model.tflite",
            "edgeall": "/home/pi/.edgeall/current/env/bin/edgeall",
            "current": SECOND,
            "previous": previous,
            "golden": [GOLDEN],
        }
    )
    text = deploy_text(result)
    assert "smears, ffffffffffff, deployed 2026-11-30T10:00:00Z" in text
    assert ("smears, 0123456789ab" in text) == (previous is not None)
    assert ("nothing to roll back to" in text) == (previous is None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"difference": 3.0, "ok": False}, r"a\.png differs by 3 units \(allowed 0\)"),
        ({"pixels_ok": False, "ok": False}, r"a\.png has different pixels after preprocessing"),
    ],
)
def test_a_golden_image_with_another_output_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        verify_output("pi@lab", inspected(GOLDEN | change))
