"""What the handlers of one rig's pages share, as a FastAPI dependency."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from ...edge_runtime.tools.device import Device
from ..learning.lessons import Lessons
from ..snapshot import Live
from ..station import Station
from .access import Access
from .address import Reach
from .broadcast import Broadcast
from .page import Page
from .phone_app import PhoneApp


@dataclass(frozen=True)
class Context:
    """The parts of one rig.

    Attributes:
        page: the record, the model's labels and the templates.
        station: the running loop.
        access: users and their sessions.
        broadcast: the live view's snapshots.
        device: the machine.
        lessons: what the rig learns from reviews.
        reach: where other computers reach the page; None if it listens on this machine alone.
        phone: the app for a visitor's own browser.
        exporting: held while an export is made.
        backing_up: held while a backup is made and sent.
    """

    page: Page
    station: Station
    access: Access
    broadcast: Broadcast[Live]
    device: Device
    lessons: Lessons
    reach: Reach | None = None
    phone: PhoneApp = field(default_factory=PhoneApp)
    exporting: threading.Lock = field(default_factory=threading.Lock)
    backing_up: threading.Lock = field(default_factory=threading.Lock)


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Rig = Annotated[Context, Depends(_context)]
"""The type of a handler's parameter that receives the `Context`."""
