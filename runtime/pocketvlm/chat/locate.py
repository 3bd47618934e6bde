"""What `VLM.locate` asks: the question of the model's notation, and the form to which the answer is held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketvlm.errors import BundleError, RequestError, UnsupportedError, quoted
from pocketvlm.files.bundle import MANIFEST
from pocketvlm.files.locate import Located
from pocketvlm.messages import ChatCompletion, ChatRequest, Region
from pocketvlm.messages.question import question_messages
from pocketvlm.regions.notation import Notation
from pocketvlm.regions.notations import notation_named
from pocketvlm.structured.compile import AnswerForm

if TYPE_CHECKING:
    from pocketvlm.messages.question import AnyPicture

_MAX_TOKENS = 2048  # about seventy places in JSON
_FORMS = ("response_format", "tools", "tool_choice")  # fields that give an answer another form
_THING = "thing"  # the path of the argument, for errors


def stated_notation(files: Located) -> Notation | None:
    """Return the notation that a bundle's manifest names. Raises BundleError where there is none of that name."""
    if files.regions is None:
        return None
    try:
        return notation_named(files.regions)
    except RequestError as error:
        raise BundleError(str(error), files.model.parent / MANIFEST) from None


def supported(notation: Notation | None, model: str) -> Notation:
    """Return the notation of a model. Raises UnsupportedError where it is not known, or not supported."""
    if notation is None:
        message = f"how {model} would write places in pictures is not known, so it cannot be asked for them"
        raise UnsupportedError(message, "model")
    if notation.refusal:
        raise UnsupportedError(f"{model} cannot be asked for places: {notation.refusal}", "model")
    return notation


@dataclass(frozen=True)
class LocateQuestion:
    """A question for the places of a thing, and what `VLM.run` has to know of it."""

    request: ChatRequest
    form: AnswerForm | None
    controls: tuple[str, ...]
    raw: bool

    @classmethod
    def of(
        cls,
        notation: Notation,
        control_tokens: Mapping[str, int],
        picture: AnyPicture,
        thing: str,
        fields: Mapping[str, Any],
    ) -> LocateQuestion:
        """Raises RequestError, whose `param` is the wrong field, `pictures.0` or `thing`.

        A field that would give the answer another form is wrong, too.
        """
        if not isinstance(thing, str) or not thing.strip():
            raise RequestError("must say what to locate", _THING)
        for token in control_tokens if notation.raw else notation.question_controls:
            if token and token in thing:
                raise RequestError(f"{quoted(token)} is a control token of this model", _THING)
        given = {name: value for name, value in fields.items() if value is not None}
        for name in _FORMS:
            if name in given:
                raise RequestError("cannot be given: the answer is held to places", name)
        values: dict[str, Any] = {"max_tokens": _MAX_TOKENS}
        form = None
        if notation.schema is not None:
            schema = {"name": "places", "schema": notation.schema, "strict": True}
            values["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif notation.grammar is not None:
            form = AnswerForm(notation.grammar(control_tokens), _THING)
        request = ChatRequest.parse(question_messages(notation.ask(thing.strip()), [picture]), **values | given)
        return cls(request, form, notation.question_controls, notation.raw)


def located(completion: ChatCompletion, notation: Notation, thing: str) -> ChatCompletion:
    """Return the answer with the regions of `thing`: their labels are what it was asked for, where it gives none."""
    thing = thing.strip()

    def labelled(region: Region) -> Region:
        return region if region.label else region.model_copy(update={"label": thing})

    choices = []
    for choice in completion.choices:
        regions = choice.message.regions or []
        if notation.reads_all:
            regions = [region for region in regions if thing.casefold() in region.label.casefold()]
        message = choice.message.model_copy(update={"regions": [*map(labelled, regions)] or None})
        choices.append(choice.model_copy(update={"message": message}))
    return completion.model_copy(update={"choices": choices})
