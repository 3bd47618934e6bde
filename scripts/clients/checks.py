"""Ask a running server through the clients that are installed here: `checks.py URL PICTURE [CLIENT...]`.

Prints a line for each client: its version and what worked. Answers are compared with what iota knows; of structured
answers and calls of tools only the form, because iota never learned these.
"""

import asyncio
import base64
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

URL, PICTURE = sys.argv[1], Path(sys.argv[2])
URI = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
COUNT, ANSWER = "How many shapes are there?", "2"
COLOUR, RED = "What colour is the circle?", "Red"
MODEL = "iota"


class Shape(BaseModel):
    """A shape in the picture."""

    model_config = ConfigDict(extra="forbid")

    colour: Literal["red", "green", "blue"]
    number: int = Field(ge=0, le=9)


def paint(colour: Literal["red", "green", "blue"]) -> str:
    """Paint the circle in this colour."""
    return f"painted {colour}"


PAINT: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paint the circle in this colour.",
        "parameters": {
            "type": "object",
            "properties": {"colour": {"type": "string", "enum": ["red", "green", "blue"]}},
            "required": ["colour"],
            "additionalProperties": False,
        },
    },
}
FORM: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "shape", "schema": Shape.model_json_schema(), "strict": True},
}


def user(text: str, picture: bool = False) -> dict[str, Any]:
    if not picture:
        return {"role": "user", "content": text}
    return {
        "role": "user",
        "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": URI}}],
    }


def asked(text: str) -> dict[str, Any]:
    """Return a message with the picture, in the parts of Responses."""
    content = [{"type": "input_text", "text": text}, {"type": "input_image", "image_url": URI, "detail": "auto"}]
    return {"role": "user", "content": content}


def equal(answer: Any, expected: Any) -> None:
    if answer != expected:
        raise AssertionError(f"{answer!r}, not {expected!r}")


def kind(answer: Any, expected: type) -> None:
    if not isinstance(answer, expected):
        raise AssertionError(f"{answer!r}, not a {expected.__name__}")


def called(name: str, arguments: Any) -> str:
    """Check a call of `paint`, and return what it gives."""
    equal(name, "paint")
    return paint(**(json.loads(arguments) if isinstance(arguments, str) else arguments))


def model_failed(run: Callable[[], object], error: type[Exception], *causes: type[Exception]) -> None:
    """Run what asks for JSON with words alone: an answer that fits no schema is iota's, any other error is ours."""
    try:
        run()
    except error as failure:
        chain: BaseException | None = failure
        while chain is not None and not isinstance(chain, causes):
            chain = chain.__cause__ or chain.__context__
        if chain is None:
            raise


# ---- the clients; each yields what worked


def openai() -> Iterator[str]:
    import openai as library

    yield from openai_responses()
    client = library.OpenAI(base_url=URL, api_key="none", max_retries=0)
    first: Any = [user(COUNT, picture=True)]
    message = client.chat.completions.create(model=MODEL, messages=first).choices[0].message
    equal(message.content, ANSWER)
    yield "chat"
    again = client.chat.completions.create(model=MODEL, messages=[*first, message, user(COLOUR)])
    equal(again.choices[0].message.content, RED)
    yield "second turn"
    with client.chat.completions.stream(model=MODEL, messages=first) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        said = stream.get_final_completion().choices[0].message
    equal((text, said.content, said.role), (ANSWER, ANSWER, "assistant"))
    again = client.chat.completions.create(model=MODEL, messages=[*first, said, user(COLOUR)])
    equal(again.choices[0].message.content, RED)
    yield "stream helper, its message sent back"
    parsed = client.chat.completions.parse(model=MODEL, messages=first, response_format=Shape).choices[0].message
    kind(parsed.parsed, Shape)
    again = client.chat.completions.create(model=MODEL, messages=[*first, parsed, user(COLOUR)], max_tokens=5)
    kind(again.choices[0].message.content, str)
    yield "parse, its message sent back"
    tools: Any = {"tools": [library.pydantic_function_tool(Shape, name="shape")], "tool_choice": "required"}
    message = client.chat.completions.parse(model=MODEL, messages=first, **tools).choices[0].message
    [call] = message.tool_calls
    kind(call.function.parsed_arguments, Shape)
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    again = client.chat.completions.create(
        model=MODEL, messages=[*first, message, result], tools=tools["tools"], max_tokens=5
    )
    equal(again.object, "chat.completion")
    yield "parsed tool call and its result"


