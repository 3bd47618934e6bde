"""Judge texts by a schema twice, by jsonschema and by llguidance's grammar: what two findings run."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import llguidance

_TOKENIZER = llguidance.LLTokenizer("byte")


def differs(schema: dict[str, Any], texts: list[str], wrong: list[str]) -> bool:
    """Print both judgements of each JSON text. Return whether others than the `wrong` ones are misjudged."""
    grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
    failed, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar, _TOKENIZER)
    print(f"{json.dumps(schema)}   errors and warnings: {messages or 'none'}")
    misjudged = []
    for text in texts:
        tokens = _TOKENIZER.tokenize_str(text)
        matcher = llguidance.LLMatcher(_TOKENIZER, grammar)
        allowed = matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()
        fits = jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
        print(f"    {text:>22}   jsonschema: {'fits' if fits else 'does not fit':<12}", end="")
        print(f"   llguidance: {'allowed' if allowed else 'refused'}{'' if allowed == fits else '   wrong'}")
        if allowed != fits:
            misjudged.append(text)
    return failed or bool(messages) or misjudged != wrong
