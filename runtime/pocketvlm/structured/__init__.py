"""Answers of a given form, JSON Schema or tool calls: the prompt, the grammar of the answer, and its parser."""
