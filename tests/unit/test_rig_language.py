"""The page and the report in each language: catalogues, untranslated literals, and how a language is chosen."""

from __future__ import annotations

import copy
import gettext as catalogues
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from fixtures_rig import Rig, build_rig
from recorded_slide import record_slide
from starlette.testclient import TestClient

pytest.importorskip("babel", reason="babel is not installed")

from translations import (
    COMMAND_LINE,
    RIG,
    command_line,
    compiled,
    forms,
    modules,
    po_file,
    read_catalog,
    texts,
    untranslatable,
)

from edgeall.edge_runtime.manifest import RESEARCH_USE
from edgeall.edge_runtime.tools.throttle import REASONS
from edgeall.rig import language
from edgeall.rig.capture.interface import Camera, CameraError, SkippedFileError
from edgeall.rig.capture.reconnecting import CameraState, ReconnectingCamera, _Reader
from edgeall.rig.capture.seen import SeenImages
from edgeall.rig.language import LANGUAGES, SOURCE, accepted, gettext, message, plural, speaking
from edgeall.rig.notices import notes
from edgeall.rig.optics.flat_field import NotEmptyError, measure_empty_field
from edgeall.rig.optics.micrometer import NotARulingError, measure_ruling
from edgeall.rig.record.rows import SET_ASIDE, UNCLEAR
from edgeall.rig.report.facts import report_facts
from edgeall.rig.report.pdf import report_pdf
from edgeall.rig.web import display, guard
from edgeall.rig.web.live_events import LiveEncoder

OTHERS = [code for code in LANGUAGES if code != SOURCE]
TEMPLATES = sorted((RIG / "web" / "templates").glob("*.html"))
SCRIPTS = sorted((RIG / "web" / "static").glob("*.js"))
SEEN = ("alt", "aria-label", "title", "placeholder")
"""Attributes that a person sees or hears."""


# Catalogues


@pytest.mark.parametrize("code", OTHERS)
def test_no_text_is_missing_and_none_is_left_over(code: str) -> None:
    catalog = {each.id: each for each in read_catalog(code) if each.id}
    used = texts()
    assert [text for text in used if text not in catalog] == [], "run python tests/translations.py and translate"
    assert [text for text in catalog if text not in used] == [], "run python tests/translations.py"
    assert [each.id for each in catalog.values() if each.fuzzy or not all(forms(each.string))] == []


@pytest.mark.parametrize("code", OTHERS)
def test_translations_keep_values_and_elements(code: str) -> None:
    def parts(text: str) -> list[str]:
        return sorted(re.findall(r"\{\w*\}|</?\w+[^>]*>", text))

    for each in read_catalog(code):
        source = each.id if isinstance(each.id, str) else each.id[1]
        assert [form for form in forms(each.string) if each.id and parts(form) != parts(source)] == []


def test_french_has_no_break_before_its_double_signs() -> None:
    strings = [form for each in read_catalog("fr") if each.id for form in forms(each.string)]
    assert [text for text in strings if re.search(r" [:;!?]", text)] == []


@pytest.mark.parametrize("code", OTHERS)
def test_the_compiled_catalogue_is_that_of_the_texts(code: str) -> None:
    def read(content: bytes) -> dict[Any, str]:
        return vars(catalogues.GNUTranslations(io.BytesIO(content)))["_catalog"]

    committed, made = read(po_file(code).with_suffix(".mo").read_bytes()), read(compiled(read_catalog(code)))
    assert {key: text for key, text in committed.items() if key} == {key: text for key, text in made.items() if key}


def test_marked_copies_of_constants_are_those_of_their_modules() -> None:
    assert guard.USE == RESEARCH_USE
    assert display.THROTTLED == REASONS
    assert {*SET_ASIDE, UNCLEAR} == display.LABELS


# Literals


def visible(html: str) -> list[str]:
    """The texts between tags, and those of the attributes in `SEEN`."""
    html = re.sub(r"<(script|style|datalist|kbd|code)\b.*?</\1>", " ", html, flags=re.DOTALL)
    found = [re.sub(r"\s+", " ", text).strip() for text in re.sub(r"<[^>]*>", "\0", html).split("\0")]
    return [*found, *re.findall(rf'\b(?:{"|".join(SEEN)})="([^"]*)"', html)]


