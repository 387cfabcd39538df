"""A check of this machine: what is on it, which bundles run, and what to install otherwise.

A probe (probes.py) looks at one thing and answers with a finding. Those that touch a driver or a
runtime do so in a process of their own, so that what crashes or hangs there is a line here.
"""

from typing import TYPE_CHECKING

from vit_edge.callables import make_callable

if TYPE_CHECKING:
    from vit_edge.doctor.api import doctor as doctor

make_callable(__name__, "vit_edge.doctor.api")
