"""Signed models: a device with the public key detects every change."""

from __future__ import annotations

import base64
import builtins
import hashlib
import io
import json
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fixtures_models import grainy_image

from edgeall import cli
from edgeall.edge_runtime import signature
from edgeall.edge_runtime.bundle import MAX_SIGNED_MEMBERS, open_bundle
from edgeall.edge_runtime.classifier import Classifier
from edgeall.edge_runtime.errors import BundleError, DataError, EdgeallError
from edgeall.edge_runtime.flatbuffer import read_graph
from edgeall.optimize.packaging.sign import make_key, sign


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private key and its public key."""
    key = tmp_path_factory.mktemp("keys") / "key.pem"
    return key, make_key(key)


@pytest.fixture
def signed(tiny_bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> Path:
    """A signed model."""
    model = tmp_path / "model.tflite"
    shutil.copy(tiny_bundle, model)
    sign(model, keys[0])
    return model


def parts(model: Path) -> tuple[bytes, dict[str, bytes]]:
    """Flatbuffer and members."""
    with zipfile.ZipFile(model) as archive:
        return open_bundle(model).flatbuffer, {name: archive.read(name) for name in archive.namelist()}


def rebuild(model: Path, flatbuffer: bytes, members: Mapping[str, bytes]) -> None:
    file = io.BytesIO()
    file.write(flatbuffer)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    model.write_bytes(file.getvalue())


def test_a_signed_model_opens_with_and_without_the_key(
    signed: Path, tiny_bundle: Path, keys: tuple[Path, Path]
) -> None:
    plain, asked = open_bundle(signed), open_bundle(signed, keys[1])
    assert plain == asked
    assert plain.flatbuffer == open_bundle(tiny_bundle).flatbuffer
    assert Classifier.open(signed, public_key=keys[1]).labels == plain.labels
    assert parts(signed)[1].keys() - parts(tiny_bundle)[1].keys() == {"signature.json"}


def test_it_is_still_one_file_that_unzip_reads(signed: Path) -> None:
    listed = subprocess.run([sys.executable, "-m", "zipfile", "-t", signed], capture_output=True, text=True)
    assert listed.stdout == "Done testing\n"


def test_an_unsigned_model_is_refused(
    tiny_bundle: Path, tiny_flatbuffers: dict[str, bytes], keys: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="not signed"):
        open_bundle(tiny_bundle, keys[1])
    foreign = tmp_path / "foreign.tflite"
    foreign.write_bytes(tiny_flatbuffers["uint8"])
    with pytest.raises(BundleError, match="not signed"):
        open_bundle(foreign, keys[1])
    with pytest.raises(BundleError, match="a foreign model"):
        sign(foreign, keys[0])


def forged_flatbuffer(flatbuffer: bytes, members: dict[str, bytes]) -> bytes:
    """A changed weight, with a matching digest in the manifest."""
    changed = bytearray(flatbuffer)
    changed[max(read_graph(flatbuffer, "m").main.tensors, key=lambda tensor: tensor.constant_bytes).constant_at] ^= 1
    facts = json.loads(members["edgeall.json"])
    facts["flatbuffer_sha256"] = hashlib.sha256(changed).hexdigest()
    members["edgeall.json"] = json.dumps(facts).encode()
    return bytes(changed)


def changed_labels(flatbuffer: bytes, members: dict[str, bytes]) -> bytes:
    """Positive and negative labels swapped in both places, so that only the signature detects it."""
    facts = json.loads(members["edgeall.json"])
    facts["labels"][:2] = facts["labels"][1::-1]
    members["edgeall.json"] = json.dumps(facts).encode()
    members["labels.txt"] = "".join(f"{label}\n" for label in facts["labels"]).encode()
    return flatbuffer


def changed_threshold(flatbuffer: bytes, members: dict[str, bytes]) -> bytes:
    members["edgeall.json"] = json.dumps(
        json.loads(members["edgeall.json"]) | {"decision": {"review_below": 0.01}}
    ).encode()
    return flatbuffer


def changed_golden_image(flatbuffer: bytes, members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    grainy_image(99).save(file, "PNG")
    members["golden/0.png"] = file.getvalue()
    return flatbuffer


def changed_golden_answers(flatbuffer: bytes, members: dict[str, bytes]) -> bytes:
    members["golden/golden.json"] = members["golden/golden.json"].replace(b"[", b"[ ", 1)
    return flatbuffer


def changed_card(flatbuffer: bytes, members: dict[str, bytes]) -> bytes:
    members["MODEL_CARD.md"] += b"\nApproved for diagnosis.\n"
    return flatbuffer


def added_member(flatbuffer: bytes, members: dict[str, bytes]) -> bytes:
    members["more.txt"] = b""
    return flatbuffer


@pytest.mark.parametrize(
    "tamper",
    [
        forged_flatbuffer,
        changed_labels,
        changed_threshold,
        changed_golden_image,
        changed_golden_answers,
        changed_card,
        added_member,
    ],
)
def test_what_is_changed_after_signing_is_seen(
    signed: Path, keys: tuple[Path, Path], tamper: Callable[[bytes, dict[str, bytes]], bytes]
) -> None:
    """Each of these files is a valid bundle without the signature check."""
    flatbuffer, members = parts(signed)
    rebuild(signed, tamper(flatbuffer, members), members)
    open_bundle(signed)
    with pytest.raises(BundleError, match="changed after it was signed"):
        open_bundle(signed, keys[1])


def test_a_rebuilt_archive_of_the_same_content_is_the_same_model(signed: Path, keys: tuple[Path, Path]) -> None:
    """The test above detects changed content, not that another program wrote the file."""
    rebuild(signed, *parts(signed))
    open_bundle(signed, keys[1])


def test_a_removed_member_is_seen(signed: Path, keys: tuple[Path, Path]) -> None:
    flatbuffer, members = parts(signed)
    del members["golden/1.png"]
    rebuild(signed, flatbuffer, members)
    with pytest.raises(BundleError, match="changed after it was signed"):
        open_bundle(signed, keys[1])


def test_bytes_between_flatbuffer_and_archive_are_seen(signed: Path, keys: tuple[Path, Path]) -> None:
    flatbuffer, members = parts(signed)
    rebuild(signed, flatbuffer + b"\0" * 16, members)
    with pytest.raises(BundleError, match="changed after it was signed"):
        open_bundle(signed, keys[1])


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    """Readers disagree on which of the two is valid."""
    with zipfile.ZipFile(signed, "a") as archive:
        archive.writestr("labels.txt", b"Benign\n")
    with pytest.raises(BundleError, match="a duplicate name"):
        open_bundle(signed, keys[1])


def test_more_members_than_can_be_signed_are_not_read(signed: Path, keys: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(signed, "a") as archive:
        for index in range(MAX_SIGNED_MEMBERS):
            archive.writestr(f"{index}", b"")
    with pytest.raises(BundleError, match="more members than `edgeall sign` signs"):
        open_bundle(signed, keys[1])


def test_somebody_elses_key(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    other = make_key(tmp_path / "other.pem")
    with pytest.raises(BundleError, match="signed with another key"):
        open_bundle(signed, other)
    sign(signed, tmp_path / "other.pem")  # in place of the first one
    open_bundle(signed, other)
    with pytest.raises(BundleError, match="signed with another key"):
        open_bundle(signed, keys[1])


def test_claiming_the_trusted_key_is_not_enough(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """An attacker signs with another key and claims the trusted one."""
    make_key(tmp_path / "his.pem")
    ours = json.loads(parts(signed)[1]["signature.json"])["public_key"]
    sign(signed, tmp_path / "his.pem")
    flatbuffer, members = parts(signed)
    members["signature.json"] = json.dumps(json.loads(members["signature.json"]) | {"public_key": ours}).encode()
    rebuild(signed, flatbuffer, members)
    with pytest.raises(BundleError, match="changed after it was signed"):
        open_bundle(signed, keys[1])


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"signature": 1, "public_key": ""}', b'{"signature": "?", "public_key": ""}']
)
def test_an_invalid_signature_is_refused(signed: Path, keys: tuple[Path, Path], content: bytes) -> None:
    flatbuffer, members = parts(signed)
    rebuild(signed, flatbuffer, members | {"signature.json": content})
    open_bundle(signed)  # not required
    with pytest.raises(BundleError, match=r"signature\.json is not what"):
        open_bundle(signed, keys[1])


def test_a_signature_of_another_length(signed: Path, keys: tuple[Path, Path]) -> None:
    flatbuffer, members = parts(signed)
    facts = json.loads(members["signature.json"]) | {"signature": base64.b64encode(b"short").decode()}
    rebuild(signed, flatbuffer, members | {"signature.json": json.dumps(facts).encode()})
    with pytest.raises(BundleError, match="changed after it was signed"):
        open_bundle(signed, keys[1])


def test_signing_again_gives_the_same_bytes(signed: Path, keys: tuple[Path, Path]) -> None:
    once = signed.read_bytes()
    sign(signed, keys[0])
    assert signed.read_bytes() == once


def test_signing_keeps_the_file_s_mode_and_leaves_nothing_behind(signed: Path, keys: tuple[Path, Path]) -> None:
    signed.chmod(0o640)
    sign(signed, keys[0])
    assert stat.S_IMODE(signed.stat().st_mode) == 0o640
    assert [path.name for path in signed.parent.iterdir()] == [signed.name]


def test_a_damaged_model_is_not_signed(signed: Path, keys: tuple[Path, Path]) -> None:
    content = bytearray(signed.read_bytes())
    content[2000] ^= 1
    signed.write_bytes(content)
    with pytest.raises(BundleError, match="does not match its digest"):
        sign(signed, keys[0])
    assert signed.read_bytes() == content


def test_keys_are_private_and_never_overwritten(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    key, public = keys
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert b"PRIVATE" not in public.read_bytes()
    before = key.read_bytes(), public.read_bytes()
    with pytest.raises(DataError, match="File exists") as caught:
        make_key(key)
    assert "never overwritten" in caught.value.hint
    assert (key.read_bytes(), public.read_bytes()) == before


def test_wrong_keys_are_named(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    key, public = keys
    with pytest.raises(EdgeallError, match="not a public Ed25519 key"):
        open_bundle(signed, key)
    with pytest.raises(EdgeallError, match="not an unencrypted private Ed25519 key"):
        sign(signed, public)
    with pytest.raises(EdgeallError, match="can't be read"):
        open_bundle(signed, tmp_path / "none.pub")
    other = tmp_path / "key.pem"
    elliptic = ec.generate_private_key(ec.SECP256R1())
    other.write_bytes(elliptic.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(EdgeallError, match="not an unencrypted private Ed25519 key"):
        sign(signed, other)
    locked = signature.load_private_key(key).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    other.write_bytes(locked)
    with pytest.raises(EdgeallError, match="not an unencrypted private Ed25519 key"):
        sign(signed, other)


def test_without_cryptography(signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the device install: signed models open; requiring a signature names the missing package."""
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "cryptography":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    open_bundle(signed)
    for attempt in (
        lambda: open_bundle(signed, keys[1]),
        lambda: sign(signed, keys[0]),
        lambda: make_key(keys[0]),
    ):
        with pytest.raises(EdgeallError, match="need the package cryptography") as caught:
            attempt()
        assert caught.value.hint == "pip install cryptography"


def test_on_the_command_line(
    tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, key, image = tmp_path / "m.tflite", tmp_path / "key.pem", tmp_path / "1.png"
    shutil.copy(tiny_bundle, model)
    grainy_image(1).save(image)
    public = f"{key}.pub"

    def edgeall(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        return (status, *capfd.readouterr())

    status, out, _ = edgeall("sign", model, "--key", key, "--new-key", "--json")
    assert (status, json.loads(out)["model"]) == (0, str(model))
    assert edgeall("run", model, image, "--json", "--require-signature", public)[0] == 0
    status, out, err = edgeall("inspect", model, "--json", "--require-signature", public)
    assert (status, json.loads(out)["signature_ok"]) == (0, True)
    assert "signed with the key of" in err
    assert json.loads(edgeall("inspect", model, "--json")[1])["signature_ok"] is None

    monkeypatch.setenv("EDGEALL_RUN_REQUIRE_SIGNATURE", public)
    assert edgeall("run", model, image)[0] == 0
    status, out, err = edgeall("run", tiny_bundle, image)
    assert (status, out) == (1, "")
    assert "not signed" in err
    assert "edgeall sign" in err
    assert edgeall("inspect", tiny_bundle, "--require-signature", public)[0] == 1
