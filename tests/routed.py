"""The choice of experts in float64 NumPy, token by token, as llama.cpp defines it."""

import numpy as np

from pallas_kernels.router import Routing

#: (routing, whether there is a selection bias): each scoring with and without what follows it.
ROUTINGS = {
    "softmax": (Routing(3, "softmax", False), False),
    "softmax, selected with a bias": (Routing(3, "softmax", True, scale=1.5), True),
    "sigmoid": (Routing(3, "sigmoid", False), False),
    "sigmoid, selected with a bias": (Routing(3, "sigmoid", True, scale=2.5), True),
    "softmax of the chosen": (Routing(3, "softmax_of_chosen", False), False),
    "softmax of the chosen, with a bias": (Routing(3, "softmax_of_chosen", True), True),
    "softplus": (Routing(3, "sqrt_softplus", True, scale=0.5), False),
    "softplus, selected with a bias": (Routing(3, "sqrt_softplus", True), True),
}
#: The same with experts in groups.
GROUPED = {
    "two of three groups": (Routing(3, "sigmoid", True, groups=3, groups_used=2), True),
    "one of four groups": (Routing(2, "softmax", False, groups=4, groups_used=1), False),
    "all of two groups": (Routing(4, "sqrt_softplus", True, groups=2, groups_used=2), True),
    "one of two groups": (Routing(5, "softmax_of_chosen", False, groups=2), False),
}


def routed(logits, routing, selection_bias=None):
    """Returns the weights and ids of each token's experts."""
    chosen = [_token(np.float64(row), routing, selection_bias) for row in np.asarray(logits)]
    weights, ids = zip(*chosen)
    return np.stack(weights), np.stack(ids)


def _token(logits, routing, selection_bias):
    scores = {
        "softmax": _softmax,
        "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
        "softmax_of_chosen": lambda a: a,
        "sqrt_softplus": lambda a: np.sqrt(np.log1p(np.exp(a))),
    }[routing.scoring](logits)
    by = scores if selection_bias is None else scores + np.float64(selection_bias)
    if routing.groups > 1:
        groups = by.reshape(routing.groups, -1)
        best_two = np.sort(groups, axis=1)[:, -2:].sum(axis=1)
        kept = np.argsort(-best_two)[: routing.groups_used]
        masked = np.full_like(groups, -np.inf)
        masked[kept] = groups[kept]
        by = masked.reshape(-1)
    ids = np.argsort(-by)[: routing.used]
    weights = scores[ids]
    if routing.scoring == "softmax_of_chosen":
        weights = _softmax(weights)
    if routing.renormalize:
        weights = weights / max(weights.sum(), 6.103515625e-5)
    return weights * (routing.scale or 1), ids


def _softmax(a):
    e = np.exp(a - a.max())
    return e / e.sum()
