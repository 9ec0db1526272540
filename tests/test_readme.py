"""The README's commands are run, and print what it says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from docs import examples

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_command_of_the_readme_prints_what_the_readme_says() -> None:
    ran = list(examples.run(README))

    assert [e.command for e in ran][:1] == ["make rehearse"]
    assert {e.command: examples.masked(e.printed) for e in ran} == {e.command: examples.masked(e.told) for e in ran}


def test_make_rehearse_and_make_test_are_the_two_commands_of_the_readme_and_of_ci() -> None:
    told = set(re.findall(r"`make (\w+)`", README))
    assert {"rehearse", "test"} <= told
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [t for t in told if not re.search(rf"^{t}:", makefile, re.M)] == []
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert [line for line in script.splitlines() if line.startswith("make ")] == ["make rehearse", "make test"]


def test_the_readme_asks_for_the_python_that_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Python {project['requires-python'].removeprefix('>=')}" in README


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_an_example_that_prints_something_else_is_noticed() -> None:
    (example,) = examples.run("```console\n$ echo one\ntwo\n```\n")
    assert (example.told, example.printed, example.holds) == ("two\n", "one\n", False)


def test_refreshing_a_page_writes_what_is_printed_and_leaves_what_holds() -> None:
    page = ("text\n```yaml a.txt\nname: a\n```\n"
            "```console\n$ cat a.txt\n$ echo 5 reconciles in 2s\n5 reconciles in 1s\n```\n")
    assert examples.refreshed(page) == page.replace("$ cat a.txt\n", "$ cat a.txt\nname: a\n")


def test_a_command_may_go_on_in_the_next_line() -> None:
    assert examples.commands("$ a \\\n  b\nout\n$ c\n") == [("a \\\n  b", "out\n"), ("c", "")]
