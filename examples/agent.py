"""An agent: a model is asked turn by turn, uses tools, asks a person before it spends money, and stops with an answer.

Run ``python examples/agent.py``. Each turn of the ``loop`` is recorded with its value, so a crash in turn 40 costs one
call of the model, not forty: here the program that asked for approval ends, and another one goes on in the middle of
turn 3. The model is injected and follows a script, with a line that breaks now and then; yours would be a client.
"""

import asyncio
import tempfile
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypedDict

from stepwell import (
    Again,
    AsyncCheckpointingRunner,
    Done,
    Retry,
    SqliteBackend,
    inject,
    loop,
    route,
    signal,
    task,
    task_context,
    workflow,
)


class Message(TypedDict):
    role: str
    text: str


class Wish(Enum):
    ANSWER = "answer"
    TOOL = "tool"
    SPEND = "spend"


@dataclass(frozen=True)
class Said:
    wish: Wish
    text: str


Chat = list[Message]
Turn = Again[Chat] | Done[str]  # what a turn of the loop says: once more with this, or done with that

SCRIPT = (
    Said(Wish.TOOL, "find a train to Jaipur"),
    Said(Wish.TOOL, "price train 12"),
    Said(Wish.SPEND, "book train 12"),
    Said(Wish.ANSWER, "You leave at 8:05 with train 12."),
)
TOOLS = {"find": "trains 11, 12", "price": "900 rupees", "book": "seat 7"}


class Model:
    """A scripted model; at one of its calls the line breaks."""

    def __init__(self, breaks_at: int = 0) -> None:
        self.calls, self._breaks_at = 0, breaks_at

    async def reply(self, chat: Chat) -> Said:
        self.calls += 1
        if self.calls == self._breaks_at:
            raise ConnectionError("the line broke")
        return SCRIPT[sum(message["role"] == "assistant" for message in chat)]


@task
def open_chat(question: str) -> Chat:
    return [{"role": "user", "text": question}]


@task(retry=Retry(attempts=5, delay="5ms", on=(ConnectionError,)), timeout="30s")
async def think(chat: Chat, *, model: Model = inject()) -> Said:
    return await model.reply(chat)


@task
def use_tool(chat: Chat, said: Said) -> Turn:
    context = task_context()  # a real tool would be given context.idempotency_key
    found = TOOLS[said.text.split()[0]]
    print(f"  {context.path}: {said.text} -> {found}")
    return Again([*chat, {"role": "assistant", "text": said.text}, {"role": "tool", "text": found}])


@task
def spend(chat: Chat, said: Said, allowed: bool) -> Turn:
    found = TOOLS[said.text.split()[0]] if allowed else "a person said no"
    print(f"  {task_context().path}: {said.text} -> {found}")
    return Again([*chat, {"role": "assistant", "text": said.text}, {"role": "tool", "text": found}])


@task
def answer(said: Said) -> Turn:
    return Done(said.text)


async def turn(chat: Chat) -> Turn:
    said = await think(chat)
    return route(
        said.wish,
        {
            Wish.ANSWER: lambda: answer(said),
            Wish.TOOL: lambda: use_tool(chat, said),
            Wish.SPEND: lambda: spend(chat, said, signal("allow", bool, timeout="1d", on_timeout=never)),
        },
    )


@task
def never() -> bool:
    return False


@workflow
async def agent(question: str) -> str:
    return loop(turn, open_chat(question), max_iterations=10)


async def main() -> None:
    asked, went_on = Model(), Model(breaks_at=1)
    with tempfile.TemporaryDirectory() as folder, closing(SqliteBackend(Path(folder, "agent.db"))) as store:
        async with AsyncCheckpointingRunner(store, deps={Model: asked}) as runner:
            status = await runner.start(agent, "How do I get to Jaipur?", instance_id="trip")
            print(f"{status.instance_id} is {status.state} after {asked.calls} calls of the model")
            print((await runner.client.explain("trip")).text)
        async with AsyncCheckpointingRunner(store, deps={Model: went_on}) as runner:
            await runner.client.signal("trip", "allow", True, workflow=agent)
            print(f"Answer: {await runner.resume(agent, 'trip')}")
            print(f"the second program called the model {went_on.calls} times: the first time the line broke")


if __name__ == "__main__":
    asyncio.run(main())
