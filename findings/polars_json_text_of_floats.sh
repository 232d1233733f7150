#!/usr/bin/env bash
# polars 2.1.0, str.json_decode of numbers into a text column.
#
# An integer keeps its digits, however many it has: 123456789012345678901234567890 stays so. A number
# with a fraction goes through a 64-bit float first and comes back as an integer's text, so that two
# different literals, 9007199254740993.0 and 9007199254740992.0, become one text without a word, and
# 7.0 becomes "7". Whoever reads identifiers as text to be safe from floats is not: lines with such
# literals have to be set apart before (csrm_tasks/ingest/json_values.py does).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q polars==2.1.0
"$folder/venv/bin/python" - <<'PY'
import polars as pl

written = ["7.0", "9007199254740992.0", "9007199254740993.0", "123456789012345678901234567890"]
lines = pl.Series([f'{{"id": {number}}}' for number in written])
read = lines.str.json_decode(pl.Struct({"id": pl.String})).struct.field("id").to_list()
for number, text in zip(written, read, strict=True):
    print(f"{number:>32} -> {text!r}")
assert read == ["7", "9007199254740992", "9007199254740992", written[3]], "the behaviour changed"
PY
