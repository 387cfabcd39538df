"""Measuring.

`run/` measures. `plan` says what; `runner` lets configurations take turns in processes of their
own. Each process is a `session`, which samples a scenario; `golden` answers the golden images.
`device/` tells what the machine is, and what it felt meanwhile. `results/` keeps runs (`runs` has
their types) and says what may be concluded from them. `report/` shows them.
"""

from typing import TYPE_CHECKING

from vit_edge.callables import make_callable

if TYPE_CHECKING:
    from vit_edge.bench.api import bench as bench

make_callable(__name__, "vit_edge.bench.api")
