"""Which model the rig runs: the one that it was given, or one that it has learned from it.

The record decides: the last event `EVENT` names the model, and the record holds its file. A restart, also one between
two steps of a switch, finds the same model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ...edge_runtime.classifier import Classifier
from ...edge_runtime.errors import BundleError, EdgeallError
from ...edge_runtime.tasks import ForeignFacts
from ...edge_runtime.tools.golden import check_golden
from ..judge import Judge
from ..language import as_message, message
from ..open_slide import OpenSlide
from ..record.image_store import file_digest
from ..record.record import Record
from ..record.rows import Event, Program

EVENT = "model"
"""Kind of the record's event of another model. Its ``use`` is `ADAPTED` or `GIVEN`."""
ADAPTED, GIVEN = "adapted", "given"


@dataclass(frozen=True)
class Model:
    """A model that the rig can run.

    Attributes:
        path: of its file.
        file_sha256: hex digest of the file.
        classifier: open.
        program: that the record's rows name.
    """

    path: Path
    file_sha256: str
    classifier: Classifier
    program: Program


@dataclass(frozen=True)
class InUse:
    """The model that the rig runs.

    Attributes:
        model: that judges.
        given: that the rig was started with.
        fault: why a model that was learned is not used; empty if it is, or if there is none.
    """

    model: Model
    given: Model
    fault: str = ""

    @property
    def is_adapted(self) -> bool:
        """Whether it is one that the rig has learned."""
        return self.model is not self.given


def open_model(path: Path, settings: dict[str, str], facts: ForeignFacts | None = None) -> Model:
    """Open a model; ``facts`` are of a foreign one. Raises BundleError and UsageError as `Classifier.open`."""
    classifier = Classifier.open(path, **vars(facts or ForeignFacts()))
    manifest = classifier.bundle.manifest if classifier.bundle else None
    flatbuffer = classifier.bundle.flatbuffer if classifier.bundle else b""
    name = manifest.name if manifest else path.name
    program = Program(name, hashlib.sha256(flatbuffer).hexdigest(), classifier.labels, settings)
    return Model(path, file_digest(path), classifier, program)


def model_in_use(record: Record, given: Model) -> InUse:
    """The model that the record's last `EVENT` names, if it was learned from the given one.

    A file that is missing or was altered is not used: the rig then judges with the given model, and says so.
    """
    last = last_switch(record)
    if last is None or last.detail.get("use") != ADAPTED or last.detail.get("given_sha256") != given.file_sha256:
        return InUse(given, given)
    try:
        return InUse(stored_model(record, last, given), given)
    except (EdgeallError, OSError) as error:
        reason = as_message(error.message) if isinstance(error, EdgeallError) else str(error.strerror)
        fault = message("the model that the rig learned cannot be used ({reason}): the given one judges", reason=reason)
        return InUse(given, given, fault)


def stored_model(record: Record, event: Event, given: Model) -> Model:
    """The model of an `EVENT`. Raises BundleError: its file is missing, altered or computes something else here."""
    path = record.image_path(event.image or "")
    if path is None or file_digest(path) != event.image:
        raise BundleError("its file was removed or altered", hint="check it with `edgeall record verify`")
    model = open_model(path, dict(given.program.settings))
    check_model(model, given)
    return model


def unchanged(model: Model) -> bytes:
    """The content of a model's file. Raises BundleError unless it is the one that the rig opened."""
    try:
        content = model.path.read_bytes()
    except OSError as error:
        text = message("{path}: can't be read ({reason})", path=model.path, reason=error.strerror)
        raise BundleError(text, hint="check the disk") from error
    if hashlib.sha256(content).hexdigest() != model.file_sha256:
        raise BundleError(
            message("{path}: has changed since the rig opened it", path=model.path), hint="restart the rig"
        )
    return content


def check_model(model: Model, given: Model) -> None:
    """Raise BundleError unless a learned model computes here what it should, and labels as the given one."""
    old, new = given.classifier, model.classifier
    if (new.labels, new.input) != (old.labels, old.input):
        text = message("{file}: other labels or another input than {given}", file=model.path, given=given.path)
        raise BundleError(text, hint="learn again")
    for result in check_golden(new):
        if not result.ok:
            text = message("{file}: golden image {result}", file=model.path, result=result.describe())
            raise BundleError(text, hint="see `edgeall doctor`")


def last_switch(record: Record) -> Event | None:
    """The last event of another model."""
    return next(iter(record.events(1, kind=EVENT)), None)


class ModelSwitch:
    """Switches the running station to another model, between two slides: a slide is judged by one model.

    Args:
        judge: runs the model.
        slide: that may be open.
        record: receives the event, and the next rows in the new model's name.
    """

    def __init__(self, judge: Judge, slide: OpenSlide, record: Record) -> None:
        self._judge, self._slide, self._record = judge, slide, record

    def use(self, model: Model, detail: dict[str, object], learned: bytes | None) -> None:
        """Record the switch, then switch. A frame that is being judged now belongs to no slide.

        Args:
            model: to judge with.
            detail: of the event.
            learned: the file of a model that the record does not hold yet.

        Raises:
            StationError: a slide is open.
            RecordError: the switch cannot be recorded; nothing changes.
        """
        with self._slide.none_open():
            self._record.add_event(EVENT, detail, learned)
            self._record.use_program(model.program)
            self._judge.use(model.classifier)
