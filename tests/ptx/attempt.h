// What the C functions of this folder return. Their whole numbers are int64_t throughout, so that
// a caller through ctypes need not know their types.
#pragma once

#include <cuda_runtime_api.h>

#include <exception>
#include <string>

namespace cnnkernels::ptx {

enum class Status { ran, refused, failed };

inline std::string message;  // why the last attempt was refused or failed

inline Status refuse(const std::string& reason) {
  message = reason;
  return Status::refused;
}

// What body() returns, or `failed` if it throws: then the runtime forgets its error, which would
// else meet every later launch.
template <class Body>
Status attempt(const Body& body) {
  try {
    return body();
  } catch (const std::exception& error) {
    message = error.what();
    cudaDeviceReset();
    return Status::failed;
  }
}

}  // namespace cnnkernels::ptx
