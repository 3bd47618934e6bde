"""HTTP: OpenAI's chat completions, served from one loaded model."""
