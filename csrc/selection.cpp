#include "selection.h"

namespace cnnkernels {

Inquiry& inquiry() {
  static thread_local Inquiry own;
  return own;
}

}  // namespace cnnkernels
