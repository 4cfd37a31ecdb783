"""The axis alphabet of the repository.

The suffix of a name such as `logits_BTV` lists its axes. Docstrings use the same letters.

B  batch              T  query tokens         S  cache slots
D  model width        F  feed-forward width   V  vocabulary
N  query heads        K  key/value heads      G  query heads per key/value head, N / K
H  head width         W  width of a value     C  tokens of a chunk
E  experts               or of a state        L  taps of a filter
"""
