"""Train `kimi-mini`, a miniature of Kimi K2.5's architecture, and write it as a Kimi checkpoint.

    python tools/train_kimi_mini.py FOLDER

One command, a fixed seed and a generated corpus; JAX on two CPU cores (`pip install . jax`). The
state is kept beside FOLDER every few minutes, so the same command goes on after a kill. The card's
figures are taken from the saved files, read back.
"""

import argparse
import json
import math
import os
import pickle
import platform
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import kimi_mini_files as files
import kimi_mini_model as model
import kimi_mini_optimizer as optimizer
import numpy as np

from octavo.study import kimi_mini as tasks

SEED = 20261129
KEEP_EVERY_S = 240


@dataclass(frozen=True)
class Stage:
    """Rows of `tokens` tokens, of which a share `recall` is recall alone, of the first `names`."""

    steps: int  # at most
    tokens: int
    rows: int
    recall: float
    names: int = len(tasks.NAMES)
    until: float = 0.0  # the nats of an answer's token, averaged, that end the stage early


# Short rows of few names until the heads that find a pair exist, then rows that grow.
GROWING = (
    Stage(1500, 64, 32, 1.0, 32, until=0.2),
    Stage(400, 128, 32, 0.9, until=0.25),
    Stage(100, 256, 16, 0.8, until=0.25),
    Stage(50, 512, 8, 0.7, until=0.25),
)
# The rest has its fixed length, over which the rate falls; experts are fake-quantized from the
# middle on, which is the last quarter of all tokens or more.
FALLING = (
    Stage(360, 256, 16, 0.25),
    Stage(150, 512, 8, 0.4),
    Stage(190, 1024, 4, 0.6),
    Stage(40, 2048, 2, 0.6),
)
FALLING_STEPS = sum(s.steps for s in FALLING)
WARM_UP = 30


class Progress(NamedTuple):
    """Where training is: all steps so far, the stage, its steps so far, and the mean answer."""

    step: int = 0
    stage: int = 0
    within: int = 0
    answer: float = 9.0
    minutes: float = 0.0
    tokens: int = 0

    def advanced(self, answer: float, minutes: float) -> "Progress":
        """After one more step, whose answers cost `answer` nats a token."""
        stage = (GROWING + FALLING)[self.stage]
        mean = 0.9 * self.answer + 0.1 * answer
        tokens = self.tokens + stage.tokens * stage.rows
        here = Progress(self.step + 1, self.stage, self.within + 1, mean, minutes, tokens)
        if here.within < stage.steps and mean > stage.until:
            return here
        return here._replace(stage=self.stage + 1, within=0, answer=9.0)

    def fallen(self) -> float:
        """The share of the falling steps that lie behind."""
        if self.stage < len(GROWING):
            return 0.0
        behind = sum(s.steps for s in FALLING[: self.stage - len(GROWING)])
        return (behind + self.within) / FALLING_STEPS

    def rate(self) -> float:
        """The schedule's factor: a warm-up, a plateau, then a cosine down to 0.03."""
        fall = 0.03 + 0.97 * (1 + math.cos(math.pi * self.fallen())) / 2
        return min(fall, (self.step + 1) / WARM_UP)


def tokenizer_text(seed: int) -> Iterator[str]:
    """What the merges are learnt from: rows of the corpus, and every name and value often."""
    rng = random.Random(f"kimi-mini tokenizer {seed}")
    for _ in range(600):
        yield "".join(p.text for p in tasks.row_parts(rng, 512, 0.5))
    for _ in range(30):
        yield "".join(tasks.NAMES) + "=".join(tasks.VALUES)


def make_tokenizer(seed: int) -> files.Tokenizer:
    """The tokenizer; what `tasks.count` counts as one token is one, or AssertionError."""
    tokenizer = files.train_tokenizer(tokenizer_text(seed))
    rng = random.Random(seed)
    text = "".join(tasks.NAMES) + "=".join(tasks.VALUES)
    text += "".join(a + b for a, b in tasks.BRACKETS)
    text += "".join(tasks.sentence(rng) for _ in range(2000))
    if len(tokenizer.encode(text)) != tasks.count(text):
        raise AssertionError("make_tokenizer: a name, value, bracket or word is not one token")
    return tokenizer


def encode_row(tokenizer, parts: list[tasks.Part], tokens: int) -> tuple[list, list]:
    """tokens + 1 ids, and the weights of the tokens to predict."""
    ids, weights = [], []
    for part in parts:
        new = tokenizer.encode(part.text)
        ids += new
        weights += [part.weight] * len(new)
    return ids[: tokens + 1], weights[1 : tokens + 1]


