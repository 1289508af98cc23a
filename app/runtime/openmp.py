"""How OpenMP's threads behave, which its library reads from the environment when torch is loaded."""

from __future__ import annotations

import os

# Turns of a loop in which a thread waits for the others before it sleeps, some microseconds. libgomp's own 300,000
# last as long as a time slice: with other programs on the cores, the threads wait for one that does not run.
_SPINS = "10000"


def configure_openmp() -> None:
    """Set what the service needs. Only before torch is loaded.

    Threads that are too few give wrong results (model/kernels/openmp.py), so OMP_DYNAMIC is never left on. How long
    they spin is only chosen where nobody has chosen it. Measured in docs/engine.md.
    """
    os.environ["OMP_DYNAMIC"] = "false"
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
