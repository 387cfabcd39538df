"""Everything under test, one worker of pytest-xdist a share of the CPUs."""

from tests.support import cpus

cpus.take_share()
