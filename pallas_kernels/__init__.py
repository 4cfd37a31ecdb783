"""GPU kernels written in Pallas, and one in Triton's own language. Never imports rocmforge_jax."""
