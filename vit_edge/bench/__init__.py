"""Measuring.

`plan` says what, `runner` lets configurations take turns in processes of their own, each of which
is a `session` that samples a `scenario`; `results` keeps runs, `percentiles`, `compare` and `judge`
say what may be concluded, `noise` whether to believe it. `measure` and `worker` are for comparisons
within one script, `memory` for limits that the kernel enforces.
"""
