"""What a cron expression of a market file may be, so that Airflow can read it.

Checked when the file is loaded: Airflow finds out when it parses the DAGs, and then refuses those
of every other market in the same file as well.
"""

from __future__ import annotations

import re

RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))  # minute, hour, day, month, day of the week
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
NAMES: tuple[list[str], ...] = ([], [], ["l"], MONTHS, DAYS)
PRESETS = ("@hourly", "@daily", "@weekly", "@monthly", "@quarterly", "@yearly")
ITEM = re.compile(r"(?:\*|(\w+)(?:-(\w+))?)(?:/([1-9]\d*))?(?:#[1-5])?")


def is_cron(text: str) -> bool:
    """Whether ``text`` is one of Airflow's names, or five fields of numbers and names in range."""
    if text.startswith("@"):
        return text in PRESETS
    fields = text.lower().split()
    return len(fields) == len(RANGES) and all(map(_is_field, fields, RANGES, NAMES))


def _is_field(field: str, bounds: tuple[int, int], names: list[str]) -> bool:
    for item in field.split(","):
        found = ITEM.fullmatch(item)
        if found is None:
            return False
        ends = [end for end in found.groups()[:2] if end]
        numbers = [int(end) for end in ends if end.isdecimal()]
        if not all(end.isdecimal() or end in names for end in ends):
            return False
        if numbers != sorted(numbers) or not all(bounds[0] <= n <= bounds[1] for n in numbers):
            return False
    return True


def check_cron(text: str) -> str:
    """Return ``text``; raises ValueError where it is no cron expression."""
    if not is_cron(text):
        raise ValueError(f"{text!r} is no cron expression; five fields, as 0 2 * * *")
    return text
