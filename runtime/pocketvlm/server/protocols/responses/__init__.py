"""OpenAI's Responses: typed items in, typed items and events out, and answers that are kept for the next request."""
