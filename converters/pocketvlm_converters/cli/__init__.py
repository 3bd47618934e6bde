"""The `pocketvlm` commands of the converters, one file each."""
