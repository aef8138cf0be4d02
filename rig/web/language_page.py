"""The language of the page, chosen by a visitor and kept in a cookie."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse

from .guard import LANGUAGE_COOKIE

YEAR_S = 365 * 24 * 3600
_OWN_PAGE = re.compile(r"/(?![/\\])[!-\[\]-~]{0,500}")
"""An address on this rig, not ``//elsewhere``."""

routes = APIRouter()


@routes.post("/language")
def choose(
    request: Request,
    language: Annotated[Literal["en", "de", "fr", "es"], Form()],
    back: Annotated[str, Form(max_length=600)] = "/",
) -> RedirectResponse:
    """Show the pages in a language from now on."""
    answer = RedirectResponse(back if _OWN_PAGE.fullmatch(back) else "/", 303)
    secure = request.url.scheme == "https"
    answer.set_cookie(LANGUAGE_COOKIE, language, YEAR_S, secure=secure, httponly=True, samesite="lax")
    return answer
