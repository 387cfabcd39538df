"""Measuring.

`plan` says what, `runner` lets configurations take turns in processes of their own, each of which
is a `session` that samples a `scenario`; `results` keeps runs, `percentiles`, `compare` and `judge`
say what may be concluded, `noise` whether to believe it. `facts` tells what it was measured on,
`sensors` (`power`, `thermal`) what the device felt, `built` what came before the first answer;
`measure` is for comparisons within one script.
"""
