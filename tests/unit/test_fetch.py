"""`data fetch` with a local server that implements the part of Kaggle's API that kagglehub uses."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgeall.edge_runtime.errors import DataError, UsageError
from edgeall.train.data.fetch import SOURCES, Part, Source, fetch

kaggle_env = pytest.importorskip("kagglesdk.kaggle_env", reason="kagglehub comes with the extra `train`")

TINY = {
    "all4": Source("mehradaria/leukemia", "Original", (Part("", 3, {"Benign": 1, "Pro": 2}),)),
    "cnmc2019": Source(
        "andrewmvd/leukemia-classification",
        "",
        (Part("fold_", 2, {"all": 1, "hem": 1}), Part("prelim", 1, {})),
    ),
}
ALL4 = ["Original/Benign/1.jpg", "Original/Pro/1.jpg", "Original/Pro/2.jpg", "Segmented/Pro/1.jpg"]
CNMC = {
    "C-NMC_Leukemia/training_data/fold_0/all/UID_1_1_1_all.bmp": "",
    "C-NMC_Leukemia/training_data/fold_0/hem/UID_H1_1_1_hem.bmp": "",
    "C-NMC_Leukemia/validation_data/C-NMC_test_prelim_phase_data/1.bmp": "",
    "C-NMC_Leukemia/validation_data/C-NMC_test_prelim_phase_data_labels.csv": (
        "Patient_ID,new_names,labels\nUID_57_29_1_all.bmp,1.bmp,1\n"
    ),
    "C-NMC_Leukemia/testing_data/C-NMC_test_final_phase_data/1.bmp": "",
}


class Kaggle(ThreadingHTTPServer):
    """Handles GetDataset and DownloadDataset, and records the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = 200
        self.archive = b""
        self.asked: list[str] = []


class _Answer(BaseHTTPRequestHandler):
    server: Kaggle

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        method = self.path.rsplit("/", 1)[1]
        self.server.asked.append(method)
        body, kind = json.dumps({"currentVersionNumber": 1}).encode(), "application/json"
        if method == "DownloadDataset":
            body, kind = self.server.archive, "application/zip"
        if self.server.status != 200:
            body, kind = b"no", "text/plain"
        self.send_response(self.server.status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def archive(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, text in files.items():
            packed.writestr(name, text)
    return buffer.getvalue()


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kaggle]:
    server = Kaggle()
    point_at(monkeypatch, tmp_path, server.server_port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def point_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: int) -> None:
    """No internet, no credentials, no earlier download."""
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KAGGLE_API_TOKEN", raising=False)


def test_the_fields_are_fetched_checked_and_found(
    kaggle: Kaggle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.archive = archive(dict.fromkeys(ALL4, ""))
    assert fetch("all4", tmp_path / "out", TINY) == tmp_path / "out" / "Original"
    assert capsys.readouterr().out == "", "stdout is for data; kagglehub's talk goes to stderr"
    assert kaggle.asked == ["GetDataset", "DownloadDataset"]
    assert fetch("all4", tmp_path / "out", TINY) == tmp_path / "out" / "Original"
    assert len(kaggle.asked) == 2, "what is there is checked, not fetched again"


def test_without_a_folder_it_goes_to_the_cache_of_kagglehub(kaggle: Kaggle, tmp_path: Path) -> None:
    kaggle.archive = archive(CNMC)
    found = fetch("cnmc2019", None, TINY)
    assert found.is_relative_to(tmp_path / "cache")
    assert found.name == "C-NMC_Leukemia"


def test_a_download_that_is_not_as_published(kaggle: Kaggle, tmp_path: Path) -> None:
    kaggle.archive = archive(dict.fromkeys(ALL4[:2], ""))
    with pytest.raises(DataError, match="2 images, expected 3; 1 of class Pro, expected 2") as caught:
        fetch("all4", tmp_path / "out", TINY)
    assert "remove the folder" in caught.value.hint
    with pytest.raises(DataError, match="3256"):
        fetch("all4", tmp_path / "out")


@pytest.mark.parametrize("names", [["thesis.txt"], ["cats/1.png", "dogs/1.png"], ["Original/Pro/1.jpg"]])
def test_somebody_s_own_folder_is_left_alone(kaggle: Kaggle, tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).touch()
    with pytest.raises(DataError, match="mine: not empty, and ") as caught:
        fetch("all4", tmp_path / "mine", TINY)
    assert caught.value.hint == "choose another --out"
    assert kaggle.asked == []


def test_a_download_that_is_not_an_archive(kaggle: Kaggle, tmp_path: Path) -> None:
    kaggle.archive = b"<html>busy</html>"
    with pytest.raises(DataError, match="the download failed"):
        fetch("all4", tmp_path / "out", TINY)


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [(401, "refuses", "KAGGLE_API_TOKEN"), (403, "refuses", "kaggle.json"), (500, "status 500", "in a browser")],
)
def test_a_refusal_says_what_to_do(kaggle: Kaggle, tmp_path: Path, status: int, message: str, hint: str) -> None:
    kaggle.status = status
    with pytest.raises(DataError, match=message) as caught:
        fetch("all4", tmp_path / "out", TINY)
    assert hint in caught.value.hint
    assert "https://www.kaggle.com/datasets/mehradaria/leukemia" in caught.value.hint


def test_offline_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as unused:
        port = unused.server_port
    point_at(monkeypatch, tmp_path, port)
    with pytest.raises(DataError, match="Kaggle can't be reached") as caught:
        fetch("cnmc2019", tmp_path / "out")
    assert "https://www.kaggle.com/datasets/andrewmvd/leukemia-classification" in caught.value.hint
    assert "--data" in caught.value.hint


def test_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'all5'") as caught:
        fetch("all5", tmp_path)
    assert caught.value.hint == "choose one of all4, cnmc2019"


def test_the_published_numbers_add_up() -> None:
    for source in SOURCES.values():
        for part in source.parts:
            assert not part.by_label or sum(part.by_label.values()) == part.images
