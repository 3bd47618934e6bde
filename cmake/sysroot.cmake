# Compiles against the C and C++ libraries of an older Debian, with this machine's compiler, so that other systems load
# what comes out. POCKETVLM_SYSROOT is the root of that Debian, with libc6-dev and libstdc++-10-dev; scripts/wheels.py
# makes one for each architecture, x86_64 or aarch64.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES POCKETVLM_SYSROOT POCKETVLM_ARCHITECTURE)
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR "${POCKETVLM_ARCHITECTURE}")
set(triple "${POCKETVLM_ARCHITECTURE}-linux-gnu")
set(CMAKE_C_COMPILER ${triple}-gcc)
set(CMAKE_CXX_COMPILER ${triple}-g++)
set(CMAKE_SYSROOT "${POCKETVLM_SYSROOT}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)

# The compiler's own headers (intrinsics), and all others of the root: a cross compiler would search its newer ones first.
execute_process(COMMAND ${CMAKE_C_COMPILER} -print-file-name=include
    OUTPUT_VARIABLE own OUTPUT_STRIP_TRAILING_WHITESPACE)
set(headers "-nostdinc -isystem ${own}")
foreach(folder IN ITEMS usr/include/${triple} usr/include)
    string(APPEND headers " -isystem ${CMAKE_SYSROOT}/${folder}")
endforeach()
set(cxx_headers "-nostdinc++")
foreach(folder IN ITEMS usr/include/c++/10 usr/include/${triple}/c++/10 usr/include/c++/10/backward)
    string(APPEND cxx_headers " -isystem ${CMAKE_SYSROOT}/${folder}")
endforeach()
set(CMAKE_C_FLAGS_INIT "${headers}")
set(CMAKE_CXX_FLAGS_INIT "${cxx_headers} ${headers}")
foreach(kind IN ITEMS EXE SHARED MODULE)
    set(CMAKE_${kind}_LINKER_FLAGS_INIT "-B${CMAKE_SYSROOT}/usr/lib/${triple} -L${CMAKE_SYSROOT}/usr/lib/${triple} -s")
endforeach()
