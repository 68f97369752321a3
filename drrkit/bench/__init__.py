"""The benchmark: drrkit against the other projectors that are installed, on equal terms.

`drrkit bench` and `python -m drrkit.bench` run it; the latter needs torch and NumPy only. Tools
are behind adapters (drrkit.bench.peers), each in a process of its own (isolation, worker); they
take turns at the workloads of a plan (plan, contest, timing), and what they computed is compared
(compare, reference) and set against what the machine could do at most (floors). The result is one
JSON document (record) that becomes a table (table), pictures (plots) and the README's (readme).
"""
