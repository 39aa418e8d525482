"""The rows of new instances, collected column by column for the statement that inserts them all."""

from __future__ import annotations

import msgspec

from stepwell.types import ENDED

from .base import Creation, Header
from .postgres_pack import byteas, int8s, texts, utf8


class NewRows:
    """What :data:`.postgres_queries.CREATE` takes. ``session`` is the number of who creates, 0 for nobody."""

    def __init__(self, session: int) -> None:
        self._session = session
        self._instances: list[tuple[object, ...]] = []
        self._journal: list[tuple[object, ...]] = []
        self._agenda: list[tuple[object, ...]] = []
        self._labels: list[tuple[object, ...]] = []

    def add(self, number: int, creation: Creation, run: int, earlier: int | None) -> None:
        ended = creation.state in ENDED
        self._instances.append((
            number, utf8(creation.instance_id), earlier, run, creation.definition, creation.state, creation.at_us,
            creation.updated_us or creation.at_us, _ended_us(creation), creation.input_digest,
            msgspec.json.encode(creation.labels) if creation.labels else None, utf8(creation.trace),
            utf8(creation.origin), utf8(creation.lane), creation.image, _image_seq(creation), creation.result_seq,
        ))  # fmt: skip
        self._journal += [(number, e.seq, e.at_us, e.took_us, e.facts, e.output) for e in creation.entries]
        if not ended:
            holder = self._session if creation.claim and self._session else None
            self._agenda.append((number, creation.definition, _due_us(creation), holder, utf8(creation.lane)))
        self._labels += [(number, utf8(key), utf8(value)) for key, value in creation.labels.items()]

    def arrays(self) -> list[object]:
        packs = (
            (self._instances, "ibiiisiiibbbbbbii"),
            (self._journal, "iiiibb"),
            (self._agenda, "iiiib"),
            (self._labels, "ibb"),
        )
        return [_packed(rows, at, kind) for rows, kinds in packs for at, kind in enumerate(kinds)]

    def header(
        self, number: int, creation: Creation, run: int, earlier: int | None, definition: tuple[str, str], name: str
    ) -> Header:
        """Return what a later read of the new row shows."""
        ended = creation.state in ENDED
        held = creation.claim and not ended and self._session > 0
        return Header(
            instance=number,
            instance_id=creation.instance_id,
            run=run,
            workflow=definition[0],
            fingerprint=definition[1],
            state=creation.state,
            seq=len(creation.entries),
            created_us=creation.at_us,
            updated_us=creation.updated_us or creation.at_us,
            ended_us=_ended_us(creation),
            due_us=_due_us(creation),
            input_digest=creation.input_digest,
            result_seq=creation.result_seq,
            held_by=name if held else "",
            mail=len(creation.messages),
            labels=creation.labels,
            trace=creation.trace,
            session=self._session if held else 0,
            definition=creation.definition,
            origin=creation.origin,
            lane=creation.lane,
        )


def _packed(rows: list[tuple[object, ...]], at: int, kind: str) -> object:
    values: list[object] = [row[at] for row in rows]
    pack = {"i": int8s, "b": byteas, "s": texts}[kind]
    return pack(values)  # type: ignore[operator]


def _due_us(creation: Creation) -> int | None:
    return None if creation.state in ENDED else 0 if creation.messages else creation.due_us


def _ended_us(creation: Creation) -> int | None:
    if creation.state not in ENDED:
        return None
    return creation.at_us if creation.ended_us is None else creation.ended_us


def _image_seq(creation: Creation) -> int:
    return len(creation.entries) if creation.image is not None else 0