def openai_responses() -> Iterator[str]:
    import openai as library

    responses = library.OpenAI(base_url=URL, api_key="none", max_retries=0).responses
    first: Any = [asked(COUNT)]
    answer = responses.create(model=MODEL, input=first)
    equal(answer.output_text, ANSWER)
    again = responses.create(model=MODEL, input=[*first, *answer.output, user(COLOUR)])
    equal(again.output_text, RED)
    yield "create, its output sent back"
    equal(responses.create(model=MODEL, input=COLOUR, previous_response_id=answer.id).output_text, RED)
    yield "previous_response_id"
    with responses.stream(model=MODEL, input=first) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        equal((text, stream.get_final_response().output_text), (ANSWER, ANSWER))
    yield "stream helper"
    parsed = responses.parse(model=MODEL, input=first, text_format=Shape)
    kind(parsed.output_parsed, Shape)
    responses.create(model=MODEL, input=[*first, *parsed.output, user(COLOUR)], max_output_tokens=5)
    yield "parse, its output sent back"
    tools: Any = [{"type": "function", "strict": True, **PAINT["function"]}]
    called_first = responses.create(model=MODEL, input=first, tools=tools, tool_choice="required")
    [call] = [item for item in called_first.output if item.type == "function_call"]
    result: Any = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": called(call.name, call.arguments),
    }
    sent_back: Any = [*first, *called_first.output, result]
    responses.create(model=MODEL, input=sent_back, tools=tools, max_output_tokens=5)
    responses.create(model=MODEL, input=[result], previous_response_id=called_first.id, max_output_tokens=5)
    yield "tool call and its result"
    equal(responses.retrieve(answer.id).output_text, ANSWER)
    equal([item.type for item in responses.input_items.list(answer.id)], ["message"])
    kind(responses.input_tokens.count(model=MODEL, input=first).input_tokens, int)
    responses.delete(answer.id)
    kept_not = responses.create(model=MODEL, input="hi", store=False, max_output_tokens=1)
    for missing in (answer.id, kept_not.id):
        try:
            responses.retrieve(missing)
        except library.NotFoundError:
            continue
        raise AssertionError(f"{missing} is still there")
    yield "retrieve, input_items, input_tokens, delete, store=False"


