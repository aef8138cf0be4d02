"""Kills during adaptation, learning and switching, as `benchmarks/adaptation_kills.py` makes 200 of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_there_is_always_one_verified_model_and_the_record_is_whole(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(repository / "benchmarks")
    import adaptation_kills

    for name in ("adaptation_kills", "command", "rig_updates"):
        monkeypatch.delitem(sys.modules, name)
    rows = adaptation_kills.kills(6, tmp_path)
    assert len(rows) == 9
    assert [row for row in rows if not row[-1]] == []
