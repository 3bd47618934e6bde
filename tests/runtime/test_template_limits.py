"""What a chat template from a stranger's file may do: each value just beyond small limits is refused, by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pocketvlm.errors import ModelError
from pocketvlm.messages import ChatRequest
from pocketvlm.structured.tool_call_format import detect_tool_call_format
from pocketvlm.templates import sandbox
from pocketvlm.templates.limits import LimitError, Limits, limited, sharing_time, step
from pocketvlm.templates.prompt import ChatTemplate
from pocketvlm.templates.turn_end import text_behind_answer, texts_around_answer

SMALL = Limits(size=1000, total=1 << 15)
REST = "{{ messages[-1].content }}"
LIST = "{% set l = range(900) | list %}"
LOOP = "{% set n = namespace(v=VALUE) %}{% for i in range(12) %}{% set n.v = NEXT %}{% endfor %}{{ n.v }}"


def loop(first: str, following: str) -> str:
    return LOOP.replace("VALUE", first).replace("NEXT", following)


def flat(expression: str) -> str:
    """Return one expression without any loop or branch that does `expression` very often."""
    return "{{ [" + f"({expression}), " * 900 + "] | length }}"


def rendered(source: str, content: str = "hello", limits: Limits = SMALL) -> int:
    template = ChatTemplate(source + REST, path="a model", limits=limits)
    spans = template.render(ChatRequest.parse([{"role": "user", "content": content}]).messages)
    return sum(len(getattr(span, "text", "")) for span in spans)


@pytest.mark.parametrize(
    ("source", "harmless"),
    [
        ("{{ 'a' * 9000 }}", "{{ 'a' * 900 }}"),
        ("{{ [1, 2, 3] * 3000 }}", "{{ [1, 2, 3] * 30 }}"),
        (loop("'a'", "n.v + n.v"), loop("'a'", "n.v + 'a'")),
        (loop("'a'", "n.v ~ n.v"), loop("'a'", "n.v ~ 'a'")),
        (loop("[1]", "n.v + n.v"), loop("[1]", "n.v + [1]")),
        (loop("[1]", "[n.v, n.v]"), loop("[1]", "[n.v]")),
        (loop("(1,)", "(n.v, n.v)"), loop("(1,)", "(n.v, 1)")),
        (loop("{}", "{'a': n.v, 'b': n.v}"), loop("{}", "{'a': n.v}")),
        (loop("{}", "dict(a=n.v, b=n.v)"), loop("{}", "dict(a=n.v)")),
        (loop("[1]", "([n.v] | batch(2, n.v) | list)[0]"), loop("[1]", "[n.v] | batch(1) | list")),
        ("{% for i in range(300) %}a{{ 'aaaaaaaaa' }}{{ i }}{% endfor %}", "{% for i in range(9) %}a{% endfor %}"),
        ("{% set x %}{% for i in range(9000) %}a{% endfor %}{% endset %}", "{% set x %}a{% endset %}"),
        ("{{ 'a' | center(9000) }}", "{{ 'a' | center(90) }}"),
        ("{% if 'a' | center(9000) %}{% endif %}", "{% if 'a' | center(90) %}{% endif %}"),
        ("{{ 'a'.ljust(9000) }}", "{{ 'a'.ljust(90) }}"),
        ("{{ '\t'.expandtabs(9000) }}", "{{ '\t'.expandtabs(9) }}"),
        ("{{ ('a' * 99).replace('a', 'b' * 99) }}", "{{ ('a' * 99).replace('a', 'b') }}"),
        ("{{ ('a' * 99) | replace('', 'b' * 99) }}", "{{ ('a' * 99) | replace('a', 'b') }}"),
        ("{{ 'aaa'.translate({97: 'b' * 900}) }}", "{{ 'aaa'.translate({97: 'b'}) }}"),
        ("{{ range(99) | join('a' * 99) }}", "{{ range(99) | join(',') }}"),
        ("{{ ('a' * 99).join('b' * 99) }}", "{{ 'a'.join('b' * 99) }}"),
        ("{{ ('\n' * 99) | indent(99) }}", "{{ '\n' | indent(99) }}"),
        ("{{ [[1]] | tojson(indent=9000) }}", "{{ [[1]] | tojson(indent=9) }}"),
        ("{{ [1, 1] | tojson(false, none, ['a' * 900, ':']) }}", "{{ [1, 1] | tojson(false, none, [',', ':']) }}"),
        ("{{ [1] | slice(9000) | list | length }}", "{{ [1] | slice(9) | list | length }}"),
        ("{{ ([['a' * 99] * 9] * 9) | sum(start=[]) }}", "{{ ([['a']] * 9) | sum(start=[]) }}"),
        ("{{ range(9000) | map('string') | list | length }}", "{{ range(99) | map('string') | list | length }}"),
        ("{{ '%9000d' % 5 }}", "{{ '%90d' % 5 }}"),
        ("{{ '%(a)9000d' % {'a': 5} }}", "{{ '%(a)9d' % {'a': 5} }}"),
        ("{{ '%((a))9000d' % {'(a)': 5} }}", "{{ '%d (a)' % 5 }}"),
        ("{{ '%*d' % (90, 5) }}", "{{ '%d*' % 5 }}"),
        ("{{ '%.9000f' | format(5) }}", "{{ '%.9f' | format(5) }}"),
        ("{{ '{:9000}'.format(5) }}", "{{ '{:9}'.format(5) }}"),
        ("{{ '{:{}}'.format(5, 90) }}", "{{ '{{}}{}'.format(5) }}"),
        ("{{ '{a:9000}'.format_map({'a': 5}) }}", "{{ '{a:9}'.format_map({'a': 5}) }}"),
        ("{{ (2 ** 20000) > 1 }}", "{{ 2 ** 200 }}"),
        (LIST + "{{ range(900) | IN | IN | IN | list }}".replace("IN", "select('in', l)"), LIST),
        (LIST + flat("l == l"), LIST + flat("1 == 1")),
        (LIST + flat("2 in l, 3 not in l"), LIST + flat("2 in [1]")),
        (LIST + flat("l is eq l"), LIST + flat("1 is eq 1")),
        (LIST + flat("(l | length) + (l | length)"), LIST + flat("'a' | length")),
        (LIST + flat("not l[:]"), LIST + "{{ l[:] | length }}"),
        (LIST + flat("l.count(2) + l.count(2)"), LIST + "{{ l.count(2) }}"),
        (LIST + "{{ l | map(attribute='REAL') | list }}".replace("REAL", ".".join(["real"] * 30)), LIST),
        (loop("2 ** 5000", "n.v * n.v") + "{{ 1 }}", loop("2", "n.v * 2")),
        ("{{ 5 | round(-9000) }}", "{{ 5.25 | round(1) }}"),
        (
            "{% for i in range(900) %}{% for j in range(90) %}{% endfor %}{% endfor %}",
            "{% for i in range(9) %}{% endfor %}",
        ),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(12) }}", ""),
    ],
)
def test_more_than_the_limits_is_refused(source: str, harmless: str) -> None:
    with pytest.raises(ModelError, match=r"^a model: the chat template (makes|does more|has a format)"):
        rendered(source)
    assert rendered(harmless) >= len("hello")


def test_time_is_limited() -> None:
    source = "{% for i in range(900) %}{% endfor %}"
    with pytest.raises(ModelError, match=r"^a model: the chat template takes more than 0 s"):
        rendered(source, limits=Limits(seconds=0))
    assert rendered(source) == len("hello")


def test_the_limits_grow_with_the_conversation() -> None:
    assert rendered("{{ messages | tojson }}", "a" * 100_000) > 200_000


def test_the_first_rendering_that_is_refused_is_the_last() -> None:
    """What is learned from refusals, and rearranged after them, would run the template many times."""
    template = ChatTemplate("{% if '!' in messages[-1].content %}{{ 'a' * 9000 }}{% endif %}" + REST, limits=SMALL)
    messages = ChatRequest.parse([{"role": "user", "content": "a!"}, {"role": "user", "content": "b!"}]).messages
    with pytest.raises(ModelError, match="makes a value of more than"):
        template.render(messages)


@pytest.mark.parametrize(
    "probe",
    [text_behind_answer, texts_around_answer, lambda template: detect_tool_call_format(template, {}, ())],
)
def test_the_first_probe_that_is_refused_is_the_last(probe: Callable[[ChatTemplate], object]) -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert probe(ChatTemplate(source, limits=SMALL)) in ("", ("", ""), None)
    long = "{% if tools or not add_generation_prompt %}{{ 'a' * 9000 }}{% endif %}"
    template = ChatTemplate(source + long, limits=SMALL)
    with pytest.raises(ModelError, match="makes a value of more than"):
        probe(template)


def test_probes_share_the_time() -> None:
    with sharing_time(Limits(seconds=0)), pytest.raises(LimitError, match="takes more than"), limited(Limits(), None):
        for _ in range(300):
            step()


def test_filters_of_web_pages_and_methods_without_a_limit_are_not_there() -> None:
    for operation in ("'a' | urlize", "'a' | pprint", "'a'.encode()", "(5).to_bytes(1)", "lipsum()"):
        with pytest.raises(ModelError, match=r"No filter named|is unsafe|is undefined"):
            rendered("{{ " + operation + " }}")


def test_a_source_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_MAX_SOURCE", 100)
    with pytest.raises(LimitError, match="has 101 characters, more than 100"):
        sandbox.compiled("a" * 101, Limits())
    with pytest.raises(ModelError, match="the chat template has 1,024 characters"):
        ChatTemplate("b" * 1024)


def test_what_a_namespace_holds_does_not_count_and_is_not_written() -> None:
    source = "{% set n = namespace() %}{% set l = [n, n] %}{% set n.l = 'a' * 900 %}{{ l }}"
    assert rendered(source) < 100
