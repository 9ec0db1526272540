"""The run folder: everything one rehearsal (or one live run) leaves behind, written whole or not at all.

It is written into a hidden sibling and renamed into place. With several replications the trace, the objects, the
timeline and the inputs are those of the first; tables hold all of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scenarios.result import TABLES, Run, Summary
from twin.version import VERSION

if TYPE_CHECKING:
    import pyarrow

FORMAT: Final = 1
"""Of the run folder. A change that older readers cannot take is a new number."""
MARKER: Final = "run.json"
RECORDABLE: Final = frozenset({"trace", "objects"})
_ZSTD_LEVEL: Final = 3


class FolderError(Exception):
    """A run folder cannot be written or read. The message is one line and names the path."""


def default_dir(scenario: str, seed: int) -> Path:
    return Path("reports") / "out" / f"{scenario}-{seed}"


# --- writing


def write(runs: Sequence[Run], summary: Summary, out_dir: Path, *, record: frozenset[str] = RECORDABLE,
          report: bool = True) -> Path:
    """Write the run folder and return its path. `report=False` leaves out report, figures, tables and timeline.

    Raises:
        FolderError: the folder cannot be written (not ours to replace, no permission, no space). Nothing is left.
    """
    out_dir = Path(out_dir)
    temporary = out_dir.parent / f".{out_dir.name}.{os.getpid()}"
    try:
        check_writable(out_dir)
        temporary.mkdir(parents=True)
        _fill(runs, summary, temporary, record, report)
        _swap(temporary, out_dir)
    except OSError as error:
        raise FolderError(f"{out_dir}: cannot write the run folder: "
                          f"{(error.strerror or str(error)).lower()}") from error
    except ModuleNotFoundError as error:
        raise FolderError(f"{out_dir}: cannot write the run folder: the Python package {error.name} is missing; "
                          "install dpf-twin[report]") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out_dir


def check_writable(out_dir: Path) -> None:
    """Refuse early, before hours of virtual time: something that is no run folder stands there, or no permission.

    Raises: FolderError.
    """
    try:
        if out_dir.exists() and (not out_dir.is_dir() or (any(out_dir.iterdir()) and not (out_dir / MARKER).exists())):
            raise FolderError(f"{out_dir}: exists and is not a run folder; it is not replaced")
    except OSError as error:
        raise FolderError(f"{out_dir}: {(error.strerror or str(error)).lower()}") from error
    parent = next(p for p in (out_dir.absolute().parent, *out_dir.absolute().parents) if p.exists())
    if not parent.is_dir():
        raise FolderError(f"{parent}: not a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise FolderError(f"{parent}: cannot write the run folder: permission denied")


def _fill(runs: Sequence[Run], summary: Summary, folder: Path, record: frozenset[str], report: bool) -> None:
    first = runs[0]
    recorded = [name for name, has in (("trace", first.trace.keep), ("objects", first.trace.keep_objects))
                if has and name in record]
    marker = {"format": FORMAT, "version": first.version, "scenario": first.scenario, "seed": first.seed,
              "command": first.command, "epoch_s": first.epoch_s, "virtual_s": first.virtual_s, "recorded": recorded}
    (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n")
    (folder / "summary.json").write_text(summary.model_dump_json(indent=2) + "\n")
    for name, content in first.inputs.items():
        _write_input(folder / "inputs", name, content)
    if "trace" in recorded:
        _write_zstd(folder / "trace.jsonl.zst", first.trace.lines())
    if "objects" in recorded:
        (folder / "objects").mkdir()
        _write_zstd(folder / "objects" / "history.jsonl.zst", first.trace.object_lines())
    if report:
        _write_report(runs, summary, folder)


def _write_input(folder: Path, name: str, content: bytes) -> None:
    """`..` and leading slashes of what was read elsewhere must not lead out of the folder."""
    parts = [p for p in Path(name).parts if p not in ("..", "/", ".")]
    target = folder.joinpath(*parts) if parts else folder / "input"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def _write_report(runs: Sequence[Run], summary: Summary, folder: Path) -> None:
    from reports.figures import figures, render
    from reports.perfetto import timeline
    from reports.rollout import report as rollout

    drawn = figures(runs, summary)
    for name, figure in drawn.items():
        for suffix in ("svg", "png"):
            (folder / f"{name}.{suffix}").write_bytes(render(figure, suffix))
    (folder / "report.md").write_text(rollout(runs, summary, list(drawn)))
    (folder / "timeline.pftrace").write_bytes(timeline(runs[0]))
    write_tables(runs, folder)


def write_tables(runs: Sequence[Run], folder: Path) -> None:
    """One Parquet file a table (INTERFACE section 3). `writes` is empty when the trace was not recorded."""
    import pyarrow
    from pyarrow import parquet

    types = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    for name, table in TABLES.items():
        schema = pyarrow.schema([(column, types[t]) for column, t in table.columns.items()])
        rows = [row for run in runs for row in table.rows(run)]
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
        arrays = [pyarrow.array(values, f.type) for values, f in zip(columns, schema, strict=True)]
        parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=schema), folder / f"{name}.parquet",
                            compression="zstd")


def _write_zstd(path: Path, chunks: Iterable[bytes]) -> None:
    import zstandard

    with path.open("wb") as file, zstandard.ZstdCompressor(level=_ZSTD_LEVEL).stream_writer(file) as out:
        for chunk in chunks:
            out.write(chunk)


def _swap(temporary: Path, out_dir: Path) -> None:
    """Put the new folder where the old one is. Between the two renames neither is lost."""
    old = temporary.with_name(temporary.name + ".old")
    if out_dir.exists():
        out_dir.rename(old)
    try:
        temporary.rename(out_dir)
    except OSError:
        if old.exists():
            old.rename(out_dir)
        raise
    shutil.rmtree(old, ignore_errors=True)


# --- reading


@dataclass(frozen=True)
class RunFolder:
    """A run folder on disk. `marker` is run.json; the other parts are read when asked for."""

    path: Path
    marker: dict[str, Any]

    @property
    def virtual_s(self) -> float:
        return float(self.marker["virtual_s"])

    @property
    def epoch_s(self) -> float:
        return float(self.marker["epoch_s"])

    def summary(self) -> dict[str, Any]:
        return _read_json(self.path / "summary.json")

    def table(self, name: str) -> pyarrow.Table:
        """A Parquet table. Raises: FolderError when the run was written without a report, or it is damaged."""
        import pyarrow
        from pyarrow import parquet

        path = self.path / f"{name}.parquet"
        if not path.exists():
            raise FolderError(f"{path}: missing; the run was written with --no-report")
        try:
            return parquet.read_table(path)
        except (OSError, pyarrow.ArrowException) as error:
            raise FolderError(f"{path}: damaged: {str(error).partition(chr(10))[0]}") from error

    def trace_lines(self) -> Iterator[bytes]:
        """Raises: FolderError when the trace was not recorded."""
        return self._lines(self.path / "trace.jsonl.zst", "trace")

    def object_lines(self) -> Iterator[bytes]:
        """Object versions in order of time. Raises: FolderError when objects were not recorded."""
        return self._lines(self.path / "objects" / "history.jsonl.zst", "objects")

    def _lines(self, path: Path, what: str) -> Iterator[bytes]:
        import zstandard

        if not path.exists():
            raise FolderError(f"{self.path}: {what} were not recorded; run again with --record {what}"
                              if what == "objects" else
                              f"{self.path}: the trace was not recorded; run again with --record {what}")
        try:
            with path.open("rb") as file:
                whole, rest = zstandard.ZstdDecompressor().decompressobj(), b""
                while not whole.eof and (chunk := file.read(1 << 17)):
                    *lines, rest = (rest + whole.decompress(chunk)).split(b"\n")
                    yield from lines
            if not whole.eof:
                raise FolderError(f"{path}: damaged: it is cut short")
            if rest:
                yield rest
        except zstandard.ZstdError as error:
            raise FolderError(f"{path}: damaged: {error}") from error


def read(run_dir: Path) -> RunFolder:
    """Open a run folder.

    Raises:
        FolderError: not a run folder, damaged, or written by a version whose folders this one does not read.
    """
    run_dir = Path(run_dir)
    if not os.path.exists(run_dir / MARKER):
        why = "not a run folder (no run.json)" if os.path.isdir(run_dir) else "no such run folder"
        raise FolderError(f"{run_dir}: {why}")
    marker = _read_json(run_dir / MARKER)
    for version in (marker.get("version", "?"), _read_json(run_dir / "summary.json").get("version", "?")):
        if marker.get("format") != FORMAT or _minor(version) != _minor(VERSION):
            raise FolderError(f"{run_dir}: run folder of another version: written by dpf-twin {version} "
                              f"(format {marker.get('format', '?')}), this is {VERSION} (format {FORMAT})")
    for key, type_ in (("epoch_s", int | float), ("virtual_s", int | float), ("recorded", list)):
        if not isinstance(marker.get(key), type_):
            raise FolderError(f"{run_dir / MARKER}: damaged: no usable {key}")
    return RunFolder(run_dir, marker)


def _minor(version: object) -> str:
    return ".".join(str(version).split(".")[:2])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise FolderError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise FolderError(f"{path}: damaged: {error}") from error
    if not isinstance(found, dict):
        raise FolderError(f"{path}: damaged: not a JSON object")
    return found
