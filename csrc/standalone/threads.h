// parallel.h on std::thread: for programs without torch, which link threads.cpp.
#pragma once

namespace cnnkernels {

// How many threads parallel_ranges uses at most; at first, one for each core.
void set_thread_count(int count);

}  // namespace cnnkernels
