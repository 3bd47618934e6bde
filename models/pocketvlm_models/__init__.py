"""Data only: the model in the box (`iota/`) and the catalogue. The runtime finds it by importlib.resources."""
