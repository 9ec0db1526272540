"""The kubeadm join command of one install attempt and the bootstrap token behind it (provisioning.md 4.5)."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from typing import Any, Final, NamedTuple

import yaml

from twin.backends.base import KubeApi
from twin.model.core import Secret
from twin.model.meta import ObjectMeta, format_time
from twin.model.provisioning import Dpu
from twin.runtime.backends import Backends

DAY_LONG: Final = "bootstrap-token-lasts-a-day"
TOKEN_NAMESPACE: Final = "kube-system"
TOKEN_TYPE: Final = "bootstrap.kubernetes.io/token"
JOIN_GROUP: Final = "system:bootstrappers:kubeadm:default-node-token"

_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


class Endpoint(NamedTuple):
    """What a joining node must know of its cluster."""

    host: str
    """Without the scheme: `10.0.0.5:6443`."""
    ca_hashes: tuple[str, ...]
    """`sha256:<hex>` of each CA's public key."""


@lru_cache(maxsize=256)
def endpoint(kubeconfig: str) -> Endpoint:
    """Raises ValueError when the kubeconfig does not hold exactly one cluster and one user with inline CA data."""
    try:
        config: Any = yaml.safe_load(kubeconfig)
        clusters, users = config["clusters"], config["users"]
        if len(clusters) != 1 or len(users) != 1:
            raise ValueError(f"kubeconfig must hold exactly one cluster and one user, "
                             f"has {len(clusters)} and {len(users)}")
        cluster = clusters[0]["cluster"]
        server, ca = str(cluster["server"]), base64.b64decode(cluster["certificate-authority-data"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"invalid kubeconfig: {error!r}") from error
    # The authority of a simulated cluster is no certificate: it stands for its own public key.
    keys = [public_key_info(base64.b64decode(b)) for b in _PEM.findall(ca.decode("ascii", errors="replace"))] or [ca]
    hashes = tuple(f"sha256:{hashlib.sha256(key).hexdigest()}" for key in keys)
    return Endpoint(server.partition("://")[2] or server, hashes)


def public_key_info(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo of an X.509 certificate in DER: the seventh field of its first part.

    Raises ValueError when it is no certificate.
    """
    try:
        inside, _ = _element(certificate, 0)
        at, end = _element(certificate, inside)
        if certificate[at] == 0xA0:  # the version is optional
            at = _element(certificate, at)[1]
        for _ in range(5):  # serial number, algorithm, issuer, validity, subject
            at = _element(certificate, at)[1]
        stop = _element(certificate, at)[1]
        if certificate[at] != 0x30 or stop > end:
            raise ValueError("no public key where a certificate has it")
    except IndexError as error:
        raise ValueError("not an X.509 certificate") from error
    return certificate[at:stop]


def _element(data: bytes, at: int) -> tuple[int, int]:
    """(start of the contents, end) of the DER element at `at`."""
    length, start = data[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(data[start:start + size], "big"), start + size
    if start + length > len(data):
        raise IndexError(at)
    return start, start + length


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


_USAGE: Final = {
    "usage-bootstrap-authentication": _encoded("true"), "usage-bootstrap-signing": _encoded("true"),
    "auth-extra-groups": _encoded(JOIN_GROUP),
}


def create_token(b: Backends, cluster: KubeApi, dpu: Dpu) -> str:
    """Store a new bootstrap token in the DPU cluster. Returns `<id>.<secret>`. Raises ApiError.

    Upstream draws it at random. Here it comes from the installation's seed, the DPU and the moment, so a run can be
    repeated; a live installation must set `Settings.seed` to a secret random number.
    """
    text = f"{dpu.metadata.uid}/{b.clock.now():.9f}"
    digits = hashlib.blake2b(text.encode(), key=str(b.settings.seed).encode()[:64], digest_size=16).hexdigest()
    token, secret = digits[:6], digits[6:22]
    fields = {"token-id": token, "token-secret": secret, "expiration": format_time(b.clock.now() + token_life_s(b))}
    cluster.create(Secret(
        metadata=ObjectMeta(namespace=TOKEN_NAMESPACE, name=f"bootstrap-token-{token}"), type=TOKEN_TYPE,
        data={name: _encoded(value) for name, value in fields.items()} | _USAGE))
    return f"{token}.{secret}"


def join_command(kubeconfig: str, token: str) -> str:
    """Raises ValueError for an unusable kubeconfig."""
    host, hashes = endpoint(kubeconfig)
    cas = "".join(f" --discovery-token-ca-cert-hash {h}" for h in hashes)
    return f"kubeadm join {host} --token {token}{cas} --v=5"


def token_life_s(b: Backends) -> float:
    """upstream: bootstrap-token-expires. Two hours; under the policy a day, which was kubeadm's default in v24.10."""
    return 86_400.0 if DAY_LONG in b.policies else b.settings.bootstrap_token_s
