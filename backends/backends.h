// The explicit list of backends of this build.
#pragma once
#include <string>

#include "core/backend.h"

namespace sg {

std::string describe_backends();    // one line each, and what this build lacks and why
void set_threads(int threads);      // of the one OpenMP runtime that oneDNN and our kernels share. Error{usage} below 1
int threads();

Backend& reference_backend();
Backend& cpu_backend();

}  // namespace sg
