"""The rig's HTTP interface, fuzzed from its own OpenAPI description: whatever is sent, nothing breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fixtures_rig import PASSWORDS, Rig
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import just
from starlette.testclient import TestClient

EXAMPLES = 4
"""Of each route; `make fuzz` takes more."""
MANY = 300


@pytest.fixture
def rig(make_rig: Callable[..., Rig], users_file: Path) -> Rig:
    rig = make_rig(users_file)
    session = rig.session()
    rig.frame(session, review=True)
    return rig


def fuzz(rig: Rig, examples: int, user: str | None) -> dict[str, set[int]]:
    """Send every route what its description allows and what it doesn't; gives the statuses that came back."""
    description = rig.app.openapi()
    del description["paths"]["/events"]  # a stream that doesn't end
    schema = schemathesis.openapi.from_dict(description)
    client = TestClient(rig.app, base_url="http://localhost", follow_redirects=False)
    token = rig.access.log_in(user, PASSWORDS[user], "127.0.0.1") if user else rig.access.new_token()
    ours = {"cookie": f"edgeall={token}", "x-csrf-token": rig.access.csrf(token)}
    statuses: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        found = statuses.setdefault(f"{operation.method.upper()} {operation.path}", set())

        def send(case: Any, found: set[int]) -> None:
            request = case.as_transport_kwargs(base_url="http://localhost")
            request["headers"] = {**{key: str(value) for key, value in request["headers"].items()}, **ours}
            request.pop("cookies", None)
            answer = client.request(**request)
            found.add(answer.status_code)
            assert answer.status_code < 500, (request, answer.text)

        for mode in schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE:
            run = settings(
                max_examples=examples,
                database=None,
                derandomize=True,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )(given(case=operation.as_strategy(generation_mode=mode), found=just(found))(send))
            try:
                run()
            except Unsatisfiable:  # a route without parameters can't be asked wrongly
                assert mode is schemathesis.GenerationMode.NEGATIVE
    return statuses


def test_nothing_that_is_sent_breaks_the_page(rig: Rig) -> None:
    statuses = fuzz(rig, EXAMPLES, "olga")
    assert len(statuses) > 20
    assert {200, 303, 400, 404} <= set().union(*statuses.values())


def test_nothing_that_is_sent_gets_in(rig: Rig) -> None:
    statuses = fuzz(rig, 2, None)  # whoever is not logged in gets no further than the guard
    public = {"GET /login", "POST /login", "POST /language", "GET /static/{name}"}
    assert set().union(*(found for name, found in statuses.items() if name not in public)) <= {303, 401, 404, 421}
    assert len(rig.record.sessions()) == 1


@pytest.mark.slow
def test_nothing_breaks_it_however_long_it_is_tried(rig: Rig) -> None:
    fuzz(rig, MANY, "olga")
