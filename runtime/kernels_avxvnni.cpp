// The operators of kernels.cpp, for AVX-VNNI: what processors without AVX-512 have of VNNI.
#include "kernels.cpp"
