"""Signatures of promoted versions: OpenSSF's model signing with a key of one's own, offline.

A version's `model.sig` is a Sigstore bundle over the SHA-256 of every file right below its prefix in S3, its manifest
among them, made with a private key (ECDSA on NIST's curves). Whoever has the public key can check it, here or with
`model_signing verify key`.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

from infra import storage
from infra.errors import ChecksumMismatch, Conflict, Missing
from study.errors import UserError
from study.models.manifest import Manifest

SIGNATURE = "model.sig"
PASSWORD = "AGFT_SIGNING_PASSWORD"
NOT_SIGNED = ("reserved.json", SIGNATURE)  # of what lies right below the version's prefix


def check_private_key(key: Path) -> None:
    """Raise a `UserError` unless `key` is a private key that signs, with the password of AGFT_SIGNING_PASSWORD."""
    from cryptography.hazmat.primitives import serialization

    _check_package("--sign")
    try:
        found = serialization.load_pem_private_key(key.expanduser().read_bytes(), _password())
    except OSError as error:
        raise UserError(f"--sign: {key}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, TypeError):
        asked = (
            "; is AGFT_SIGNING_PASSWORD its password?" if _password() else "; a password goes in AGFT_SIGNING_PASSWORD"
        )
        raise UserError(f"--sign: {key}: no private key in PEM that can be read{asked}") from None
    _check_curve("--sign", key, getattr(found, "curve", None))


def check_public_key(key: Path) -> None:
    """Raise a `UserError` unless `key` is a public key that signatures are checked with."""
    from cryptography.hazmat.primitives import serialization

    _check_package("--require-signature")
    try:
        found = serialization.load_pem_public_key(key.expanduser().read_bytes())
    except OSError as error:
        raise UserError(f"--require-signature: {key}: {(error.strerror or str(error)).lower()}") from None
    except ValueError:
        raise UserError(f"--require-signature: {key}: no public key in PEM") from None
    _check_curve("--require-signature", key, getattr(found, "curve", None))


def _check_package(option: str) -> None:
    if importlib.util.find_spec("model_signing") is None:
        raise UserError(f"{option} needs the package model-signing: pip install 'agft-study[signing]'")


def _check_curve(option: str, key: Path, curve: object) -> None:
    name = getattr(curve, "name", "none")
    if name not in ("secp256r1", "secp384r1", "secp521r1"):
        raise UserError(f"{option}: {key}: not a key on secp256r1, secp384r1 or secp521r1 (curve: {name})")


def _password() -> bytes | None:
    given = os.environ.get(PASSWORD)
    return given.encode() if given else None


def files_of(version: Manifest) -> list[str]:
    """What is signed: every file right below the version's prefix, in order."""
    base = f"{version.prefix}/"
    names = (stored.uri.removeprefix(base) for stored in storage.list_objects(base))
    return sorted(name for name in names if "/" not in name and name not in NOT_SIGNED)


def sign(version: Manifest, key: Path) -> None:
    """Put `model.sig` beside a complete version; one that this key has signed already stays as it is."""
    from model_signing.signing import Config

    key = key.expanduser()
    with tempfile.TemporaryDirectory(prefix="agft-sign-") as scratch:
        folder, signature = Path(scratch, "version"), Path(scratch, SIGNATURE)
        folder.mkdir()
        for name in files_of(version):
            own = name == version.weights.uri.rpartition("/")[2]
            sha256 = version.weights.sha256 if own else version.files.get(name)
            storage.get_file(f"{version.prefix}/{name}", folder / name, sha256=sha256)
        Config().use_elliptic_key_signer(private_key=key, password=_password()).sign(folder, signature)
        try:
            storage.put_file(signature, f"{version.prefix}/{SIGNATURE}", if_absent=True)
        except Conflict:  # a try before this one was cut short behind its signature
            storage.get_file(f"{version.prefix}/{SIGNATURE}", folder / SIGNATURE)
            verify(folder, _public_part(key, Path(scratch, "public.pem")), str(version.prefix))


def _public_part(key: Path, out: Path) -> Path:
    from cryptography.hazmat.primitives import serialization

    public = serialization.load_pem_private_key(key.read_bytes(), _password()).public_key()
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    out.write_bytes(public.public_bytes(serialization.Encoding.PEM, kind))
    return out


def verify(folder: Path, key: Path, source: str) -> None:
    """Raise `Missing` where `folder` has no signature, `ChecksumMismatch` where it is not this key's, of these files.

    `source`: what the version is called in the message.
    """
    from model_signing.hashing import Config as Hashing
    from model_signing.verifying import Config

    if not (folder / SIGNATURE).is_file():
        raise Missing(
            f"{source}: is not signed ({SIGNATURE} is missing), and a signature is required; nothing was kept"
        )
    hashing = Hashing().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    checked = Config().use_elliptic_key_verifier(public_key=key.expanduser()).set_hashing_config(hashing)
    try:
        checked.verify(folder, folder / SIGNATURE)
    except Exception as error:  # a bundle that somebody changed can raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ChecksumMismatch(
            f"{source}: its signature does not hold with {key}: {reason}; nothing was kept"
        ) from error


def check_version(version: Manifest, key: Path) -> None:
    """Fetch every signed file of a version into a scratch folder, and `verify`."""
    with tempfile.TemporaryDirectory(prefix="agft-verify-") as scratch:
        folder = Path(scratch)
        if storage.head(f"{version.prefix}/{SIGNATURE}") is not None:
            for name in (*files_of(version), SIGNATURE):
                storage.get_file(f"{version.prefix}/{name}", folder / name)
        verify(folder, key, f"{version.model} version {version.version}")