def test_templates_have_no_text_of_their_own() -> None:
    assert len(TEMPLATES) > 10
    for file in TEMPLATES:
        source = re.sub(r"\{% block kind %\}[^{]*\{% endblock %\}", "", file.read_text(encoding="utf-8"))  # classes
        tokens = jinja2.Environment().lex(source)
        html = "".join(value if kind == "data" else " " for _, kind, value in tokens)
        shown = [re.sub(r'[\w-]+="[^"]*"', "", text) for text in visible(html)]
        words = [word for text in shown for word in re.findall(r"[^\W\d_]{2,}", text)]
        assert set(words) <= {"edgeall", "rig", "UTC", "quot", "amp", "nbsp"}, file.name


_NO_TEXT = r'className = ("[^"]*"|`[^`]*`)|(querySelector(All)?|closest)\(("[^"]*"|`[^`]*`)\)'
"""Classes and selectors in a script."""


def literals(script: str) -> list[str]:
    """The strings of a script that are no argument of ``_`` and look like words of a language."""
    code = re.sub(r"(?m)^\s*//.*$|(?<=[;{}]) //.*$", "", script)
    code = re.sub(_NO_TEXT, "", re.sub(r'\b_\(\s*"(?:[^"\\]|\\.)*"', "_(", code))
    strings = re.findall(r'"((?:[^"\\]|\\.)*)"|`([^`]*)`', code)
    plain = [re.sub(r"\$\{[^}]*\}", "", first or second) for first, second in strings]
    words = r"[A-Za-z]{2,}[,;:.]? [A-Za-z]{2,}|^[A-Z][a-z]+[ .:]"
    return [each for each in plain if re.search(words, each) and each != "use strict"]


def test_scripts_have_no_text_of_their_own() -> None:
    assert len(SCRIPTS) > 4
    for file in SCRIPTS:
        assert literals(file.read_text(encoding="utf-8")) == [], file.name
    assert literals('text("x", "No connection");') == ["No connection"]
    assert literals("line.textContent = `Not captured: ${why}`;") == ["Not captured: "]
    assert literals('text("x", _("No connection")); light.className = "light bad";') == []


def test_modules_put_no_text_together_that_a_page_shows() -> None:
    found = {name: untranslatable(source, command_line(name)) for name, source in modules()}
    assert len(found) > 100
    assert {name: each for name, each in found.items() if each} == {}, "use message() or N_(), or see COMMAND_LINE"


def test_what_only_the_command_line_shows_exists() -> None:
    known = dict(modules())
    assert {"edge_runtime/adaptation/head.py", "browser/build.py", "rig/web/phone_page.py"} <= known.keys()
    for name, functions in COMMAND_LINE.items():
        assert [each for each in functions if f"def {each}(" not in known[name]] == [], name


@pytest.mark.parametrize(
    "code",
    [
        'raise CameraError(f"{name}: cannot be opened")',
        'raise CameraError("it failed: " + name)',
        'raise CameraError(message("{name}: closed", name=name), hint=detail or "wait for the camera")',
        'HINT = "focus on the lines"\nraise NotARulingError("this is not a ruling", hint=HINT)',
        'text = "{name}: closed"\nraise CameraError(message(text, name=name))',
        'self.failure = f"{name}: is not open"',
        'class LostError(EdgeallError):\n    def __init__(self, name):\n        super().__init__(f"{name}: lost")',
    ],
)
def test_a_text_that_is_put_together_without_a_message_is_found(code: str) -> None:
    assert len(untranslatable(code)) == 1
    assert untranslatable(code, None) == []


@pytest.mark.parametrize(
    "code",
    [
        'raise CameraError("no picture", hint="wait for it")',
        'raise CameraError(message("{name}: closed", name=", ".join(names)), hint=error.hint)',
        'HINT = N_("focus on the lines")\nraise NotARulingError("no ruling", hint=HINT)',
        'raise ValueError(f"{size}: is not a size")',
        'query = f"SELECT row FROM entries WHERE {condition} and so on"',
        'raise CameraError(f"{path}: {error}")',
    ],
)
def test_constant_and_marked_texts_can_be_translated(code: str) -> None:
    assert untranslatable(code) == []


