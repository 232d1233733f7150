#!/usr/bin/env bash
# scipy 1.17.1, scipy.io.arff.loadarff, and Python's csv module.
#
# Python's csv refuses a field of more than 131,072 characters, which is how a quote that is never
# closed in a large file is noticed. The limit is the process's, not a reader's. loadarff takes it
# away to read its own lines (a comment says that it cannot be done for one reader) and does not
# give it back: whoever reads CSV afterwards in the same process gets one giant field and no error,
# so that the same file is refused or taken by what ran before. A program that relies on the limit
# has to ask for strict=True besides, which complains of the open quote at the end of the file
# (csrm_tasks/judgements/formats/quepid.py does).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q scipy==1.17.1
"$folder/venv/bin/python" - <<'PY'
import csv
import io

from scipy.io import arff

before = csv.field_size_limit()
arff.loadarff(io.StringIO("@relation r\n@attribute x numeric\n@attribute y numeric\n@data\n1,2\n"))
after = csv.field_size_limit()
print(f"limit of a field: {before:,} before loadarff, {after:,} after it")
assert before == 131_072, "csv's own limit changed"
assert after > 10**18, "loadarff leaves the limit as it was"
PY
