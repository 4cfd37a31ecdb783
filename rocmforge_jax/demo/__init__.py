"""The demo model: a small Llama that writes mock Shakespeare.

`demo.gguf` ships with the package, `train` made it.
"""