class Marks(catalogues.NullTranslations):
    """A language in which every text stands between brackets."""

    def gettext(self, message: str) -> str:
        return f"\u27e6{message}\u27e7" if message else ""

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        return self.gettext(msgid1 if n == 1 else msgid2)


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "_catalogue", lambda code: Marks())


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A rig with a recorded slide, and one that is open."""
    record, _ = record_slide(tmp_path / "record")
    record.close()
    rig = build_rig(tmp_path / "record", unit="cell")
    rig.session("18")
    yield rig
    rig.record.close()


@pytest.fixture
def page(rig: Rig) -> Iterator[TestClient]:
    with TestClient(rig.app, base_url="http://localhost", follow_redirects=False) as client:
        client.get("/login")
        client.headers["x-csrf-token"] = rig.access.csrf(next(iter(client.cookies.values())))
        yield client


DATA = {
    *("edgeall", "rig", "UTC", "Benign", "Early", "Pre", "Pro", "olga", "dana", "local", "demo", "Wright", "oil", "S"),
    *("kB", "MB", "GB", "TB", "LiteRT", "amp", "quot", "one", "two", "Ольга", "camera", "שלום", *LANGUAGES.values()),
}
"""Words of the fixtures, of people and of machines."""


_OF_DATA = (
    r"(?s)<bdi>.*?</bdi>|<ul[^>]*translate=.no.*?</ul>|<meta[^>]*>|<option[^>]*>[^<]*UTC|<textarea.*?</textarea>"
    r'|value="[^"]*"'
)
"""Parts of a page that hold what people, cameras and machines are called, or what the record says."""


def outside(text: str) -> str:
    """A text without what stands between brackets, which may be nested."""
    while (shorter := re.sub("\u27e6[^\u27e6\u27e7]*\u27e7", " ", text)) != text:
        text = shorter
    return text


@pytest.mark.usefixtures("marked")
def test_every_word_of_every_page_goes_through_translation(rig: Rig, page: TestClient) -> None:
    slide = rig.record.sessions()[-1].id
    frame = rig.record.frames(slide, with_image=True)[0].id
    of_slide = ("", "/map", "/cells", "/review", "/review?queue=all&blind=true", "/report")
    addresses = ["/", "/slides", f"/gallery?session={slide}", "/gallery?status=unjudged", "/settings?saved=true"]
    addresses += ["/objectives?done=scale", "/health", "/learn", "/phone"]
    addresses += [f"/slides/{slide}{each}" for each in of_slide] + [f"/frames/{frame}", "/frames/999999", "/nowhere"]
    for address in addresses:
        html = page.get(address).text
        html = re.sub(_OF_DATA, "", html)
        words = {word for text in visible(outside(html)) for word in re.findall(r"[^\W\d_]{2,}", text)}
        assert words - DATA == set(), address


@pytest.mark.usefixtures("marked")
def test_every_word_of_the_live_view_goes_through_translation(rig: Rig) -> None:
    said = json.loads(LiveEncoder(rig.station and _page(rig))(rig.station.live()))
    for name in ("title", "advice", "rate", "review", "label"):
        assert outside(said[name]).strip() == "", name
    assert said["title"] == "\u27e6No picture\u27e7"


def _page(rig: Rig) -> Any:
    return rig.app.state.context.page


@pytest.mark.usefixtures("marked")
def test_every_word_of_the_report_goes_through_translation(rig: Rig) -> None:
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed")
    slide = rig.record.sessions()[-1].id
    facts = report_facts(rig.record, slide)
    written: list[str] = []
    from edgeall.rig.report.paper import Paper

    original = Paper.printable
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Paper, "printable", lambda self, text: written.append(text) or original(self, text))
        assert pypdf.PdfReader(io.BytesIO(report_pdf(facts))).pages
    names = {*DATA, "Blood", "Laboratory", "Hospital", "Street", "שלום", *re.findall(r"[^\W\d_]{2,}", facts.head)}
    words = {word for text in written for word in re.findall(r"[^\W\d_]{2,}", outside(text))}
    assert {each for each in words - names if not re.fullmatch("[a-f]+|[A-Z]{3,4}", each)} == set()


# Choice


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "en"),
        ("fr-CH, fr;q=0.9, en;q=0.8", "fr"),
        ("nl, de;q=0.7, en;q=0.3", "de"),
        ("en-GB,es;q=0.9", "en"),
        ("es;q=0, de;q=0.1", "de"),
        ("x" * 5000, "en"),
        (";;q=,,de;q=nan;", "en"),
    ],
)
def test_the_language_of_a_browser(header: str, code: str) -> None:
    assert accepted(header) == code


def test_the_language_is_that_of_the_browser_until_one_is_chosen(page: TestClient) -> None:
    assert '<html lang="en">' in page.get("/").text
    german = page.get("/settings", headers={"accept-language": "de-AT"})
    assert '<html lang="de">' in german.text and "Einstellungen" in german.text and 'meta name="texts"' in german.text
    answer = page.post("/language", data={"language": "es", "back": "/slides?x=1"})
    assert answer.headers["location"] == "/slides?x=1"
    assert "samesite=lax" in answer.headers["set-cookie"].lower()
    chosen = page.get("/settings", headers={"accept-language": "de"})
    assert '<html lang="es">' in chosen.text and "Ajustes" in chosen.text
    assert page.post("/language", data={"language": "xx"}).status_code == 400
    for elsewhere in ("//evil.example", "https://evil.example", "/\\evil.example", "/a\r\nb", "javascript:x"):
        assert page.post("/language", data={"language": "en", "back": elsewhere}).headers["location"] == "/"


def test_errors_and_refusals_are_translated(page: TestClient) -> None:
    headers = {"accept-language": "fr"}
    assert "une capture exige une lame ouverte" not in page.get("/").text
    page.post("/slides/end")
    assert "une capture exige une lame ouverte" in page.post("/capture", headers=headers).text
    assert "ce formulaire a expiré" in page.post("/capture", headers={**headers, "x-csrf-token": "x"}).text
    assert "Introuvable" in page.get("/nowhere", headers=headers).text


# Messages


def test_a_message_is_english_until_it_is_shown() -> None:
    inner = message("no frame")
    text = message("{camera}: hangs, {problem} after {limit} s; trying again", camera="c", problem=inner, limit="3")
    files = plural("{count} waiting", "{count} skipped", 2)
    assert (text, json.dumps(files)) == ("c: hangs, no frame after 3 s; trying again", '"2 skipped"')
    with speaking("de"):
        assert gettext(copy.deepcopy(text)) == "c: hängt, kein Bild nach 3 s; neuer Versuch"
        assert gettext("a text of nobody") == "a text of nobody"
    assert gettext(text) == text


def test_what_a_camera_says_is_translated_with_its_hint() -> None:
    def unplugged() -> Camera:
        camera = message("camera {source}", source=0)
        raise CameraError(message("{camera}: returns no frame", camera=camera), "check its cable")

    reader = _Reader(ReconnectingCamera(unplugged))
    reader._run()
    assert reader.failure == "camera 0: returns no frame (check its cable)"
    with speaking("de"):
        assert gettext(reader.failure) == "Kamera 0: liefert kein Bild (das Kabel prüfen)"
    fault = SkippedFileError(message("{file}: the file is empty", file="a.png")).message
    (note,) = notes(CameraState("live", "", fault, "camera", 0, 0, 0, 0, skipped=1), SeenImages(), False, False)
    with speaking("fr"):
        assert gettext(note).endswith("a.png\u00a0: le fichier est vide")


@pytest.mark.usefixtures("marked")
def test_refusals_of_the_optics_are_translated() -> None:
    grey = np.full((120, 160, 3), 120, np.uint8)
    ruled = grey.copy()
    ruled[:, ::40] = 20
    cells = np.where(np.random.default_rng(0).random(grey.shape) > 0.5, grey, 60).astype(np.uint8)
    refused: list[tuple[Callable[[Any], object], Any]] = [(measure_ruling, grey), (measure_ruling, ruled[:, :60])]
    refused += [
        (measure_empty_field, [each]) for each in (grey // 4, grey * 2 + 15, np.where(ruled > 100, grey, 1), cells)
    ]
    for measure, given in refused:
        with pytest.raises((NotARulingError, NotEmptyError)) as caught:
            measure(given)
        assert outside(gettext(caught.value.message)).strip() == "" != caught.value.hint
        assert outside(gettext(caught.value.hint)).strip() == ""


def test_numbers_have_the_decimal_sign_of_the_language() -> None:
    with speaking("fr"):
        assert (display.percent(0.1234), display.size(1.5e9)) == ("12,3 %", "1,5 GB")
    assert display.percent(0.1234) == "12.3 %"


def test_values_in_translated_texts_are_escaped() -> None:
    html = display.translated("<b>{label}</b> by {name}", label="<i>", name=display.named("x&y"))
    assert html == "<b>&lt;i&gt;</b> by <bdi>x&amp;y</bdi>"


@pytest.mark.parametrize("code", OTHERS)
def test_the_report_is_in_the_language(rig: Rig, code: str) -> None:
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed")
    facts = report_facts(rig.record, rig.record.sessions()[-1].id)
    with speaking(code):
        pages = pypdf.PdfReader(io.BytesIO(report_pdf(facts))).pages
        assert all(page.extract_text().count(gettext(guard.USE)[1:]) == 2 for page in pages)


def test_each_viewer_hears_in_their_own_language(rig: Rig) -> None:
    encode: Callable[..., str] = LiveEncoder(_page(rig))
    titles = {code: json.loads(encode(rig.station.live(), code))["title"] for code in LANGUAGES}
    assert titles == {"en": "No picture", "de": "Kein Bild", "fr": "Pas d'image", "es": "Sin imagen"}
