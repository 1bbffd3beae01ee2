# Read by CMake right after llama.cpp's own project() call, by way of
#     CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=<this file>"
# llama-cpp-python's CMakeLists.txt forces the cache entry LLAMA_BUILD_COMMON to ON. A normal variable of the same name
# hides a cache entry (CMP0077), so the command-line tools' shared code (llama-common, cpp-httplib), which the Python
# binding never loads, is neither built nor installed. libllama and ggml are all that is left.
set(LLAMA_BUILD_COMMON OFF)
