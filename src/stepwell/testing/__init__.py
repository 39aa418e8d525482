"""What tests of workflows, and of stores, are written with.

:class:`VirtualClock` makes waits pass at once; :mod:`.faults` makes a store fail or a process die at a named point;
:mod:`.conformance` examines a store.
"""

from __future__ import annotations

from .clock import VirtualClock

__all__ = ["VirtualClock"]
