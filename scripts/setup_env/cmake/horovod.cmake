# Horovod asks for C++14 and drops -std from CXXFLAGS, but PyTorch's headers need C++17; a toolchain
# file is the one place that CMake takes it from.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-std=c++17>)
# Horovod uses what these define without including them; up to GCC 12 other headers brought them in.
# (SHELL: keeps CMake from dropping the repeated -include as a duplicate.)
foreach(header string cstdint stdexcept)
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include ${header}>")
endforeach()
# Relative, because the wheel is installed in other folders than the one that it was built for:
# PyTorch's libraries, and those of an MPI that is installed in the environment.
set(CMAKE_BUILD_RPATH "$ORIGIN/../../torch/lib;$ORIGIN/../../../..")
