"""What the user reads: exactly one document on stdout, notes and refusals on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO


class Refused(Exception):
    """Bad usage or input, in one or more lines. Exit code 2."""


def answer(text: str) -> None:
    """To stdout, at once."""
    _write(sys.stdout, text)


def note(text: str) -> None:
    """A line to stderr."""
    _write(sys.stderr, text + "\n")


def _write(stream: TextIO, text: str) -> None:
    """A reader that went away (`| head`) misses the rest, and notes may get lost; the exit code stays what it would
    have been.

    Raises: OSError when stdout has another trouble, such as a full disk.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def document(data: Any, output: str) -> str:
    """`data` as JSON or YAML text that ends with a line break."""
    if output == "json":
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    import yaml

    return str(yaml.dump(data, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False,
                         allow_unicode=True, default_flow_style=False))


def columns(rows: Sequence[tuple[str, ...]], *, right: frozenset[int] = frozenset()) -> str:
    """Rows as aligned columns, two spaces apart; columns in `right` are aligned to the right."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in
                       enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    return "\n".join(lines) + "\n"
