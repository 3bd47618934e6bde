"""The `pocketvlm` commands of the converters, a file per command."""
