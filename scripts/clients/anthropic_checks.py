"""Ask a server through clients of Anthropic's API: `anthropic_checks.py URL PICTURE [CLIENT...]`. See checks.py.

`langchain-anthropic`, `litellm` and `pydantic-ai-slim` are those of this API.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any, Literal

import checks
from checks import ANSWER, COLOUR, COUNT, MODEL, PAINT, PICTURE, RED, URI, URL, called, equal, kind, paint, user
from pydantic import BaseModel, ConfigDict

BASE = URL.removesuffix("/v1")
IMAGE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": URI.partition(",")[2]},
}
FIRST: Any = {"role": "user", "content": [IMAGE, {"type": "text", "text": COUNT}]}
MORE: Any = {"role": "user", "content": COLOUR}
TOOL: Any = {
    "name": "paint",
    "description": PAINT["function"]["description"],
    "input_schema": PAINT["function"]["parameters"],
}


class Shape(BaseModel):
    """A shape in the picture. Anthropic's clients take limits of numbers out of a schema."""

    model_config = ConfigDict(extra="forbid")

    colour: Literal["red", "green", "blue"]
    number: Literal[1, 2, 3]


def anthropic() -> Iterator[str]:
    import anthropic as library

    client = library.Anthropic(base_url=BASE, api_key="none", max_retries=0)
    ask: Any = {"model": MODEL, "max_tokens": 100}
    message = client.messages.create(messages=[FIRST], **ask)
    equal((message.content[0].text, message.stop_reason), (ANSWER, "end_turn"))
    again = client.messages.create(messages=[FIRST, {"role": "assistant", "content": message.content}, MORE], **ask)
    equal(again.content[0].text, RED)
    if not again.usage.cache_read_input_tokens:
        raise AssertionError("nothing was cached")
    yield "create, second turn"
    with client.messages.stream(messages=[FIRST], **ask) as stream:
        text = "".join(stream.text_stream)
        said = stream.get_final_message()
    equal((text, said.content[0].text, said.stop_reason), (ANSWER, ANSWER, "end_turn"))
    total = said.usage.input_tokens + (said.usage.cache_read_input_tokens or 0)
    equal(client.messages.count_tokens(model=MODEL, messages=[FIRST]).input_tokens, total)
    yield "stream helper, count_tokens"
    for choice in ({"type": "tool", "name": "paint"}, {"type": "any"}):
        with client.messages.stream(messages=[FIRST], tools=[TOOL], tool_choice=choice, **ask) as stream:
            message = stream.get_final_message()
        equal(message.stop_reason, "tool_use")
        use: Any = message.content[-1]
        result = [IMAGE, {"type": "text", "text": called(use.name, use.input)}]
        results = [{"type": "tool_result", "tool_use_id": use.id, "content": result}, {"type": "text", "text": COUNT}]
        turns: Any = [FIRST, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
        equal(client.messages.create(messages=turns, tools=[TOOL], **ask).content[0].text, ANSWER)
    yield "tools, a result with a picture"
    parsed = client.messages.parse(messages=[FIRST], output_format=Shape, **ask)
    kind(parsed.parsed_output, Shape)
    yield "parse"
    stopped = client.messages.create(messages=[FIRST], stop_sequences=[ANSWER, "x", "y", "z", "w"], **ask)
    equal((stopped.stop_reason, stopped.stop_sequence), ("stop_sequence", ANSWER))
    begun: Any = {"role": "assistant", "content": '{"colour": "'}
    form: Any = {"type": "json_schema", "schema": Shape.model_json_schema()}
    rest = client.messages.create(messages=[FIRST, begun], output_config={"format": form}, **ask)
    Shape.model_validate_json(begun["content"] + rest.content[0].text)
    yield "stop_sequences, prefill"
    for model in (*client.models.list(), client.models.retrieve(MODEL)):
        equal((model.type, model.display_name), ("model", MODEL))
        kind(model.created_at.year, int)
    yield "models"
    try:
        client.messages.create(messages=[], **ask)
    except library.BadRequestError as error:
        equal(error.type, "invalid_request_error")
    yield "errors"


def langchain_anthropic() -> Iterator[str]:
    from langchain_anthropic import ChatAnthropic
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    model = ChatAnthropic(base_url=BASE, api_key="none", model=MODEL, max_retries=0, max_tokens=100)
    first = [HumanMessage(FIRST["content"])]
    message = model.invoke(first)
    equal(message.content, ANSWER)
    equal(model.invoke([*first, message, HumanMessage(COLOUR)]).content, RED)
    yield "invoke, second turn"
    pieces = list(model.stream(first))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    equal(whole.text, ANSWER)
    equal(model.invoke([*first, whole, HumanMessage(COLOUR)]).content, RED)
    yield "stream, its sum sent back"
    if not model.get_num_tokens_from_messages(first):
        raise AssertionError("no tokens")
    yield "get_num_tokens_from_messages"
    for method in ("json_schema", "function_calling"):
        kind(model.with_structured_output(Shape, method=method).invoke(first), Shape)
        yield f"with_structured_output {method}"
    message = model.bind_tools([tool(paint)], tool_choice="any").invoke(first)
    [call] = message.tool_calls
    own = {"type": "image", "base64": URI.partition(",")[2], "mime_type": "image/png"}
    picture = ToolMessage([{"type": "text", "text": called(call["name"], call["args"])}, own], tool_call_id=call["id"])
    equal(model.invoke([*first, message, picture, HumanMessage(COUNT)]).content, ANSWER)
    yield "tool call, its result with a picture"


def pydantic_ai_slim() -> Iterator[str]:
    from pydantic_ai import Agent, BinaryContent, NativeOutput, ToolOutput
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.profiles import ModelProfile
    from pydantic_ai.providers.anthropic import AnthropicProvider

    # What it does not know of a model by its name.
    profile = ModelProfile(supports_json_schema_output=True)
    model = AnthropicModel(MODEL, provider=AnthropicProvider(base_url=BASE, api_key="none"), profile=profile)
    first = [COUNT, BinaryContent(PICTURE.read_bytes(), media_type="image/png")]
    agent = Agent(model, model_settings={"max_tokens": 100})
    done = agent.run_sync(first)
    equal(done.output, ANSWER)
    equal(agent.run_sync(COLOUR, message_history=done.all_messages()).output, RED)
    yield "run, second turn"

    async def stream() -> str:
        async with agent.run_stream(first) as running:
            return "".join([piece async for piece in running.stream_text(delta=True, debounce_by=None)])

    equal(asyncio.run(stream()), ANSWER)
    yield "stream"
    for name, output in (("ToolOutput", ToolOutput(Shape)), ("NativeOutput", NativeOutput(Shape))):
        shaped = Agent(model, output_type=output, model_settings={"max_tokens": 100}).run_sync(first)
        kind(shaped.output, Shape)
        kind(agent.run_sync(COLOUR, message_history=shaped.all_messages()).output, str)
        yield f"{name}, sent back"


def litellm() -> Iterator[str]:
    import litellm as library

    ask: Any = {"model": f"anthropic/{MODEL}", "api_base": BASE, "api_key": "none", "max_tokens": 100}
    first = [user(COUNT, picture=True)]
    message = library.completion(messages=first, **ask).choices[0].message
    equal(message.content, ANSWER)
    again = library.completion(messages=[*first, message, user(COLOUR)], **ask)
    equal(again.choices[0].message.content, RED)
    yield "chat, second turn"
    whole: Any = library.stream_chunk_builder(list(library.completion(messages=first, stream=True, **ask)))
    equal(whole.choices[0].message.content, ANSWER)
    yield "stream and its builder"
    answer = library.completion(messages=first, response_format=Shape, **ask)
    Shape.model_validate_json(answer.choices[0].message.content)
    yield "response_format"
    message = library.completion(messages=first, tools=[PAINT], tool_choice="required", **ask).choices[0].message
    [call] = message.tool_calls
    text = called(call.function.name, call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": text}
    library.completion(messages=[*first, message, result], tools=[PAINT], **ask)
    yield "tool call and its result"
    said: Any = asyncio.run(library.anthropic_messages(messages=[FIRST], **ask))
    equal(json.loads(json.dumps(said))["content"][0]["text"], ANSWER)
    yield "anthropic_messages"


if __name__ == "__main__":
    functions = (anthropic, langchain_anthropic, pydantic_ai_slim, litellm)
    sys.exit(checks.run({function.__name__.replace("_", "-"): function for function in functions}, sys.argv[3:]))
