"""The pages are current, complete, linked, and say nothing about the machine they were written on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from api.cli import app
from controllers.warts import POLICIES, WARTS
from docs import examples, generate
from scenarios.expect import FUNCTIONS
from scenarios.result import TABLES, Summary
from twin.model.bfcfg_template import TEMPLATE
from twin.model.faults import FAULTS, kind_name
from twin.model.timing_profile import default

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
REFERENCE = "\n".join(text for name, text in TEXT.items() if name.startswith("docs/reference/"))
GENERATED = {"docs/known-issues.md", *(f"docs/reference/{name}.md" for name in generate.PAGES)}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "``", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


# --- generated pages


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_reference_page_says_what_the_code_says(name: str) -> None:
    assert TEXT[f"docs/reference/{name}.md"] == generate.HEAD + generate.PAGES[name](), (
        "run `python -m docs.generate`")


# --- complete


def flags() -> Iterator[tuple[str, str, str]]:
    root = typer.main.get_command(app)
    for name, command in generate._verbs(root):
        for option in command.params:
            if option.param_type_name == "option" and option.name != "help":
                yield name, option.opts[-1], option.help or ""


def test_every_verb_and_flag_is_documented_and_has_help() -> None:
    page = TEXT["docs/reference/commands.md"]
    for verb, flag, says in flags():
        section = page.partition(f"\n## {verb}\n")[2].partition("\n## ")[0]
        assert f"`{flag}`" in section, f"{verb} {flag} is not documented"
        assert says, f"{verb} {flag} has no help"


def test_every_verb_stands_in_a_guide_or_the_tutorial_or_the_readme() -> None:
    guides = "\n".join(t for n, t in TEXT.items() if not n.startswith("docs/reference"))
    used = {verb for verb, *_ in flags()} | {"crd", "schema"}
    assert sorted(v for v in used if f"dpf-twin {v}" not in guides) == []


def test_every_fault_policy_wart_rule_table_and_timing_entry_is_documented() -> None:
    from scenarios.check import RULES

    profile = default()
    names = [*map(kind_name, FAULTS), *POLICIES, *(w.id for w in WARTS), *RULES, *profile.operations, *profile.limits,
             *(f"{t}.parquet" for t in TABLES), *Summary.model_fields]
    assert [n for n in names if f"`{n}`" not in REFERENCE] == []


def test_every_story_of_the_library_is_documented_with_what_to_expect() -> None:
    page = TEXT["docs/reference/library.md"]
    for path in (ROOT / "scenarios" / "library").glob("*.yaml"):
        row = next((line for line in page.splitlines() if line.startswith(f"| [{path.stem}](")), "")
        cells = [cell.strip() for cell in row.split(" | ")]
        assert len(cells) == 4, path.stem
        assert all(cells), f"{path.stem} lacks one of Covers, Scenario, Expect"


def test_every_function_of_expectations_is_documented() -> None:
    page = TEXT["docs/guides/expectations.md"]
    assert [name for name in FUNCTIONS if f"`{name}`" not in page] == []


def test_every_mark_of_a_bf_cfg_template_is_documented() -> None:
    page = TEXT["docs/guides/manifests.md"]
    assert sorted(m for m in set(re.findall("@[A-Z_]+@", TEMPLATE)) if f"`{m}`" not in page) == []


# --- links


def anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", head)).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", TEXT)
def test_every_link_leads_somewhere(name: str) -> None:
    broken = []
    for target in LINK.findall(prose(TEXT[name])):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[str] = set()
    todo = ["README.md"]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for target in LINK.findall(TEXT.get(name, "")):
            file = ((ROOT / name).parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.is_relative_to(ROOT):
                todo.append(file.relative_to(ROOT).as_posix())
    assert sorted(set(TEXT) - seen) == []


# --- style


@pytest.mark.parametrize("name", TEXT)
def test_no_page_names_a_path_of_this_machine_or_the_workplace(name: str) -> None:
    here = r"(?<![\w.])/(?:work|tmp|root|home|mnt|usr)\b\S*|\bfile://\S*|\.\./shared\b|(?i:\bworkplace\b)"
    found = re.findall(here, TEXT[name])
    assert found == []


@pytest.mark.parametrize("name", [n for n in TEXT if n not in GENERATED])
def test_prose_has_one_sentence_a_line(name: str) -> None:
    two = [line for line in prose(TEXT[name]).splitlines()
           if not line.startswith("|") and re.search(r"[a-z`)]\. [A-Z][a-z]", line) and not line.startswith("- **")]
    assert two == []


# --- examples


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in examples.pages() if p.name != "README.md"],
                         ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_example_prints_what_its_page_says(page: Path) -> None:
    ran = list(examples.run(page.read_text(encoding="utf-8")))

    assert ran
    assert [(e.command, examples.masked(e.printed)) for e in ran] == [
        (e.command, examples.masked(e.told)) for e in ran], "run `python -m docs.examples`"
