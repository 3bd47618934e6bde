"""The message schema: requests and responses of a chat, the same in Python, on the command line and over HTTP.

It follows OpenAI's chat completions and Hugging Face's Chat Completion schema. Values are frozen. `ChatRequest.parse`
validates a request once, and raises RequestError with the path of the wrong field.
"""

from pocketvlm.messages.calls import ToolCall
from pocketvlm.messages.chat import AssistantMessage, Message, SystemMessage, ToolMessage, UserMessage
from pocketvlm.messages.formats import ResponseFormat
from pocketvlm.messages.parsed import ParsedCompletion
from pocketvlm.messages.parts import (
    Content,
    Detail,
    FilePart,
    ImagePart,
    ImageURL,
    ImageURLPart,
    Part,
    TextContent,
    TextPart,
)
from pocketvlm.messages.regions import Box, Outline, Point, Region
from pocketvlm.messages.request import ChatRequest, StreamOptions
from pocketvlm.messages.response import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionTokensDetails,
    Delta,
    FinishReason,
    FunctionDelta,
    ImageTimings,
    PromptTokensDetails,
    ResponseFunction,
    ResponseMessage,
    ResponseToolCall,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from pocketvlm.messages.tools import Tool, ToolChoice

__all__ = [
    "AssistantMessage",
    "Box",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatRequest",
    "Choice",
    "ChoiceLogprobs",
    "ChunkChoice",
    "CompletionTokensDetails",
    "Content",
    "Delta",
    "Detail",
    "FilePart",
    "FinishReason",
    "FunctionDelta",
    "ImagePart",
    "ImageTimings",
    "ImageURL",
    "ImageURLPart",
    "Message",
    "Outline",
    "ParsedCompletion",
    "Part",
    "Point",
    "PromptTokensDetails",
    "Region",
    "ResponseFormat",
    "ResponseFunction",
    "ResponseMessage",
    "ResponseToolCall",
    "StreamOptions",
    "SystemMessage",
    "TextContent",
    "TextPart",
    "Timings",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "ToolMessage",
    "TopLogprob",
    "Usage",
    "UserMessage",
]
