"""The engine in a process of its own, which is started again when native code ends it."""
