"""Answers that follow a JSON Schema or call tools: the prompt, the grammar of the answer, and its parser."""
