"""Read documents page by page: what to ask each model, how its notation becomes Markdown, what is kept on the way."""
