"""Classes with fields: what is kept of an object, what is refused, and that no constructor runs twice."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any

import attrs
import msgspec
import pydantic
import pytest

from stepwell.codec import Codec, JsonCodec, MsgpackCodec, Record
from stepwell.errors import DecodeError, EncodeError

from .shapes import Address, Checked, Counted, Doubling, HashedKey, Open, Point, User, Validated

CODECS: list[Codec] = [JsonCodec(), MsgpackCodec()]
both = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


def trip(codec: Codec, value: object) -> Any:
    """Through bytes and back, twice: the second encode takes the shortcut for a class met before."""
    codec.encode(value)
    return codec.decode(codec.encode(value), type(value))


@both
def test_a_dataclass_comes_back_without_its_constructor(codec: Codec) -> None:
    """InitVar and init=False fields need nothing special, and __post_init__ changes nothing again."""
    value = Counted(5)
    assert (value.total, value.double) == (10, 20)
    assert trip(codec, value) == value


@both
def test_a_cached_property_is_not_stored(codec: Codec) -> None:
    """A cached value is dropped and computed again."""
    value = Counted(5)
    assert value.costly == 11
    read = trip(codec, value)
    assert "costly" not in vars(read)
    assert read.costly == 11


@both
def test_an_attribute_beside_the_fields_is_refused(codec: Codec) -> None:
    """What is no field would be lost; so it is refused before anything is stored."""
    value = Counted(5)
    value.helper = object()  # type: ignore[attr-defined]
    with pytest.raises(EncodeError, match=r"Counted has the attribute 'helper', which is no field.*\(at \['a'\]\)"):
        codec.encode({"a": value})


@both
def test_a_field_without_a_value_is_refused(codec: Codec) -> None:
    """An init=False field that nobody set has nothing to store."""

    @dataclass
    class Unset:
        a: int
        late: int = field(init=False)

    with pytest.raises(EncodeError, match=r"field 'late' of .*Unset has no value"):
        codec.encode(Unset(1))


@both
def test_fields_set_in_another_order_are_stored_in_the_class_order(codec: Codec) -> None:
    """The order in which attributes were set does not show in the bytes."""
    one, other = Point(1, 2), Counted(1)
    vars(other).update({"double": vars(other).pop("double")})
    shuffled = Counted(1)
    total = vars(shuffled).pop("total")
    vars(shuffled)["total"] = total
    assert codec.encode([one, other]) == codec.encode([one, shuffled])


@both
def test_a_dataclass_with_slots_and_frozen_comes_back(codec: Codec) -> None:
    """Frozen classes are filled past their own __setattr__, and hash as before."""
    assert hash(trip(codec, Point(1.0, 2.0))) == hash(Point(1.0, 2.0))


@both
def test_a_dataclass_without_or_with_one_field_comes_back(codec: Codec) -> None:
    """The small cases of the shortcuts."""

    @dataclass(slots=True)
    class Empty:
        pass

    @dataclass(slots=True)
    class One:
        only: tuple[int, ...]

    assert trip(codec, Empty()) == Empty()
    assert trip(codec, One((1,))) == One((1,))


@both
def test_a_subclass_is_not_read_as_its_base(codec: Codec) -> None:
    """A declared base class is not what was stored; the error names both."""

    @dataclass
    class Base:
        a: int

    @dataclass
    class Derived(Base):
        b: int

    with pytest.raises(DecodeError, match=r"expected .*Base, found .*Derived"):
        codec.decode(codec.encode(Derived(1, 2)), Base)
    assert codec.decode(codec.encode(Derived(1, 2)), Base | Derived) == Derived(1, 2)


@both
def test_an_undecorated_subclass_keeps_its_own_name(codec: Codec) -> None:
    """A class that only inherits its fields is a class of its own."""

    class Sub(Checked):
        pass

    assert type(trip(codec, Sub(1))) is Sub


@both
def test_a_dataclass_on_a_builtin_is_refused(codec: Codec) -> None:
    """Fields alone cannot rebuild an exception or a dict."""

    @dataclass
    class Problem(Exception):
        code: int

    with pytest.raises(EncodeError, match=r"Problem has fields but is built on Exception"):
        codec.encode(Problem(1))
    with pytest.raises(DecodeError, match=r"Problem has fields but is built on Exception"):
        codec.decoder(Problem)


@both
def test_attrs_classes_come_back(codec: Codec) -> None:
    """Private names, defaults, and the hash that attrs keeps for itself."""
    assert trip(codec, Address("Main", "12", ["a"])) == Address("Main", "12", ["a"])
    key = HashedKey("a")
    hash(key)
    assert hash(trip(codec, key)) == hash(HashedKey("a"))
    assert codec.decode(codec.encode(Record("Address", {"street": "x"})), Address) == Address("x")


@both
def test_an_attrs_class_with_a_dict_and_a_cached_hash_comes_back(codec: Codec) -> None:
    """The kept hash is an attribute beside the fields, but attrs computes it again."""

    @attrs.define(slots=False, frozen=True, cache_hash=True)
    class Key:
        name: str

    value = Key("a")
    assert hash(trip(codec, value)) == hash(value)


@both
def test_a_default_that_needs_the_object_is_not_made_up(codec: Codec) -> None:
    """attrs.Factory(takes_self=True) has no value without the object."""

    @attrs.define
    class Derived:
        a: int
        b: int = attrs.field(default=attrs.Factory(lambda self: self.a, takes_self=True))

    assert trip(codec, Derived(1)) == Derived(1)
    with pytest.raises(DecodeError, match=r"field 'b' of .* is not stored and has no default"):
        codec.decode(codec.encode(Record(Derived.__qualname__, {"a": 1})), Derived)


@both
def test_a_struct_is_not_changed_by_its_post_init(codec: Codec) -> None:
    """A Struct is made by calling its class; its fields are then what was stored."""
    value = Doubling(2)
    assert value.value == 4
    assert trip(codec, value).value == 4


@both
def test_a_struct_that_refuses_its_fields_is_a_decode_error(codec: Codec) -> None:
    """What a hook of the class raises does not come through."""

    class Picky(msgspec.Struct):
        a: int

        def __post_init__(self) -> None:
            if self.a < 0:
                raise KeyError("negative")

    value = Picky(1)
    value.a = -1
    with pytest.raises(DecodeError, match="making the value raised KeyError"):
        trip(codec, value)


@both
def test_structs_of_every_make_come_back(codec: Codec) -> None:
    """Renamed, tagged, array-like and keyword-only structs are stored by attribute names."""

    class Odd(msgspec.Struct, rename="camel", tag="odd", array_like=True, kw_only=True, frozen=True):
        first_field: int
        other: list[int] = msgspec.field(default_factory=list)

    assert trip(codec, Odd(first_field=1)) == Odd(first_field=1)
    assert codec.decode(codec.encode(Record(Odd.__qualname__, {"first_field": 1})), Odd) == Odd(first_field=1)


@both
def test_a_model_comes_back_with_its_private_state(codec: Codec) -> None:
    """Fields, private attributes and which fields were given."""
    user = User(name="Ann", friends=[User(name="Bob", address=Point(1, 2))])
    user._visits = 3
    read = trip(codec, user)
    assert read == user
    assert read._visits == 3
    assert read.model_fields_set == {"name", "friends"}
    assert read.friends[0].model_dump(exclude_unset=True) == user.friends[0].model_dump(exclude_unset=True)


@both
def test_a_model_keeps_its_extras(codec: Codec) -> None:
    """Extras come back where the model allows them, and are refused where it does not."""
    value = Open.model_validate({"a": 1, "z": (1, 2)})
    assert trip(codec, value) == value
    assert trip(codec, value).model_extra == {"z": (1, 2)}
    with pytest.raises(DecodeError, match="Validated has no field 'z'"):
        codec.decode(codec.encode(Record("Validated", {"value": 1, "z": 1})), Validated)


@both
def test_a_model_is_not_validated_again(codec: Codec) -> None:
    """A validator that changes its value changed it when the model was made, and not once more."""
    value = Validated(value=2)
    assert trip(codec, value).value == 4


@both
def test_a_model_field_is_still_checked(codec: Codec) -> None:
    """No validator runs, but a stored field must be of its declared type."""
    with pytest.raises(DecodeError, match=r"expected int, found str \(at \.value\)"):
        codec.decode(codec.encode(Record("Validated", {"value": "1"})), Validated)
    with pytest.raises(DecodeError, match=r"expected str, found int \(at \.model_fields_set\[0\]\)"):
        codec.decode(codec.encode(Record("Validated", {"value": 1, "model_fields_set": [1]})), Validated)


@both
def test_a_model_gains_fields_by_default(codec: Codec) -> None:
    """Fields and private attributes that were not stored."""
    read = codec.decode(codec.encode(Record("User", {"name": "Ann"})), User)
    assert isinstance(read, User)
    assert (read.address, read.friends) == (None, [])


@both
def test_an_extra_under_a_name_of_the_model_is_refused(codec: Codec) -> None:
    """An extra that cannot be told from the model's own state is not stored."""
    value = Open.model_validate({"model_fields_set": 1})
    with pytest.raises(EncodeError, match="Open has an extra named 'model_fields_set'"):
        codec.encode(value)


