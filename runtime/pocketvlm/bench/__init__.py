"""How long a model takes on this machine: measured (`measure`), and drawn (`picture`)."""
