"""What is computed from a slide's rows: shares, the differential, the audit, the agreement of readers, the summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Share:
    """The count of one label, current and by the model alone; the fraction and its 95 % interval (Wilson)."""

    label: str
    count: int
    by_model: int
    fraction: float
    low: float
    high: float


@dataclass(frozen=True)
class Counts:
    """What a slide showed, each counted once: different fields and cells, patches of the map.

    ``untracked`` is the number of judged frames that are not in the count: an older version recorded them.
    ``set_aside`` counts what a reviewer took out, by `SET_ASIDE`, and what is `UNCLEAR`, which counts but has no share.
    ``unreviewed`` is the number of cells, or of fields of a model of fields, that no person has labelled.
    """

    fields: int
    cells: int
    patches: int
    untracked: int = 0
    set_aside: Mapping[str, int] = field(default_factory=dict)
    unreviewed: int = 0


@dataclass(frozen=True)
class Differential:
    """The running count of a slide: different cells, or fields of a model of fields; their shares, after review."""

    total: int
    shares: tuple[Share, ...]
    counts: Counts


@dataclass(frozen=True)
class Audit:
    """The audit of a slide's confident verdicts.

    Attributes:
        confident: number of counted fields or cells for which the model asks for no review.
        sample: number of them in the random sample.
        reviewed: number of the sample with a review that tells the label.
        errors: number of these with another label than the model's.
        rate: ``errors / reviewed``; None before the first review.
        low, high: 95 % interval of the rate (Wilson).
    """

    confident: int
    sample: int
    reviewed: int
    errors: int
    rate: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Agreement:
    """How far two readers agree on what both have read.

    Attributes:
        readers: their names.
        common: number of fields or cells with a label by both.
        agreed: number with the same label.
        kappa: Cohen's kappa; None if both gave one and the same label to everything.
    """

    readers: tuple[str, str]
    common: int
    agreed: int
    kappa: float | None


@dataclass(frozen=True)
class Summary:
    """The results of a session.

    With `counts`, the unit is a different cell, or a different field for a field model, with the pooled label of its
    sharpest frames: the intervals are over these. Without, the unit is a frame, as older versions recorded it; such
    intervals are too narrow, for one cell counts in every frame that shows it. A frame that was recorded and then
    captured counts once.

    Attributes:
        frames: count of each of `STATUSES`.
        reasons: count of each reason for refusal; one frame may have several.
        labels: of different fields, after review; most frequent first. Without `counts`, of judged frames.
        cells: the same for different cells; empty for a field model.
        review_needed: number of units for which the model asks for a review that was not done.
        reviewed: number of units with a review.
        corrected: number of reviewed units with a changed label.
        images: number of frames with an image.
        images_lost: number of frames whose image could not be saved for lack of space.
        counts: different fields and cells.
        audit: of the confident verdicts; None without `counts`.
        agreement: of two readers; None if no two have read the same.
        disagreements: number of units on which readers differ and nobody has adjudicated.
        flat_field: number of frames that were corrected by an empty field before they were judged.
    """

    frames: dict[str, int]
    reasons: dict[str, int]
    labels: tuple[Share, ...]
    cells: tuple[Share, ...]
    review_needed: int
    reviewed: int
    corrected: int
    images: int
    images_lost: int
    counts: Counts | None = None
    audit: Audit | None = None
    agreement: Agreement | None = None
    disagreements: int = 0
    flat_field: int = 0

    @property
    def unreviewed(self) -> tuple[int, int] | None:
        """How many of how many cells, fields or frames no person has labelled; None if nothing was counted."""
        if self.counts is None:
            judged = self.frames["judged"]
            return (judged - self.reviewed, judged) if judged else None
        total = self.counts.cells if self.cells or not self.labels else self.counts.fields
        return (self.counts.unreviewed, total) if total else None