@both
def test_a_pydantic_type_of_its_own_is_taken_as_stored(codec: Codec) -> None:
    """PastDate and its kind are no classes of the values they stand for."""

    class Person(pydantic.BaseModel):
        name: pydantic.StrictStr
        age: pydantic.PositiveInt
        born: pydantic.PastDate

    value = Person.model_validate({"name": "a", "age": 3, "born": "2001-01-01"})
    assert trip(codec, value) == value


@both
def test_generic_and_root_models_come_back(codec: Codec) -> None:
    """A parametrised model is a class of its own."""

    class Ids(pydantic.RootModel[list[int]]):
        pass

    assert trip(codec, Ids([1, 2])) == Ids([1, 2])
    assert trip(codec, Checked(1)) == Checked(1)


@both
def test_a_named_tuple_is_no_tuple(codec: Codec) -> None:
    """It is stored with its name; a declared plain tuple refuses it."""
    Old = namedtuple("Old", "a b", defaults=[5])
    assert trip(codec, Old(1, (2,))) == Old(1, (2,))
    assert codec.decode(codec.encode(Record("Old", {"a": 1})), Old) == Old(1)
    with pytest.raises(DecodeError, match=r"expected tuple\[int, \.\.\.\], found Old"):
        codec.decode(codec.encode(Old(1, 2)), tuple[int, ...])


