# Takes from `backends` those of CPU generations that are not worth a library. Such a machine uses the best of the others.
# ggml depends on every one of its backends, so they are built all the same, from an empty file.
get_property(generations CACHE GGML_AVAILABLE_BACKENDS PROPERTY VALUE)
set(left_out "${generations}")
# Without AMX (no_amx.cmake) Sapphire Rapids runs Zen 4's code. Cannon Lake and Cooper Lake are rare, and differ from
# Skylake and Cascade Lake by instructions that ggml's products hardly use.
list(FILTER left_out INCLUDE REGEX "sapphirerapids|cannonlake|cooperlake")
# arm64 with SME, which GCC knows from version 14.
set(sme "${generations}")
list(FILTER sme INCLUDE REGEX "armv9\\.2")
if(sme)
    include(CheckCXXCompilerFlag)
    check_cxx_compiler_flag("-march=armv9.2-a+sme" POCKETVLM_COMPILES_SME)
    if(NOT POCKETVLM_COMPILES_SME)
        list(APPEND left_out ${sme})
    endif()
endif()
if(left_out)
    message(STATUS "Left out: ${left_out}")
    list(REMOVE_ITEM backends ${left_out})
    if(NOT EXISTS "${CMAKE_BINARY_DIR}/empty.cpp")
        file(WRITE "${CMAKE_BINARY_DIR}/empty.cpp" "")
    endif()
    set_target_properties(${left_out} PROPERTIES SOURCES "${CMAKE_BINARY_DIR}/empty.cpp" COMPILE_OPTIONS "")
endif()
