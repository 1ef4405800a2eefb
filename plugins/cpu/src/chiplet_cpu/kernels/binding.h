// Plain C++ functions as Python functions, through the stable ABI and without any library:
// a call costs about as much as reading its integers.
#pragma once

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030b0000
#endif
#include <Python.h>

#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "tape.h"

namespace binding {

template <class T>
T take(PyObject* object);

template <>
inline int64_t take<int64_t>(PyObject* object) {
  return PyLong_AsLongLong(object);
}
template <>
inline double take<double>(PyObject* object) {
  return PyFloat_AsDouble(object);
}
// Addresses, as `Tensor.data_ptr()` gives them; 0 for none.
template <>
inline void* take<void*>(PyObject* object) {
  return PyLong_AsVoidPtr(object);
}
template <>
inline const char* take<const char*>(PyObject* object) {
  return PyUnicode_AsUTF8AndSize(object, nullptr);
}

inline PyObject* give(int64_t value) { return PyLong_FromLongLong(value); }
inline PyObject* give(const char* value) { return PyUnicode_FromString(value); }

// What a call of a function means while its thread records a tape.
enum class While { refused, made, recorded };

template <auto function, While recording>
struct Bound;

template <class R, class... Args, R (*function)(Args...), While recording>
struct Bound<function, recording> {
  // Braces, so that arguments are read in order.
  struct Values {
    std::tuple<Args...> all;
  };

  template <std::size_t... i>
  static PyObject* unpack(PyObject* const* args, std::index_sequence<i...>) {
    Values values{std::tuple<Args...>{take<Args>(args[i])...}};
    if (PyErr_Occurred()) return nullptr;
    if constexpr (recording == While::recorded) {
      static_assert(std::is_void_v<R>, "a kernel gives nothing back");
      static_assert((!std::is_same_v<Args, const char*> && ...), "a kernel takes no text");
      auto call = [values] { std::apply(function, values.all); };
      if (tape::is_recording()) {
        tape::add(call);
      } else {
        tape::make(call);
      }
      Py_RETURN_NONE;
    } else if constexpr (std::is_void_v<R>) {
      function(std::get<i>(values.all)...);
      if (PyErr_Occurred()) return nullptr;
      Py_RETURN_NONE;
    } else {
      return give(function(std::get<i>(values.all)...));
    }
  }

  static PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != (Py_ssize_t)sizeof...(Args)) {
      PyErr_Format(PyExc_TypeError, "%zd arguments, expected %zd", count,
                   (Py_ssize_t)sizeof...(Args));
      return nullptr;
    }
    if (recording == While::refused && tape::is_recording()) {
      PyErr_SetString(PyExc_RuntimeError, "this function cannot be recorded");
      return nullptr;
    }
    return unpack(args, std::index_sequence_for<Args...>{});
  }
};

template <auto function, While recording = While::refused>
PyMethodDef method(const char* name) {
  auto call = Bound<function, recording>::call;
  return {name, (PyCFunction)(void (*)())call, METH_FASTCALL, nullptr};
}

// A function of addresses and numbers alone, which a tape repeats.
template <auto function>
PyMethodDef kernel(const char* name) {
  return method<function, While::recorded>(name);
}

// A question whose answer no tape changes.
template <auto function>
PyMethodDef query(const char* name) {
  return method<function, While::made>(name);
}

}  // namespace binding
