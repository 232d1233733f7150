"""The board as HTML: server-rendered, no script, everything escaped by the templates' engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2

from csrm_tasks.board import chart
from csrm_tasks.board.actions import LEAST, MOST, Action
from csrm_tasks.board.board import Board, Summary
from csrm_tasks.board.notices import Notice
from csrm_tasks.board.trend import FIGURES

ROOM = Path(__file__).parent
STYLE = (ROOM / "static" / "board.css").read_bytes
CSP = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'self'"
)
# Reports carry their own style and no script; a sandbox without permissions holds them to that.
REPORT_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


@dataclass(frozen=True)
class Run:
    """The newest run of one DAG of the market."""

    dag: str
    run: str  # "" where it never ran
    state: str
    at: str
    href: str


@dataclass(frozen=True)
class Around:
    """What the page needs to know of Airflow and of who looks."""

    root: str  # path of the board, without a slash at its end
    airflow: str  # path of Airflow's own pages, likewise
    user: str
    markets: Sequence[str]  # that the user may look at
    framed: bool = False  # in Airflow's frame, of which no link leads out


@dataclass(frozen=True)
class Decisions:
    """What the user may decide, and what came of the last form."""

    token: str
    allowed: frozenset[Action]
    done: str = ""
    refused: str = ""


@cache
def _templates() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOM / "templates"), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    env.tests["notice"] = lambda value: isinstance(value, Notice)
    env.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    env.filters["minute"] = lambda at: str(at)[:16].replace("T", " ")
    env.globals |= {
        "figures": FIGURES, "chart": chart.chart, "drawing": chart, "least": LEAST, "most": MOST,
    }  # fmt: skip
    return env


def market_page(
    board: Board, around: Around, decisions: Decisions, runs: Sequence[Run] | Notice
) -> str:
    """Return the page of one market."""
    template = _templates().get_template("market.html")
    return template.render(board=board, around=around, decisions=decisions, runs=runs)


def index_page(summaries: Sequence[Summary], around: Around) -> str:
    """Return the list of markets."""
    return _templates().get_template("index.html").render(summaries=summaries, around=around)


def message_page(title: str, text: str, root: str, login: str = "") -> str:
    """Return a page that says one thing; ``login``: where to log in."""
    template = _templates().get_template("message.html")
    return template.render(title=title, text=text, root=root, login=login)


def style() -> bytes:
    """Return the style sheet."""
    return STYLE()
