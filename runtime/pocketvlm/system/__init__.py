"""The operating system: the machine, files, processes, memory, the network, and time."""
