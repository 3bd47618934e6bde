"""What runs a prompt: a request in, events out."""
