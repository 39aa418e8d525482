"""The bytes of a snapshot: what is no snapshot, or damaged, or of another version, is refused and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from zlib import crc32

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell import CheckpointingRunner, CorruptValue, InMemoryBackend, OptionError, StepwellError
from stepwell.backend.base import Filter
from stepwell.engine import facts as f
from stepwell.engine.frontier import from_image, to_image
from stepwell.errors import UnknownFormat
from stepwell.flow.fingerprint import fingerprint_of
from stepwell.flow.plan import Plan, PlanNode
from stepwell.runtime import snapshot_format as form
from stepwell.runtime.snapshot import restore_into, snapshot_of
from stepwell.seal import seal, unseal
from stepwell.testing import VirtualClock

from .stories import ID, STORIES, Ledger, World

ENDED = next(story for story in STORIES if story.name == "completed")
FORK = next(story for story in STORIES if story.name == "fork")


def picture() -> bytes:
    """A snapshot of an instance with branches, values, a retry and a cursor."""
    clock, ledger = VirtualClock(), Ledger()
    with CheckpointingRunner(InMemoryBackend(), clock=clock, deps={Ledger: ledger}) as runner:
        FORK.begin(World(runner, clock, ledger))
        return snapshot_of(runner._room, ID)


DATA = picture()
WHOLE = form.read(DATA)[0]


@pytest.fixture(scope="module")
def runner() -> Iterator[Any]:
    """A runner on a store that must stay empty."""
    with CheckpointingRunner(InMemoryBackend()) as made:
        yield made


def refused(runner: Any, data: bytes, error: type[StepwellError] = CorruptValue, match: str | None = None) -> None:
    """Check that nothing is restored and nothing written, and that the error has no payload in it."""
    backend = runner._room.backend
    before = backend.hint()
    with pytest.raises(error, match=match) as caught:
        restore_into(runner._room, data, None)
    assert len(str(caught.value)) < 400
    assert backend.hint() == before
    assert backend.count(Filter()) == 0


def body_of(data: bytes) -> Any:
    return msgspec.msgpack.decode(data[9:])


def sealed(body: bytes, head: bytes = b"\xf5S\x01\x01\x00") -> bytes:
    """An envelope around a body of the test's choice, written independently of the format's own code."""
    return head + crc32(head + body).to_bytes(4, "big") + body


def with_fields(**fields: Any) -> bytes:
    return sealed(msgspec.msgpack.encode(body_of(DATA) | fields))


# --- what is written ------------------------------------------------------------------------------------------


def test_the_header_is_nine_bytes() -> None:
    """Magic, version, codec, flags, checksum, body: spelt out once."""
    assert sealed(DATA[9:]) == DATA
    assert form.write(WHOLE, 2)[:5] == b"\xf5S\x01\x02\x00"


def test_the_fields_are_those_that_the_format_names() -> None:
    """A reader of another language finds them by these names, in this order; two are there only where they are used."""
    assert [*body_of(DATA)] == [
        "instance_id", "run", "origin", "workflow", "fingerprint", "state", "created_us", "updated_us", "ended_us",
        "due_us", "result_seq", "input_digest", "labels", "trace", "plans", "entries", "image", "mail", "message_ids",
    ]  # fmt: skip
    assert [len(entry) for entry in body_of(DATA)["entries"]] == [4] * len(WHOLE.entries)
    more = msgspec.structs.replace(WHOLE, lane="eu", mail=[form.Note("pause", "", b"", 0, "")], mail_traces=["00-1"])
    assert [*body_of(form.write(more, 1))][len(body_of(DATA)) :] == ["lane", "mail_traces"]
    assert form.read(form.write(more, 1)) == (more, 1)


def test_what_was_written_is_read() -> None:
    """Both ways."""
    assert form.write(WHOLE, 1) == DATA
    assert form.read(DATA) == (WHOLE, 1)


# --- what is refused ------------------------------------------------------------------------------------------


def test_every_cut_is_refused(runner: Any) -> None:
    """At each byte."""
    for at in range(len(DATA)):
        with pytest.raises(CorruptValue):
            form.read(DATA[:at])
    refused(runner, DATA[:-1])


@given(at=st.integers(0, 8 * len(DATA) - 1))
def test_no_flipped_bit_is_believed(runner: Any, at: int) -> None:
    """Law: any one of them is noticed."""
    flipped = bytearray(DATA)
    flipped[at // 8] ^= 1 << at % 8
    refused(runner, bytes(flipped), StepwellError)


@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused(runner: Any, data: bytes) -> None:
    """Law: also with a right header and checksum before them."""
    for whole in (data, DATA[:9] + data, sealed(data)):
        refused(runner, whole)


@given(at=st.integers(0, len(DATA) - 10), data=st.binary(min_size=1, max_size=8))
def test_a_body_changed_on_purpose_is_refused_or_whole(at: int, data: bytes) -> None:
    """Law: behind a right checksum, any other bytes raise CorruptValue, or make a snapshot that a store can hold."""
    body = DATA[9 : 9 + at] + data + DATA[9 + at + len(data) :]
    with CheckpointingRunner(InMemoryBackend()) as runner:
        try:
            header = restore_into(runner._room, sealed(body), None)
        except StepwellError:
            return
        again = snapshot_of(runner._room, header.instance_id)
        assert form.read(again)[0].fingerprint == WHOLE.fingerprint


@pytest.mark.parametrize("data", [7, "text", None, [1]])
def test_what_is_no_bytes_is_refused(runner: Any, data: Any) -> None:
    """It says what it should be."""
    refused(runner, data, OptionError, "is bytes")


def test_a_bytearray_will_do() -> None:
    """As a file that was read into a buffer is one."""
    with CheckpointingRunner(InMemoryBackend()) as made:
        assert restore_into(made._room, bytearray(DATA), None).instance_id == ID


NEWER = DATA[:2] + b"\x02" + DATA[3:]


def test_a_newer_version_is_refused_by_name(runner: Any) -> None:
    """Before its checksum, which may stand elsewhere."""
    refused(runner, NEWER, UnknownFormat, "version 2, this stepwell reads version 1")


def test_flags_that_are_not_known_are_refused_by_name(runner: Any) -> None:
    """They would change what the body means."""
    refused(runner, sealed(DATA[9:], b"\xf5S\x01\x01\x04"), UnknownFormat, "0x04")


def test_a_value_is_no_snapshot(runner: Any) -> None:
    """The magic tells them apart."""
    refused(runner, next(row.output for row in WHOLE.entries if row.output), CorruptValue, "not a stepwell snapshot")


def test_more_bytes_than_the_limit_are_not_looked_at(runner: Any, monkeypatch: Any) -> None:
    """The limit comes first."""
    monkeypatch.setattr(form, "SNAPSHOT_BYTES_MAX", len(DATA) - 1)
    refused(runner, DATA, CorruptValue, "over the limit")


def test_a_claim_of_many_entries_takes_no_memory(runner: Any) -> None:
    """A length in the body is believed only as far as there are bytes for it."""
    body = msgspec.msgpack.encode(body_of(DATA))
    at = body.index(b"\xa7entries") + 8
    refused(runner, sealed(body[:at] + b"\xdd\xff\xff\xff\xff" + body[at + 1 :]))
    refused(runner, sealed(b"\x91" * 100_000))


def changed_plan(**fields: Any) -> bytes:
    plan = msgspec.json.decode(unseal(WHOLE.plans[0]))
    return with_fields(plans=[seal(msgspec.json.encode(plan | fields))])


def chain(length: int, name: str) -> list[Any]:
    return [{"kind": "branch", "name": name, "parent": at - 1} for at in range(length)]


def other_facts(at: int, *facts: f.Fact) -> bytes:
    entries = body_of(DATA)["entries"]
    entries[at][0] = f.encode(facts)
    return with_fields(entries=entries)


def other_value(value: bytes) -> bytes:
    entries = body_of(DATA)["entries"]
    entries[0][1] = value
    return with_fields(entries=entries)


def other_image(change: Callable[[Any], object]) -> bytes:
    state = from_image(WHOLE.image)
    change(state)
    return with_fields(image=to_image(state))


WRONG: dict[str, Callable[[], bytes]] = {
    "no plan": lambda: with_fields(plans=[]),
    "a cut plan": lambda: with_fields(plans=[WHOLE.plans[0][:-1]]),
    "a plan of another version": lambda: changed_plan(version=2),
    "a plan under another's fingerprint": lambda: changed_plan(name="other"),
    "another plan than it names": lambda: with_fields(fingerprint="0" * 32),
    "another workflow than its plan's": lambda: with_fields(workflow="other"),
    "a plan nested without end": lambda: changed_plan(nodes=chain(5_000, "x")),
    "a plan of endless names": lambda: changed_plan(nodes=chain(199, "x" * 2**14)),
    "a plan of a cycle": lambda: changed_plan(nodes=[{"kind": "root", "name": "x", "parent": 0}]),
    "an empty plan": lambda: changed_plan(nodes=[]),
    "a name no workflow has": lambda: with_fields(workflow="a/b"),
    "an id no instance has": lambda: with_fields(instance_id="\n"),
    "an id too long": lambda: with_fields(instance_id="x" * 257),
    "no entries": lambda: with_fields(entries=[]),
    "an entry too few": lambda: with_fields(entries=body_of(DATA)["entries"][:-1]),
    "damaged facts": lambda: with_fields(entries=[[b"x", None, 0, 0], *body_of(DATA)["entries"][1:]]),
    "facts of another node": lambda: other_facts(1, f.StepDone(99)),
    "facts that do not apply": lambda: other_facts(1, f.MessageTaken(1, (), 1)),
    "an entry without facts": lambda: other_facts(1),
    "another image": lambda: other_image(lambda state: state.values.clear()),
    "an image further on": lambda: other_image(lambda state: setattr(state, "seq", 99)),
    "no image": lambda: with_fields(image=b""),
    "an end without a time": lambda: with_fields(state="completed"),
    "a time of an end that was not": lambda: with_fields(ended_us=1),
    "another result": lambda: with_fields(result_seq=3),
    "an unknown state": lambda: with_fields(state="happy"),
    "run 0": lambda: with_fields(run=0),
    "a time beyond all": lambda: with_fields(created_us=2**63),
    "an unknown field": lambda: with_fields(more=1),
    "an id accepted twice": lambda: with_fields(message_ids=["a", "a"]),
    "an id that is none": lambda: with_fields(message_ids=[""]),
    "a message twice": lambda: with_fields(message_ids=["a"], mail=[["cancel", "", b"", 0, "a"]] * 2),
    "a message whose id was not accepted": lambda: with_fields(mail=[["cancel", "", b"", 0, "a"]]),
    "a context without a message": lambda: with_fields(mail_traces=["00-1"]),
    "contexts of fewer messages": lambda: with_fields(
        message_ids=[], mail=[["cancel", "", b"", 0, ""]] * 2, mail_traces=["00-1"]
    ),
    "a damaged value": lambda: other_value(b"x"),
    "no value at all": lambda: other_value(b""),
    "a damaged message": lambda: with_fields(mail=[["signal", "answer", b"x", 0, ""]]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_parts_that_do_not_fit_each_other_are_refused(name: str, runner: Any) -> None:
    """Behind a right checksum; nothing is written, not even the plan."""
    refused(runner, WRONG[name]())


def nodes_of() -> list[Any]:
    return msgspec.json.decode(unseal(WHOLE.plans[0]))["nodes"]  # type: ignore[no-any-return]


def test_a_plan_is_the_one_it_says(runner: Any) -> None:
    """So that no file can put another graph under a fingerprint that code will look for."""
    nodes = nodes_of()
    nodes[2]["interface"] = "another type"  # nothing that the journal would show
    refused(runner, changed_plan(nodes=nodes))


def test_a_plan_too_large_is_never_built(runner: Any, monkeypatch: Any) -> None:
    """Its columns would take more memory than its bytes do, also under its right fingerprint."""

    def built(stored: bytes) -> Plan:
        raise AssertionError("it was built")

    monkeypatch.setattr(Plan, "from_bytes", built)
    for nodes in (chain(5_000, "x"), chain(199, "x" * 2**14)):
        rows = msgspec.convert(nodes, tuple[PlanNode, ...])
        refused(runner, changed_plan(nodes=nodes, fingerprint=fingerprint_of("forking", rows)))


def test_the_plan_that_a_store_has_is_believed(runner: Any) -> None:
    """Not the one that a file brings under the same fingerprint: it will be used here, so the journal must fit it."""
    nodes = nodes_of()
    fork = next(node for node in nodes if node["kind"] == "parallel")
    fork["children"] = fork["children"][:-1]
    refused(runner, changed_plan(nodes=nodes))
    with CheckpointingRunner(InMemoryBackend()) as other:
        restore_into(other._room, DATA, "first")
        restore_into(other._room, changed_plan(nodes=nodes), None)
        assert form.read(snapshot_of(other._room, ID))[0].plans == WHOLE.plans


def test_what_the_row_says_is_taken_along() -> None:
    """Labels, trace, lane and each of the times."""
    clock, ledger = VirtualClock(), Ledger()
    with CheckpointingRunner(InMemoryBackend(), clock=clock, deps={Ledger: ledger}) as made:
        ENDED.begin(World(made, clock, ledger))
        ended, _ = form.read(snapshot_of(made._room, ID))
    fields: dict[str, Any] = {"labels": {"a": "b"}, "trace": "00-1", "lane": "eu", "created_us": 7}
    fields["updated_us"] = ended.ended_us + 2  # type: ignore[operator]
    with CheckpointingRunner(InMemoryBackend()) as other:
        header = restore_into(other._room, form.write(msgspec.structs.replace(ended, **fields), 1), None)
        assert {name: getattr(header, name) for name in fields} == fields
        assert header.ended_us == ended.ended_us