def huggingface_hub() -> Iterator[str]:
    from huggingface_hub import InferenceClient

    client = InferenceClient(base_url=URL, api_key="none")
    first = [user(COUNT, picture=True)]
    message = client.chat.completions.create(messages=first).choices[0].message
    equal(message.content, ANSWER)
    again = client.chat.completions.create(messages=[*first, message, user(COLOUR)])
    equal(again.choices[0].message.content, RED)
    yield "chat, second turn"
    stream = client.chat.completions.create(messages=first, stream=True)
    equal("".join(chunk.choices[0].delta.content for chunk in stream), ANSWER)
    yield "stream"
    form: Any = {"type": "json_schema", "json_schema": {"name": "shape", "schema": Shape.model_json_schema()}}
    answer = client.chat.completions.create(messages=first, response_format=form, max_tokens=100)
    Shape.model_validate_json(answer.choices[0].message.content)
    yield "response_format"
    tools: Any = {"tools": [PAINT], "tool_choice": "required"}
    message = client.chat.completions.create(messages=first, max_tokens=100, **tools).choices[0].message
    [call] = message.tool_calls
    done = called(call.function.name, call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": done}
    client.chat.completions.create(messages=[*first, message, result], tools=[PAINT], max_tokens=5)
    yield "tool call and its result"


def litellm() -> Iterator[str]:
    import litellm as library

    ask: Any = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": "none"}
    first = [user(COUNT, picture=True)]
    message = library.completion(messages=first, **ask).choices[0].message
    equal(message.content, ANSWER)
    again = library.completion(messages=[*first, message, user(COLOUR)], **ask)
    equal(again.choices[0].message.content, RED)
    yield "chat, second turn"
    chunks = list(library.completion(messages=first, stream=True, **ask))
    whole = library.stream_chunk_builder(chunks)
    equal(whole.choices[0].message.content, ANSWER)
    yield "stream and its builder"
    answer = library.completion(messages=first, response_format=Shape, **ask)
    Shape.model_validate_json(answer.choices[0].message.content)
    yield "response_format"
    message = library.completion(messages=first, tools=[PAINT], tool_choice="required", **ask).choices[0].message
    [call] = message.tool_calls
    result = {
        "role": "tool",
        "tool_call_id": call.id,
        "content": called(call.function.name, call.function.arguments),
    }
    library.completion(messages=[*first, message, result], tools=[PAINT], max_tokens=5, **ask)
    yield "tool call and its result"
    answer = library.responses(input=[asked(COUNT)], **ask)
    equal(answer.output_text, ANSWER)
    equal(library.responses(input=COLOUR, previous_response_id=answer.id, **ask).output_text, RED)
    *_, last = library.responses(input=[asked(COUNT)], stream=True, **ask)
    equal(last.type.value, "response.completed")
    yield "responses: previous_response_id, stream"


def langchain_openai() -> Iterator[str]:
    from langchain_core.exceptions import OutputParserException
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from openai import LengthFinishReasonError

    options: Any = {"base_url": URL, "api_key": "none", "model": MODEL, "max_retries": 0}
    model = ChatOpenAI(**options)
    first = [HumanMessage(user(COUNT, picture=True)["content"])]
    message = model.invoke(first)
    equal(message.content, ANSWER)
    equal(model.invoke([*first, message, HumanMessage(COLOUR)]).content, RED)
    yield "invoke, second turn"
    own = {"type": "image", "base64": URI.partition(",")[2], "mime_type": "image/png"}
    equal(model.invoke([HumanMessage([{"type": "text", "text": COUNT}, own])]).content, ANSWER)
    yield "its own picture block"
    pieces = list(model.stream(first))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    equal(whole.content, ANSWER)
    equal(model.invoke([*first, whole, HumanMessage(COLOUR)]).content, RED)
    yield "stream, its sum sent back"
    for method in ("json_schema", "function_calling"):
        shape = model.with_structured_output(Shape, method=method).invoke(first)
        kind(shape, Shape)
        yield f"with_structured_output {method}"
    shape = model.with_structured_output(Shape, method="json_schema", strict=True).invoke(first)
    kind(shape, Shape)
    yield "strict"
    short = ChatOpenAI(base_url=URL, api_key="none", model=MODEL, max_retries=0, max_tokens=100)
    chain = short.with_structured_output(Shape, method="json_mode")
    model_failed(
        lambda: chain.invoke(first), Exception, ValidationError, OutputParserException, LengthFinishReasonError
    )
    yield "json_mode (accepted)"
    bound = model.bind_tools([tool(paint)], tool_choice="required")
    message = bound.invoke(first)
    [call] = message.tool_calls
    picture = ToolMessage([{"type": "text", "text": called(call["name"], call["args"])}, own], tool_call_id=call["id"])
    equal(model.invoke([*first, message, picture, HumanMessage(COUNT)]).content, ANSWER)
    yield "tool call, its result with a picture"
    responses = ChatOpenAI(**options, use_responses_api=True)
    message = responses.invoke(first)
    equal(message.text, ANSWER)
    equal(responses.invoke([*first, message, HumanMessage(COLOUR)]).text, RED)
    equal("".join(piece.text for piece in responses.stream(first)), ANSWER)
    kind(responses.with_structured_output(Shape).invoke(first), Shape)
    message = responses.bind_tools([tool(paint)], tool_choice="required").invoke(first)
    [call] = message.tool_calls
    picture = ToolMessage([{"type": "text", "text": called(call["name"], call["args"])}, own], tool_call_id=call["id"])
    equal(responses.invoke([*first, message, picture, HumanMessage(COUNT)]).text, ANSWER)
    yield "use_responses_api: the same"


def llama_index_llms_openai_like() -> Iterator[str]:
    from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai_like import OpenAILike

    model = OpenAILike(
        model=MODEL, api_base=URL, api_key="none", is_chat_model=True, is_function_calling_model=True, max_retries=0
    )
    first = [ChatMessage(role="user", blocks=[TextBlock(text=COUNT), ImageBlock(url=URI)])]
    message = model.chat(first).message
    equal(message.content, ANSWER)
    equal(model.chat([*first, message, ChatMessage(role="user", content=COLOUR)]).message.content, RED)
    yield "chat, second turn"
    equal("".join(piece.delta or "" for piece in model.stream_chat(first)), ANSWER)
    yield "stream"
    kind(model.as_structured_llm(Shape).chat(first).raw, Shape)
    yield "as_structured_llm"
    by_schema = OpenAILike(
        model=MODEL, api_base=URL, api_key="none", is_chat_model=True, should_use_structured_outputs=True, max_retries=0
    )
    kind(by_schema.as_structured_llm(Shape).chat(first).raw, Shape)
    yield "as_structured_llm with should_use_structured_outputs"
    tool = FunctionTool.from_defaults(paint)
    answer = model.chat_with_tools([tool], chat_history=first, tool_required=True)
    [call] = model.get_tool_calls_from_response(answer)
    done = called(call.tool_name, call.tool_kwargs)
    result = ChatMessage(role="tool", content=done, additional_kwargs={"tool_call_id": call.tool_id})
    kind(model.chat([*first, answer.message, result], max_tokens=5).message.content, str)
    yield "tool call and its result"


def pydantic_ai_slim() -> Iterator[str]:
    from pydantic_ai import Agent, BinaryContent, NativeOutput, PromptedOutput, ToolOutput, UsageLimits
    from pydantic_ai.exceptions import UnexpectedModelBehavior, UsageLimitExceeded
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider
    from pydantic_ai.settings import ToolOrOutput

    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key="none"))
    first = [COUNT, BinaryContent(PICTURE.read_bytes(), media_type="image/png")]
    agent = Agent(model)
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
        shaped = Agent(model, output_type=output).run_sync(first)
        kind(shaped.output, Shape)
        kind(agent.run_sync(COLOUR, message_history=shaped.all_messages()).output, str)
        yield f"{name}, sent back"
    prompted: Any = Agent(model, output_type=PromptedOutput(Shape), retries=0)
    model_failed(lambda: prompted.run_sync(first), UnexpectedModelBehavior, ValidationError, UnexpectedModelBehavior)
    yield "PromptedOutput (a JSON object)"
    painter: Any = Agent(model, output_type=[ToolOutput(Shape)], tools=[paint])
    called_once: Any = {"tool_choice": ToolOrOutput(["paint"]), "max_tokens": 100}
    with suppress(UsageLimitExceeded):  # a model that calls again and again
        painter.run_sync(first, model_settings=called_once, usage_limits=UsageLimits(request_limit=2))
    yield "tool call and its result"
    responses = OpenAIResponsesModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key="none"))
    agent = Agent(responses)
    done = agent.run_sync(first)
    equal(done.output, ANSWER)
    for settings in ({}, {"openai_previous_response_id": "auto"}):
        again = agent.run_sync(COLOUR, message_history=done.all_messages(), model_settings=settings)
        equal(again.output, RED)
    equal(asyncio.run(stream()), ANSWER)
    for output in (ToolOutput(Shape), NativeOutput(Shape)):
        kind(Agent(responses, output_type=output).run_sync(first).output, Shape)
    yield "OpenAIResponsesModel: the same, previous_response_id"


