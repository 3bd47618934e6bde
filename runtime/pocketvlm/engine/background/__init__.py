"""Work that running answers must not wait for, on a thread of its own."""
