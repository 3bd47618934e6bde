"""The conversation of `pocketvlm chat` without a question. `talk` is its loop."""
