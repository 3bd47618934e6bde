"""An answer as an instance of the pydantic class that the request had as its `response_format`."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import BaseModel, PrivateAttr, ValidationError

from pocketvlm.errors import AnswerError, shortened
from pocketvlm.messages.response import ChatCompletion

M = TypeVar("M", bound=BaseModel)


class ParsedCompletion(ChatCompletion, Generic[M]):
    """A completion of a request whose `response_format` is a pydantic class."""

    _format: Any = PrivateAttr()
    _parsed: Any = PrivateAttr(None)

    @classmethod
    def of(cls, completion: ChatCompletion, format: type[M]) -> ParsedCompletion[M]:
        parsed = cls.model_construct(**{name: getattr(completion, name) for name in ChatCompletion.model_fields})
        parsed._format = format
        return parsed

    @property
    def parsed(self) -> M:
        """The first choice as an instance of the class.

        Raises AnswerError, which keeps the text, where the answer was cut short, calls tools instead, or is refused by
        a validator of the class.
        """
        if self._parsed is None:
            self._parsed = self._read()
        instance: M = self._parsed
        return instance

    def _read(self) -> Any:
        name, choice = self._format.__name__, self.choices[0]
        if choice.finish_reason == "length":
            reason = "the answer was cut short; raise max_tokens, or shorten the prompt if the context is full"
            raise AnswerError(f"{reason}: it is not a whole {name}", self.text)
        if choice.message.tool_calls:
            raise AnswerError(f"the answer calls tools; it is not a {name}", self.text)
        try:
            return self._format.model_validate_json(self.text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"]))
            reason = first["msg"].removeprefix("Value error, ")
            where = f"{shortened(field)}: " if field else ""
            raise AnswerError(f"the answer is not a valid {name}: {where}{shortened(reason)}", self.text) from None
