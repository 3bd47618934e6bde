"""The fixed picture-text sets, and how libllama evaluates them."""
