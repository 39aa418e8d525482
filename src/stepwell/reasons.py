"""The reasons that ``client.explain`` gives, one for each open step, to be matched in a program.

Example:
    >>> match client.explain("order-42").reasons[0]:  # doctest: +SKIP
    ...     case AwaitsSignal(name=name):
    ...         print("send it a", name)
    ...     case reason:
    ...         print(reason.text)
"""

from stepwell.runtime.explaining import (
    AwaitsSignal,
    Backoff,
    Cancelled,
    Cancelling,
    Closing,
    Crashed,
    CutOff,
    DueAt,
    Failed,
    Held,
    NoWorker,
    Offered,
    Paused,
    Queued,
    Ready,
    Reason,
    Running,
)

__all__ = [
    "AwaitsSignal",
    "Backoff",
    "Cancelled",
    "Cancelling",
    "Closing",
    "Crashed",
    "CutOff",
    "DueAt",
    "Failed",
    "Held",
    "NoWorker",
    "Offered",
    "Paused",
    "Queued",
    "Ready",
    "Reason",
    "Running",
]
