"""A foreign model first runs in a child process: a crash or a hang becomes an error message."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from fixtures_models import LABELS

from edgeall.edge_runtime import interpreter, probe
from edgeall.edge_runtime.bundle import open_bundle
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import BundleError

SMALL = (1, 2, 2, 3)
FLOAT32, BOOL = 0, 6
OPERATORS = (schema.BuiltinOperator.ADD, schema.BuiltinOperator.WHILE, schema.BuiltinOperator.TRANSPOSE)
ADD, WHILE, TRANSPOSE = range(3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def graph(
    shapes: Sequence[Sequence[int]],
    outputs: Sequence[int],
    operators: Sequence[tuple[int, Sequence[int], Sequence[int], Any]],
    types: Sequence[int] | None = None,
) -> Any:
    """A model whose input is tensor 0. The last tensor of a boolean graph is the constant in buffer 1: true."""
    made = schema.SubGraphT()
    made.tensors, made.operators, made.inputs, made.outputs = [], [], [0], list(outputs)
    for index, shape in enumerate(shapes):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = f"t{index}", list(shape), (types or [FLOAT32] * len(shapes))[index]
        tensor.buffer = int(tensor.type == BOOL)
        made.tensors.append(tensor)
    for code, inputs, ends, options in operators:
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = code, list(inputs), list(ends)
        operator.builtinOptions = options
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        made.operators.append(operator)
    return made


def model(*graphs: Any) -> bytes:
    made = schema.ModelT()
    made.version, made.subgraphs, made.operatorCodes = 3, list(graphs), []
    for operator in OPERATORS:
        code = schema.OperatorCodeT()
        code.deprecatedBuiltinCode = code.builtinCode = operator
        made.operatorCodes.append(code)
    true = schema.BufferT()
    true.data = [1]
    made.buffers = [schema.BufferT(), true]
    builder = flatbuffers.Builder()
    builder.Finish(made.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def addition(shape: Sequence[int] = SMALL) -> bytes:
    return model(graph([shape, shape], [1], [(ADD, (0, 0), [1], schema.AddOptionsT())]))


def crashing() -> bytes:
    """A transposition without its permutation: valid for a flatbuffer, fatal for the interpreter."""
    return model(graph([SMALL, SMALL], [1], [(TRANSPOSE, (0, -1), [1], schema.TransposeOptionsT())]))


def endless() -> bytes:
    """While true: add the image to itself."""
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = 1, 2
    body = graph([SMALL, SMALL], [1], [(ADD, (0, 0), [1], schema.AddOptionsT())])
    return model(
        graph([SMALL, SMALL], [1], [(WHILE, [0], [1], options)]),
        graph([SMALL, ()], [1], [], [FLOAT32, BOOL]),
        body,
    )


def huge() -> bytes:
    """Two tensors of a terabyte each, in a file of a few hundred bytes."""
    return addition(shape=(1, 300_000, 300_000, 3))


@pytest.fixture
def foreign(tmp_path: Path) -> Callable[[bytes], tuple[Path, Path]]:
    """A model and a label file."""

    def write(content: bytes) -> tuple[Path, Path]:
        path, labels = tmp_path / "foreign.tflite", tmp_path / "labels.txt"
        path.write_bytes(content)
        labels.write_text("\n".join(LABELS))
        return path, labels

    return write


def opened(files: tuple[Path, Path]) -> Classifier:
    return Classifier.open(files[0], labels_file=files[1], mean=0.0, std=1.0)


def test_a_model_that_crashes_the_interpreter(foreign: Callable[[bytes], tuple[Path, Path]]) -> None:
    """Opened in this process it would crash it; the next test proves that."""
    files = foreign(crashing())
    with pytest.raises(BundleError, match=r"foreign\.tflite: the interpreter crashes on it \(SIGSEGV\)") as caught:
        opened(files)
    assert "copy the file again" in caught.value.hint


def test_without_the_guard_it_is_a_crash() -> None:
    script = "import sys; from edgeall.edge_runtime.interpreter import load; load(sys.stdin.buffer.read(), 1, 'm')"
    assert subprocess.run([sys.executable, "-c", script], input=crashing(), capture_output=True).returncode < 0


def test_a_model_that_never_ends(
    foreign: Callable[[bytes], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "SECONDS", 2.0)
    begin = time.monotonic()
    with pytest.raises(BundleError, match=r"a test run took more than 2 s"):
        opened(foreign(endless()))
    assert time.monotonic() - begin >= 2


def test_a_model_that_wants_more_memory_than_there_is(foreign: Callable[[bytes], tuple[Path, Path]]) -> None:
    with pytest.raises(BundleError, match=r"^.*foreign\.tflite: "):
        opened(foreign(huge()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit needs /proc")
def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tensors of 48 MB and numpy's copies: allowed within the limit, refused above it."""
    content = addition(shape=(1, 2_000, 2_000, 3))
    limit = f"import edgeall.edge_runtime.probe as p; p.MEMORY_BYTES = {{}}; {probe._CODE}"
    monkeypatch.setattr(probe, "_CODE", limit.format(500_000_000))
    assert probe.try_out(content, "m")["xnnpack"]
    monkeypatch.setattr(probe, "_CODE", limit.format(60_000_000))
    with pytest.raises(BundleError, match="m: "):
        probe.try_out(content, "m")


