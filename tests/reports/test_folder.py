"""The run folder: whole or not at all, readable by this version only, and the same for the same runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from reports import folder
from reports.diff_runs import history
from reports.folder import FolderError, RunFolder, read, write
from reports.look import kinds_in
from scenarios.result import TABLES, Run, Summary, summarise


@pytest.fixture(scope="module")
def summary(four: Run) -> Summary:
    return summarise([four])


@pytest.fixture(scope="module")
def whole(four: Run, summary: Summary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything, written once (figures cost a second)."""
    return write([four], summary, tmp_path_factory.mktemp("out") / "run")


def listing(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_folder_holds_everything_the_contract_names(whole: Path) -> None:
    names = ("completion", "phases-by-rack", "unavailable", "waits", "phase-durations")
    figures = {f"{name}.{suffix}" for name in names for suffix in ("svg", "png")}

    assert listing(whole) == figures | {f"{t}.parquet" for t in TABLES} | {
        "run.json", "summary.json", "report.md", "timeline.pftrace", "trace.jsonl.zst", "objects/history.jsonl.zst",
        "inputs/scenario.yaml"}


@pytest.mark.slow
def test_the_same_run_written_twice_is_the_same_bytes(whole: Path, four: Run, summary: Summary, tmp_path: Path) -> None:
    again = write([four], summary, tmp_path / "run")

    assert listing(again) == listing(whole)
    assert [n for n in listing(again) if (again / n).read_bytes() != (whole / n).read_bytes()] == []


@pytest.mark.slow
def test_the_trace_file_hashes_to_the_digest_of_the_summary(whole: Path) -> None:
    run = read(whole)
    text = b"".join(line + b"\n" for line in run.trace_lines() if line)

    assert hashlib.sha256(text).hexdigest() == run.summary()["digest"]


@pytest.mark.slow
def test_tables_read_back_as_they_were(whole: Path, four: Run) -> None:
    run = read(whole)

    for name, table in TABLES.items():
        rows = run.table(name).to_pylist()
        assert [tuple(r.values()) for r in rows] == list(table.rows(four)), name
        assert rows or name == "writes"


def test_tables_of_replications_stand_in_one_file(make_run: Callable[..., Run], tmp_path: Path) -> None:
    runs = [make_run(2, replication=i) for i in range(3)]
    folder.write_tables(runs, tmp_path)
    from pyarrow import parquet

    found = parquet.read_table(tmp_path / "phases.parquet")
    assert set(found["replication"].to_pylist()) == {0, 1, 2}
    assert found.num_rows == sum(len(r.phases()) for r in runs)


def test_without_a_report_only_the_answer_and_what_was_recorded_are_written(
        four: Run, summary: Summary, tmp_path: Path) -> None:
    path = write([four], summary, tmp_path / "run", report=False, record=frozenset({"objects"}))

    assert listing(path) == {"run.json", "summary.json", "objects/history.jsonl.zst", "inputs/scenario.yaml"}
    assert json.loads((path / "run.json").read_text())["recorded"] == ["objects"]


def test_an_older_run_is_replaced_and_nothing_of_it_stays(four: Run, summary: Summary, tmp_path: Path) -> None:
    write([four], summary, tmp_path / "run", report=False)
    (tmp_path / "run" / "left-over").write_text("x")

    write([four], summary, tmp_path / "run", report=False, record=frozenset())

    assert listing(tmp_path / "run") == {"run.json", "summary.json", "inputs/scenario.yaml"}
    assert os.listdir(tmp_path) == ["run"]


def test_a_folder_of_somebody_else_is_not_replaced(four: Run, summary: Summary, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("precious")

    with pytest.raises(FolderError, match="exists and is not a run folder"):
        write([four], summary, tmp_path / "home", report=False)
    assert listing(tmp_path) == {"home/thesis.tex"}


def test_a_file_in_the_way_is_one_clear_line(four: Run, summary: Summary, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(FolderError) as error:
            write([four], summary, out, report=False)
        assert "\n" not in str(error.value)
        assert str(tmp_path / "file") in str(error.value)


def test_a_directory_without_permission_is_one_clear_line(
        four: Run, summary: Summary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere

    with pytest.raises(FolderError, match=r"cannot write the run folder: permission denied$"):
        write([four], summary, tmp_path / "run", report=False)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_run_as_it_was(
        four: Run, summary: Summary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write([four], summary, tmp_path / "run", report=False)
    before = {n: (tmp_path / "run" / n).read_bytes() for n in listing(tmp_path / "run")}

    def full(path: Path, chunks: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(folder, "_write_zstd", full)
    with pytest.raises(FolderError, match="no space left on device"):
        write([four], summary, tmp_path / "run", report=False)

    assert os.listdir(tmp_path) == ["run"]
    assert {n: (tmp_path / "run" / n).read_bytes() for n in listing(tmp_path / "run")} == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_really_full_device_is_reported_as_such(tmp_path: Path) -> None:
    """The writer closes its file, where the error of buffered bytes comes out."""
    with pytest.raises(OSError, match="No space left"):
        folder._write_zstd(Path("/dev/full"), [os.urandom(1 << 20)])


def test_inputs_cannot_lead_out_of_the_folder(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run(1)
    run.inputs = {"../../escape.yaml": b"a", "/etc/b.yaml": b"b", "m/c.yaml": b"c"}

    path = write([run], summarise([run]), tmp_path / "run", report=False, record=frozenset())

    assert listing(path / "inputs") == {"escape.yaml", "etc/b.yaml", "m/c.yaml"}
    assert os.listdir(tmp_path) == ["run"]


@pytest.fixture
def small(four: Run, summary: Summary, tmp_path: Path) -> Path:
    return write([four], summary, tmp_path / "run", report=False)


@pytest.mark.parametrize("change", [{"version": "0.99.0"}, {"format": 0}, {"format": None}])
def test_a_folder_of_another_version_is_refused(small: Path, change: dict[str, object]) -> None:
    marker = json.loads((small / "run.json").read_text())
    (small / "run.json").write_text(json.dumps(marker | change))

    with pytest.raises(FolderError, match="run folder of another version: written by dpf-twin"):
        read(small)


def test_a_summary_of_another_version_is_refused_too(small: Path) -> None:
    found = json.loads((small / "summary.json").read_text())
    (small / "summary.json").write_text(json.dumps(found | {"version": "3.1.0"}))

    with pytest.raises(FolderError, match=r"written by dpf-twin 3\.1\.0"):
        read(small)


def test_a_patch_release_reads_folders_of_its_minor(small: Path) -> None:
    marker = json.loads((small / "run.json").read_text())
    major, minor, _ = marker["version"].split(".")
    (small / "run.json").write_text(json.dumps(marker | {"version": f"{major}.{minor}.99"}))

    assert read(small).virtual_s == marker["virtual_s"]


@pytest.mark.parametrize(("spoil", "says"), [
    (lambda p: (p / "run.json").write_text("{"), "damaged"),
    (lambda p: (p / "run.json").write_text("[]"), "not a JSON object"),
    (lambda p: (p / "run.json").unlink(), "not a run folder"),
    (lambda p: (p / "summary.json").unlink(), "no such file"),
    (lambda p: (p / "summary.json").write_bytes(b"\xff\xfe"), "damaged"),
    (lambda p: (p / "run.json").write_text(json.dumps(
        json.loads((p / "run.json").read_text()) | {"virtual_s": None})), "damaged: no usable virtual_s"),
    (shutil.rmtree, "no such run folder"),
])
def test_a_damaged_folder_is_one_clear_line(small: Path, spoil: Callable[[Path], object], says: str) -> None:
    spoil(small)

    with pytest.raises(FolderError, match=says) as error:
        read(small)
    assert "\n" not in str(error.value)


def test_what_was_not_recorded_is_named_with_the_flag_that_records_it(
        four: Run, summary: Summary, tmp_path: Path) -> None:
    run = read(write([four], summary, tmp_path / "run", report=False, record=frozenset()))

    with pytest.raises(FolderError, match="--record objects"):
        next(run.object_lines())
    with pytest.raises(FolderError, match="--record trace"):
        next(run.trace_lines())
    with pytest.raises(FolderError, match="--no-report"):
        run.table("phases")


def test_a_cut_off_history_is_a_clear_error(small: Path) -> None:
    path = small / "objects" / "history.jsonl.zst"
    path.write_bytes(b"not zstandard at all")

    with pytest.raises(FolderError, match="damaged"):
        list(read(small).object_lines())


def test_a_history_that_is_cut_short_is_no_shorter_history(small: Path) -> None:
    path = small / "objects" / "history.jsonl.zst"
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(FolderError, match="cut short"):
        list(read(small).object_lines())


@pytest.mark.parametrize("look", [kinds_in, history])
def test_a_history_of_something_else_is_a_clear_error(small: Path, look: Callable[[RunFolder], object]) -> None:
    path = small / "objects" / "history.jsonl.zst"
    path.write_bytes(zstandard.compress(b'{"a": 1}\n'))

    with pytest.raises(FolderError, match="objects: damaged"):
        look(read(small))


def test_a_damaged_table_is_a_clear_error(small: Path) -> None:
    (small / "phases.parquet").write_bytes(b"PAR1 and nothing else PAR1")

    with pytest.raises(FolderError, match=r"phases.parquet: damaged"):
        read(small).table("phases")


def test_a_missing_package_is_named_with_the_extra_that_brings_it(
        four: Run, summary: Summary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)

    with pytest.raises(FolderError, match=r"Python package zstandard is missing; install dpf-twin\[report\]"):
        write([four], summary, tmp_path / "run", report=False)
    assert not list(tmp_path.iterdir())


def test_an_old_run_comes_back_when_the_new_one_cannot_take_its_place(
        four: Run, summary: Summary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write([four], summary, tmp_path / "run", report=False)
    (tmp_path / "run" / "mark").write_text("old")
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == f".run.{os.getpid()}":
            raise PermissionError(13, "Permission denied", str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(FolderError, match="permission denied"):
        write([four], summary, tmp_path / "run", report=False)

    assert os.listdir(tmp_path) == ["run"]
    assert (tmp_path / "run" / "mark").read_text() == "old"
