// main() of the emulator's cases, compiled by nvcc.
#include "../emulator/checks.h"

int main(int argc, char** argv) { return cnnkernels::cuda::run_cases(argc, argv); }
