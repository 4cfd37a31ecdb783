"""rocmforge_jax: GGUF models in JAX."""
