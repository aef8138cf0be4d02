"""The process that feeds damaged files to our readers; `test_fuzz.py` starts it, watches it and counts.

    python worker.py images|models CORPUS SEED BEGIN END CURRENT

Input number i depends on the corpus folder, SEED and i alone. Each is written to the file CURRENT before it is tried,
so that one that ends this process is there to be looked at. A line on stdout for each: ``opened``, ``refused`` or what
went wrong; then the peak of the physical memory, in bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import resource
import signal
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.errors import BundleError, ImageError
from edgeall.edge_runtime.flatbuffer import read_graph
from edgeall.edge_runtime.images import open_rgb
from edgeall.edge_runtime.tools.device import peak_rss_bytes

CPU_SECONDS = 10.0
"""For one input; the kernel ends the process (SIGPROF), whatever it is at. 64 megapixels take one or two."""
MEMORY_BYTES = 1_500_000_000
"""Of address space on top of what Python has: an image of 64 megapixels needs two copies of 256 MB."""

INTERESTING = [0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
ODD_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    "",
    "x" * 10_000,
    [],
    {},
    [[[[]]]],
    ["a", "a"],
    "\ud800",
    "\n",
]

Random = np.random.Generator
Files = dict[str, bytes]


def damaged(data: bytes, random: Random, others: list[bytes]) -> bytes:
    """One to eight changes: bits, bytes, numbers, cuts, copies, splices."""
    content = bytearray(data)
    for _ in range(min(int(random.geometric(0.4)), 8)):
        if not content:
            break
        # Headers are short and matter most.
        end = len(content) if random.random() < 0.5 else min(len(content), 128)
        at = int(random.integers(end))
        kind = int(random.integers(8))
        if kind == 0:
            content[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            content[at] = int(random.integers(256))
        elif kind == 2:
            form = ["<H", ">H", "<I", ">I"][int(random.integers(4))]
            size = struct.calcsize(form)
            number = INTERESTING[int(random.integers(len(INTERESTING)))] % 256**size
            content[at : at + size] = struct.pack(form, number)
        elif kind == 3:
            del content[at : at + int(random.integers(1, 64))]
        elif kind == 4:
            content[at:at] = random.bytes(int(random.integers(1, 64)))
        elif kind == 5:
            del content[int(random.integers(len(content))) :]
        elif kind == 6:
            content[at:at] = content[at : at + int(random.integers(1, 512))] * int(random.integers(1, 9))
        else:
            other = others[int(random.integers(len(others)))]
            start = int(random.integers(len(other)))
            content[at : at + 64] = other[start : start + int(random.integers(1, 512))]
    return bytes(content)


def with_png_checksums(data: bytes) -> bytes:
    """Right checksums, as a forger would write them; otherwise PNG readers look no further."""
    content, at = bytearray(data), 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        if at + 12 + length > len(content):
            break
        struct.pack_into(">I", content, at + 8 + length, zlib.crc32(content[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(content)


def next_image(corpus: Files, random: Random) -> bytes:
    files = list(corpus.values())
    data = damaged(files[int(random.integers(len(files)))], random, files)
    return with_png_checksums(data) if data[:4] == b"\x89PNG" and random.random() < 0.7 else data


def next_model(corpus: Files, random: Random) -> bytes:
    """Of a packed model: any byte; its flatbuffer, manifest or another member, the rest made to fit; or its archive.

    Of a foreign one: any byte.
    """
    files = list(corpus.values())
    name = list(corpus)[int(random.integers(len(corpus)))]
    data, kind = corpus[name], int(random.integers(6))
    if not name.startswith("packed") or kind == 0:
        return damaged(data, random, files)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    facts = json.loads(members["edgeall.json"])
    flatbuffer = data[: facts["flatbuffer_bytes"]]
    if kind == 1:
        flatbuffer = damaged(flatbuffer, random, files)
        facts |= {"flatbuffer_sha256": hashlib.sha256(flatbuffer).hexdigest(), "flatbuffer_bytes": len(flatbuffer)}
        members["edgeall.json"] = json.dumps(facts).encode()
    elif kind == 2:
        member = ["edgeall.json", "golden/golden.json"][int(random.integers(2))]
        members[member] = json.dumps(with_odd_value(json.loads(members[member]), random)).encode()
    elif kind == 3:
        member = list(members)[int(random.integers(len(members)))]
        members[member] = damaged(members[member], random, files)
    elif kind == 4:
        members |= {f"golden/{random.integers(3)}.png": bytes(int(random.integers(20_000_000)))}
    else:
        return flatbuffer + damaged(data[len(flatbuffer) :], random, files)
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    file = io.BytesIO()
    file.write(flatbuffer)
    with zipfile.ZipFile(file, "w", methods[int(random.integers(4))], compresslevel=1) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return file.getvalue()


def with_odd_value(value: Any, random: Random) -> Any:
    """JSON with one value, however deep, put in place of another."""
    if isinstance(value, (dict, list)) and value and random.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[int(random.integers(len(keys)))]
        if random.random() < 0.1:
            del value[key]
        else:
            value[key] = with_odd_value(value[key], random)
        return value
    return ODD_VALUES[int(random.integers(len(ODD_VALUES)))]


def try_image(path: Path) -> None:
    image = open_rgb(path)
    assert image.mode == "RGB"
    assert image.tobytes()[:1] is not None


def try_model(path: Path) -> None:
    """As `Classifier.open` and `inspect` look at a file; and the flatbuffer by itself."""
    with contextlib.suppress(BundleError):
        read_graph(path.read_bytes(), "m")
    open_bundle(path)


KINDS: dict[str, tuple[Callable[[Files, Random], bytes], Callable[[Path], None]]] = {
    "images": (next_image, try_image),
    "models": (next_model, try_model),
}


def main(kind: str, folder: str, seed: str, begin: str, end: str, current: str) -> None:
    warnings.simplefilter("ignore")
    corpus = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    make, attempt = KINDS[kind]
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for index in range(int(begin), int(end)):
        Path(current).write_bytes(make(corpus, np.random.default_rng([int(seed), index])))
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        print(outcome(attempt, Path(current)), flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)
    print(peak_rss_bytes(), flush=True)


def outcome(attempt: Callable[[Path], None], path: Path) -> str:
    try:
        attempt(path)
    except (ImageError, BundleError) as error:
        if "not enough memory" in error.message:
            return f"unbounded memory: {error.message}"
        return "refused" if error.message and "\n" not in error.message else f"bad message {error.message!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    return "opened"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(*sys.argv[1:])
