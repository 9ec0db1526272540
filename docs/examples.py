"""Runs the examples in a page and compares, or writes, what they print: `python -m docs.examples` refreshes all pages.

A block ```` ```yaml NAME ```` is a file of the reader's, a block ```` ```console ```` is a terminal: lines that begin
with `$ ` are commands (a `\\` at the end goes on), the rest is what they print. A page has one working folder, in which
`scenarios/` is that of the checkout. Blocks of other languages are not run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
BLOCK: Final = re.compile(r"^```(?P<lang>console|yaml +(?P<name>\S+))\n(?P<body>.*?)^```$", re.M | re.S)
WALL_TIME: Final = re.compile(r"(?<=reconciles in ).*")
"""The only thing a run prints that differs from machine to machine."""


@dataclass(frozen=True)
class Example:
    """One command of a page, what the page says it prints, and what it prints."""

    command: str
    told: str
    printed: str

    @property
    def holds(self) -> bool:
        return masked(self.told) == masked(self.printed)


def masked(text: str) -> str:
    return WALL_TIME.sub("...", text)


def pages() -> list[Path]:
    """Every page with something to run."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [p for p in found if BLOCK.search(p.read_text(encoding="utf-8"))]


def run(text: str) -> Iterator[Example]:
    """Everything in a page's text, in order, in a fresh folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = _prepared(Path(name))
        for block in BLOCK.finditer(text):
            if block["name"]:
                path = folder / block["name"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block["body"], encoding="utf-8")
                continue
            for command, told in commands(block["body"]):
                yield Example(command, told, _printed(command, folder))


def refreshed(text: str) -> str:
    """The page with what its commands print now. What holds already stays as it is."""
    examples = iter(list(run(text)))

    def block(found: re.Match[str]) -> str:
        if found["name"]:
            return found[0]
        parts = []
        for command, told in commands(found["body"]):
            example = next(examples)
            shown = "\n".join(("$ " if i == 0 else "") + line for i, line in enumerate(command.split("\n")))
            parts.append(f"{shown}\n{told if example.holds else example.printed}")
        return "```console\n" + "".join(parts) + "```"

    return BLOCK.sub(block, text)


def commands(body: str) -> list[tuple[str, str]]:
    """(command, output) of a terminal block."""
    found: list[tuple[str, str]] = []
    goes_on = False
    for line in body.splitlines():
        if goes_on:
            found[-1] = (f"{found[-1][0]}\n{line}", "")
        elif line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
            continue
        goes_on = line.endswith("\\")
    return found


def recipe(target: str) -> str:
    """The last command of a target of the Makefile, without the path of the virtual environment. Raises KeyError."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(target)}:[^\n]*\n((?:\t[^\n]*\n)+)", makefile, re.M)
    if found is None:
        raise KeyError(f"the Makefile has no target {target} with a command")
    return found[1].strip().splitlines()[-1].strip().removeprefix("$(BIN)/")


def _prepared(folder: Path) -> Path:
    here = folder / "here"
    (folder / "bin").mkdir()
    here.mkdir()
    (here / "scenarios").symlink_to(ROOT / "scenarios")
    program = folder / "bin" / "dpf-twin"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m api.cli "$@"\n')
    program.chmod(0o755)
    return here


def _printed(command: str, folder: Path) -> str:
    made = re.fullmatch(r"make (\S+)", command)
    path = f"{folder.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", recipe(made[1]) if made else command], cwd=folder, text=True, timeout=300, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={
            **os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "80"})
    return done.stdout


def main() -> None:
    chosen = [Path(a).resolve() for a in sys.argv[1:]] or pages()
    for page in chosen:
        text = page.read_text(encoding="utf-8")
        new = refreshed(text)
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(f"refreshed {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
