"""What every store takes for ``codec=``, and what it says to anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stepwell import JsonCodec, MsgpackCodec
from stepwell.errors import OptionError

from ..stores import open_store  # noqa: TID252 - the tests are not installed


@pytest.mark.parametrize(
    ("given", "named"), [("json", "a str"), (JsonCodec, "the class JsonCodec"), (1, "a int"), (object(), "a object")]
)
def test_what_is_no_codec_is_refused(kind: str, tmp_path: Path, given: Any, named: str) -> None:
    """In the same words by all, and before anything is made."""
    with pytest.raises(OptionError) as refused:
        open_store(kind, tmp_path / "a.db", codec=given)
    text = f"codec= takes a codec, not {named}; write codec=JsonCodec() or codec=MsgpackCodec()"
    assert str(refused.value) == text
    assert not (tmp_path / "a.db").exists()


@pytest.mark.parametrize("codec", [JsonCodec(), MsgpackCodec()], ids=["json", "msgpack"])
def test_a_codec_is_taken(kind: str, tmp_path: Path, codec: Any) -> None:
    """And is the one that the store has."""
    with open_store(kind, tmp_path / "a.db", codec=codec) as store:
        assert (store.codec, store.codec_id) == (codec, codec.id)


def test_another_codec_than_the_store_was_created_with(kind: str, tmp_path: Path) -> None:
    """Both are called by their names; without codec= it opens. A store in memory has no second opening."""
    if kind == "memory":
        return
    open_store(kind, tmp_path / "a.db", codec=MsgpackCodec()).close()
    with pytest.raises(OptionError) as refused:
        open_store(kind, tmp_path / "a.db", codec=JsonCodec())
    text = "was created with MsgpackCodec and is opened with JsonCodec; pass codec=MsgpackCodec(), or no codec"
    assert str(refused.value).endswith(text)
    with open_store(kind, tmp_path / "a.db") as store:
        assert store.codec.id == MsgpackCodec().id


class Other(JsonCodec):
    """A codec that stepwell does not know by its id."""

    def __init__(self) -> None:
        super().__init__()
        self.id = 77


def test_a_codec_that_only_the_user_knows(kind: str, tmp_path: Path) -> None:
    """It is not written as a call that nobody could make."""
    if kind == "memory":
        return
    open_store(kind, tmp_path / "a.db", codec=Other()).close()
    with pytest.raises(OptionError) as refused:
        open_store(kind, tmp_path / "a.db")
    text = "was created with the codec with id 77 and is opened with JsonCodec; pass the codec with id 77 as codec="
    assert str(refused.value).endswith(text)
    with open_store(kind, tmp_path / "a.db", codec=Other()) as store:
        assert store.codec.id == 77
