"""The C++ library for CPUs: its sources, its build and loading, and its functions in JAX."""
