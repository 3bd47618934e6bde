"""Chat templates in the styles that models have, written for these tests, and the plain Jinja that renders them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from iota.tokenizer import CHAT_TEMPLATE

BOS, EOS = "<bos>", "<eos>"

# Default system message, a namespace, strings and parts, three tokens for a picture: Qwen2.5-VL's style.
CHATML = """
{%- set images = namespace(n=0) -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{%- set images.n = images.n + 1 -%}
{%- if add_vision_id %}Picture {{ images.n }}: {% endif -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""

# System text goes before the first question, turns must alternate, all text is trimmed: Gemma 3's style.
ALTERNATING = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must alternate: user, assistant, user") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif part['type'] == 'text' -%}
                {{ part['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception('Invalid content type') }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""

# Text only, strings only, the first token put before the first message: Llama 3's style.
HEADERS = (
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# Parts only, pictures before text, a generation block: LLaVA's style.
PICTURES_FIRST = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% else %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}"
    "{% endfor %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

# Macros, set blocks, loop controls, and an answer's thoughts cut out: the style of models that think.
THINKING = """
{%- macro content_of(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
                {%- continue -%}
            {%- endif -%}
            {{- part.text -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {%- set content = content_of(message.content) | trim -%}
    {%- if message.role == 'assistant' -%}
        {%- set thoughts = '' -%}
        {%- if '</think>' in content -%}
            {%- set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
            {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
        {%- endif -%}
        {%- if loop.last or (loop.index0 > messages | length - 3 and thoughts) -%}
            {%- set content = '<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') -%}
        {%- endif -%}
    {%- endif -%}
    {%- set turn -%}
        <|im_start|>{{ message.role }}{{ '\n' ~ content ~ '<|im_end|>' }}
    {%- endset -%}
    {{- turn + '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""

# Parts from users only, strings from the others: Pixtral's style.
MIXED = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '[SYSTEM]' + message['content'] + '[/SYSTEM]' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST]' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}{{ '[IMG]' }}"
    "{% else %}{{ raise_exception('Only text and image') }}{% endif %}"
    "{% endfor %}"
    "{% endif %}"
    "{{ '[/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)

# Blocks on lines of their own, whose line ends and indents must vanish.
LINES = """{% for message in messages %}
    {% if loop.first %}
{{ bos_token }}
    {% endif %}
[{{ message['role'] }}]
    {{ message['content'] }}
{% endfor %}
{% if add_generation_prompt %}
[assistant]
{% endif %}
"""

# Name: source, token of a picture, whether text is trimmed.
TEMPLATES: dict[str, tuple[str, str | None, bool]] = {
    "iota": (CHAT_TEMPLATE, "<image>", False),
    "chatml": (CHATML, "<|image_pad|>", False),
    "alternating": (ALTERNATING, "<start_of_image>", True),
    "headers": (HEADERS, None, True),
    "pictures first": (PICTURES_FIRST, "<image>", False),
    "thinking": (THINKING, "<|image_pad|>", True),
    "lines": (LINES, None, False),
    "mixed": (MIXED, "[IMG]", False),
}


def _refuse(message: str) -> None:
    raise TemplateError(message)


@cache
def _compiled(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(source.replace("{% generation %}", "").replace("{% endgeneration %}", ""))


def plainly(source: str, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True) -> str:
    """The prompt as Jinja alone writes it, with the options that Hugging Face documents for chat templates."""
    return _compiled(source).render(
        messages=messages, bos_token=BOS, eos_token=EOS, tools=None, add_generation_prompt=add_generation_prompt
    )
