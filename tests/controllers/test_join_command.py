"""The kubeadm join command and what is read from a kubeconfig (provisioning.md 4.5, 7.2)."""

from __future__ import annotations

import base64
import datetime
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from controllers.provisioning.join_command import endpoint, join_command, public_key_info


def authority(name: str = "kubernetes") -> tuple[bytes, bytes]:
    """(certificate in PEM, its public key in DER)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    start = datetime.datetime(2025, 5, 1)
    made = (x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
            .serial_number(7).not_valid_before(start).not_valid_after(start + datetime.timedelta(days=9))
            .sign(key, hashes.SHA256()))
    return made.public_bytes(Encoding.PEM), key.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def kubeconfig(ca: bytes, server: str = "https://10.0.0.5:6443", users: str = "[{user: {}}]") -> str:
    data = base64.b64encode(ca).decode()
    return f"clusters: [{{cluster: {{server: '{server}', certificate-authority-data: {data}}}}}]\nusers: {users}\n"


def test_the_hash_is_that_of_the_authoritys_public_key() -> None:
    pem, key = authority()
    assert endpoint(kubeconfig(pem)).ca_hashes == (f"sha256:{hashlib.sha256(key).hexdigest()}",)


def test_every_authority_gets_its_hash() -> None:
    (first, key1), (second, key2) = authority("a"), authority("b")
    found = endpoint(kubeconfig(first + second)).ca_hashes
    assert found == tuple(f"sha256:{hashlib.sha256(k).hexdigest()}" for k in (key1, key2))


def test_the_command_names_the_server_without_its_scheme() -> None:
    pem, key = authority()
    assert join_command(kubeconfig(pem), "abcdef.0123456789abcdef") == (
        "kubeadm join 10.0.0.5:6443 --token abcdef.0123456789abcdef "
        f"--discovery-token-ca-cert-hash sha256:{hashlib.sha256(key).hexdigest()} --v=5")


@pytest.mark.parametrize("text", [
    "", "a: [", "clusters: []\nusers: []", "{}", kubeconfig(b"x", users="[]"), kubeconfig(b"x", users="[{}, {}]"),
    kubeconfig(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"),
])
def test_an_unusable_kubeconfig_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        endpoint(text)


@pytest.mark.parametrize("cut", [0, 1, 10, 100, 200])
def test_a_truncated_certificate_is_refused(cut: int) -> None:
    pem, _ = authority()
    der = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
    with pytest.raises(ValueError):
        public_key_info(der[:cut])
