"""cert-manager: a Certificate gets its Secret and its Ready condition, and both again when it is time to renew."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Final

from twin.actors.actor import Actor
from twin.actors.hosts import Durations
from twin.backends.base import Clock, KubeApi
from twin.model.core import Certificate, CertificateStatus, Secret
from twin.model.meta import (
    Key,
    Object,
    ObjectMeta,
    condition_status,
    format_time,
    parse_time,
    replace,
    set_condition,
)
from twin.runtime.reconcile import DONE, Context, Result, Watch

CERTIFICATE_NAME: Final = "cert-manager.io/certificate-name"
"""Annotation of a Secret: the Certificate it belongs to."""

DEFAULT_DURATION_S: Final = 90 * 86400.0
"""cert-manager's default `spec.duration`; renewal starts at two thirds of it."""

_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0}

Issue = Callable[[Certificate, int], Mapping[str, str]]
"""(certificate, revision) -> tls.crt, tls.key and ca.crt as base64 text."""


def opaque(certificate: Certificate, revision: int) -> Mapping[str, str]:
    """Contents that nobody parses: they only differ between certificates and between renewals."""
    text = f"{certificate.key} revision {revision}"
    return {name: base64.b64encode(f"{name} of {text}".encode()).decode() for name in ("ca.crt", "tls.crt", "tls.key")}


@lru_cache(maxsize=256)
def go_duration_s(text: str) -> float:
    """Seconds of a Go duration such as `8760h` or `24h0m0s`. Raises ValueError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise ValueError(f"duration must be hours, minutes and seconds such as 24h0m0s (got {text!r})")
    return sum(float(n) * _UNITS[u] for n, u in parts)


def _certificate_of(_: object, secret: Object) -> Iterable[Key]:
    name = secret.metadata.annotations.get(CERTIFICATE_NAME)
    return (Key(secret.metadata.namespace, name),) if name else ()


def _gone(old: Object | None, new: Object | None) -> bool:
    return new is None


class CertManager(Actor):
    """Reconciles Certificates. Issuing takes `cert-issue`, drawn per certificate and revision."""

    name = "cert-manager"
    watches = (Watch(Certificate), Watch(Secret, to=_certificate_of, when=_gone))

    def __init__(self, kube: KubeApi, clock: Clock, durations: Durations, issue: Issue = opaque) -> None:
        super().__init__(kube, clock, durations)
        self._issue = issue

    def reconcile(self, ctx: Context, key: Key) -> Result:
        certificate = self.kube.get(Certificate, key)
        if certificate is None or certificate.deleting:
            return DONE
        secret_key = Key(key.namespace, str(certificate.spec.get("secretName", "")))
        secret = self.kube.get(Secret, secret_key)
        status = certificate.status
        if secret is not None and condition_status(status.conditions, "Ready") == "True":
            renewal = parse_time(status.renewal_time)
            if not ctx.reached(renewal):
                return Result(requeue_after_s=renewal - ctx.now)
        revision = status.revision + 1
        if not self.over(key, "cert-issue", key.namespace, key.name, certificate.metadata.uid, str(revision)):
            return DONE
        self._store(secret, secret_key, certificate, revision)
        self.kube.update_status(replace(certificate, status=_issued(certificate, revision, ctx.now)))
        return DONE

    def _store(self, secret: Secret | None, key: Key, certificate: Certificate, revision: int) -> None:
        data = self._issue(certificate, revision)
        if secret is None:
            # No owner reference: cert-manager leaves the Secret behind unless told otherwise.
            self.kube.create(Secret(
                metadata=ObjectMeta(namespace=key.namespace, name=key.name,
                                    annotations={CERTIFICATE_NAME: certificate.metadata.name}),
                type="kubernetes.io/tls", data=data))
        elif dict(secret.data) != dict(data):
            self.kube.update(replace(secret, data=data))


def _issued(certificate: Certificate, revision: int, now: float) -> CertificateStatus:
    spec = certificate.spec
    duration = go_duration_s(str(spec["duration"])) if spec.get("duration") else DEFAULT_DURATION_S
    before = go_duration_s(str(spec["renewBefore"])) if spec.get("renewBefore") else duration / 3
    return CertificateStatus(
        conditions=set_condition(certificate.status.conditions, "Ready", "True", "Ready",
                                 "Certificate is up to date and has not expired", now),
        not_before=format_time(now), not_after=format_time(now + duration),
        renewal_time=format_time(now + duration - before), revision=revision)
