"""A private certificate authority for one machine: it lets the parts of the embedded S3 store recognise each other."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.processes import write_private

__all__ = ["ensure_certificates"]

LIFETIME = datetime.timedelta(days=3650)
RENEW_BEFORE = datetime.timedelta(days=365)


def ensure_certificates(folder: Path) -> None:
    """Write `ca.pem`, `cert.pem`, `key.pem` (mode 0600) into `folder`, unless they are there and valid for a year.

    The authority's own key is thrown away after the one certificate is signed, so nobody can issue another.
    """
    now = datetime.datetime.now(datetime.UTC)
    certificate_path = folder / "cert.pem"
    if all((folder / name).exists() for name in ("ca.pem", "cert.pem", "key.pem")):
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        if certificate.not_valid_after_utc - now > RENEW_BEFORE:
            return
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _sign("agft embedded authority", authority_key, None, authority_key, now)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _sign("agft embedded services", key, authority, authority_key, now)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(folder / "ca.pem", authority.public_bytes(pem))
    write_private(folder / "key.pem", private)
    write_private(certificate_path, certificate.public_bytes(pem))


def _sign(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
) -> x509.Certificate:
    """A certificate for `key`: an authority's when `issuer` is None, else one for both ends of loopback TLS."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # tolerates a clock that is set back a little
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), True)
    )
    if issuer:
        hosts = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), False)
    return builder.sign(issuer_key, hashes.SHA256())
