"""One training step of `kimi-mini`: the weighted loss, Muon and Adam, and the router's bias.

Matrices of attention and of the dense layer take Muon (momentum, made orthogonal by Newton-Schulz
steps); experts, embedding, head, router and norms take Adam, which costs less per step. The
router's bias has no gradient: it moves by a fixed step toward the experts with less than the mean
load (the loss-free balancing of DeepSeek-V3).
"""

from functools import partial

import jax
import jax.numpy as jnp
from kimi_mini_model import Params, Routing, forward, with_fake_quantized_experts

MUON_RATE, ADAM_RATE, EMBED_RATE, BIAS_RATE = 6e-3, 2e-3, 6e-3, 1e-2
MUON_DECAY = 0.05
CLIP = 1.0
State = dict[str, Params]


def uses_muon(name: str, ndim: int) -> bool:
    """Whether Muon moves this parameter."""
    return ndim >= 2 and not any(k in name for k in ("embed", "lm_head", "mlp.gate.", "experts"))


def start(params: Params) -> State:
    """The optimizer's state: first moments of all parameters, second moments of Adam's."""
    return {
        "params": params,
        "first": {n: jnp.zeros_like(w) for n, w in params.items()},
        "second": {n: jnp.zeros_like(w) for n, w in params.items() if not uses_muon(n, w.ndim)},
    }


def losses(params: Params, ids: jax.Array) -> tuple[jax.Array, Routing]:
    """Nats of each next token [b, t - 1] of ids [b, t], and the routing."""
    logits, routing = forward(params, ids[:, :-1])
    chosen = jnp.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
    return jax.nn.logsumexp(logits, -1) - chosen, routing


def _loss(params, ids, weights, quantize):
    params = with_fake_quantized_experts(params) if quantize else params
    nats, routing = losses(params, ids)
    answers = (weights == 1).astype(nats.dtype)
    seen = (nats * answers).sum() / (answers.sum() + 1e-9)
    return (nats * weights).sum() / weights.sum(), (seen, routing.load)


def orthogonal(g: jax.Array) -> jax.Array:
    """Five Newton-Schulz steps toward the nearest matrix with singular values of about one."""
    tall = g.shape[-2] > g.shape[-1]
    x = g.swapaxes(-1, -2) if tall else g
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for a, b, c in ((3.4445, -4.7750, 2.0315),) * 5:
        s = x @ x.swapaxes(-1, -2)
        x = a * x + (b * s + c * s @ s) @ x
    return x.swapaxes(-1, -2) if tall else x


def _moved(state, grads, rate, time):
    """The state after one update; `rate` is the schedule's factor, `time` the step from 1."""
    params, first, second = (dict(state[k]) for k in ("params", "first", "second"))
    for name, g in grads.items():
        w = params[name]
        if uses_muon(name, w.ndim):
            first[name] = 0.95 * first[name] + g
            update = orthogonal(g + 0.95 * first[name]) * 0.2 * max(w.shape[-2:]) ** 0.5
            params[name] = w - rate * MUON_RATE * (update + MUON_DECAY * w)
        else:
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.99 * second[name] + 0.01 * g * g
            m, v = first[name] / (1 - 0.9**time), second[name] / (1 - 0.99**time)
            own = EMBED_RATE if "embed" in name else ADAM_RATE
            params[name] = w - rate * own * m / (jnp.sqrt(v) + 1e-8)
    return {"params": params, "first": first, "second": second}


@partial(jax.jit, static_argnames="quantize", donate_argnums=0)
def step(state: State, ids, weights, rate, time, quantize: bool):
    """One update; returns the state, the loss, the nats of an answer's token, and the loads."""
    (loss, (seen, loads)), grads = jax.value_and_grad(_loss, has_aux=True)(
        state["params"], ids, weights, quantize
    )
    norm = jnp.sqrt(sum((g * g).sum() for g in grads.values()))
    grads = {n: g * jnp.minimum(1, CLIP / (norm + 1e-9)) for n, g in grads.items()}
    biases = [n for n in grads if n.endswith("e_score_correction_bias")]
    grads = {n: g for n, g in grads.items() if n not in biases}
    state = _moved(state, grads, rate, time)
    for name, load in zip(biases, loads, strict=True):
        away = jnp.sign(load.mean() - load)
        state["params"][name] = state["params"][name] + rate * BIAS_RATE * away
    return state, loss, seen, loads
