# Takes from `backends` those that this compiler cannot build. ggml builds a CPU backend for each generation of arm64,
# two of them with SME, which GCC knows from version 14. Machines with SME then use the best of the others.
# ggml depends on every one of its backends, so they are built all the same, from an empty file.
get_property(sme CACHE GGML_AVAILABLE_BACKENDS PROPERTY VALUE)
list(FILTER sme INCLUDE REGEX "armv9\\.2")
if(sme)
    include(CheckCXXCompilerFlag)
    check_cxx_compiler_flag("-march=armv9.2-a+sme" POCKETVLM_COMPILES_SME)
    if(NOT POCKETVLM_COMPILES_SME)
        message(STATUS "Left out, as ${CMAKE_CXX_COMPILER} does not know SME: ${sme}")
        list(REMOVE_ITEM backends ${sme})
        file(WRITE "${CMAKE_BINARY_DIR}/empty.cpp" "")
        set_target_properties(${sme} PROPERTIES SOURCES "${CMAKE_BINARY_DIR}/empty.cpp" COMPILE_OPTIONS "")
    endif()
endif()
