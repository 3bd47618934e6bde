# Leaves out of llama-cpp-python's own build what its bindings never load, or what some compilers get wrong.
# scripts/setup_venv.py has CMake include this after project(llama_cpp): -DCMAKE_PROJECT_llama_cpp_INCLUDE=...

# llama-cpp-python forces LLAMA_BUILD_COMMON=ON into the cache. A normal variable takes precedence (CMP0126, CMP0077).
set(LLAMA_BUILD_COMMON OFF)

include("${CMAKE_CURRENT_LIST_DIR}/no_amx.cmake")

# Deferred, because the targets do not exist yet. Deferred arguments are expanded late, hence the variable.
set(POCKETVLM_UNITY "${CMAKE_CURRENT_LIST_DIR}/unity.cmake")
cmake_language(DEFER CALL include "${POCKETVLM_UNITY}")
