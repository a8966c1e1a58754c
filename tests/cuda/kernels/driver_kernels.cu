// Small kernels for the tests of the emulated driver.
extern "C" __global__ void fill(float* y, float value, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] = value;
}

extern "C" __global__ void add_to(float* y, const float* x, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] += x[i];
}

// y = a * y + b: no two of them may change places.
extern "C" __global__ void affine(float* y, float a, float b, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] = a * y[i] + b;
}

extern "C" __global__ void writes_past_the_end(float* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i <= n) y[i] = 1;
}

extern "C" __global__ void misaligned(float* y) { *reinterpret_cast<float2*>(y + 1) = make_float2(1, 2); }

extern "C" __global__ void __launch_bounds__(64) bounded(float* y) { y[0] = static_cast<float>(blockDim.x); }

extern "C" __global__ void in_shared_memory(float* y, int n) {
  extern __shared__ float shared[];
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) shared[i] = static_cast<float>(i);
  __syncthreads();
  if (threadIdx.x == 0) y[0] = shared[n - 1];
}
