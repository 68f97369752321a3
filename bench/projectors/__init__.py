"""The benchmark: drrkit against the other projectors that are installed, on equal terms.

`python -m bench.projectors` runs it in a checkout. Every tool has an adapter (peers) and a process
of its own (isolation, worker). The tools take turns at the workloads of a plan (plan, contest,
timing); their results are compared with drrkit's and with a fine reference (compare), and drrkit's
times with lower bounds (floors). The result is one JSON document (record), from which the table
(table), the plots (plots) and the README's tables (readme) are made.
"""