def instructor() -> Iterator[str]:
    from collections.abc import Iterable

    import instructor as library
    import openai as sdk
    from instructor.core import IncompleteOutputException, InstructorRetryException, ResponseParsingError

    first: Any = [user("Describe the shape.", picture=True)]
    modes = library.Mode

    def client(mode: Any) -> Any:
        return library.from_openai(sdk.OpenAI(base_url=URL, api_key="none", max_retries=0), mode=mode)

    def ask(mode: Any, wanted: Any) -> Any:
        options: Any = {"response_model": wanted, "max_retries": 2, "max_tokens": 300}
        return client(mode).chat.completions.create(model=MODEL, messages=first, **options)

    for mode in (modes.TOOLS, modes.TOOLS_STRICT, modes.FUNCTIONS, modes.JSON_SCHEMA):
        kind(ask(mode, Shape), Shape)
        yield mode.name
    bad = (ValidationError, ResponseParsingError, IncompleteOutputException)
    # Its second try sends the answer and the error back.
    for mode, wanted in ((modes.PARALLEL_TOOLS, Iterable[Shape]), (modes.JSON, Shape), (modes.MD_JSON, Shape)):
        model_failed(lambda mode=mode, wanted=wanted: ask(mode, wanted), InstructorRetryException, *bad)
        yield f"{mode.name} (accepted)"
    *_, last = client(modes.TOOLS).chat.completions.create_partial(model=MODEL, messages=first, response_model=Shape)
    equal(last.colour in ("red", "green", "blue"), True)
    yield "create_partial"


