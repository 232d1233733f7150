"""The README leads to every page, and what pages say of commands and keys exists."""

from __future__ import annotations

import re

import click

from csrm_tasks.cli.main import cli
from csrm_tasks.market_files.reference import keys
from csrm_tasks.settings import PROJECT_ROOT

README = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in PROJECT_ROOT.glob("docs/*.md")}


def test_the_readme_leads_to_every_page() -> None:
    assert [name for name in PAGES if f"](docs/{name})" not in README] == []


def test_commands_that_pages_name_exist() -> None:
    context = click.Context(cli)
    wrong = []
    for name, text in {"README.md": README, **PAGES}.items():
        for first, second in re.findall(
            r"(?<![\w/])csrm ([a-z][a-z-]+)(?: ([a-z][a-z0-9-]+))?", text
        ):
            command = cli.get_command(context, first)
            group = isinstance(command, click.Group) and second
            if command is None or (group and command.get_command(context, second) is None):
                wrong.append((name, first, second))
    assert wrong == []


def test_keys_that_pages_name_exist() -> None:
    known = {key.name for key in keys()}
    sections = "|".join(sorted({name.split(".")[0] for name in known if "." in name}))
    named = [
        (name, key)
        for name, text in {"README.md": README, **PAGES}.items()
        if name != "PAPER.md"  # names functions, some of packages that are called like sections
        for key in re.findall(rf"`((?:{sections})\.[a-z_]+(?:\.[a-z_]+)*)`", text)
        if not key.endswith((".json", ".py"))
    ]
    assert [(name, key) for name, key in named if key not in known] == []


def test_links_within_the_pages_lead_to_headings() -> None:
    for target in re.findall(r"\]\(\.\./README\.md#([\w-]+)\)", "".join(PAGES.values())):
        headings = re.findall(r"^## (.+)$", README, re.MULTILINE)
        assert target in {re.sub(r"[^\w]+", "-", h.lower()).strip("-") for h in headings}, target
