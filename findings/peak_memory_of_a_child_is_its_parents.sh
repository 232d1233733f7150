#!/usr/bin/env bash
# asv_runner 0.2.1 (what asv's peakmem_ benchmarks read) and Python's resource module on Linux:
# getrusage().ru_maxrss of a program that was just started is not its own peak. The kernel carries
# the peak over exec, so it begins at the peak of whoever called subprocess, even when that
# memory was freed long ago. VmHWM in /proc/self/status begins anew with each program.
#
# Who meets it: a test or a worker that has grown to 600 MB probes a small model server "in a fresh
# process" against a budget of 512 MB, and refuses it; a peak-memory benchmark reports its harness.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check "asv_runner==0.2.1" "numpy==2.3.5"
cat > child.py <<'PY'
from asv_runner.benchmarks._maxrss import get_maxrss

status = open("/proc/self/status").read()
own = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
print(get_maxrss() // 2**20, int(own.split()[1]) // 2**10)
PY
cat > try.py <<'PY'
import subprocess
import sys

import numpy as np


def child(when):
    out = subprocess.run([sys.executable, "child.py"], capture_output=True, text=True, check=True)
    ru_maxrss, own = map(int, out.stdout.split())
    print(f"{when}: a child that does nothing says ru_maxrss {ru_maxrss} MB, VmHWM {own} MB")
    return ru_maxrss, own


before = child("small parent")
held = np.ones(75_000_000)  # 600 MB
del held
after = child("parent that once held 600 MB")
if not (after[0] > 550 and before[0] < 200 and after[1] < 200):
    sys.exit("behaviour changed: ru_maxrss of the child is its own")
PY
venv/bin/python try.py