def batch(tokenizer, seed: int, at: Progress) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a step: ids int32 [b, t + 1] and weights float32 [b, t]."""
    stage, rng = (GROWING + FALLING)[at.stage], random.Random(f"kimi-mini train {seed} {at.step}")
    rows = []
    for _ in range(stage.rows):
        parts = tasks.row_parts(rng, stage.tokens + 1, stage.recall, stage.names)
        rows.append(encode_row(tokenizer, parts, stage.tokens))
    return np.array([r[0] for r in rows], np.int32), np.array([r[1] for r in rows], np.float32)


def keep(path: Path, at: Progress, state) -> None:
    """Write the training state; a kill while writing leaves the one before."""
    part = path.with_suffix(".part")
    with open(part, "wb") as f:
        pickle.dump((tuple(at), jax.tree.map(np.asarray, state)), f)
    os.replace(part, path)


def resume(path: Path, seed: int) -> tuple[Progress, dict]:
    """Where to go on, and the state."""
    if not path.exists():
        return Progress(), optimizer.start(model.initial(seed))
    with open(path, "rb") as f:
        at, state = pickle.load(f)
    print(f"going on at step {at[0]} of {path}", flush=True)
    return Progress(*at), jax.tree.map(jnp.asarray, state)


def train(folder: Path, tokenizer, seed: int, snapshots: bool) -> tuple[model.Params, Progress]:
    """All steps; returns the parameters and what they took."""
    path = folder.with_name(folder.name + "-state.pickle")
    at, state = resume(path, seed)
    start, before = time.monotonic(), at.minutes
    kept = start
    while at.stage < len(GROWING + FALLING):
        state, loss, answer, loads = optimizer.step(
            state,
            *batch(tokenizer, seed, at),
            jnp.float32(at.rate()),
            jnp.float32(at.step + 1),
            quantize=at.fallen() >= 0.5,
        )
        now = time.monotonic()
        at = at.advanced(float(answer), before + (now - start) / 60)
        if at.step % 10 == 0 or at.within == 0:
            uneven = float((loads.max(-1) / loads.mean(-1)).max())
            print(
                f"step {at.step} stage {at.stage} minutes {at.minutes:.1f} tokens {at.tokens} "
                f"loss {float(loss):.4f} answers {float(answer):.4f} uneven {uneven:.2f}",
                flush=True,
            )
        if now - kept > KEEP_EVERY_S or at.stage == len(GROWING + FALLING):
            kept = now
            keep(path, at, state)
            if snapshots:
                write(folder.with_name(f"{folder.name}-{int(at.minutes):02d}"), tokenizer, state)
    return state["params"], at


def write(folder: Path, tokenizer, state) -> None:
    """The checkpoint of a state."""
    files.save(folder, tokenizer, model.unstacked(state["params"]))


@jax.jit
def _greedy(params, ids):
    logits, _ = model.forward(params, ids)
    return logits.argmax(-1)


def exact(params, tokenizer, questions: list[tasks.Question]) -> list[bool]:
    """Which questions' whole answer greedy decoding gives.

    Greedy decoding gives the answer if and only if each of its tokens is the largest logit after
    the prompt and the answer's tokens before it, so one forward pass decides.
    """
    pairs = [(tokenizer.encode(q.prompt), tokenizer.encode(q.answer)) for q in questions]
    length = -(-max(len(p) + len(a) for p, a in pairs) // 64) * 64
    rows, right = min(len(pairs), max(1, 16384 // length)), []
    for at in range(0, len(pairs), rows):
        group = pairs[at : at + rows]
        ids = np.full((rows, length), files.EOS, np.int32)
        for i, (prompt, answer) in enumerate(group):
            ids[i, : len(prompt) + len(answer)] = prompt + answer
        said = np.asarray(_greedy(params, ids))
        for i, (prompt, answer) in enumerate(group):
            end = len(prompt) + len(answer) - 1
            right.append(list(said[i, len(prompt) - 1 : end]) == answer)
    return right


def held_out(params, tokenizer) -> dict:
    """Loss on held-out rows beside the unigram entropy of the same tokens, and expert loads."""
    parts = tasks.held_out_rows(64, 513, 0)
    ids = np.array([encode_row(tokenizer, p, 512)[0] for p in parts], np.int32)
    nats, load, moved = [], 0, 0
    for at in range(0, len(ids), 16):
        new, routing = jax.jit(optimizer.losses)(params, ids[at : at + 16])
        nats.append(np.asarray(new))
        load, moved = load + np.asarray(routing.load), moved + np.asarray(routing.moved)
    counts = np.array(list(Counter(ids[:, 1:].ravel().tolist()).values()))
    share = counts / counts.sum()
    load = load / load.sum(-1, keepdims=True)
    entropy = -(load * np.log2(np.maximum(load, 1e-12))).sum(-1)
    return {
        "tokens": int(counts.sum()),
        "nats_per_token": round(float(np.mean(nats)), 4),
        "unigram_entropy_nats": round(float(-(share * np.log(share)).sum()), 4),
        "expert_load_entropy_bits": [round(float(e), 4) for e in entropy],
        "expert_load_entropy_bits_at_most": math.log2(model.EXPERTS),
        "share_of_rows_that_the_bias_reroutes": [round(m / counts.sum(), 4) for m in moved],
    }


def figures(folder: Path, tokenizer) -> dict:
    """What the card states, from the saved files in float32 arithmetic.

    `answers` has a digit for each question, 1 where the answer was right.
    """
    params = model.stacked(files.load_tensors(folder / "model.safetensors"))
    right = {name: exact(params, tokenizer, asked) for name, asked in tasks.card_questions()}
    return {
        "right": {name: sum(each) / len(each) for name, each in right.items()},
        "answers": {name: "".join(str(int(r)) for r in each) for name, each in right.items()},
        "held_out": held_out(params, tokenizer),
    }


def card(seed: int, took: Progress, measured: dict) -> dict:
    """`card.json`."""
    return {
        "name": "kimi-mini",
        "what": "a numerics probe of Kimi K2.5's architecture, not a language model",
        "command": "python tools/train_kimi_mini.py FOLDER",
        "seed": seed,
        "training_tokens": took.tokens,
        "steps": took.step,
        "minutes": round(took.minutes, 1),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
        },
        "parameters": sum(math.prod(s) for s in model.shapes().values()),
        "figures": measured,
    }


def readme(made: dict) -> str:
    """`README.md`: the card in words."""
    f, held = made["figures"], made["figures"]["held_out"]
    right = "\n".join(f"| {name} | {share:.1%} |" for name, share in f["right"].items())
    versions = ", ".join(f"{name} {v}" for name, v in made["versions"].items())
    return f"""\
