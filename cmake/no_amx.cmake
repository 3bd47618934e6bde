# Leaves ggml's AMX kernels out. GCC 12 declares to read only 8 of the 64 bytes of a tile configuration, so it removes
# the code that writes the others, and the first product ends the process with SIGILL. Other processors' kernels, ours
# among them, are used instead. A macro, because -march=native would set an option of the compiler again.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$" AND CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    add_compile_options(-U__AMX_TILE__ -U__AMX_INT8__ -U__AMX_BF16__)
endif()
