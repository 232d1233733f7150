"""What the routes take, checked before anything is computed; limits are those of the contracts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)
from pydantic.functional_validators import BeforeValidator

from csrm_tasks.text import compose, normalise

MAX_PRODUCTS = 1_000
MAX_EVENTS = 1_000
MAX_ID = 200  # characters


def _said(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character")
    if not normalise(text):
        raise ValueError("is empty")
    return text


def _composed(value: object) -> object:
    return compose(value) if isinstance(value, str) else value


NFC = BeforeValidator(_composed)  # limits and look-ups are those of the text as ingest stores it
# Half a UTF-16 pair is no text for pydantic itself; a NUL would be set aside by the log's contract.
Id = Annotated[str, Field(max_length=MAX_ID, pattern=r"^[^\x00]*$"), NFC]
Named = Annotated[Id, Field(min_length=1)]
Query = Annotated[str, Field(max_length=500), AfterValidator(_said), NFC]
FieldText = Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$"), NFC]
Title = Annotated[str, Field(max_length=2_000), AfterValidator(_said), NFC]


class Body(BaseModel):
    """Closed and typed: a misspelt field is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Item(Body):
    """A product that the release may not know: then it is embedded on the spot.

    Of brand and category the release reads what its towers were trained with.
    """

    id: Id = ""
    title: Title
    brand: FieldText = ""
    category: FieldText = ""


def _kind(product: object) -> str:
    return "item" if isinstance(product, dict | Item) else "id"


Product = Annotated[
    Annotated[Named, Tag("id")] | Annotated[Item, Tag("item")], Discriminator(_kind)
]


def plain_ids(value: object) -> bool:
    """Whether a list is plainly good: nothing but identifiers, ASCII, each as :data:`Named` asks.

    A hundred identifiers are looked at in some microseconds; one by one they cost a request more
    than its scores do.
    """
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_PRODUCTS:
        return False
    try:
        together = "".join(value)
    except TypeError:
        return False
    sizes = [len(product) for product in value]
    return together.isascii() and "\0" not in together and min(sizes) > 0 and max(sizes) <= MAX_ID


def _listed(value: object, each: ValidatorFunctionWrapHandler) -> object:
    return value if plain_ids(value) else each(value)


Products = Annotated[
    list[Product],
    Field(min_length=1, max_length=MAX_PRODUCTS),
    WrapValidator(_listed),
]


class Asked(Body):
    """A query by itself."""

    query: Query


class Listing(Body):
    """One query and the products found for it, best first; a product is an id or an item."""

    query: Query
    products: Products
    session_id: Id = ""

    def ids(self) -> list[str]:
        """Return the products' identifiers, "" where one has none."""
        return [p if isinstance(p, str) else p.id for p in self.products]


class Search(Listing):
    """A shopper's search, which is logged."""

    client_id: Id = ""


class Event(Body):
    """What a shopper did with a product of an answer; release and bucket as in that answer.

    Of an interleaved one the release is the product's: the one that picked it, "" for neither.
    """

    query_id: Named
    action_name: Literal["impression", "click", "add_to_cart", "purchase"]
    object_id: Named
    release: Id
    bucket: Literal["stable", "next", "holdout", "interleaved"]
    position: Annotated[int, Field(ge=1, le=100_000)] | None = None
    session_id: Id = ""
    client_id: Id = ""
    timestamp: Annotated[AwareDatetime, Field(strict=False)] | None = None

    @field_validator("bucket")
    @classmethod
    def _of_a_release(cls, bucket: str, info: ValidationInfo) -> str:
        if bucket != "interleaved" and info.data.get("release") == "":
            raise ValueError("only of an interleaved answer a product may be of no release")
        return bucket


class Events(Body):
    """Events, in any order; each is an :class:`Event`, looked at by itself (:func:`judged`)."""

    events: Annotated[list[Any], Field(min_length=1, max_length=MAX_EVENTS)]


def judged(events: Sequence[Any]) -> tuple[dict[int, Event], dict[int, str]]:
    """Split what was sent into events and, by the same index, what is wrong with the others."""
    good: dict[int, Event] = {}
    bad: dict[int, str] = {}
    for index, event in enumerate(events):
        try:
            good[index] = Event.model_validate(event)
        except ValidationError as e:
            bad[index] = reason(e.errors(include_input=False, include_url=False)[0])
    return good, bad


def reason(error: Mapping[str, Any]) -> str:
    """Return one of pydantic's errors as a line that names the field and repeats no value."""
    where = ".".join(str(part) for part in error["loc"])
    return f"{where}: {error['msg']}" if where else str(error["msg"])
