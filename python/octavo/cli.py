"""The `octavo` command: arguments in, public API called, tables out; no logic of its own.

Results go to standard output (as JSON with `--json`), progress and errors to standard error. Exit
status: 0, 1 for an error that the message explains, 2 for wrong usage, 130 after Ctrl-C.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[argparse.Namespace, Any], int]


def _model_args(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    known = "a name (smollm2-135m, kimi-mini), a .gguf file, or a folder of safetensors"
    if optional:
        default = "default smollm2-135m, or kimi-mini without a network"
        parser.add_argument("--model", help=f"{known}; {default}")
    else:
        parser.add_argument("model", help=known)
    parser.add_argument("--threads", type=int, help="default: what this machine grants")


def _scheme_args(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kv", default="bf16", help="KV scheme, such as int8, k8v4, int4-had")
    parser.add_argument("--weights", default="checkpoint", help="weight scheme")
    parser.add_argument("--act", help="activation form: a32, a8, a8g32, a8x2 (the default)")


def _sampling_args(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int)


def _open(args: argparse.Namespace, **changes: Any) -> Any:
    import octavo

    options = {"kv": getattr(args, "kv", "bf16"), "threads": args.threads}
    options["weights"] = getattr(args, "weights", "checkpoint")
    if getattr(args, "act", None):
        options["act"] = args.act
    return octavo.LLM(args.model, **(options | changes))


def _params(args: argparse.Namespace) -> Any:
    import octavo

    return octavo.SamplingParams(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    )


def _read(path: str) -> str:
    if path == "-":
        return sys.stdin.read()
    if path == "shipped":
        from .demo import sample_text

        return sample_text()
    return Path(path).read_text(encoding="utf-8")


def demo(args: argparse.Namespace, console: Any) -> int:
    from .demo import run

    return run(args.model, console, threads=args.threads, tokens=args.tokens)


def pull(args: argparse.Namespace, console: Any) -> int:
    import octavo

    console.print(str(octavo.pull(args.name)), highlight=False, markup=False, soft_wrap=True)
    return 0


def info(args: argparse.Namespace, console: Any) -> int:
    with _open(args) as llm:
        console.print(str(llm), highlight=False, markup=False)
    return 0


def plan(args: argparse.Namespace, console: Any) -> int:
    import octavo

    bandwidth = args.bandwidth
    if bandwidth == "measured":
        bandwidth = octavo.machine(args.threads)
    out = octavo.plan(
        args.model, args.context, args.kv, args.weights, memory=args.memory or (),
        bandwidth=bandwidth,
    )  # fmt: skip
    if args.json:
        print(out.to_json())
        return 0
    for i, table in enumerate(out.tables()):
        if i:
            console.print()
        table.show(console)
    return 0


def generate(args: argparse.Namespace, console: Any) -> int:
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    with _open(args) as llm:
        for piece in llm.stream(prompt, _params(args)):
            print(piece, end="", flush=True)
        print()
    return 0


def chat(args: argparse.Namespace, console: Any) -> int:
    from .demo import chat_ids

    messages = [{"role": "system", "content": args.system}] if args.system else []
    with _open(args) as llm:
        console.print("An empty line or Ctrl-D ends the chat.", style="dim")
        while line := _ask():
            messages.append({"role": "user", "content": line})
            answer = ""
            for piece in llm.stream(chat_ids(llm, messages), _params(args)):
                print(piece, end="", flush=True)
                answer += piece
            print()
            messages.append({"role": "assistant", "content": answer})
    return 0


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def kernels(args: argparse.Namespace, console: Any) -> int:
    import octavo

    console.print(str(octavo.kernels()), highlight=False, markup=False)
    return 0


def profile(args: argparse.Namespace, console: Any) -> int:
    import octavo

    sizes = {name: getattr(args, name) for name in ("context", "prefill", "decode")}
    with _open(args) as llm:
        for found in octavo.profile(llm, **sizes).values():
            found.table().show(console)
    return 0


def perplexity(args: argparse.Namespace, console: Any) -> int:
    from .study import perplexity as study

    def shown(done: int, count: int, ppl: float) -> None:
        print(f"[{done}/{count}] {ppl:.4f}", file=sys.stderr, flush=True)

    with _open(args) as llm:
        text = _read(args.text)
        out = study(llm, text, args.protocol, chunks=args.chunks, on_window=shown, quiet=True)
    return _print(out, args, console)


def ladder(args: argparse.Namespace, console: Any) -> int:
    from .study import ladder as study

    with _open(args) as llm:
        out = study(llm, _read(args.text), args.kv_list, tokens=args.tokens)
        _print(out, args, console)
        if args.floor_act:
            with llm.variant(act=args.floor_act) as other:
                floor = study(other, _read(args.text), args.kv_list[:1], tokens=args.tokens)
            _print(floor, args, console)
    return 0


def divergence(args: argparse.Namespace, console: Any) -> int:
    from .study import divergence as study

    with _open(args, kv=args.base_kv) as llm:
        changes = [{"kv": kv} for kv in args.kv_list or ()]
        changes += [{"act": act} for act in args.act_list or ()]
        changes += [{"weights": w} for w in args.weights_list or ()]
        variants = [llm.variant(**change) for change in changes]
        try:
            out = study(llm, variants, _read(args.text), tokens=args.tokens)
        finally:
            for variant in variants:
                variant.close()
    return _print(out, args, console)


def _print(result: Any, args: argparse.Namespace, console: Any) -> int:
    if args.json:
        print(result.to_json())
    else:
        result.table().show(console)
    return 0


def _study_args(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", help="a UTF-8 file, - for standard input, or 'shipped'")
    parser.add_argument("--json", action="store_true", help="one JSON document a result")


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    from .study import LADDER, PROTOCOLS

    top = argparse.ArgumentParser(prog="octavo", description=__doc__.split(":")[0])
    commands = top.add_subparsers(required=True, metavar="command")

    def add(run: Run, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__, help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    p = add(demo, "pull a small model and compare KV schemes on it, in a minute")
    _model_args(p, optional=True)
    p.add_argument("--tokens", type=int, default=1024, help="tokens scored; default %(default)s")
    p = add(pull, "fetch a model by name and print where it lies")
    p.add_argument("name")
    p = add(info, "print what a checkpoint holds and what its cache will cost")
    _model_args(p)
    _scheme_args(p)
    p = add(plan, "what a model takes and reads, from its config alone, and what fits where")
    p.add_argument("model", help="kimi-k2.5, kimi-k2, deepseek-v3, a config.json or a folder with "
                   "one, or a .gguf file")  # fmt: skip
    p.add_argument("--context", type=int, help="tokens; default: what the model was made for")
    p.add_argument("--kv", default="bf16", help="KV scheme, such as int4; default %(default)s")
    p.add_argument("--weights", default="checkpoint", help="weight scheme; default %(default)s")
    p.add_argument("--memory", help="memories to fit it into, such as 24GiB,512GiB")
    p.add_argument("--bandwidth", help="such as 400GB/s, or 'measured' on this machine")
    p.add_argument("--threads", type=int, help="that measure; default: what this machine grants")
    p.add_argument("--json", action="store_true", help="one JSON document")
    p = add(generate, "continue a prompt")
    _model_args(p)
    p.add_argument("prompt", help="- for standard input")
    _scheme_args(p)
    _sampling_args(p)
    p = add(chat, "talk to an instruction-tuned model")
    _model_args(p)
    p.add_argument("--system", help="system message")
    _scheme_args(p)
    _sampling_args(p)
    add(kernels, "print which column serves which kernel on this machine")
    p = add(profile, "time per kind of work in a prefill and a decode, against the roofs")
    _model_args(p)
    _scheme_args(p)
    p.add_argument("--context", type=int, default=0, help="tokens before both; default %(default)s")
    p.add_argument("--prefill", type=int, default=512, help="tokens; default %(default)s")
    p.add_argument("--decode", type=int, default=64, help="tokens; default %(default)s")
    p = add(perplexity, "perplexity of a text under a published protocol")
    _model_args(p)
    _study_args(p)
    p.add_argument("--protocol", choices=PROTOCOLS, default="gptq-2048")
    p.add_argument("--chunks", type=int, help="windows to score; default: all")
    _scheme_args(p)
    p = add(ladder, "KL divergence of KV schemes from bf16, floor first, with intervals")
    _model_args(p)
    _study_args(p)
    p.add_argument("--tokens", type=int, default=4096, help="default %(default)s")
    p.add_argument("--kv", dest="kv_list", nargs="+", default=list(LADDER), metavar="SCHEME")
    p.add_argument("--weights", default="checkpoint", help="of both sides")
    p.add_argument("--act", help="of both sides; default a8x2")
    p.add_argument("--floor-act", metavar="ACT", help="print the floor under these too")
    p = add(divergence, "KL divergence of any variants from a base, with intervals")
    _model_args(p)
    _study_args(p)
    p.add_argument("--tokens", type=int, default=4096, help="default %(default)s")
    p.add_argument("--base-kv", default="bf16")
    p.add_argument("--base-act", dest="act", help="default a8x2")
    p.add_argument("--kv", dest="kv_list", nargs="+", metavar="SCHEME")
    p.add_argument("--act", dest="act_list", nargs="+", metavar="FORM")
    p.add_argument("--weights", dest="weights_list", nargs="+", metavar="SCHEME")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    from rich.console import Console

    args = parser().parse_args(argv)
    try:
        return args.run(args, Console())
    except KeyboardInterrupt:
        print("octavo: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader is gone: nothing more can be said
        return 1
    except (ArithmeticError, ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:
        print(f"octavo: {error}", file=sys.stderr)
        return 1
