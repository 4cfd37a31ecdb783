"""Classifies texts by their embeddings: classify.py [MODEL] [TEXTS.jsonl]

A line is {"text": "...", "label": "..."}. Three of four fit a linear map, every fourth tests it.
"""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import rocmforge_jax as rf

SPEAKERS = {
    "king": "crown throne realm subjects sceptre majesty kingdom royal".split(),
    "lover": "love kiss heart sweet beauty tender lips passion".split(),
}


def samples() -> list[tuple[str, str]]:
    if sys.argv[2:]:
        rows = map(json.loads, Path(sys.argv[2]).read_text().splitlines())
        return [(row["text"], row["label"]) for row in rows]
    forms = ("My {} and my {}!", "Speak of the {}, the {}.", "O {}, O {}, what now?")
    pairs = [(name, *pair) for name, words in SPEAKERS.items() for pair in zip(words, words[1:])]
    return [(form.format(*pair), name) for name, *pair in pairs for form in forms]


texts, labels = zip(*samples())
lm = rf.load((*sys.argv[1:], "demo")[0])
vectors = jnp.asarray(np.stack(lm.embed(list(texts), pooling="mean", progress=False)))
names = sorted(set(labels))
wanted = jnp.array([[float(label == name) for name in names] for label in labels])
test = np.arange(len(texts)) % 4 == 3
x, y = vectors[~test], wanted[~test]
weights = jnp.linalg.solve(x.T @ x + 1e-2 * jnp.eye(x.shape[1]), x.T @ y)
right = (vectors[test] @ weights).argmax(axis=1) == wanted[test].argmax(axis=1)
print(f"{int(right.sum())} of {len(right)} texts of the test are right, {len(names)} classes")
