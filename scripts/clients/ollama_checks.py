"""Ask a running server through clients of Ollama's API: `ollama_checks.py URL PICTURE [CLIENT...]`. See checks.py.

`litellm` and `pydantic-ai-slim` are their providers for this API.
"""

import sys
from collections.abc import Iterator
from typing import Any

import checks
from checks import ANSWER, COLOUR, COUNT, MODEL, PAINT, PICTURE, RED, URI, URL, Shape, equal, kind, paint, user

HOST = URL.removesuffix("/v1")
FIRST: Any = {"role": "user", "content": COUNT, "images": [PICTURE]}
MORE: Any = {"role": "user", "content": COLOUR}
CALL: Any = {"role": "assistant", "tool_calls": [{"function": {"name": "paint", "arguments": {"colour": "red"}}}]}
RESULT: Any = {"role": "tool", "tool_name": "paint", "content": "painted red"}


def ollama() -> Iterator[str]:
    import ollama as library

    client = library.Client(host=HOST)
    message = client.chat(model=MODEL, messages=[FIRST]).message
    equal(message.content, ANSWER)
    equal(client.chat(model=f"{MODEL}:latest", messages=[FIRST, message, MORE]).message.content, RED)
    yield "chat, second turn"
    *parts, end = client.chat(model=MODEL, messages=[FIRST], stream=True)
    equal("".join(part.message.content or "" for part in parts), ANSWER)
    equal((end.done, end.done_reason), (True, "stop"))
    yield "stream"
    equal(client.generate(model=MODEL, prompt=COUNT, images=[PICTURE.read_bytes()]).response, ANSWER)
    pieces = client.generate(model=MODEL, prompt=COUNT, images=[str(PICTURE)], stream=True, think=False)
    equal("".join(piece.response or "" for piece in pieces), ANSWER)
    yield "generate, its stream"
    shaped = client.chat(model=MODEL, messages=[FIRST], format=Shape.model_json_schema())
    Shape.model_validate_json(shaped.message.content or "")
    yield "format"
    options = {"num_predict": 5, "stop": [str(number) for number in range(9)]}
    said = client.chat(model=MODEL, messages=[FIRST, CALL, RESULT], tools=[paint], options=options)
    equal(said.message.role, "assistant")
    yield "tools (offered), a call and its result"
    for keep_alive, reason in (("5m", "load"), (0, "unload")):
        equal(client.generate(model=MODEL, keep_alive=keep_alive).done_reason, reason)
    equal(client.chat(model=MODEL, messages=[FIRST], keep_alive=-1).message.content, ANSWER)
    yield "keep_alive"
    equal([model.model for model in client.list().models], [f"{MODEL}:latest"])
    equal("vision" in (client.show(MODEL).capabilities or ()), True)
    equal([model.name for model in client.ps().models], [f"{MODEL}:latest"])
    yield "list, show, ps"
    try:
        client.pull("other")
    except library.ResponseError as error:
        equal(error.status_code, 403)
    yield "pull (refused)"


def langchain_ollama() -> Iterator[str]:
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_ollama import ChatOllama, OllamaLLM

    model = ChatOllama(model=MODEL, base_url=HOST, validate_model_on_init=True, num_predict=200)
    first = HumanMessage(user(COUNT, picture=True)["content"])
    message = model.invoke([first])
    equal(message.content, ANSWER)
    equal(model.invoke([first, message, HumanMessage(COLOUR)]).content, RED)
    yield "invoke, second turn"
    equal("".join(piece.content for piece in model.stream([first])), ANSWER)
    yield "stream"
    kind(model.with_structured_output(Shape, method="json_schema").invoke([first]), Shape)
    yield "with_structured_output"
    call = AIMessage("", tool_calls=[{"name": "paint", "args": {"colour": "red"}, "id": "call_1"}])
    bound = ChatOllama(model=MODEL, base_url=HOST, num_predict=5).bind_tools([tool(paint)])
    kind(bound.invoke([first, call, ToolMessage("done", tool_call_id="call_1")]).content, str)
    yield "tools (offered), a call and its result"
    kind(OllamaLLM(model=MODEL, base_url=HOST, num_predict=5).invoke(COUNT), str)
    yield "OllamaLLM"


def litellm() -> Iterator[str]:
    import litellm as library

    for provider in ("ollama_chat", "ollama"):
        ask: Any = {"model": f"{provider}/{MODEL}", "api_base": HOST}
        first = [user(COUNT, picture=True)]
        equal(library.completion(messages=first, **ask).choices[0].message.content, ANSWER)
        chunks = library.completion(messages=first, stream=True, **ask)
        equal("".join(chunk.choices[0].delta.content or "" for chunk in chunks), ANSWER)
        answer = library.completion(messages=first, response_format=Shape, max_tokens=100, **ask)
        Shape.model_validate_json(answer.choices[0].message.content)
        kind(library.completion(messages=first, tools=[PAINT], max_tokens=30, **ask).choices[0].message.role, str)
        yield f"{provider}: chat, stream, response_format, tools (offered)"


def llama_index_llms_ollama() -> Iterator[str]:
    from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
    from llama_index.llms.ollama import Ollama

    model = Ollama(model=MODEL, base_url=HOST)
    first = [ChatMessage(role="user", blocks=[TextBlock(text=COUNT), ImageBlock(url=URI)])]
    message = model.chat(first).message
    equal(message.content, ANSWER)
    equal(model.chat([*first, message, ChatMessage(role="user", content=COLOUR)]).message.content, RED)
    yield "chat, second turn"
    equal("".join(piece.delta or "" for piece in model.stream_chat(first)), ANSWER)
    kind(model.complete(COUNT).text, str)
    yield "stream, complete"
    kind(model.as_structured_llm(Shape).chat(first).raw, Shape)
    yield "as_structured_llm"


def pydantic_ai_slim() -> Iterator[str]:
    from pydantic_ai import Agent, BinaryContent, NativeOutput
    from pydantic_ai.models.ollama import OllamaModel
    from pydantic_ai.providers.ollama import OllamaProvider

    model = OllamaModel(MODEL, provider=OllamaProvider(base_url=URL))
    first = [COUNT, BinaryContent(PICTURE.read_bytes(), media_type="image/png")]
    agent = Agent(model)
    done = agent.run_sync(first)
    equal(done.output, ANSWER)
    equal(agent.run_sync(COLOUR, message_history=done.all_messages()).output, RED)
    yield "run, second turn"
    kind(Agent(model, output_type=NativeOutput(Shape)).run_sync(first).output, Shape)
    yield "NativeOutput"


if __name__ == "__main__":
    functions = (ollama, langchain_ollama, litellm, llama_index_llms_ollama, pydantic_ai_slim)
    sys.exit(checks.run({function.__name__.replace("_", "-"): function for function in functions}, sys.argv[3:]))
