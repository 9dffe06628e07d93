// nanobind's own sources, which it ships to be compiled into each extension.
#define NB_BUILD
#define NB_COMPACT_ASSERTIONS
#include <nb_combined.cpp>
