"""Signed versions: what the key's owner did not sign, or was changed since, is refused wherever that is asked for."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import Path

import mlflow.pyfunc
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from infra import storage
from infra.errors import ChecksumMismatch
from infra.services import Services
from study.cli.main import main
from study.errors import UserError
from study.models.manifest import Manifest
from study.models.registry import save_pyfunc
from study.models.signing import SIGNATURE, check_private_key, check_public_key, check_version, sign
from tests.support.shipped import corrupt, ship


def keys(
    folder: Path, name: str, curve: ec.EllipticCurve | None = None, password: bytes | None = None
) -> tuple[Path, Path]:
    key = ec.generate_private_key(curve or ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, kind))
    return private, public


def shipped(services: Services, folder: Path) -> Manifest:
    return ship(services.bucket, f"signed-{secrets.token_hex(4)}", folder)


def agft(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_a_signed_version_is_pulled_and_listed_and_nothing_of_an_unsigned_one(
    service_environment: Services, tmp_path: Path
) -> None:
    private, public = keys(tmp_path, "own")
    version = shipped(service_environment, tmp_path)
    for command in (("pull", version.model, tmp_path / "model"), ("models", version.model)):
        code, said = agft(*command, "--require-signature", public)
        assert code == 1
        assert "is not signed" in said
    assert not (tmp_path / "model").exists()
    sign(version, private)
    sign(version, private)  # again, as after a crash: nothing changes
    code, said = agft("pull", version.model, tmp_path / "model", "--require-signature", public)
    assert (code, "signature  holds with" in said) == (0, True), said
    assert (tmp_path / "model" / SIGNATURE).is_file()
    code, said = agft("models", version.model, "--require-signature", public)
    assert (code, "the champion's signature holds" in said) == (0, True), said


def rewritten(version: Manifest) -> None:
    """The manifest says that another trial was promoted."""
    changed = {**version.record(), "trial": 3, "forced": "because"}
    storage.put_json(f"{version.prefix}/manifest.json", changed)


CHANGES: dict[str, Callable[[Manifest], None]] = {
    "a byte of the configuration": lambda v: corrupt(f"{v.prefix}/open_clip_config.json"),
    "a byte of the signature": lambda v: corrupt(f"{v.prefix}/{SIGNATURE}"),
    "the manifest": rewritten,
    "a file more": lambda v: storage.put_json(f"{v.prefix}/more.json", {}) and None,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_changed_since_is_refused(
    change: Callable[[Manifest], None], service_environment: Services, tmp_path: Path
) -> None:
    private, public = keys(tmp_path, "own")
    version = shipped(service_environment, tmp_path)
    sign(version, private)
    change(version)
    with pytest.raises(ChecksumMismatch, match=r"signature does not hold|SHA-256"):
        check_version(version, public)
    code, said = agft("pull", version.model, tmp_path / "model", "--require-signature", public)
    assert code in (1, 2), said
    assert not (tmp_path / "model").exists()


def test_another_persons_signature_does_not_hold(service_environment: Services, tmp_path: Path) -> None:
    private, _ = keys(tmp_path, "own")
    _, public = keys(tmp_path, "stranger")
    version = shipped(service_environment, tmp_path)
    sign(version, private)
    with pytest.raises(ChecksumMismatch, match="signature does not hold"):
        check_version(version, public)


def test_what_is_served_asks_for_the_signature_where_a_public_key_is_set(
    service_environment: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = keys(tmp_path, "own")
    version = shipped(service_environment, tmp_path)
    monkeypatch.setenv("AGFT_CACHE", str(tmp_path / "cache"))
    config = storage.get_bytes(f"{version.prefix}/open_clip_config.json")
    assert config is not None
    plain = save_pyfunc(version, config[0], tmp_path / "plain")
    assert "model-signing" not in (plain / "requirements.txt").read_text()
    monkeypatch.setenv("AGFT_PUBLIC_KEY", str(public))
    with pytest.raises(Exception, match="is not signed, and AGFT_PUBLIC_KEY asks for a signature"):
        mlflow.pyfunc.load_model(str(plain))
    sign(version, private)
    folder = save_pyfunc(version, config[0], tmp_path / "signed", signed=True)
    assert "model-signing==" in (folder / "requirements.txt").read_text()
    mlflow.pyfunc.load_model(str(folder))
    other = {**json.loads(config[0]), "note": "another configuration"}
    tampered = save_pyfunc(version, json.dumps(other).encode(), tmp_path / "tampered")
    with pytest.raises(Exception, match="another version, or has another configuration"):
        mlflow.pyfunc.load_model(str(tampered))
    corrupt(f"{version.prefix}/manifest.json")
    with pytest.raises(Exception, match="its signature does not hold"):
        mlflow.pyfunc.load_model(str(folder))


def test_wrong_keys_are_one_sentence_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = keys(tmp_path, "own")
    locked, _ = keys(tmp_path, "locked", password=b"open sesame")
    odd, odd_public = keys(tmp_path, "odd", ec.SECP256K1())
    check_private_key(private)
    check_public_key(public)
    for check, key, rule in (
        (check_private_key, tmp_path / "none.pem", "no such file"),
        (check_private_key, public, "no private key in PEM"),
        (check_private_key, locked, "a password goes in AGFT_SIGNING_PASSWORD"), (check_private_key, odd, "secp256k1"),
        (check_public_key, private, "no public key in PEM"), (check_public_key, odd_public, "secp256k1"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rule):
            check(key)
    monkeypatch.setenv("AGFT_SIGNING_PASSWORD", "open sesame")
    check_private_key(locked)
