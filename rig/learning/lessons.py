"""Learning from corrections: in the background, offered with its figures, and never used before somebody says so.

Each time the given model learns anew from all chosen labels. So the figures before are those of a model that has seen
none of the images, and going back is one step.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from ...console.progress import Advance, Progress
from ...edge_runtime.adaptation.adapt import AdaptConfig, Adapted, adapt
from ...edge_runtime.adaptation.learn import LEAST_PER_CLASS
from ...edge_runtime.errors import DataError, EdgeallError
from ..judge import unit_of
from ..language import message
from ..record.record import Record
from ..snapshot import StationError
from .examples import Example, Reviewed, read_examples, reviewed_slides, write_examples
from .model import ADAPTED, GIVEN, InUse, Model, ModelSwitch, check_model, open_model, unchanged

FOLDER = "learning"
"""In the record's folder: images and the offered model while they are needed."""
_OFFER = "offer.tflite"
_NICE = 10
"""Priority of the learning thread: judging comes first."""
IDLE, LEARNING, OFFERED, NOT_BETTER, FAILED = "idle", "learning", "offered", "not better", "failed"


@dataclass(frozen=True)
class Changed:
    """A reviewed cell or field that gets another label; each label is by a model that was fitted without it."""

    example: Example
    before: str
    after: str

    @property
    def gained(self) -> bool:
        """Right after, wrong before."""
        return self.after == self.example.label


@dataclass(frozen=True)
class Lesson:
    """What the learning has come to.

    Attributes:
        phase: `IDLE`, `LEARNING`, `OFFERED`: a better model waits for an answer, `NOT_BETTER` or `FAILED`.
        done, total: images read so far, and in all.
        result: the figures, once it has learned.
        reviewed: what it learned from.
        changes: the reviewed cells or fields that get another label.
        error: why it failed.
    """

    phase: str = IDLE
    done: int = 0
    total: int = 0
    result: Adapted | None = None
    reviewed: Reviewed = field(default_factory=Reviewed)
    changes: tuple[Changed, ...] = ()
    error: EdgeallError | None = None


