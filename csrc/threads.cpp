// parallel.h on torch's own thread pool, so that torch.set_num_threads is obeyed.
#include <torch/csrc/stable/ops.h>

#include "parallel.h"

namespace cnnkernels {

void parallel_ranges(int64_t count, int64_t grain, RangeFunction function, void* context) {
  torch::stable::parallel_for(0, count, grain,
                              [&](int64_t begin, int64_t end) { function(context, begin, end); });
}

int thread_count() { return static_cast<int>(torch::stable::get_num_threads()); }

}  // namespace cnnkernels
