"""What all pages share: the record, the model's labels, who is asking, and how a page is made of a template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse

from ...edge_runtime.manifest import RESEARCH_USE
from ..record.record import Record
from .access import User
from .pictures import Explain, Pictures
from .words import renderer


class Page:
    """Args:
    record: what was recorded.
    model: the model's name.
    model_sha256: hex digest of its flatbuffer.
    labels: the model's, in order: key 1 is the first.
    unit: ``field`` or ``cell``: what the model judges.
    synthetic: the camera is simulated; every page says so.
    explain: None for a model without a class-activation map; then no page offers one.
    """

    def __init__(
        self,
        record: Record,
        *,
        model: str,
        model_sha256: str,
        labels: Sequence[str],
        unit: str,
        synthetic: bool,
        explain: Explain | None = None,
    ) -> None:
        self.record = record
        self.model, self.model_sha256 = model, model_sha256
        self.pictures = Pictures(record, explain)
        self.labels = tuple(labels)
        self.unit = unit
        self.synthetic = synthetic
        self._render = renderer()

    @staticmethod
    def user(request: Request) -> User:
        """Who asks; `edgeall.rig.web.guard` has let them in."""
        user: User = request.state.user
        return user

    def html(self, request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page of ``templates/``, with what the frame around it needs."""
        user: User | None = getattr(request.state, "user", None)
        shared = {
            "csrf": request.state.csrf,
            "user": user,
            "operates": user is not None and user.may("operate"),
            "path": request.url.path,
            "synthetic": self.synthetic,
        }
        return HTMLResponse(self._render(template, **shared, **values), status)

    @staticmethod
    def research_use_note() -> str:
        """Goes into every export that is no page."""
        return f"Exported by the edgeall rig: {RESEARCH_USE}.\nLabels are as a reviewer confirmed or corrected them.\n"