def openai_agents() -> Iterator[str]:
    import agents
    from openai import AsyncOpenAI

    agents.set_tracing_disabled(True)

    def agent(name: str, **options: Any) -> Any:
        client = AsyncOpenAI(base_url=URL, api_key="none", max_retries=0)  # one for each event loop
        return agents.Agent(name, model=agents.OpenAIChatCompletionsModel(MODEL, client), **options)

    first: Any = [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": COUNT},
                {"type": "input_image", "image_url": URI, "detail": "auto"},
            ],
        }
    ]
    settings = agents.ModelSettings(store=False, verbosity="low")
    counter = agent("counter", model_settings=settings)
    done = agents.Runner.run_sync(counter, first)
    equal(done.final_output, ANSWER)
    equal(agents.Runner.run_sync(counter, [*done.to_input_list(), user(COLOUR)]).final_output, RED)
    yield "run, second turn"

    async def stream() -> str:
        running = agents.Runner.run_streamed(agent("counter"), first)
        async for _ in running.stream_events():
            pass
        return str(running.final_output)

    equal(asyncio.run(stream()), ANSWER)
    yield "run_streamed"
    shaped = agents.Runner.run_sync(agent("shaper", output_type=Shape), first)
    kind(shaped.final_output, Shape)
    yield "output_type"
    required = agents.ModelSettings(tool_choice="required")
    painter = agent("painter", tools=[agents.function_tool(paint)], model_settings=required)
    painted = agents.Runner.run_sync(painter, first, max_turns=3)
    outputs = [item.output for item in painted.new_items if item.type == "tool_call_output_item"]
    equal(outputs[0].startswith("painted "), True)
    yield "tool call and its result"

    def responder(**options: Any) -> Any:
        client = AsyncOpenAI(base_url=URL, api_key="none", max_retries=0)
        return agents.Agent("responder", model=agents.OpenAIResponsesModel(MODEL, client), **options)

    done = agents.Runner.run_sync(responder(), first)
    equal(done.final_output, ANSWER)
    equal(agents.Runner.run_sync(responder(), [*done.to_input_list(), user(COLOUR)]).final_output, RED)
    by_id = agents.Runner.run_sync(responder(), COLOUR, previous_response_id=done.last_response_id)
    equal(by_id.final_output, RED)
    kind(agents.Runner.run_sync(responder(output_type=Shape), first).final_output, Shape)
    # A tool of OpenAI's is left out.
    tools = [agents.function_tool(paint), agents.WebSearchTool()]
    painted = agents.Runner.run_sync(responder(tools=tools, model_settings=required), first, max_turns=3)
    outputs = [item.output for item in painted.new_items if item.type == "tool_call_output_item"]
    equal(outputs[0].startswith("painted "), True)
    yield "OpenAIResponsesModel: the same, previous_response_id"


def llm() -> Iterator[str]:
    folder = tempfile.mkdtemp()
    os.environ["LLM_USER_PATH"] = folder
    entry = {
        "model_id": "pocketvlm",
        "model_name": MODEL,
        "api_base": URL,
        "vision": True,
        "supports_schema": True,
        "supports_tools": True,
    }
    Path(folder, "extra-openai-models.yaml").write_text(json.dumps([entry]), "utf-8")  # JSON is YAML
    import llm as library

    model = library.get_model("pocketvlm")
    model.key = "none"
    talk = model.conversation()
    picture = library.Attachment(path=str(PICTURE))
    equal(talk.prompt(COUNT, attachments=[picture], stream=False).text(), ANSWER)
    equal(talk.prompt(COLOUR, stream=False).text(), RED)
    yield "prompt, second turn"
    equal("".join(model.prompt(COUNT, attachments=[picture])), ANSWER)
    yield "stream"
    Shape.model_validate_json(model.prompt(COUNT, attachments=[picture], schema=Shape, stream=False).text())
    yield "schema"
    answer = model.prompt(COUNT, attachments=[picture], tools=[library.Tool.function(paint)], stream=False)
    kind(answer.text(), str)
    yield "tools (offered; iota calls none by itself)"


CLIENTS = {
    function.__name__.replace("_", "-"): function
    for function in (
        openai,
        huggingface_hub,
        litellm,
        langchain_openai,
        llama_index_llms_openai_like,
        pydantic_ai_slim,
        instructor,
        openai_agents,
        llm,
    )
}


def run(clients: Mapping[str, Callable[[], Iterator[str]]], names: Sequence[str]) -> bool:
    """Ask through the clients with these names, or through all. Return whether one failed."""
    failed = False
    for name in names or clients:
        worked: list[str] = []
        try:
            for what in clients[name]():
                worked.append(what)  # noqa: PERF402 - what worked before a failure counts
            state = "ok    "
        except Exception:
            traceback.print_exc()
            state, failed = "FAILED", True
        print(f"{state} {name} {version(name)}: {'; '.join(worked)}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(run(CLIENTS, sys.argv[3:] or [name for name in CLIENTS if name != "llama-index-llms-openai-like"]))
