// Definitions of the library's own, so that it needs no newer C and C++ runtime than glibc 2.27 and libstdc++ of GCC 9.

#include <cstdlib>

#define OWN __attribute__((visibility("hidden")))

// glibc 2.32 and newer: whether shared pointers may do without atomic operations. They may not.
extern "C" {
OWN char __libc_single_threaded = 0;
}

// libstdc++ of GCC 11 and newer: containers call it when asked for more elements than memory can have.
namespace std {
OWN [[noreturn]] void __throw_bad_array_new_length() { abort(); }
}
