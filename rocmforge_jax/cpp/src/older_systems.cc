// Definitions of symbols that newer C and C++ runtimes have, so that the library also runs with glibc 2.27 and the libstdc++ of GCC 9.

#include <cstdlib>

#define OWN __attribute__((visibility("hidden")))

// From glibc 2.32: whether shared pointers may omit atomic operations because there is a single thread. They may not.
extern "C" {
OWN char __libc_single_threaded = 0;
}

// From the libstdc++ of GCC 11: containers call it if the requested size exceeds the address space.
namespace std {
OWN [[noreturn]] void __throw_bad_array_new_length() { abort(); }
}
