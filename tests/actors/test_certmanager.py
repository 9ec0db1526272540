"""Certificates and their Secrets."""

from __future__ import annotations

import pytest
from neighbours import SPACE, Town

from twin.actors.certmanager import CertManager, go_duration_s
from twin.model.core import Certificate, Secret
from twin.model.meta import ObjectMeta, condition, parse_time

YEAR = {"secretName": "h1-server-secret", "duration": "8760h", "renewBefore": "4380h"}


def town(**spec: str) -> Town:
    t = Town()
    t.add(lambda k: CertManager(k, t.clock, t.durations))
    t.create(Certificate(metadata=ObjectMeta(namespace=SPACE, name="c"), spec={**YEAR, **spec}))
    return t


def test_a_certificate_gets_its_secret_and_is_ready_after_it_was_issued() -> None:
    t = town()
    t.run(1.9)
    assert t.all(Secret) == []
    t.run(0.2)

    secret = t.get(Secret, "h1-server-secret")
    assert sorted(secret.data) == ["ca.crt", "tls.crt", "tls.key"]
    assert secret.metadata.annotations["cert-manager.io/certificate-name"] == "c"
    assert secret.metadata.owner_references == ()
    ready = condition(t.get(Certificate, "c").status.conditions, "Ready")
    assert ready is not None
    # Golden case k1.
    assert (ready.status, ready.reason, ready.message) == (
        "True", "Ready", "Certificate is up to date and has not expired")


def test_it_is_renewed_so_long_before_it_ends_and_not_earlier() -> None:
    t = town(duration="24h0m0s", renewBefore="8h0m0s")
    t.run(10)
    first = t.get(Secret, "h1-server-secret").data["tls.crt"]
    t.run(16 * 3600 - 20)
    assert t.get(Secret, "h1-server-secret").data["tls.crt"] == first

    t.run(30)

    status = t.get(Certificate, "c").status
    assert status.revision == 2
    assert t.get(Secret, "h1-server-secret").data["tls.crt"] != first
    assert parse_time(status.not_after) - parse_time(status.not_before) == 86_400
    assert parse_time(status.not_after) - parse_time(status.renewal_time) == 8 * 3600


def test_a_lost_secret_is_issued_again() -> None:
    t = town()
    t.run(10)

    t.delete(Secret, "h1-server-secret")
    t.run(2.1)

    assert t.find(Secret, "h1-server-secret") is not None
    assert t.get(Certificate, "c").status.revision == 2


def test_a_deleted_certificate_leaves_its_secret() -> None:
    t = town()
    t.run(10)
    before = len(t.writes())

    t.delete(Certificate, "c")
    t.run(1000)

    assert t.find(Secret, "h1-server-secret") is not None
    assert len(t.writes()) == before


def test_a_valid_certificate_is_left_alone() -> None:
    t = town()
    t.run(10)
    before = len(t.writes())

    t.run(180 * 86_400)

    assert len(t.writes()) == before


@pytest.mark.parametrize(("text", "seconds"), [
    ("8760h", 31_536_000), ("24h0m0s", 86_400), ("1h30m", 5400), ("1.5s", 1.5)])
def test_go_durations_are_read(text: str, seconds: float) -> None:
    assert go_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "h", "1d", "1h x"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration must be"):
        go_duration_s(text)
