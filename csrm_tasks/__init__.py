"""CSRM: the retraining system for query-product relevance in a new market.

This package is the product. It never imports Airflow; `dags/` wires its steps together.
"""

import os

# OpenMP's workers (torch's are GNU's libgomp) sleep while they wait: spinning, they burn the time
# slices of whoever else computes on this machine. It is read once, when the runtime is loaded, so
# it is set here, before any module of ours can import torch; no result depends on it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
