"""How tracing was switched on, so that a worker process can do the same."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Options(msgspec.Struct, frozen=True):
    """What :func:`~stepwell.init_tracing` was given; ``""`` leaves a matter to the environment."""

    service_name: str = ""
    endpoint: str = ""
    protocol: str = ""
    headers: Mapping[str, str] = {}
