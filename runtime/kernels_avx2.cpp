// The operators of kernels.cpp, for AVX2 with FMA.
#include "kernels.cpp"
