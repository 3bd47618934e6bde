"""llama.cpp through ctypes: the only folder that imports llama_cpp. No ctypes name leaves it."""
