"""Readable JSON: what is written, and that no half of it is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from csrm_tasks.errors import ArtifactError
from csrm_tasks.json_files import write_json


def test_a_document_is_readable_utf_8_and_reads_back(tmp_path: Path) -> None:
    path, value = tmp_path / "a.json", {"b": [1, None], "a": "牛奶"}
    write_json(path, value)
    assert path.read_bytes() == '{\n "a": "牛奶",\n "b": [\n  1,\n  null\n ]\n}'.encode()
    write_json(path, value, sort_keys=False)
    assert list(json.loads(path.read_text(encoding="utf-8"))) == ["b", "a"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_by_the_files_name(tmp_path: Path, number: float) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ArtifactError, match=r"a\.json: a figure is not finite"):
        write_json(path, {"deep": [{"er": number}]})
    assert not path.exists()
