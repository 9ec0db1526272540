"""Same scenario, seed and version: same records, in any process, at any hash seed, recorded or not, reported or not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stories import LIBRARY, ROOT, outcome, story

from api.cli import call
from scenarios.replicate import replicate
from scenarios.run import run
from twin.sim.world import Options

DIGESTS = """
import sys
sys.path[:0] = [{root!r}, {here!r}]
from stories import story
from scenarios.run import run
for name in {names!r}:
    print(run(story(name)).trace.digest, flush=True)
"""


def digests_of_a_process(hash_seed: str, names: tuple[str, ...]) -> list[str]:
    code = DIGESTS.format(root=str(ROOT), here=str(ROOT / "tests" / "scenarios"), names=names)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": hash_seed},
                          capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.slow
def test_every_scenario_has_one_digest_whatever_the_process_and_its_hash_seed() -> None:
    first, second, third = (digests_of_a_process(seed, LIBRARY) for seed in ("0", "1", "random"))

    assert len(first) == len(LIBRARY)
    assert dict(zip(LIBRARY, first, strict=True)) == dict(zip(LIBRARY, second, strict=True))
    assert dict(zip(LIBRARY, first, strict=True)) == dict(zip(LIBRARY, third, strict=True))


def test_the_seed_changes_the_digest() -> None:
    scenario = story("first-install")

    assert run(scenario, 1).trace.digest != run(scenario, 2).trace.digest


@pytest.mark.slow
def test_the_number_of_jobs_changes_no_digest() -> None:
    scenario = story("rolling-bfb-update")
    alone, several = (replicate(scenario, 3, jobs=jobs) for jobs in (1, 2))

    assert [r.trace.digest for r in alone] == [r.trace.digest for r in several]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rolling-bfb-update", "fault-rack-power", "two-leaders"])
def test_recording_changes_no_digest(name: str) -> None:
    bare, recorded = run(story(name)), run(story(name), keep_trace=True, keep_objects=True)

    assert recorded.trace.versions
    assert bare.trace.digest == recorded.trace.digest


@pytest.mark.slow
def test_the_digest_is_that_of_the_recorded_lines() -> None:
    recorded = run(story("first-install"), keep_trace=True)

    assert hashlib.sha256(b"".join(recorded.trace.lines())).hexdigest() == recorded.trace.digest


@pytest.mark.slow
def test_reports_change_no_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(ROOT / "scenarios" / "library" / "first-install.yaml")
    digests = []
    for i, flags in enumerate(([], ["--no-report"], ["--record", "none"], ["--record", "objects", "--jobs", "2"])):
        assert call(["rehearse", file, "-o", "json", "-q", "--out", str(tmp_path / str(i)), *flags]) == 0
        digests.append(json.loads(capsys.readouterr().out)["digest"])

    assert digests == [run(story("first-install")).trace.digest] * 4


# --- order within an instant

BY_ORDER = {
    "fault-api-errors": "which request is struck is drawn in the order of requests",
    "wart-first-cluster-only": "which of two DPUs takes the only place in a cluster is a matter of turns",
    "wart-black-holed-dms": "its fault strikes a host at a moment, and which host is how far then is a matter of turns",
}
"""Scenarios whose outcome may depend on the order of what happens at one instant, with the reason."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in LIBRARY if n not in BY_ORDER])
def test_shuffling_what_happens_at_one_instant_changes_no_outcome(name: str) -> None:
    plain = outcome(run(story(name)))

    for tie_seed in (1, 2):
        assert outcome(run(story(name), options=Options(tie_seed=tie_seed))) == plain, f"tie seed {tie_seed}"


def test_ties_are_really_shuffled() -> None:
    scenario = story("two-dpus-on-a-host")

    assert run(scenario).trace.digest != run(scenario, options=Options(tie_seed=1)).trace.digest
