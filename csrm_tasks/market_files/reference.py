"""docs/MARKET.md: every key of a market file, from its declaration in ``csrm_tasks/sections/``.

``csrm market reference`` prints it; this module, run as a program, writes the page.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from csrm_tasks.markets import MarketConfig
from csrm_tasks.presets import SECTIONS
from csrm_tasks.sections.base import Section, Unit
from csrm_tasks.sections.faults import section_in
from csrm_tasks.settings import PROJECT_ROOT

MARKET_MD = PROJECT_ROOT / "docs" / "MARKET.md"
NAMES = {
    "integer": "integer", "number": "number", "string": "text", "boolean": "true or false",
    "null": "null",
}  # fmt: skip
BOUNDS = (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))
NONE = "–"
# How the keys of sections in a list, in a mapping are written
EACH: dict[object, str] = {tuple: "[]", dict: ".NAME"}
INTRO = """\
# Every key of a market file

Written by `python -m csrm_tasks.market_files.reference` (`csrm market reference` prints it) from
`csrm_tasks/sections/`; do not edit.

A market is one file, `dags/markets/{market}.yaml` (or below `CSRM_MARKETS`). Six keys have no
default: `market`, `source_locales`, `target_locale`, `llm.base`, `retrieval.ebr.encoder` and
`towers.encoder` (the last three are set by presets for real bases, below); and without the section
`gate` nothing is ever promoted. `csrm market new` writes such a file, `csrm market check` says what
is wrong with one, what of it will surprise, and what is in effect.
Unknown keys are refused. Defaults are the papers' values where they give one (A5, A22, A31; numbers
like these are decisions, see [PAPER.md](PAPER.md)). [OWN_MARKET.md](OWN_MARKET.md) is the way from
here to a release. A changed key makes the steps that read its section run again, but for
`llm.score_shards`, `towers.score_shards` and `retrieval.index_shards`.
"""


@dataclass(frozen=True)
class Key:
    """One key: its dotted name (:data:`EACH` of several), and what the reference says of it."""

    name: str
    kind: str
    default: str
    unit: str
    effect: str


def keys(
    model: type[BaseModel] = MarketConfig, prefix: str = "", given: BaseModel | None = None
) -> Iterator[Key]:
    """Yield every key below ``model``, sections before what they hold, in the declared order.

    ``given`` is the instance that is the default, where it says other things than the class.
    """
    shapes = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        dotted = f"{prefix}{name}"
        inner = section_in(field.annotation)
        effect = " ".join(texts(model).get(name, "").split()) or about(inner).split("\n\n")[0]
        value = getattr(given, name) if given else field.get_default(call_default_factory=True)
        default = "required" if field.is_required() and not given else written(value)
        yield Key(dotted, kind_of(shapes[name]), default, unit_of(field), " ".join(effect.split()))
        if inner is not None:
            each = EACH.get(get_origin(field.annotation), "")
            below = value if isinstance(value, inner) else None
            yield from keys(inner, f"{dotted}{each}.", below)


@cache
def texts(model: type[BaseModel]) -> dict[str, str]:
    """Return field → the text under its declaration, in a section or one that it extends."""
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if not issubclass(one, Section):
            continue
        (declared,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(declared, ast.ClassDef)
        for field, below in pairwise(declared.body):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = inspect.cleandoc(text)
    return found


def about(section: type[Section] | None) -> str:
    """Return a section's docstring, as Markdown."""
    return (inspect.getdoc(section) or "").replace("``", "`") if section else ""


def written(value: object) -> str:
    """Return a default as YAML writes it; a section has those of its keys."""
    if isinstance(value, Section):
        return NONE
    if isinstance(value, tuple) and value and isinstance(value[0], Section):
        return "; ".join(_short(step) for step in value)
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _short(step: Section) -> str:
    return "`" + json.dumps(step.model_dump(exclude_defaults=True)).replace('"', "") + "`"


def kind_of(shape: Mapping[str, Any]) -> str:
    """Return the type of a key's JSON schema in words, with its bounds."""
    if either := shape.get("anyOf", shape.get("oneOf")):
        return " or ".join(map(kind_of, either))
    if "$ref" in shape:
        return "section"
    if "enum" in shape or "const" in shape:
        return ", ".join(f"`{value}`" for value in shape.get("enum", [shape.get("const")]))
    if shape["type"] == "array":
        return f"list of {kind_of(shape['items'])}".replace("list of section", "list of sections")
    if shape["type"] == "object":
        names = kind_of({"type": "string"} | shape.get("propertyNames", {}))
        return f"mapping of {names} to {kind_of(shape['additionalProperties'])}"
    return NAMES[shape["type"]] + _bounds(shape)


def _bounds(shape: Mapping[str, Any]) -> str:
    if "minimum" in shape and "maximum" in shape:
        return f" {shape['minimum']:g} to {shape['maximum']:g}"
    return "".join(f" {sign} {shape[name]:g}" for name, sign in BOUNDS if name in shape)


def unit_of(field: FieldInfo) -> str:
    """Return the unit that the key's type names; a dash for a text, a switch, a plain number."""
    found = [*_units(field.metadata), *_units_in(field.annotation)]
    return found[-1] if found else NONE


def _units(metadata: list[Any]) -> list[str]:
    return [one.name for one in metadata if isinstance(one, Unit)]


def _units_in(annotation: object) -> list[str]:
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return [*_units_in(inner), *_units(more)]
    return [unit for part in get_args(annotation) for unit in _units_in(part)]


def reference() -> str:
    """Return the text of ``docs/MARKET.md``."""
    rows = list(keys())
    top = [row for row in rows if not row.kind.endswith(("section", "section or null"))]
    parts = [INTRO, "## The market\n", _table([k for k in top if "." not in k.name])]
    for name, field in MarketConfig.model_fields.items():
        inner = section_in(field.annotation)
        if inner is not None:
            text = texts(MarketConfig).get(name)
            more = f"\n\n{text}" if text else ""
            own = [row for row in rows if row.name.startswith(f"{name}.")]
            parts += [f"\n## `{name}`\n\n{about(inner)}{more}\n", _table(own)]
    return "\n".join([*parts, _presets()])


def _table(rows: list[Key]) -> str:
    lines = ["| key | type | default | unit | effect |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = (f"`{row.name}`", row.kind, row.default, row.unit, row.effect)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _presets() -> str:
    lines = ["\n## Presets\n\nWhat a preset sets; the file's own keys win.\n"]
    lines += ["| preset | sets |", "| --- | --- |"]
    for section, presets in SECTIONS.items():
        for name, values in presets.items():
            said = ", ".join(f"`{k}: {v}`" for k, v in flat(values).items())
            lines.append(f"| `{section}.preset: {name}` | {said} |")
    return "\n".join(lines) + "\n"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return dotted key → value as YAML writes it, of nested mappings."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False, default=dict)
    return found


def in_effect(section: BaseModel, prefix: str = "") -> dict[str, str]:
    """Return dotted key → value of a section's instance; also of keys that no dump holds."""
    found: dict[str, str] = {}
    for name, value in section:
        if isinstance(value, BaseModel):
            found |= in_effect(value, f"{prefix}{name}.")
        else:
            found |= flat({f"{prefix}{name}": value})
    return found


def main(path: Path = MARKET_MD) -> None:
    """Write the page."""
    path.write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
