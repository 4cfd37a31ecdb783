"""The C++ library for CPUs: its source, how it is built and loaded, and its functions in JAX."""
