"""What tests of workflows, and of stores, are written with.

:class:`VirtualClock` makes waits pass at once; :mod:`.faults` makes a store fail or a process die at a named point;
:mod:`.conformance` examines a store; :mod:`.invariants` checks what a store has become, :mod:`.outside` compares it
with what bodies wrote elsewhere, and :mod:`.watched` holds it to its promises while it works.
"""

from __future__ import annotations

from .clock import VirtualClock

__all__ = ["VirtualClock"]
