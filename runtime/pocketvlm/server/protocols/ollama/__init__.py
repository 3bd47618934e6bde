"""Ollama's API: chat and generate, and what clients ask about models. Nothing is downloaded or changed over it."""
