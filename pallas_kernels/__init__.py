"""GPU kernels written in Pallas. This package never imports rocmforge_jax."""
