"""Spans against plain Jinja and transformers, and against users who type what a template writes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.errors import ModelError, RequestError
from pocketvlm.messages import ChatRequest
from pocketvlm.templates.prompt import ChatTemplate, ImageSpan, Span, TextSpan, isolate_control_tokens, with_opening

from .templates import ALTERNATING, BOS, EOS, HEADERS, PICTURES_FIRST, TEMPLATES, THINKING, plainly

Conversation = list[dict[str, Any]]
PICTURE = {"type": "image", "path": "unread.png"}
COMPILED = {
    name: ChatTemplate(source, bos=BOS, eos=EOS, image_token=token) for name, (source, token, _) in TEMPLATES.items()
}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def say(role: str, *content: str | dict[str, str]) -> dict[str, Any]:
    """A string where there is one string, else parts."""
    if len(content) == 1 and isinstance(content[0], str):
        return {"role": role, "content": content[0]}
    return {"role": role, "content": [text(part) if isinstance(part, str) else part for part in content]}


def render(template: ChatTemplate, conversation: Conversation, **options: Any) -> tuple[Span, ...]:
    return template.render(ChatRequest.parse(conversation).messages, **options)


def whole(spans: tuple[Span, ...], image_token: str | None) -> str:
    return "".join(span.text if isinstance(span, TextSpan) else str(image_token) for span in spans)


def users(spans: tuple[Span, ...]) -> list[str | int]:
    """What users gave, in prompt order: their texts, and pictures as numbers."""
    found: list[str | int] = []
    for span in spans:
        if isinstance(span, ImageSpan):
            found.append(span.index)
        elif not span.special:
            found.append(span.text)
    return found


# ---- the same characters as the reference

STRINGS = [say("user", "What is it?"), say("assistant", " A cat.\n"), say("user", "\n Sure? ")]
PICTURES = [
    say("user", PICTURE, "What is it?"),
    say("assistant", "A cat."),
    say("user", "And", PICTURE, "against", PICTURE, "?"),
]
SYSTEM = [say("system", "Be brief."), *STRINGS]
PARTS = [say("system", "Be brief.", ""), say("user", "One.", "Two."), say("assistant", "Three.", ""), *STRINGS[:1]]
THOUGHT = [*STRINGS[:1], say("assistant", "<think>\nHm.\n</think>\n\nYes."), say("user", "Ok."), *STRINGS[1:]]
CASES = [
    *(("iota", case) for case in (STRINGS, PICTURES, SYSTEM, PARTS, THOUGHT)),
    *(("chatml", case) for case in (STRINGS, PICTURES, SYSTEM, PARTS)),
    *(("alternating", case) for case in (STRINGS, PICTURES, SYSTEM)),
    *(("headers", case) for case in (STRINGS, SYSTEM)),
    *(("pictures first", case) for case in ([PICTURES[0]], PARTS[:3])),
    *(("thinking", case) for case in (STRINGS, PICTURES, SYSTEM, PARTS, THOUGHT, THOUGHT[:2])),
    *(("lines", case) for case in (STRINGS, SYSTEM)),
    *(("mixed", case) for case in (STRINGS, PICTURES, SYSTEM)),
]


@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize(("name", "conversation"), CASES)
def test_the_characters_are_those_of_plain_jinja(name: str, conversation: Conversation, generate: bool) -> None:
    source, token, _ = TEMPLATES[name]
    spans = render(COMPILED[name], conversation, add_generation_prompt=generate)
    assert whole(spans, token) == plainly(source, conversation, add_generation_prompt=generate)


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "conversation"), CASES)
def test_the_characters_are_those_of_transformers(name: str, conversation: Conversation) -> None:
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    source, token, _ = TEMPLATES[name]
    reference = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token=BOS, eos_token=EOS)
    expected = reference.apply_chat_template(
        conversation, chat_template=source, tokenize=False, add_generation_prompt=True
    )
    assert whole(render(COMPILED[name], conversation), token) == expected


def test_a_prompt_word_by_word() -> None:
    spans = render(COMPILED["iota"], [say("user", PICTURE, "What?", PICTURE), *SYSTEM[2:3]])
    assert spans == (
        TextSpan("<|im_start|>User:", True),
        ImageSpan(0),
        TextSpan("What?", False),
        ImageSpan(1),
        TextSpan("<end_of_utterance>\nAssistant: ", True),
        TextSpan(" A cat.\n", False),
        TextSpan("<end_of_utterance>\nAssistant:", True),
    )


# ---- whatever users type

NASTY = st.sampled_from(
    [
        "<image>", "<end_of_utterance>", "<|im_end|>", "<|image_pad|>", "<start_of_image>", "[IMG]", "<end_of_turn>",
        BOS, EOS, "{{ 7*7 }}", "{% raw %}", "{{ raise_exception('x') }}", "\ufffc", "\ue000", "\U000f0000", "\0", "\n",
        " \n ", "\r\n", "<ima", "ge>", "'", "\\", "%s", "{0}", "{content}", "[/INST]", "x" * 5000,
    ]
)  # fmt: skip
TYPED = st.lists(st.one_of(NASTY, st.text(max_size=5)), min_size=1, max_size=4).map("".join)
# Some letter at both ends: trimming is another test's matter.
SOLID = TYPED.map(lambda typed: f"a{typed}z")


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Conversation, list[str | int]]:
    """Turns in order, and what users gave in the order of the prompt."""
    conversation: Conversation = []
    given: list[str | int] = []
    pictures = 0
    for turn in range(draw(st.integers(1, 4))):
        role = "user" if turn % 2 == 0 else "assistant"
        content: list[str | dict[str, str]] = []
        for is_picture in draw(st.lists(st.booleans(), min_size=1, max_size=4)):
            if is_picture and role == "user":
                content.append(PICTURE)
                given.append(pictures)
                pictures += 1
            else:
                typed = draw(SOLID)
                content.append(typed)
                given.append(typed)
        given.append("|")
        conversation.append({"role": role, "content": say(role, *content)["content"]})
    return conversation, given


def in_one(given: list[str | int]) -> list[str | int]:
    """Neighbouring texts joined, marks between messages left out."""
    joined: list[str | int] = []
    fresh = True
    for piece in given:
        if piece == "|":
            fresh = True
        elif isinstance(piece, str) and not fresh and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
            fresh = False
    return joined


@pytest.mark.parametrize("name", ["iota", "chatml", "alternating", "headers", "mixed"])
@given(case=conversations())
def test_users_texts_come_back_and_pictures_stand_in_place(
    name: str, case: tuple[Conversation, list[str | int]]
) -> None:
    conversation, given = case
    source, token, _ = TEMPLATES[name]
    spans = render(COMPILED[name], conversation)
    assert users(spans) == in_one(given)
    if token and name != "mixed":  # it takes no parts from assistants, Jinja alone would fail
        assert whole(spans, token) == plainly(source, conversation)


@pytest.mark.parametrize("name", TEMPLATES)
@given(typed=TYPED)
def test_strings_of_users_come_back(name: str, typed: str) -> None:
    source, token, trims = TEMPLATES[name]
    spans = render(COMPILED[name], [say("user", typed)])
    assert "".join(map(str, users(spans))) == (typed.strip() if trims else typed)
    shown = [say("user", typed)] if name != "pictures first" else [{"role": "user", "content": [text(typed)]}]
    assert whole(spans, token) == plainly(source, shown)


@given(typed=st.lists(TYPED, min_size=2, max_size=2))
def test_an_answers_thoughts_are_cut_as_the_template_says(typed: list[str]) -> None:
    answer = f"<think>\n{typed[0]}\n</think>\n\n{typed[1]}"
    for conversation in (
        [say("user", "q"), say("assistant", answer)],
        [say("user", "q"), say("assistant", answer), say("user", "more")],
        [say("user", "q"), say("assistant", answer), say("user", "more"), say("assistant", "x"), say("user", "y")],
    ):
        spans = render(COMPILED["thinking"], conversation)
        assert whole(spans, "<|image_pad|>") == plainly(THINKING, conversation)
        control = [span.text for span in spans if isinstance(span, TextSpan) and span.special]
        assert "".join(control).count("<|im_end|>") == len(conversation)


def test_a_string_that_looks_like_a_picture_is_none() -> None:
    spans = render(COMPILED["iota"], [say("user", "<image>", PICTURE, "<image>\ufffc")])
    assert users(spans) == ["<image>", 0, "<image>\ufffc"]
    spans = render(COMPILED["headers"], [say("user", "\ufffc", PICTURE, "<image>")])
    assert users(spans) == ["\ufffc", 0, "<image>"]


# ---- no way out of user text

EXPRESSIONS = """
c; [c]; {'k': c}; (c, 1); c + 'l'; 'l' + c; c ~ 1; 'l' ~ c ~ 'l'; c * 2; 2 * c; '%s' % c; '%s%d' % (c, 1); c % ()
c[1:]; c[:-1]; c[::-1]; c[0]; c[-1]; c[::2]; c[7:]; c if c else ''; c or ''; c and c
c | upper; c | lower; c | title; c | capitalize; c | trim; c | replace('q', 'l'); c | replace('<', '>', 1); c | e
c | tojson; [c] | tojson; messages | tojson; c | string; [c] | string; c | safe; c | forceescape
c | list; c | list | join; c | first; c | last; c | reverse; c | center(30); c | indent; c | indent(2, true)
c | truncate(3, true, ''); c | urlencode; c | default('l'); 'l' | default(c)
'%s' | format(c); c | format; 'lol' | replace('o', c); [c, c] | join(','); ['l', 'l'] | join(c); c | join('l')
[c] | map('upper') | join; [c] | map('upper') | list; [c, c] | unique | join; [c] | sort | join; [c, 'l'] | max
[{'k': c}] | map(attribute='k') | join(','); [{'k': c}] | join(',', attribute='k'); [{'k': c}] | groupby('k')
[c, c] | batch(2) | list; [c] | slice(1) | list; {'k': c} | items | list; {'k': c} | dictsort; {'k': c} | xmlattr
c.upper(); c.swapcase(); c.title(); c.casefold(); c.center(20); c.ljust(20); c.zfill(20); c.expandtabs(); c.capitalize()
c.strip(); c.strip('ql'); c.lstrip('lq'); c.rstrip('>l'); c.removeprefix('q'); c.removesuffix('>'); c.translate({})
c.replace('q', 'l'); c.replace('', 'l'); 'lol'.replace('o', c); c.replace('w', c, 1); c.format(); c.format_map({})
c.split('w'); c.split() | join; c.split('w') | join('l'); c.rsplit('w', 1)[0]; c.split('w', 1)[1]; c.splitlines() | join
c.partition('w'); c.partition('z')[0]; c.rpartition('w')[2]; c.rpartition('z')[2]; 'l'.partition(c); 'lol'.split(c)
c.join(['l', 'l']); 'l'.join([c, c]); ','.join([c] | map('lower')); 'l'.join(c); ''.join({c: 1})
'{}'.format(c); '{k}'.format(k=c); '{k}'.format_map({'k': c}); '{0[0]}'.format(c); '{:>20}'.format(c)
namespace(k=c).k; dict(k=c).k; dict(k=c); dict(k=c).items() | list; {'k': c}.get('k'); {}.get('k', c); cycler(c).next()
{c: 1}; {c: 1} | tojson; [{c: 1}] | string; {'l': {c: 1}} ~ 'l'; '%s' % [{c: 1}]; {c: 1} | items | list
{c: 1}.keys() | string; {c: 1}.items() | string; {'l': c}.values() | string; {c: 1}.keys() | list
"""
BLOCKS = """
{% for x in c %}{{ x }}{% endfor %}
{% for x in c.split('w') %}{{ x }}{{ loop.previtem }}{{ loop.cycle(c, 'l') }}{% endfor %}
{% for k in [c, [c]] recursive %}{{ k if k is string else loop(k) }}{% endfor %}
{% set k %}{{ c }}{% endset %}{{ k }}
{% set k | upper %}{{ c }}{% endset %}{{ k }}
{% filter upper %}{{ c }}{% endfilter %}
{% macro m(x) %}{{ x }}{% endmacro %}{{ m(c) }}{{ m(c) | upper }}{{ m(c)[1:] }}
{% macro m(x) %}{{ x }}{{ caller(x) }}{% endmacro %}{% call(y) m(c) %}{{ y }}{{ c }}{% endcall %}
{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(c, k=c) }}
{% set k = namespace() %}{% set k.v = c %}{{ k.v }}
{% with k = c %}{{ k }}{% endwith %}
{% generation %}{{ c }}{% endgeneration %}
"""


@pytest.mark.parametrize(
    "operation",
    [*(f"{{{{ {part.strip()} }}}}" for part in re.split(";|\n", EXPRESSIONS.strip())), *BLOCKS.strip().split("\n")],
)
def test_nothing_that_a_template_does_makes_user_text_special(operation: str) -> None:
    """The user's letters and brackets are in none of these templates' texts, and so may be in no special span."""
    for bind in ("messages[0].content", "'l' + messages[0].content + 'l'"):
        source = "{% set c = " + bind + " %}" + operation
        conversation = [say("user", "q<w>")]
        expected = plainly(source, conversation)
        try:
            spans = render(ChatTemplate(source), conversation)
        except RequestError as error:
            assert "leaves out this text of the role user" in str(error) and not set("qwQW<>") & set(expected)
            continue
        assert whole(spans, None) == expected
        special = "".join(span.text for span in spans if isinstance(span, TextSpan) and span.special)
        assert not set("qwQW<>") & set(special)


@pytest.mark.parametrize(
    "operation",
    [
        "{{ '<t>' + c | trim + '<t>' }}",
        "{{ '<t>' ~ c ~ '<t>' }}",
        "{% set k = '<t>' + c %}{{ (k + '<t>') | trim }}",
        "{% set k %}<t>{{ c }}<t>{% endset %}{{ k.strip() }}",
        "{% macro m(x) %}<t>{{ x }}<t>{% endmacro %}{{ m(c).split('zz')[0] }}",
        "{{ ['<t>', c, '<t>'] | join }}",
        "{{ ''.join(['<t>', c, '<t>']) }}",
        "{{ ['', c, ''] | join('<t>') }}",
        "{% set k = ('<t>' + c + '<t>zz').removesuffix('zz') %}{{ k }}",
        "{{ ('  <t>' + c + '<t>')[2:] }}",
        "{{ ('<t>' + c + '<t>\\n').splitlines() | first }}",
        "{{ messages[0] | attr('items') and {'user': '<t>'}[messages[0].get('role')] }}{{ c }}{{ '<t>' | default(c) }}",
        "{% macro open(message) %}<t>{% endmacro %}{{ open(messages[0]) }}{{ c }}{{ open(c) }}",
    ],
)
def test_control_tokens_of_the_template_stay_special(operation: str) -> None:
    template = ChatTemplate("{% set c = messages[0].content %}" + operation)
    assert render(template, [say("user", "<t>")]) == (
        TextSpan("<t>", True),
        TextSpan("<t>", False),
        TextSpan("<t>", True),
    )


def test_a_part_is_found_where_it_is_and_not_in_the_separator() -> None:
    template = ChatTemplate("{{ ('x-a' + messages[0].content).split('-a')[1] }}")
    assert render(template, [say("user", "a")]) == (TextSpan("a", False),)


# ---- forms


def test_content_in_the_form_that_the_template_takes() -> None:
    as_strings = render(COMPILED["headers"], [say("system", "S"), say("user", "a")])
    as_parts = render(COMPILED["headers"], [say("system", text("S")), say("user", text("a"))])
    assert as_parts == as_strings
    as_strings = render(COMPILED["pictures first"], [say("system", "S"), say("user", "a")])
    as_parts = render(COMPILED["pictures first"], [say("system", text("S")), say("user", text("a"))])
    assert as_strings == as_parts
    assert users(as_strings) == ["S", "a"]
    assert users(render(COMPILED["mixed"], [say("user", "q"), say("assistant", "a", "b")])) == ["q", "ab"]
    # The first part alone would be read of a system message in parts.
    assert users(render(COMPILED["alternating"], [say("system", "S", "T"), say("user", "a")])) == ["ST", "a"]


def test_pictures_before_text_keep_their_numbers() -> None:
    spans = render(COMPILED["pictures first"], [say("user", "a", PICTURE, "b", PICTURE), say("user", PICTURE)])
    assert users(spans) == [0, 1, "a", "b", 2]


def test_a_template_that_reads_one_part_gets_all_in_one() -> None:
    template = ChatTemplate(
        "{% for message in messages %}[{{ message['role'] }}]"
        "{% if message['role'] == 'user' %}{% for part in message['content'] %}"
        "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
        "{% else %}{{ message['content'][0]['text'] }}{% endif %}{% endfor %}",
        image_token="<image>",
    )
    told = [say("system", "Be ", "brief."), say("user", PICTURE, "What?"), say("assistant", "A ", "cat.")]
    words = [span.text for span in render(template, told) if isinstance(span, TextSpan)]
    assert words == ["[system]", "Be brief.", "[user]", "What?", "[assistant]", "A cat."]
    plain = [{"role": role, "content": text} for role, text in (("user", "What?"), ("assistant", "A cat."))]
    assert render(template, plain) == render(template, [say("user", "What?"), say("assistant", "A cat.")])


@pytest.mark.parametrize(
    ("source", "token"),
    [
        (HEADERS, None),
        (HEADERS, "<image>"),  # knows strings only
        (PICTURES_FIRST.replace("<image>", ""), "<image>"),  # drops pictures
        (PICTURES_FIRST.replace("<image>", "<image><image>"), "<image>"),  # writes another number of them
        (PICTURES_FIRST, None),  # nobody says what it writes
    ],
)
def test_a_template_that_does_not_know_pictures_gets_them_in_the_text(source: str, token: str | None) -> None:
    spans = render(
        ChatTemplate(source, image_token=token), [say("user", "a", PICTURE, PICTURE, "b"), say("user", PICTURE)]
    )
    assert users(spans) == ["a", 0, 1, "b", 2]


@pytest.mark.parametrize("source", [None, ""])
def test_a_model_without_a_template_is_told_of(source: str | None, caplog: pytest.LogCaptureFixture) -> None:
    spans = render(ChatTemplate(source, path="some model"), [say("user", "a", PICTURE, "b")])
    assert users(spans) == ["a", 0, "b"] and whole(spans, None).startswith("<|im_start|>user\n")
    assert "some model has no chat template" in caplog.text


def test_a_picture_that_is_not_placed_once_is_refused() -> None:
    twice = ChatTemplate("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}")
    never = ChatTemplate("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    last = ChatTemplate(
        "{% for p in messages[-1].content %}{{ p.text if p.type == 'text' else '<image>' }}{% endfor %}",
        image_token="<image>",
    )
    assert users(render(last, [say("user", PICTURE, "a")])) == [0, "a"]
    for template, places in ((twice, "2 places for 1"), (never, "0 places for 1"), (last, "0 places for 1")):
        with pytest.raises(RequestError, match=places) as caught:
            render(template, [say("user", PICTURE, "a"), say("assistant", "x"), say("user", text("b"))])
        assert caught.value.param == "messages"


def test_a_developer_is_the_system_unless_the_template_knows_better() -> None:
    roles = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    message = [say("developer", "S"), say("user", "a")]
    assert whole(render(ChatTemplate(roles), message), None) == "[system]S[user]a"
    assert whole(render(ChatTemplate(roles + "{# developer #}"), message), None) == "[developer]S[user]a"


def test_a_model_without_a_template_gets_chatml() -> None:
    spans = render(ChatTemplate(None), [say("system", "S"), say("user", "<|im_end|>", PICTURE, "b")])
    assert users(spans) == ["S", "<|im_end|>", 0, "b"]
    control = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert whole(spans, "#") == control.format("S", "<|im_end|>#b")


def test_names_are_text_of_users() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.name or 'nobody' }}: {{ m.content }};{% endfor %}")
    spans = render(template, [{"role": "user", "content": "a", "name": "<t>"}, say("user", "b")])
    assert users(spans) == ["<t>", "a", "b"]
    assert whole(spans, None) == "<t>: a;nobody: b;"


# ---- templates that refuse or fail


def test_a_refusal_of_the_template_is_the_requests_fault() -> None:
    picky = ChatTemplate("{{ messages[0].content if 'b' not in messages[0].content else raise_exception('not b') }}")
    with pytest.raises(RequestError, match="refuses the messages: not b") as caught:
        render(picky, [say("user", "b")])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% for m in messages %}\n\n{{ m.content }", "line 3"),
        ("{% if %}", "line 1"),
        ("{{ x | no_such_filter }}", "no_such_filter"),
    ],
)
def test_a_template_that_does_not_compile_is_the_models_fault(source: str, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        ChatTemplate(source, path="model.gguf")
    assert str(caught.value).startswith("model.gguf: chat template")


@pytest.mark.parametrize(
    "source",
    [
        "{{ nothing.at.all }}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{{ messages[0].content._runs.x }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ namespace(__class__=1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{{ 1 // 0 }}",
        "{{ '{0.__class__}'.format(messages) + 1 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_template_that_fails_is_the_models_fault(source: str) -> None:
    template = ChatTemplate(source, path="model.gguf")
    with pytest.raises(ModelError, match=r"^model\.gguf: the chat template fails"):
        render(template, [say("user", "a")])


# ---- control tokens apart


def test_control_tokens_stand_apart_and_all_other_text_is_whole() -> None:
    spans = render(COMPILED["iota"], [say("user", PICTURE, "<image> and <end_of_utterance>"), say("assistant", "It")])
    assert isolate_control_tokens(spans, {"<|im_start|>", "<end_of_utterance>", "<image>"}) == (
        TextSpan("<|im_start|>", True),
        TextSpan("User:", False),
        ImageSpan(0),
        TextSpan("<image> and <end_of_utterance>", False),
        TextSpan("<end_of_utterance>", True),
        TextSpan("\nAssistant: It", False),
        TextSpan("<end_of_utterance>", True),
        TextSpan("\nAssistant:", False),
    )
    assert isolate_control_tokens(spans[:1], ()) == (TextSpan("<|im_start|>User:", False),)


def test_what_opens_the_answer_is_marked() -> None:
    """From a control token on: text before it may share a token with what a user wrote."""
    control = {"<|im_start|>", "<|im_end|>"}
    said = (TextSpan("<|im_start|>user\n", True), TextSpan("Hi", False))
    opened = TextSpan(" there<|im_end|>\n<|im_start|>assistant\n<think>\n", True)
    assert with_opening((*said, opened), control) == (
        TextSpan("<|im_start|>", True),
        TextSpan("user\nHi there", False),
        TextSpan("<|im_end|>", True, opening=True),
        TextSpan("\n", False, opening=True),
        TextSpan("<|im_start|>", True, opening=True),
        TextSpan("assistant\n<think>\n", False, opening=True),
    )
    for prompt in (said, (*said, TextSpan(" Answer:", True)), ()):
        assert with_opening(prompt, control) == isolate_control_tokens(prompt, control)


def test_the_longest_control_token_wins_and_dots_mean_dots() -> None:
    spans = (TextSpan("a<x><x>.b<xx>", True),)
    assert isolate_control_tokens(spans, ["<x>", "<x>.b", "<..>"]) == (
        TextSpan("a", False),
        TextSpan("<x><x>.b", True),
        TextSpan("<xx>", False),
    )


CONTROL = ("<|im_start|>", "<end_of_utterance>", "<image>")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Byte-level BPE with tokens that begin with a space, as real ones have."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(CONTROL),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(["User: What is it?\nAssistant: A cat. What is What is"] * 9, trainer)
    return made


def ids(tokenizer: Any, spans: tuple[Span, ...]) -> list[int]:
    found: list[int] = []
    for span in spans:
        assert isinstance(span, TextSpan)
        tokenizer.encode_special_tokens = not span.special
        found += tokenizer.encode(span.text).ids
    tokenizer.encode_special_tokens = False
    return found


def test_apart_the_tokens_are_those_of_the_whole_prompt(tokenizer: Any) -> None:
    conversation = [say("user", "What is it?"), say("assistant", "A cat."), say("user", "What is What?")]
    spans = render(COMPILED["iota"], conversation)
    expected = tokenizer.encode(whole(spans, None)).ids
    assert ids(tokenizer, isolate_control_tokens(spans, CONTROL)) == expected
    assert ids(tokenizer, spans) != expected, "or there would be no need"


@given(typed=TYPED)
def test_no_control_token_comes_from_a_user(tokenizer: Any, typed: str) -> None:
    spans = isolate_control_tokens(render(COMPILED["iota"], [say("user", typed)]), CONTROL)
    found = ids(tokenizer, spans)
    assert [found.count(tokenizer.token_to_id(token)) for token in CONTROL] == [1, 1, 0]
    assert tokenizer.decode(found, skip_special_tokens=False) == whole(spans, None)


def test_alternating_places_the_system_text_before_the_first_question() -> None:
    conversation = [say("system", "Be brief."), say("user", "a")]
    spans = render(COMPILED["alternating"], conversation)
    assert users(spans) == ["Be brief.", "a"]
    assert whole(spans, None) == plainly(ALTERNATING, conversation)
