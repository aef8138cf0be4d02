"""What all pages share: the record, the model's labels, the current user, and rendering of templates."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse

from ...edge_runtime.manifest import RESEARCH_USE
from ..language import current
from ..record.record import Record
from ..record.rows import Program
from .access import User
from .display import renderer, script_translations
from .pictures import Explain, Pictures


class Page:
    """Renders the templates with the rig's data.

    Args:
        record: the record.
        program: the model's name, digest and labels; key 1 selects the first label.
        unit: ``field`` or ``cell``: what the model judges.
        synthetic: the camera is simulated; every page says so.
        explain: None for a model without a class-activation map; no page offers one then.
    """

    def __init__(
        self,
        record: Record,
        program: Program,
        unit: str,
        *,
        synthetic: bool,
        explain: Explain | None = None,
    ) -> None:
        self.record = record
        self.labels = tuple(program.labels)
        self.pictures = Pictures(record)
        self.use(program, explain)
        self.unit = unit
        self.synthetic = synthetic
        self._render = renderer()

    def use(self, program: Program, explain: Explain | None) -> None:
        """Show another model, of the same labels."""
        self.model, self.model_sha256 = program.model, program.model_sha256
        self.pictures.explain = explain

    @staticmethod
    def user(request: Request) -> User:
        """The user of a request that passed `edgeall.rig.web.guard`."""
        user: User = request.state.user
        return user

    def html(self, request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Render a template of ``templates/``, with the values that every page needs."""
        user: User | None = getattr(request.state, "user", None)
        shared = {
            "csrf": request.state.csrf,
            "user": user,
            "operates": user is not None and user.may("operate"),
            "path": request.url.path,
            "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            "language": current(),
            "texts": script_translations(),
            "synthetic": self.synthetic,
        }
        return HTMLResponse(self._render(template, **shared, **values), status)

    @staticmethod
    def research_use_note() -> str:
        """The README of every exported training folder."""
        return f"Exported by the edgeall rig: {RESEARCH_USE}.\nThe labels were confirmed or corrected by a reviewer.\n"
