"""Turn a validated request into the prompt that the engine evaluates: open its files, compile it, read its pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.documents.expand import VideoSupport, expanded, frames_of
from pocketvlm.documents.fit import Fit, fit_for
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.documents.sources import LocalPictures, PictureSource
from pocketvlm.engine.interface import EngineInfo, PromptImage
from pocketvlm.messages import ChatRequest, FilePart, ImagePart, ImageURLPart, Message
from pocketvlm.pictures.clip import Clip
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.pictures.images import Picture
from pocketvlm.structured.compile import AnswerForm, CompiledRequest, compile_raw, compile_request
from pocketvlm.structured.tool_call_format import detect_tool_call_format
from pocketvlm.templates.prompt import (
    ChatTemplate,
    ImageSpan,
    Span,
    TextSpan,
    isolate_control_tokens,
    with_opening,
)
from pocketvlm.templates.turn_end import texts_around_answer
from pocketvlm.vision import families
from pocketvlm.vision.family import token_limit
from pocketvlm.vision.video import video_of

PictureReader = Callable[[ImageURLPart | ImagePart, str], Picture]  # (part, path of its field in the request)
_MAX_FORMS = 16  # of answers that are kept
_AS_PICTURES = (
    "the frames of the video are shown as pictures: {encoder} takes them one by one; load the model with an ONNX "
    'vision encoder of this version, which takes two together, as the model was trained (vision="onnx")'
)


@dataclass(frozen=True)
class PreparedRequest:
    """A request without files of several pictures, its prompt, and its pictures in the order of their parts."""

    messages: Sequence[Message]
    compiled: CompiledRequest
    prompt: tuple[TextSpan | PromptImage, ...]
    pictures: Sequence[Picture]


class RequestPreparer:
    """Prepares requests for one model. Files and pictures are those of this machine, unless a source is given."""

    def __init__(self, info: EngineInfo, options: LoadOptions, handles: PictureHandles) -> None:
        self._info = info
        self._max_pixels = options.max_pixels
        self._max_image_tokens = options.max_image_tokens
        self._document_limits = options.document_limits or DocumentLimits()
        self._pictures = LocalPictures(handles, self._max_pixels)
        known = families.find(dict(info.picture_metadata))
        self.family_name = known[0] if known else None
        self._family = known[1] if known else None
        video = video_of(self._family)
        self._template = ChatTemplate(
            info.chat_template,
            bos=info.bos,
            eos=info.eos,
            image_token=info.image_token,
            video_token=video.token if video and info.shows_videos else None,
            path=info.name,
        )
        self._videos = VideoSupport()
        if video is not None and not info.shows_videos:
            self._videos = VideoSupport(note=_AS_PICTURES.format(encoder=info.vision))
        elif video is not None and (self._template.places_videos or not video.needs_template):
            self._videos = VideoSupport(as_one=True)
        self._around: dict[str, tuple[str, str]] = {}  # by what a request sets for the template
        self.tool_call_format = detect_tool_call_format(self._template, info.control_tokens, info.end_tokens)

    def prepare(
        self,
        request: ChatRequest,
        source: PictureSource | None = None,
        read: PictureReader | None = None,
        *,
        raw: bool = False,
        form: AnswerForm | None = None,
        controls: Collection[str] = (),
        only_sizes: bool = False,
        videos: VideoSupport | None = None,
    ) -> PreparedRequest:
        """Prepare a request; `VLM.run` describes `source`, `read`, `raw`, `form` and `controls`.

        `only_sizes`: of pictures, nothing else is needed. A model of an unknown family needs the pixels anyway.
        """
        source = source or self._pictures
        read = read or (source.measure if only_sizes and self._family is not None else source.read)
        request = source.with_files(request)
        with expanded(request, source.open_file, self._fit, self._document_limits, videos or self._videos) as whole:
            if raw:
                compiled = compile_raw(whole.request, self._info.control_tokens, form)
            else:
                compiled = compile_request(whole.request, self._template, self.tool_call_format, form)
            images: list[PromptImage] = []
            for i, message in enumerate(whole.request.messages):
                for j, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
                    if isinstance(part, ImageURLPart | ImagePart):
                        images.append(self._prompt_image(part, whole.param(i, j), read))
        spans = with_opening([*_with_controls(compiled.spans, controls)], self._info.control_tokens)
        prompt = tuple(images[span.index] if isinstance(span, ImageSpan) else span for span in spans)
        return PreparedRequest(whole.request.messages, compiled, prompt, [image.picture for image in images])

    def texts_around_answer(self, request: ChatRequest) -> tuple[str, str]:
        """Return what the template writes before and behind an answer to such a request, beyond the prompt for it."""
        effort, variables = request.effort, request.template_variables
        key = json.dumps([effort, variables], sort_keys=True)
        texts = self._around.get(key)
        if texts is None:
            texts = texts_around_answer(self._template, effort=effort, variables=variables)
            if len(self._around) >= _MAX_FORMS:  # by other threads, too
                self._around.clear()
            self._around[key] = texts
        return texts

    def _prompt_image(self, part: ImageURLPart | ImagePart, param: str, read: PictureReader) -> PromptImage:
        """Read a picture, or all frames of a video."""
        image = part.image_url if isinstance(part, ImageURLPart) else part
        limit = self._max_tokens_of(image.max_image_tokens)
        if (video := frames_of(part)) is None:
            return PromptImage(read(part, param), image.detail, limit, param)
        pictures = tuple(read(frame, param) for frame in video.frames)
        clip = Clip(pictures, video.times, video.seconds)
        return PromptImage(pictures[0], image.detail, limit, param, clip)

    def _fit(self, part: FilePart) -> Fit:
        return fit_for(self._family, part.detail, self._max_tokens_of(part.max_image_tokens), self._max_pixels)

    def _max_tokens_of(self, asked: int | None) -> int | None:
        return token_limit(asked, self._max_image_tokens)


def _with_controls(spans: Iterable[Span], tokens: Collection[str]) -> Iterator[Span]:
    """Yield spans in which these control tokens count in the texts of the request, too."""
    for span in spans:
        if isinstance(span, TextSpan) and not span.special and tokens:
            yield from isolate_control_tokens((replace(span, special=True),), tokens)
        else:
            yield span
