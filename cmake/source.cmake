# Where llama.cpp's source is, and of which llama-cpp-python it is. Sets LLAMA_CPP_SOURCE, LLAMA_CPP_PYTHON_VERSION and
# PYTHON. The source is the one that the pinned llama-cpp-python vendors, because the Python side is bound to its structs.

find_program(PYTHON NAMES python3 python NAMES_PER_DIR
    HINTS "$ENV{VIRTUAL_ENV}/bin" "$ENV{VIRTUAL_ENV}/Scripts" "${CMAKE_SOURCE_DIR}/.venv/bin"
    NO_CMAKE_FIND_ROOT_PATH REQUIRED)

set(requirement "${CMAKE_SOURCE_DIR}/cmake/llama-cpp-python.txt")
file(STRINGS "${requirement}" pinned REGEX "^llama-cpp-python==")
string(REGEX REPLACE "^llama-cpp-python==([^ ]+) .*" "\\1" LLAMA_CPP_PYTHON_VERSION "${pinned}")

if(NOT LLAMA_CPP_SOURCE)
    set(downloads "${CMAKE_SOURCE_DIR}/build/source")
    set(LLAMA_CPP_SOURCE "${downloads}/llama_cpp_python-${LLAMA_CPP_PYTHON_VERSION}/vendor/llama.cpp")
    if(NOT EXISTS "${LLAMA_CPP_SOURCE}/CMakeLists.txt")
        message(STATUS "Obtaining the source of llama-cpp-python ${LLAMA_CPP_PYTHON_VERSION} with pip")
        execute_process(
            COMMAND "${PYTHON}" -m pip download --quiet --disable-pip-version-check --no-deps
                    --no-binary llama-cpp-python --require-hashes --dest "${downloads}" --requirement "${requirement}"
            RESULT_VARIABLE failed)
        if(failed)
            message(FATAL_ERROR "pip could not obtain llama-cpp-python ${LLAMA_CPP_PYTHON_VERSION} with ${PYTHON}. "
                "Without a network: -DLLAMA_CPP_SOURCE=.../llama_cpp_python-${LLAMA_CPP_PYTHON_VERSION}/vendor/llama.cpp")
        endif()
        set(name "llama_cpp_python-${LLAMA_CPP_PYTHON_VERSION}")
        file(ARCHIVE_EXTRACT INPUT "${downloads}/${name}.tar.gz" DESTINATION "${downloads}/unpacked")
        file(RENAME "${downloads}/unpacked/${name}" "${downloads}/${name}")  # whole, or not there
    endif()
endif()

set(init "${LLAMA_CPP_SOURCE}/../../llama_cpp/__init__.py")
if(NOT EXISTS "${LLAMA_CPP_SOURCE}/tools/mtmd/CMakeLists.txt" OR NOT EXISTS "${init}")
    message(FATAL_ERROR "LLAMA_CPP_SOURCE ('${LLAMA_CPP_SOURCE}') is not vendor/llama.cpp of an unpacked llama-cpp-python")
endif()
file(STRINGS "${init}" found REGEX "^__version__")
string(REGEX REPLACE ".*\"(.*)\".*" "\\1" found "${found}")

execute_process(
    COMMAND "${PYTHON}" -c "from importlib.metadata import version; print(version('llama-cpp-python'))"
    OUTPUT_VARIABLE installed OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
foreach(other IN ITEMS "${found}" "${installed}")
    if(other AND NOT other STREQUAL LLAMA_CPP_PYTHON_VERSION)
        message(FATAL_ERROR "Versions disagree: pinned llama-cpp-python ${LLAMA_CPP_PYTHON_VERSION}, "
            "source ${found}, installed for ${PYTHON} ${installed}")
    endif()
endforeach()
message(STATUS "llama.cpp of llama-cpp-python ${LLAMA_CPP_PYTHON_VERSION}: ${LLAMA_CPP_SOURCE}")

# Where pocketvlm looks: in the environment of the Python that it runs in.
if(CMAKE_INSTALL_PREFIX_INITIALIZED_TO_DEFAULT)
    execute_process(COMMAND "${PYTHON}" -c "import sys; print(sys.prefix)"
        OUTPUT_VARIABLE prefix OUTPUT_STRIP_TRAILING_WHITESPACE)
    set_property(CACHE CMAKE_INSTALL_PREFIX PROPERTY VALUE "${prefix}")
endif()
