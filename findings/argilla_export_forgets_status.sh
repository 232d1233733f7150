#!/usr/bin/env bash
# What: what Argilla writes of a record for an export (Record.to_dict, which to_json uses) holds each
# response's value and user, but not its status. A draft that nobody has submitted and an answer that
# was discarded look like a submitted one: the three are the same file.
# Version: argilla 2.8.0 (the SDK).
# Why it matters: whoever trains or measures on an export counts half-filled forms and answers that
# their own raters took back as judgements, and the file cannot tell afterwards.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "argilla==2.8.0" "requests==2.32.5"  # imports it without asking for it
cat >"$work/seen.py" <<'PY'
import json
import uuid

import argilla as rg

user = uuid.UUID(int=1)
exported = {}
for status in ("submitted", "draft", "discarded"):
    answer = rg.Response(question_name="grade", value="exact", user_id=user, status=status)
    record = rg.Record(id="r", fields={"query": "milk"}, responses=[answer])
    exported[status] = record.to_dict()
    print(f"{status}: {json.dumps(exported[status]['responses'])}")
texts = {json.dumps(e, sort_keys=True) for e in exported.values()}
assert len(texts) == 1, "exports differ by status now"
assert not any("status" in one for one in exported["draft"]["responses"]["grade"])
PY
"$work/venv/bin/python" "$work/seen.py"
