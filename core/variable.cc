#include "core/variable.h"

#include <cstring>

#include "core/backend.h"

namespace sg {

Variable::~Variable() {
  for (const Residence& r : residences_)
    if (const auto backend = r.backend.lock()) (*backend)->release(r.data);
}

void Variable::set(const Tensor& value) {
  if (value.type() != type())
    fail(value.dtype() != type().dtype ? ErrorKind::dtype : ErrorKind::shape,
         "variable '{}' is {}, the value given is {}", name_, to_string(type()), to_string(value.type()));
  std::memcpy(value_.data(), value.data(), value.bytes());
  touch();
}

Variable::Residence& Variable::residence(Backend& backend) {
  const auto wanted = backend.lifetime().lock();
  for (Residence& r : residences_)
    if (r.backend.lock() == wanted) return r;
  void* p = backend.allocate(type().bytes());
  return residences_.emplace_back(Residence{wanted, p, 0});
}

void* Variable::resident(Backend& backend) {
  Residence& r = residence(backend);
  if (r.version != version_) {
    to_host();
    backend.upload(r.data, value_.data(), type());
    r.version = version_;
  }
  return r.data;
}

void Variable::touch_resident(Backend& backend) { residence(backend).version = ++version_; }

void Variable::download() const {
  for (const Residence& r : residences_)
    if (const auto backend = r.backend.lock(); backend != nullptr && r.version == version_) {
      (*backend)->download(value_.data(), r.data, type());
      host_version_ = version_;
      return;
    }
  fail(ErrorKind::backend, "variable '{}': its newest value went with the backend that held it", name_);
}

}  // namespace sg
