# For a PyTorch with CUDA where there is no toolkit to build Horovod's CUDA part with.
include("${CMAKE_CURRENT_LIST_DIR}/horovod.cmake")
list(PREPEND CMAKE_MODULE_PATH "${CMAKE_CURRENT_LIST_DIR}/without_cuda")
