// The threads of parallel.h for the programs in this folder.
#pragma once

namespace cnnkernels {

// To be called once, before any launch. Ranges are cut as if their grain were 1, so that even two
// blocks run on two OS threads: TSan finds no race between blocks that one OS thread runs.
void start_threads(int count);

}  // namespace cnnkernels
