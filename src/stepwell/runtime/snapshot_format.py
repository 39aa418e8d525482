"""The bytes of a snapshot, and what they prove.

::

    offset  size  field
    0       2     magic      F5 53 ("S"), as a value has F5 57 ("W")
    2       1     version    of the envelope and of the body, now 1
    3       1     codec id   of the values inside: 1 json, 2 msgpack
    4       1     flags      0
    5       4     CRC-32     big endian, over bytes 0 to 4 and the body
    9       …     body       a MessagePack map: the fields of Snapshot

The journal is whole, so the state can be computed from it; the image is there as well. Whoever reads a snapshot does
compute it and compares: a snapshot whose parts do not fit each other is refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Final, TypeAlias
from zlib import crc32

import msgspec

from stepwell.engine import facts as f
from stepwell.engine.frontier import Frontier, fold, from_image
from stepwell.errors import CorruptValue, OptionError, UnknownFormat, ValueTooLarge
from stepwell.flow.fingerprint import fingerprint_of
from stepwell.flow.plan import Plan, PlanData
from stepwell.seal import unseal
from stepwell.types import ENDED, NEST_MAX, NODES_MAX, State, check_instance_id, check_name

MAGIC: Final = b"\xf5S"
VERSION: Final = 1
HEADER_BYTES: Final = 9
SNAPSHOT_BYTES_MAX: Final = 1 << 30  # it is made and read in one piece
PATHS_MAX: Final = 1 << 28  # characters in the paths of all rows of a plan
_TEXT_MAX: Final = 65_536

Whole = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Moment = Annotated[int, msgspec.Meta(gt=-(2**62), lt=2**62)]
Text = Annotated[str, msgspec.Meta(max_length=_TEXT_MAX)]
Id = Annotated[str, msgspec.Meta(max_length=256)]

History: TypeAlias = Sequence[Sequence[f.Fact]]

# What msgspec and the engine raise where stored parts do not fit each other.
UNFIT: Final = (msgspec.MsgspecError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError)


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """One journal entry; its seq is its place in the list, from 1."""

    facts: bytes
    output: bytes | None
    at_us: Moment
    took_us: Whole


class Note(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """One message that waits in the inbox."""

    kind: Id
    name: Text
    payload: bytes | None
    at_us: Moment
    message_id: Text


class Snapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One run of an instance, whole.

    Attributes:
        origin: the id of the store that its idempotency keys are made from.
        fingerprint: the graph it goes on with; ``plans`` holds it and those it had before, oldest first.
        state: as its journal says it was when it was written last; so are ``due_us`` and ``result_seq``.
        image: the engine's state after the last entry.
        message_ids: those accepted so far, whether or not the message still waits.
        lane: instances of this workflow and lane share a limit on how many run.
        mail_traces: the contexts that the messages of ``mail`` were sent in, one for each, or none at all.
    """

    instance_id: Id
    run: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    origin: Id
    workflow: Id
    fingerprint: Id
    state: State
    created_us: Moment
    updated_us: Moment
    ended_us: Moment | None
    due_us: Moment | None
    result_seq: Whole
    input_digest: Annotated[bytes, msgspec.Meta(max_length=64)]
    labels: dict[str, str]
    trace: Text
    plans: list[bytes]
    entries: list[Row]
    image: bytes
    mail: list[Note]
    message_ids: list[Text]
    lane: Text = ""
    mail_traces: list[Text] = []


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Snapshot)


def write(snapshot: Snapshot, codec_id: int) -> bytes:
    """Return the bytes of a snapshot whose values are of this codec. Raises ValueTooLarge."""
    body = _ENCODER.encode(snapshot)
    check_size(len(body) + HEADER_BYTES)
    head = MAGIC + bytes((VERSION, codec_id, 0))
    return head + crc32(body, crc32(head)).to_bytes(4, "big") + body


def check_size(size: int, most: int = SNAPSHOT_BYTES_MAX) -> None:
    """Refuse what is too large for one snapshot."""
    if size > most:
        raise ValueTooLarge(f"the instance takes more than {most} bytes, which is the most that one snapshot holds")


def read(data: bytes) -> tuple[Snapshot, int]:
    """Return a snapshot and the id of its values' codec.

    Raises:
        CorruptValue: the bytes are no snapshot, or a damaged one.
        UnknownFormat: a newer stepwell wrote it.
    """
    body, codec_id = _opened(data)
    try:
        snapshot = _DECODER.decode(body)
        check_instance_id(snapshot.instance_id)
        check_name(snapshot.workflow, "a workflow's name")
    except (*UNFIT, OptionError) as error:
        raise damaged(f"its body cannot be read ({type(error).__name__})") from None
    waiting = [note.message_id for note in snapshot.mail if note.message_id]
    known = {*snapshot.message_ids} - {""}
    if len(known) != len(snapshot.message_ids) or len({*waiting} & known) != len(waiting):
        raise damaged("its inbox has a message twice")
    if len(snapshot.mail_traces) not in (0, len(snapshot.mail)):
        raise damaged("it has the contexts of other messages than it has")
    return snapshot, codec_id


