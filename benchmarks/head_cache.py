"""Training of a head on cached features, compared with a plain Keras `fit` of the same frozen network.

python benchmarks/head_cache.py DATA WEIGHTS [--alpha 0.35] [--out benchmarks/results/head_cache.md]

`edgeall train --epochs-finetune 0` runs twice: the first call fills the caches, the second is measured. The limit is
ten times the images per second. Medians over epochs, without the peer's first epoch, which traces its graph.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

EDGEALL = str(Path(sys.executable).parent / "edgeall")
PEER = Path(__file__).parent / "peers" / "plain_keras_head.py"
PEER_EPOCHS = 3
LIMIT = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--alpha", type=float, default=0.35)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _ours(arguments, Path(folder) / "fill", Path(folder) / "cache")
        begin = time.perf_counter()
        ours = _ours(arguments, Path(folder) / "run", Path(folder) / "cache")
        whole_s = time.perf_counter() - begin
    words = [sys.executable, str(PEER), str(arguments.data), str(arguments.weights), str(arguments.alpha)]
    done = subprocess.run([*words, str(PEER_EPOCHS)], stdout=subprocess.PIPE, text=True, check=True)
    peer = statistics.median(json.loads(done.stdout.splitlines()[-1])["images_per_s"][1:])
    mine = ours["timing"]["head_images_per_s"]
    page = report(arguments, mine, peer, whole_s, ours)
    print(page)
    if arguments.out:
        arguments.out.write_text(page, encoding="utf-8")
    return 0 if mine / peer >= LIMIT else 1


def _ours(arguments: argparse.Namespace, run: Path, cache: Path) -> dict[str, Any]:
    words = ["train", "--data", arguments.data, "--alpha", arguments.alpha, "--weights", arguments.weights]
    words += ["--epochs-finetune", 0, "--patience", 30, "--out", run, "--cache-dir", cache, "--json"]
    done = subprocess.run([EDGEALL, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def report(arguments: argparse.Namespace, mine: float, peer: float, whole_s: float, run: dict[str, Any]) -> str:
    """A Markdown page."""
    from edgeall.edge_runtime.tools.device import describe_device

    return "\n".join(
        [
            f"# Head on cached features, MobileNetV2 {arguments.alpha:g}/224",
            "",
            f"`python benchmarks/head_cache.py DATA WEIGHTS --alpha {arguments.alpha:g}`, "
            f"{datetime.now(timezone.utc):%Y-%m-%d}.",
            "",
            "| what | images/s |",
            "| --- | ---: |",
            f"| `edgeall train --epochs-finetune 0`, caches filled, per epoch | {mine:,.0f} |",
            f"| plain Keras `fit`, same frozen network, per epoch | {peer:,.0f} |",
            f"| ratio (limit at least {LIMIT:g}: {'met' if mine / peer >= LIMIT else 'NOT met'}) | {mine / peer:.0f} |",
            "",
            f"The whole measured command (start, split check, 30 epochs, evaluation of all subsets, report) took "
            f"{whole_s:.0f} s and reached {100 * run['metrics']['test']['accuracy']:.2f} % on the test subset.",
            "",
            *(f"- {key}: {value}" for key, value in describe_device().to_json().items() if value is not None),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
