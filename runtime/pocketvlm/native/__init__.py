"""Bind llama.cpp through ctypes. Only this folder imports llama_cpp, and no ctypes name leaves it."""
