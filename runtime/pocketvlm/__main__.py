"""`python -m pocketvlm` is the `pocketvlm` command."""

from pocketvlm.cli import main

main()
