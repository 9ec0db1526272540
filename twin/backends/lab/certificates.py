"""Certificate authorities and what they sign: servers, clients, kubeconfigs.

Keys are ECDSA P-256 (fast to make). Everything is PEM text; whoever writes a key to disk gives it mode 0600.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, PEM."""

    certificate: str
    key: str


def _pem_key(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
                             serialization.NoEncryption()).decode()


def signing_key() -> str:
    """A bare private key, such as the one that signs service account tokens."""
    return _pem_key(ec.generate_private_key(ec.SECP256R1()))


def authority(common_name: str, *, days: int = 3650) -> Pair:
    """A new self-signed certificate authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = (_builder(name, name, key.public_key(), days)
               .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
               .add_extension(_key_usage(ca=True), critical=True)
               .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False))
    return Pair(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode(), _pem_key(key))


def issue(ca: Pair, common_name: str, *, organizations: Sequence[str] = (), addresses: Sequence[str] = (),
          names: Sequence[str] = (), days: int = 365, expired: bool = False) -> Pair:
    """A certificate for a client or a server. `expired` makes one that ended yesterday (for tests of that mistake)."""
    key = ec.generate_private_key(ec.SECP256R1())
    ca_certificate = x509.load_pem_x509_certificate(ca.certificate.encode())
    ca_key = serialization.load_pem_private_key(ca.key.encode(), None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ValueError("the authority's key is not ECDSA")
    subject = x509.Name([*(x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organizations),
                         x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = (_builder(subject, ca_certificate.subject, key.public_key(), -1 if expired else days)
               .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
               .add_extension(_key_usage(ca=False), critical=True)
               .add_extension(x509.ExtendedKeyUsage(
                   [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
               .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False))
    alternatives: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(a)) for a in addresses]
    alternatives += [x509.DNSName(n) for n in names]
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    signed = builder.sign(ca_key, hashes.SHA256())
    return Pair(signed.public_bytes(serialization.Encoding.PEM).decode(), _pem_key(key))


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey,
             days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * DAY)  # clocks of peers may run behind
            .not_valid_after(now + days * DAY))


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature=True, content_commitment=False, key_encipherment=not ca,
                         data_encipherment=False, key_agreement=False, key_cert_sign=ca, crl_sign=ca,
                         encipher_only=False, decipher_only=False)


def public_key_hash(certificate: str) -> str:
    """`sha256:<hex>` of the public key, as kubeadm's `--discovery-token-ca-cert-hash` wants it."""
    key = x509.load_pem_x509_certificate(certificate.encode()).public_key()
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    return f"sha256:{digest.finalize().hex()}"


def kubeconfig(name: str, server: str, ca_certificate: str, user: str, client: Pair) -> str:
    """A kubeconfig with one context and the client certificate inside."""
    return yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": name, "preferences": {},
        "clusters": [{"name": name, "cluster": {
            "server": server, "certificate-authority-data": _base64(ca_certificate)}}],
        "users": [{"name": user, "user": {
            "client-certificate-data": _base64(client.certificate), "client-key-data": _base64(client.key)}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
    }, sort_keys=False)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def write_private(path: Path, text: str) -> Path:
    """Write a file that only its owner can read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    part.rename(path)
    return path