def test_a_model_that_the_interpreter_refuses() -> None:
    """With the same message as in this process."""
    content = model(graph([SMALL, (1, 2, 2, 4)], [1], [(ADD, (0, 5), [1], schema.AddOptionsT())]))
    with pytest.raises(BundleError, match="m: the interpreter refuses the model"):
        probe.try_out(content, "m")
    with pytest.raises(BundleError, match="m: the interpreter refuses the model"):
        interpreter.load(content, 1, "m")


def test_a_model_that_runs_is_tried_once(
    foreign: Callable[[bytes], tuple[Path, Path]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = addition()
    probe.ensure_runs(content, "m")
    (remembered,) = (path for path in cache.rglob("*") if path.is_file())

    def again(*_: object) -> NoReturn:
        raise AssertionError("tried again")

    monkeypatch.setattr(probe, "try_out", again)
    probe.ensure_runs(content, "m")
    with pytest.raises(AssertionError, match="tried again"):
        probe.ensure_runs(addition(shape=(1, 2, 3, 3)), "m")
    # Another release of the interpreter may fail on the same model.
    monkeypatch.setattr(sys.modules["ai_edge_litert"], "__file__", str(cache / "other.py"))
    (cache / "other.py").touch()
    with pytest.raises(AssertionError, match="tried again"):
        probe.ensure_runs(content, "m")
    assert remembered.stat().st_size == 0


def test_a_crash_is_not_remembered(cache: Path) -> None:
    for _ in range(2):
        with pytest.raises(BundleError, match="crashes"):
            probe.ensure_runs(crashing(), "m")
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_a_home_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    probe.ensure_runs(addition(), "m")


def test_packed_models_are_not_tried(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their digest is verified; a child process would double the time to the first prediction."""
    monkeypatch.setattr(probe, "try_out", lambda *_: pytest.fail("tried"))
    Classifier.open(tiny_bundle)
    script = (
        "import sys; from edgeall.edge_runtime.classifier import Classifier; Classifier.open(sys.argv[1]);"
        "sys.exit('edgeall.edge_runtime.probe' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, tiny_bundle]).returncode == 0


def test_foreign_models_give_the_same_as_without(
    foreign: Callable[[bytes], tuple[Path, Path]], tiny_flatbuffers: dict[str, bytes]
) -> None:
    files = foreign(tiny_flatbuffers["uint8"])
    classifier = Classifier.open(files[0], labels_file=files[1])
    pixels = np.random.default_rng(0).integers(0, 256, classifier.model.input.shape[1:], np.uint8)
    bare = Interpreter(model_content=open_bundle(files[0]).flatbuffer)
    bare.allocate_tensors()
    bare.set_tensor(classifier.model.input.index, pixels[None])
    bare.invoke()
    np.testing.assert_array_equal(
        classifier.predict_units(pixels), bare.get_tensor(classifier.model.output.index).reshape(-1)
    )


def test_modules_in_the_current_folder_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloaded files may be in the current folder; `python -m` would prefer them to installed modules."""
    for name in ("numpy", "json", "edgeall"):
        (tmp_path / f"{name}.py").write_text("import os; os._exit(7)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert probe.try_out(addition(), "m") == {"runtime": "ai_edge_litert", "xnnpack": True}


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", os.devnull)
    with pytest.raises(BundleError, match="m: the process for a test run cannot be started"):
        probe.try_out(addition(), "m")
