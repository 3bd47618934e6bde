# Compiles libmtmd's small model files in batches, as llama.cpp does with those of libllama: most of their time goes into
# the headers that all of them include.
if(NOT TARGET mtmd)  # CMAKE_ARGS may have left it out
    return()
endif()
get_target_property(sources mtmd SOURCES)
get_target_property(folder mtmd SOURCE_DIR)
set(others "${sources}")
list(FILTER others EXCLUDE REGEX "^models/")
list(TRANSFORM others PREPEND "${folder}/")
set_source_files_properties(${others} DIRECTORY "${folder}" PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)

# clip.cpp takes longest. At the end of the list all other cores would wait for it.
list(REMOVE_ITEM sources clip.cpp)
list(PREPEND sources clip.cpp)
set_target_properties(mtmd PROPERTIES SOURCES "${sources}" UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 16)