# kimi-mini

A miniature of Kimi K2.5's architecture (multi-head latent attention, sigmoid router with a
selection bias, int4 routed experts, YaRN): {made["parameters"]:,} parameters. It is a probe for
numerics: small enough for every test, and trained on tasks in which damage to the KV cache shows as
a wrong token. **It is not a language model**, and knows nothing but the tasks below.

## How it was made

`{made["command"]}`, seed {made["seed"]}: {made["steps"]:,} steps, {made["training_tokens"]:,}
tokens, {made["minutes"]:.0f} minutes on two CPU cores; {versions}. The corpus is generated by
`octavo.study.kimi_mini`; no other text went in. The router's bias follows the loss-free rule, and
in the last part of training the routed experts are fake-quantized to int4 in groups of 32
(scale = bf16(absmax / 7)), as they are stored.

## What it does

Measured on the saved files (bf16 weights, int4 experts) in float32 arithmetic, greedy decoding,
{tasks.CARD_QUESTIONS} held-out questions each; an answer counts when all its tokens are right.
`octavo.study.kimi_mini` makes the questions and asks them.

| task | right |
|---|---|
{right}

Held-out rows cost {held["nats_per_token"]} nats a token; the unigram entropy of the same tokens is
{held["unigram_entropy_nats"]} (random names and values cannot be predicted). Entropy of the load of
experts by layer: {", ".join(map(str, held["expert_load_entropy_bits"]))} of at most
{held["expert_load_entropy_bits_at_most"]} bits; the bias reroutes
{", ".join(f"{m:.1%}" for m in held["share_of_rows_that_the_bias_reroutes"])} of rows.
"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--snapshots", action="store_true", help="also FOLDER-MINUTES on the way")
    args = parser.parse_args()
    tokenizer = make_tokenizer(args.seed)
    params, took = train(args.folder, tokenizer, args.seed, args.snapshots)
    files.save(args.folder, tokenizer, model.unstacked(params))
    made = card(args.seed, took, figures(args.folder, tokenizer))
    (args.folder / "card.json").write_text(json.dumps(made, indent=2) + "\n")
    (args.folder / "README.md").write_text(readme(made))
    print(json.dumps(made, indent=2))


if __name__ == "__main__":
    main()