@both
def test_an_enum_member_is_its_name(codec: Codec) -> None:
    """A value that cannot be stored does not matter; an alias is its member."""

    class Handler(enum.Enum):
        ONE = functools.partial(int, "1")
        TWO = object()
        ALSO_TWO = TWO

    assert trip(codec, Handler.ONE) is Handler.ONE
    assert trip(codec, Handler.ALSO_TWO) is Handler.TWO


@both
def test_a_dynamic_class_does_not_stay_for_ever(codec: Codec) -> None:
    """Classes made while running are forgotten in bulk, and still work after that."""
    fresh = type(codec)()  # type: ignore[call-arg]
    made = [dataclasses.make_dataclass(f"C{n}", ["a"], slots=True) for n in range(3)]
    for cls in made * 2:
        assert fresh.decode(fresh.encode(cls(1)), cls) == cls(1)


@both
def test_a_property_that_raises_is_an_encode_error(codec: Codec) -> None:
    """What reading an object raises is reported as what it is."""

    @attrs.define(slots=False)
    class Broken:
        a: int

        def __getattribute__(self, name: str) -> Any:
            if name == "__dict__":
                raise KeyError(name)
            return super().__getattribute__(name)

    for _ in range(2):
        with pytest.raises(EncodeError, match="Broken cannot be stored: reading it raised KeyError"):
            codec.encode(Broken(1))
