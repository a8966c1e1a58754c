// The cuda backend: products by cuBLASLt, row programs by generated kernels, everything else by the kernels embedded in
// this library, all on one stream of one GPU. Its buffers are device memory in the tape's own element types.
//
// Invariants: a Step only enqueues, so that whole steps can be captured; the host waits where it reads something back.
#pragma once
#include <memory>
#include <string>

#include "backends/cuda/device.h"
#include "core/backend.h"

namespace sg::cuda {

class CudaBackend;

// A backend of its own over these tables, which must outlive it. Error{backend} with the reason where there is no
// driver or no GPU.
std::unique_ptr<Backend> make_cuda_backend(const Tables& tables);

// The tables of the process's backend("cuda"), instead of this machine's libraries. Error{usage} after its first use.
void set_cuda_tables(const Tables& tables);

// Why the process has no backend("cuda"): no driver, or no GPU that it can use. Empty where it has one.
const std::string& no_cuda();

// Precision of products that are compiled from now on: f32 means f32 unless this is on (`--tf32`).
bool tf32();
void set_tf32(bool on);

// The device of a cuda backend, for its counters. Error{usage} for other backends.
Device& device_of(Backend& backend);

}  // namespace sg::cuda

namespace sg {
Backend& cuda_backend();  // Error{backend} saying no_cuda()
}
