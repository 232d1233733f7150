#!/usr/bin/env bash
# crowd-kit 1.4.2 (with pandas 3): the same votes in another order of rows end in other labels.
#
# Eight votes of three raters on four items, fitted by DawidSkene twice: the second time the rows
# of the table are shuffled, nothing else. Items 1 and 2, on which two raters contradict each other
# evenly, change their label: a tie goes to the label that the table names first. Whoever makes
# training labels or a frozen test set this way gets another one after a re-export, with no error.
# Why it matters here: our consensus is fitted with exact sums instead (dataset/dawid_skene.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "crowd-kit==1.4.2" "pandas==3.1.1" "numpy==2.4.6"
"$work/venv/bin/python" - <<'PY'
import warnings

warnings.simplefilter("ignore")
import pandas as pd
from crowdkit.aggregation import DawidSkene

votes = [
    (0, "c", 2), (1, "a", 0), (1, "c", 1), (2, "a", 1),
    (2, "b", 0), (3, "a", 2), (3, "b", 1), (3, "c", 0),
]
order = [3, 5, 4, 0, 2, 1, 6, 7]


def labels(rows):
    table = pd.DataFrame(rows, columns=["task", "worker", "label"])
    return DawidSkene(n_iter=100).fit_predict(table).sort_index().to_dict()


first, again = labels(votes), labels([votes[i] for i in order])
print("in one order:    ", first)
print("in another order:", again)
changed = [task for task in first if first[task] != again[task]]
print("items whose label the order of rows changed:", changed)
raise SystemExit(0 if changed else 1)
PY