class Lessons:
    """The learning of one rig. Thread-safe.

    Args:
        record: with the reviews.
        in_use: the model that judges, and the one that the rig was given.
        switch: of the station.
        used: called with the model that judges from now on.
    """

    def __init__(
        self, record: Record, in_use: InUse, switch: ModelSwitch, used: Callable[[Model], None] = lambda model: None
    ) -> None:
        self._record, self._switch, self._used = record, switch, used
        self._folder = record.folder / FOLDER
        self._lock = threading.Lock()
        self.in_use = in_use
        self.lesson = Lesson()
        self._tidy()  # what an interrupted learning left

    @property
    def labels(self) -> Sequence[str]:
        """Of the model."""
        return self.in_use.given.classifier.labels

    @property
    def unit(self) -> str:
        """What is learned: ``cell`` or ``field``."""
        return unit_of(self.in_use.given.classifier)

    @property
    def can_learn(self) -> bool:
        """Whether the model gives the features that its last layer reads."""
        classifier = self.in_use.given.classifier
        packed = classifier.bundle is not None and classifier.bundle.manifest is not None
        return packed and classifier.model.second is not None

    def slides(self) -> list[int]:
        """The ids of the slides with reviews, newest first."""
        return reviewed_slides(self._record)

    def examples(self, sessions: Sequence[int]) -> Reviewed:
        """What could be learned from some slides."""
        return read_examples(self._record, sessions, self.unit, self.labels)

    def start(self, sessions: Sequence[int], by: str) -> threading.Thread:
        """Learn from the reviews of some slides, in a thread, which is returned.

        Raises:
            StationError: the model has no features, it is learning already, a model waits for an answer, or the disk
                is nearly full.
            DataError: too few reviewed cells or fields.
        """
        if not self.can_learn:
            raise StationError("this model has no features to learn from", hint="pack it with `edgeall quantize`")
        reviewed = self.examples(sessions)
        counts = reviewed.counts(self.labels)
        if sum(count >= LEAST_PER_CLASS for count in counts.values()) < 2:
            raise DataError(
                message("two labels need at least {least} reviewed examples each", least=LEAST_PER_CLASS),
                hint="review more cells or fields",
            )
        if self._record.space().state != "ok":
            raise StationError("the disk is nearly full", hint="free some space first")
        with self._lock:
            if self.lesson.phase == LEARNING:
                raise StationError("the rig is learning already", hint="wait until it has finished")
            if self.lesson.phase == OFFERED:
                raise StationError("a learned model waits for your answer", hint="use it or discard it first")
            self.lesson = Lesson(LEARNING, 0, len(reviewed.examples), reviewed=reviewed)
        thread = threading.Thread(target=self._learn, args=(reviewed, by), name="learning", daemon=True)
        thread.start()
        return thread

    def adopt(self, by: str) -> None:
        """Judge with the offered model from now on.

        Raises:
            StationError: no model is offered, or a slide is open.
            BundleError: it does not compute on this machine what it should.
            RecordError: the switch cannot be recorded; nothing changes.
        """
        with self._lock:
            result = self.lesson.result
            if self.lesson.phase != OFFERED or result is None:
                raise StationError("no learned model waits for an answer", hint="reload the page")
            given = self.in_use.given
            content = result.out.read_bytes()
            model = open_model(result.out, dict(given.program.settings))
            check_model(model, given)
            self._switch.use(model, self._detail(ADAPTED, by, model, result), content)
            kept = self._record.image_path(model.file_sha256)
            assert kept is not None, "the record holds the file of a recorded switch"
            self._finish(InUse(replace(model, path=kept), given))

    def discard(self) -> None:
        """Forget the offered model, or why there is none."""
        with self._lock:
            if self.lesson.phase == LEARNING:
                raise StationError("the rig is learning already", hint="wait until it has finished")
            self._tidy()
            self.lesson = Lesson()

    def go_back(self, by: str) -> None:
        """Judge with the given model again. Raises as `adopt`."""
        with self._lock:
            if not self.in_use.is_adapted:
                raise StationError("the rig runs the model that it was given", hint="reload the page")
            given = self.in_use.given
            self._switch.use(given, self._detail(GIVEN, by, given), None)
            self.in_use = InUse(given, given)
            self._used(given)

    def _learn(self, reviewed: Reviewed, by: str) -> None:
        _yield_to_judging()
        given, images = self.in_use.given, self._folder / "images"
        spec = given.classifier.input
        try:
            unchanged(given)
            self._tidy()
            write_examples(self._record, reviewed.examples, images, spec.width / spec.height)
            config = AdaptConfig(given.path, images, self._folder / _OFFER, by=by)
            result = adapt(config, progress=_Reported(self._advance))
            phase = OFFERED if result.written else NOT_BETTER
            found = Lesson(phase, len(result.site), len(result.site), result, reviewed, _changes(result, reviewed))
        except Exception as error:  # the rig goes on judging, and the page says what happened
            told = error if isinstance(error, EdgeallError) else EdgeallError(f"{type(error).__name__}: {error}")
            found = Lesson(FAILED, reviewed=reviewed, error=told)
        finally:
            shutil.rmtree(images, ignore_errors=True)
        with self._lock:
            self.lesson = found

    def _advance(self, done: int, total: int) -> None:
        with self._lock:
            self.lesson = replace(self.lesson, done=done, total=total)

    def _finish(self, in_use: InUse) -> None:
        self.in_use = in_use
        self._used(in_use.model)
        self._tidy()
        self.lesson = Lesson()

    def _detail(self, use: str, by: str, model: Model, result: Adapted | None = None) -> dict[str, object]:
        """Of the event; the whole lineage is in the file's manifest."""
        detail: dict[str, object] = {
            "use": use,
            "by": by,
            "model_sha256": model.program.model_sha256,
            "given_sha256": self.in_use.given.file_sha256,
        }
        labelled = result.learned.labelled if result else None
        if result is None or labelled is None:
            return detail
        slides = sorted({each.session for each in self.lesson.reviewed.examples})
        figures = {"before": labelled.before.balanced_accuracy, "after": labelled.after.balanced_accuracy}
        return detail | {"images": len(result.site), "slides": slides, "balanced_accuracy": figures}

    def _tidy(self) -> None:
        with suppress(OSError):
            shutil.rmtree(self._folder)


class _Reported(Progress):
    """Progress that is told to a function."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        super().__init__(quiet=True)
        self._report = report

    @contextmanager
    def task(self, title: str, total: int, start: int = 0) -> Iterator[Advance]:
        """Reports ``start``, and then each step."""
        self._report(start, total)
        yield lambda done, info: self._report(done, total)


def _changes(result: Adapted, reviewed: Reviewed) -> tuple[Changed, ...]:
    """What gets another label: first what it gains."""
    labelled = result.learned.labelled
    if labelled is None:
        return ()
    examples = {each.name: each for each in reviewed.examples}
    labels = list(labelled.per_class)
    found = [
        Changed(examples[path.stem], labels[before], labels[after])
        for path, before, after in zip(result.site.paths, *labelled.answers, strict=True)
        if before != after
    ]
    return tuple(sorted(found, key=lambda each: not each.gained))


def _yield_to_judging() -> None:
    """Lower the priority of this thread. Linux alone has one for each thread."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
