"""Which requests run, and what each step evaluates and samples."""
