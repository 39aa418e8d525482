"""A drive that is not given its instances but takes up what is due in the store.

A store may hold far more waiting instances than fit into memory. So this drive asks for what is due, works on a bounded
number of instances at a time, and gives each one back as it comes to rest. From then on the store alone knows it, until
its time or a message makes it due again. What was freed by the end of a session is due at once, unless it only waited.

Two kinds rest without a due time and are looked at all the same, once, at the beginning: paused ones, and held ones, as
the code that a changed graph waits for may be back.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Final, Self

from msgspec.structs import replace

from stepwell.backend.base import Filter, Header, Loaded, Message, Rest, Want
from stepwell.errors import AlreadyRunning, InstanceConflict, InstanceDamaged, InstanceError, InstanceNotFound
from stepwell.types import ENDED

from . import moving, session
from .clock import AnyMailbox, Wait
from .drive import Drive
from .live import Live

if TYPE_CHECKING:
    import asyncio

    from .invoke import Prepared
    from .room import Room

AT_ONCE: Final = 1_000
LOOK_NS: Final = 10_000_000  # how long a busy drive may overlook what has become due


class Claiming(Drive):
    """What a recovery and a worker have in common. Either says when it is done, and what it remembers of its work."""

    lets_go = True
    _refused_us = LOOK_NS // 1_000

    def __init__(
        self,
        room: Room,
        mailbox: AnyMailbox,
        runnables: Iterable[object],
        *,
        stay: bool,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(room, mailbox, stay=stay, loop=loop)
        assert room.backend is not None
        self._backend = room.backend
        self._known = sorted((room.prepare(each) for each in runnables), key=lambda each: each.definition)
        self._newest = {each.workflow.name: each for each in self._known}
        self._definitions: dict[int, str] = {}  # the names of the workflows whose graphs they are
        self._due_us: int | None = None
        self._learned = False  # whether ``_due_us`` is what the store says
        self._seen = -1
        self._look_at = 0
        self._idle = False  # nothing is worked on, and something is stayed for
        self._aside: list[Live] = []

    def __enter__(self) -> Self:
        super().__enter__()
        self.room.watch(self.mailbox)
        return self

    def __exit__(self, *exc: object) -> None:
        self.room.unwatch(self.mailbox)
        super().__exit__(*exc)
        self.room.give_back(self._aside)

    # --- what the kinds of it differ in ---

    def _space(self) -> int:
        """Return how many more instances may be taken up now."""
        return AT_ONCE - len(self._lives)

    def _want(self, limit: int) -> Want:
        """Return what is asked of the store."""
        return Want(list(self._definitions), self.room.clock.now_us(), limit)

    def _took(self, instance_id: str) -> None:
        """Take note of an instance that is taken up."""

    def _refuse(self, header: Header, error: InstanceError) -> None:
        """Take note of an instance that cannot be worked on."""

    def _leaves(self, header: Header) -> bool:
        """Say whether an instance is left to others that have the code of its very graph."""
        return False

    def _passes_over(self, definition: int) -> bool:
        """Say the same of a graph, as far as is known without asking."""
        return False

    def _regained(self) -> None:
        """Take note that a claim of ours was forgotten, as by a server that has crashed, and perhaps more than one."""

    # --- looking for what is due ---

    def _refill(self) -> bool:
        if self._idle:
            return False
        self._write_rests()
        return bool(self._ready) or self._take(self._space()) or not self._lives

    def _wait(self) -> Wait | None:
        if not self._learned and self._may_learn():
            self._learn_next()
        next_us = self._next_us()
        if next_us is not None and next_us <= self.room.clock.now_us():
            self._look_at = 0
        return super()._wait()

    def _look_around(self) -> None:
        self._look_at = 0
        super()._look_around()

    def _heed(self, item: object) -> None:
        if item is None:  # a message came for an instance that nobody works on, or a clock was moved
            self._look_at = 0
        super()._heed(item)

    def _next_us(self) -> int | None:
        due_us = self._due_us if self._space() > 0 else None
        return min((each for each in (due_us, super()._next_us()) if each is not None), default=None)

    def _take(self, limit: int) -> bool:
        """Take up what is due, at most so many. Returns whether there was anything."""
        now_ns = time.perf_counter_ns()
        if limit <= 0 or now_ns < self._look_at:
            return False
        if self._seen < 0:
            self._begin_looking()
        hint, alone = self._backend.hint(), not self._lives
        found = self._claim(limit)
        if alone:
            self._hint = hint  # what was posted until then came along with the claim
        self._look_at = 0 if len(found) == limit else now_ns + LOOK_NS
        past = self._due_us is not None and self._due_us <= self.room.clock.now_us()
        self._learned = self._learned and not found and not past and not self._has_changed(hint)
        self._seen = hint  # older than the look, so that nothing is missed
        return bool(found)

    def _has_changed(self, hint: int) -> bool:
        """Whether others may have left something that is due at another time than is known."""
        return hint != self._seen

    def _claim(self, limit: int) -> Sequence[Loaded]:
        with self.room.entering:
            found = self.room.fenced(self._backend.claim_due, self._want(limit))
            joined = [(self._joined(loaded.header), loaded) for loaded in found]
        left: list[Live] = []
        for live, loaded in joined:
            if live is not None and self._leaves(loaded.header):
                left.append(live)
            elif live is not None:
                self._go_on_with(live, loaded)
        if left:
            self.abandon(left)
        return found

    def _may_learn(self) -> bool:
        """Whether this is a moment to learn what is due next."""
        return self._space() > 0

    def _learn_next(self) -> None:
        """Learn which graphs there are that this code can go on from, and when the first instance is due."""
        due = {
            number: (name, due_us)
            for name, graphs in self._backend.next_due(list(self._newest)).items()
            for number, due_us in graphs.items()
            if number <= self._newest[name].definition
            and not self._passes_over(number)  # those of newer code are left alone
        }
        self._definitions, self._learned = {number: name for number, (name, _) in due.items()}, True
        self._due_us = min((due_us for _, due_us in due.values() if due_us is not None), default=None)
        if self._due_us is not None and self._look_at:  # what is due and was not given is asked for a little later
            self._due_us = max(self._due_us, self.room.clock.now_us() + self._refused_us)

    def _rest_of(self, live: Live) -> Rest | None:
        rest = super()._rest_of(live)
        if rest is not None and rest.due_us is not None and (self._due_us is None or rest.due_us < self._due_us):
            self._due_us = rest.due_us
        return rest

    # --- taking up ---

    def _begin_looking(self) -> None:
        self._learn_next()
        known = self._backend.next_due(list(self._newest))
        for name, prepared in self._newest.items():
            if min(known[name], default=prepared.definition) < prepared.definition:
                for header in self._found(Filter(("waiting",), name)):
                    self._look_at_resting(header)
            for header in self._found(Filter(("held", "paused"), name)):
                self._look_at_resting(header)

    def _look_at_resting(self, header: Header) -> None:
        """Look at one that nothing makes due: if its graph is older and it only waits, people want to know now."""
        prepared = self._prepared_for(header)
        if (header.state == "waiting" and header.definition >= prepared.definition) or self._leaves(header):
            return
        try:
            if header.state != "waiting":
                session.resume(self, prepared, header.instance_id, judge=_if_at_rest)
            elif not self._move_waiting(header, prepared):
                return
        except InstanceNotFound:
            return  # it has ended and was deleted since, or it goes on and has its turn with the others
        except (InstanceConflict, InstanceDamaged, AlreadyRunning) as error:
            self._refuse(header, error)
        else:
            self._took(header.instance_id)

    def _move_waiting(self, header: Header, prepared: Prepared) -> bool:
        """Move or hold an instance of an older graph that only waits, unless somebody has it."""
        if header.session or (loaded := self._backend.load(header.instance_id)) is None or loaded.header.session:
            return False
        moving.settle(self.room, loaded, prepared, None)
        return True

    def _found(self, where: Filter) -> Iterator[Header]:
        while page := self._backend.list(where):
            yield from page
            where = replace(where, after=page[-1].instance)

    def _prepared_for(self, header: Header) -> Prepared:
        """Return the code of this very graph, else the newest."""
        same = (each for each in self._known if each.definition == header.definition)
        return next(same, self._newest[header.workflow])

    def _joined(self, header: Header) -> Live | None:
        if header.workflow not in self._newest:  # its row says it is due under a graph that is not its own
            self._refuse(header, InstanceDamaged(header.instance_id, "it is queued as an instance of another workflow"))
            return None
        prepared, context = self._prepared_for(header), copy_context()
        live = Live(self.room, prepared, header.instance_id, header.instance, header.run, context)
        try:
            self.join(live)
        except AlreadyRunning:
            known = self._lives.get(header.instance_id)
            if known is not None and known.instance == header.instance:  # this claim takes the place of the lost one
                self._regained()
            else:  # another call of this runner has given it back and is about to forget it
                self.room.fenced(self._backend.release, [header.instance])
            return None
        return live

    def _go_on_with(self, live: Live, loaded: Loaded) -> None:
        try:
            loaded = session.moved(self.room, live, loaded)
            if loaded.header.state in ENDED or not moving.fits(live.prepared, loaded.header):
                self.abandon([live])
            else:
                live.restore(loaded)
                self.begin(live, loaded.mail)
        except AlreadyRunning:  # another run has taken its place; that one has its own turn
            self.abandon([live])
        except (InstanceConflict, InstanceDamaged, InstanceNotFound) as error:
            self._let_go(live, "it cannot be read")
            self._set_aside(live, loaded.header, error)
        else:
            self._took(live.instance_id)

    def begin(self, live: Live, mail: Iterable[Message] = ()) -> None:
        self._restless[live.instance_id] = live  # even if nothing comes of it, its next due time is stored
        super().begin(live, mail)

    def _lose(self, live: Live, error: BaseException) -> None:
        if not isinstance(error, InstanceDamaged) or not self._let_go(live, "it cannot be read"):
            super()._lose(live, error)
        elif (header := self._backend.header(live.instance_id)) is not None:
            live.lost = error
            self._set_aside(live, header, error)

    def _set_aside(self, live: Live, header: Header, error: InstanceError) -> None:
        """Keep the claim of what cannot be worked on to the end: given back, it would be due at once again."""
        live.entries = []
        self._aside.append(live)
        self._refuse(header, error)


def _if_at_rest(header: Header) -> session.Action:
    if header.state not in ("held", "paused"):
        raise InstanceNotFound(header.instance_id, "it is neither held nor paused any more")
    return "attach"
