"""Many requests from a file or a folder, one line an answer; stopped at any time, it goes on where it was."""