def _opened(data: bytes) -> tuple[memoryview, int]:
    if len(data) > SNAPSHOT_BYTES_MAX:
        raise CorruptValue(f"the snapshot has {len(data)} bytes, over the limit of {SNAPSHOT_BYTES_MAX}")
    if len(data) < HEADER_BYTES or data[:2] != MAGIC:
        raise CorruptValue(
            "the bytes are not a stepwell snapshot, which client.snapshot() writes: its header is missing"
        )
    if data[2] != VERSION:
        raise UnknownFormat(
            f"the snapshot was written in format version {data[2]}, this stepwell reads version {VERSION}; "
            "restore it with the stepwell that wrote it, or a newer one"
        )
    body = memoryview(data)[HEADER_BYTES:]
    if crc32(body, crc32(data[:5])).to_bytes(4, "big") != data[5:HEADER_BYTES]:
        raise damaged("its checksum does not match")
    if data[4]:
        raise UnknownFormat(f"the snapshot carries flags 0x{data[4]:02x}, which this stepwell does not know")
    return body, data[3]


def damaged(how: str) -> CorruptValue:
    """Return what is raised of a snapshot whose parts cannot be believed."""
    return CorruptValue(f"the snapshot is damaged: {how}; nothing of it was restored")


# --- what the parts say of each other ------------------------------------------------------------------


def itself(plan: Plan) -> Plan:
    return plan


def state_of(snapshot: Snapshot, known: Callable[[Plan], Plan] = itself) -> tuple[list[Plan], Frontier]:
    """Return the plans, oldest first, and the state that the journal leads to.

    ``known`` gives the plan that a store has of the same name and fingerprint, which will be used there instead.

    Raises:
        CorruptValue: a plan or fact cannot be read, or the journal leads to another state than the snapshot says.
    """
    try:
        plans = [known(_plan_of(stored)) for stored in snapshot.plans]
        history = [f.decode(row.facts) for row in snapshot.entries]
        state = replayed(plans, history, snapshot.fingerprint)
        alike = state == from_image(snapshot.image)
    except UNFIT as error:
        raise damaged(f"its plans and journal cannot be read ({type(error).__name__})") from None
    if any(plan.name != snapshot.workflow for plan in plans):
        raise damaged("one of its plans is of another workflow")
    ended = snapshot.state if snapshot.state in ENDED else ""
    said = (len(history), snapshot.result_seq, ended, snapshot.ended_us is not None)
    if not alike or said != (state.seq, state.result, state.ended, bool(state.ended)):
        raise damaged("its journal leads to another state than it says")
    return plans, state


def eras(history: History, last: str) -> list[str]:
    """Return the fingerprints of the graphs that a journal was written under, oldest first, each once."""
    moves = [head for head, *_ in history if isinstance(head, f.RunMoved)]
    before = dict.fromkeys(move.source for move in moves)
    return [*(name for name in before if name != last), last]


def replayed(plans: Iterable[Plan], history: History, last: str) -> Frontier:
    """Return the state that a journal leads to, each of its eras under the plan of its own."""
    known = {plan.fingerprint: plan for plan in plans}
    moves = (head for head, *_ in history if isinstance(head, f.RunMoved))
    state, plan = Frontier(), known[next((move.source for move in moves), last)]
    for head, *consequences in history:
        if isinstance(head, f.RunMoved):
            plan = known[head.target]
        fold(plan, state, (head, *consequences))
    if plan is not known[last] or [*known] != eras(history, last):
        raise ValueError("the plans are not those of the journal, oldest first")
    return state


def _plan_of(stored: bytes) -> Plan:
    """Return a stored plan; one that is larger than any compiler makes is refused before its columns are built."""
    data = msgspec.json.decode(unseal(stored), type=PlanData)
    depth: list[int] = []
    length: list[int] = []
    for node in data.nodes:
        depth.append(depth[node.parent] + 1 if node.parent >= 0 else 0)
        length.append(len(node.name) + (length[node.parent] if node.parent >= 0 else 0))
    if len(depth) > NODES_MAX or max(depth) > 4 * NEST_MAX or sum(length) > PATHS_MAX:
        raise ValueError("the plan is larger than a workflow may be")
    if fingerprint_of(data.name, data.nodes) != data.fingerprint:
        raise ValueError("the plan is not the one that its fingerprint names")
    return Plan.from_bytes(stored)
