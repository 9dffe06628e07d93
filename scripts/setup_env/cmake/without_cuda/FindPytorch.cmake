# Finds PyTorch as Horovod's module of this name does, but takes one with CUDA for one without.
execute_process(
  COMMAND ${PY_EXE} -c "import torch, torch.utils.cpp_extension as c; e = c.CppExtension('', []); \
print(torch.__version__, '|'.join(e.include_dirs), '|'.join(e.library_dirs), \
'|'.join(e.libraries), torch.compiled_with_cxx11_abi(), sep=';')"
  OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE)
list(GET found 0 Pytorch_VERSION)
list(GET found 1 Pytorch_INCLUDE_DIRS)
list(GET found 2 Pytorch_LIBRARY_DIRS)
list(GET found 3 libraries)
list(GET found 4 Pytorch_CXX11)
string(REPLACE "|" ";" Pytorch_INCLUDE_DIRS "${Pytorch_INCLUDE_DIRS}")
string(REPLACE "|" ";" Pytorch_LIBRARY_DIRS "${Pytorch_LIBRARY_DIRS}")
string(REPLACE "|" ";" libraries "${libraries}")
foreach(library IN LISTS libraries)
  find_library(FOUND_LIB_${library} NAMES ${library} HINTS ${Pytorch_LIBRARY_DIRS})
  list(APPEND Pytorch_LIBRARIES ${FOUND_LIB_${library}})
endforeach()
string(TOUPPER "${Pytorch_CXX11}" Pytorch_CXX11)
if(Pytorch_CXX11)
  set(Pytorch_COMPILE_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=1")
else()
  set(Pytorch_COMPILE_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=0")
endif()
set(Pytorch_CUDA FALSE)
set(Pytorch_ROCM FALSE)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  Pytorch REQUIRED_VARS Pytorch_LIBRARIES VERSION_VAR Pytorch_VERSION)
