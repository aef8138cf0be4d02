"""Writes to a record until it is killed or the disk is full; prints acknowledged rows.

python record_writer.py FOLDER SEED, with the package on the path: `opened`, then `frame ID DIGEST` and
`review ID FRAME` lines, and at the end `full` where there was no room.
"""

from __future__ import annotations

import os
import random
import sys
from datetime import datetime, timezone

from edgeall.rig.record.chain import RecordFullError
from edgeall.rig.record.record import Record
from edgeall.rig.record.rows import FrameRow, Limits, Program, SessionNotes


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def main() -> None:
    folder, seed = sys.argv[1:]
    chance = random.Random(seed)
    try:
        with Record(folder, program=Program("test", "0" * 64), limits=Limits(0, 0)) as record:
            say("opened")
            session = record.start_session(SessionNotes(f"slide {seed}"))
            for number in range(100_000):
                row = FrameRow(datetime.now(timezone.utc), number, "judged", label="Early", probability=0.9)
                frame = record.add_frame(session, row, chance.randbytes(chance.randrange(100, 30_000)))
                image = record.frame(frame).image
                say("frame", frame, image)
                if image is None:
                    break
                if number % 5 == 0:
                    say("review", record.add_review(frame, "Pre", "expert"), frame)
    except RecordFullError:
        pass
    say("full")


if __name__ == "__main__":
    main()
