"""Benchmarks: ours and its peers side by side, alternating, in one run.

``python -m benchmarks NAME [--quick]`` prints a table and ends with one line of JSON:
``{"name": …, "figures": {…}, "versions": {…}}``; times in seconds, memory in bytes, rates per
second, ratios as peer over ours (above 1 is better), but for those with an upper bound as target
(memory, bytes, latency, p99, build time): ours over the peer's (below 1 is better). Machines are
noisy: medians of alternating repeats, with the spread beside them.
"""
