"""Run prompts: generations in, events out. `VLM` uses an engine through the protocol in `interface`."""
