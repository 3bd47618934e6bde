"""Answers of a given form: a JSON Schema, tool calls. What the model is told, what it may write, how that is read."""
