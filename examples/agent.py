"""An agent: a model is asked again and again, uses tools, and stops when it has the answer.

Each turn of the ``loop`` is recorded with its value, so a crash in turn 40 costs one call of the model, not forty. The
model is injected: this one follows a script and drops a call now and then; yours would be a client.
"""

import asyncio
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TypedDict

from stepwell import Again, AsyncCheckpointingRunner, Done, Retry, SqliteBackend, inject, loop, task, workflow


class Message(TypedDict):
    role: str
    text: str


class Model:
    """A scripted model, whose line breaks at every third call."""

    SCRIPT = ("add 2 3", "add 5 37", "answer: 42")

    def __init__(self) -> None:
        self.calls = 0

    async def reply(self, chat: list[Message]) -> str:
        self.calls += 1
        if self.calls % 3 == 2:
            raise ConnectionError("the line broke")
        return self.SCRIPT[sum(message["role"] == "assistant" for message in chat)]


def use_tool(call: str) -> str:
    _, *numbers = call.split()
    return str(sum(map(int, numbers)))


@task
def open_chat(question: str) -> list[Message]:
    return [{"role": "user", "text": question}]


@task(retry=Retry(attempts=5, delay="5ms", on=(ConnectionError,)), timeout="30s")
async def think(chat: list[Message], *, model: Model = inject()) -> Again[list[Message]] | Done[str]:
    said = await model.reply(chat)
    if said.startswith("answer: "):
        return Done(said.removeprefix("answer: "))
    return Again([*chat, {"role": "assistant", "text": said}, {"role": "tool", "text": use_tool(said)}])


@workflow
async def agent(question: str) -> str:
    return loop(think, open_chat(question), max_iterations=10)


async def main() -> None:
    model = Model()
    with tempfile.TemporaryDirectory() as folder, closing(SqliteBackend(Path(folder, "agent.db"))) as store:
        async with AsyncCheckpointingRunner(store, deps={Model: model}) as runner:
            answer = await runner.run(agent, "What is 2 + 3 + 37?")
    print(f"The answer is {answer}, after {model.calls} calls of the model in 3 turns.")


if __name__ == "__main__":
    asyncio.run(main())
