"""Kernels for GPUs, written with Pallas. Knows planes and tiles; never imports rocmforge_jax."""
