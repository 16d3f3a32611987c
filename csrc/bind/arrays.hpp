#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <string>

namespace budwood::bind {

// No type or order is asked of nanobind, so it never converts or copies and our own messages are seen.
using Input = nanobind::ndarray<nanobind::ro, nanobind::device::cpu>;
using Output = nanobind::ndarray<nanobind::device::cpu>;

[[noreturn]] inline void refuse(const std::string& message) { throw nanobind::value_error(message.c_str()); }

inline bool c_contiguous(const auto& array) {
  int64_t expected = 1;
  for (size_t i = array.ndim(); i-- > 0;) {
    if (array.shape(i) != 1 && array.stride(i) != expected) return false;
    expected *= static_cast<int64_t>(array.shape(i));
  }
  return true;
}

// Refuses an array that is not C-contiguous, aligned, of type T and of `ndim` dimensions.
template <class T>
void check(const auto& array, const char* name, size_t ndim, const char* type) {
  const std::string who(name);
  if (array.dtype() != nanobind::dtype<T>()) refuse(who + " must be " + type);
  if (array.ndim() != ndim)
    refuse(who + " must have " + std::to_string(ndim) + " dimension(s), not " + std::to_string(array.ndim()));
  if (array.size() != 0 && !c_contiguous(array)) refuse(who + " must be C-contiguous");
  if (reinterpret_cast<uintptr_t>(array.data()) % alignof(T) != 0) refuse(who + " must be aligned");
}

template <class T>
const T* pointer(const Input& array) { return static_cast<const T*>(array.data()); }

template <class T>
T* pointer(const Output& array) { return static_cast<T*>(array.data()); }

// True if the two share a byte.
inline bool overlap(const auto& a, const auto& b) {
  const auto begin = [](const auto& x) { return reinterpret_cast<uintptr_t>(x.data()); };
  return a.size() != 0 && b.size() != 0 && begin(a) < begin(b) + b.nbytes() && begin(b) < begin(a) + a.nbytes();
}

}  // namespace budwood::bind
