"""`quiet generate | chat`: one answer, or one a line, and what each cost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from quietreasoning.cli.guard import EXIT_BAD_INPUT, complain, guarded
from quietreasoning.cli.results import RUN

EFFORT = typer.Option(None, "--effort", min=0, metavar="N", help="Latents, loops or fillers, not as trained.")
SETTINGS = typer.Argument(None, metavar="[A.B=C]...", help="How it answers, such as eval.kv_cache.bits=8.")
MAX_NEW = typer.Option(None, "--max-new-tokens", min=1, metavar="N", help="Longest answer.")


@guarded
def generate(
    run: str = RUN,
    settings: list[str] = SETTINGS,
    prompt: str = typer.Option(..., "--prompt", help="What to answer."),
    effort: int = EFFORT,
    max_new_tokens: int = MAX_NEW,
) -> None:
    """Answer one prompt."""
    with _opened(run, settings) as (loaded, meter):
        _answer(loaded, meter, prompt, effort, max_new_tokens)


@guarded
def chat(
    run: str = RUN, settings: list[str] = SETTINGS, effort: int = EFFORT, max_new_tokens: int = MAX_NEW
) -> int:
    """Answer each line of standard input; Ctrl-D leaves."""
    from quietreasoning.config import UserError

    interactive, refused = sys.stdin.isatty(), 0
    with _opened(run, settings) as (loaded, meter):
        while True:
            if interactive:
                typer.echo("> ", nl=False)
            line = sys.stdin.readline()
            if not line or (interactive and not line.strip()):
                return EXIT_BAD_INPUT if refused and not interactive else 0
            if not line.strip():
                continue
            try:
                _answer(loaded, meter, line.strip(), effort, max_new_tokens)
            except UserError as error:  # one bad question does not end the conversation
                complain(str(error))
                refused += 1


@contextmanager
def _opened(run: str, settings: list[str] | None) -> Iterator[tuple]:
    """The run, and the meter of its caches where `eval.kv_cache` compresses them."""
    from quietreasoning.evaluate.kv_cache import through
    from quietreasoning.run import check_answering, open_run

    check_answering(settings or ())
    loaded = open_run(run, settings or ())
    if loaded.config.eval.kv_cache is None:
        yield loaded, None
        return
    with through(loaded.method, loaded.config.eval.kv_cache) as meter:
        yield loaded, meter


def _answer(loaded, meter, prompt: str, effort: int | None, max_new_tokens: int | None) -> None:
    from quietreasoning.config import UserError
    from quietreasoning.data.example import Example
    from quietreasoning.evaluate.answer_only import AnswerOnly

    question = Example(id="prompt", prompt=prompt, steps=(), results=(), answer="", meta={"num_steps": 0})
    limit, context = max_new_tokens or loaded.max_new_tokens, loaded.encoder.context
    length = len(loaded.encoder.prompt_ids([prompt])[0])
    if length + limit > context:
        raise UserError(
            f"the prompt has {length} tokens, the answer may have {limit}, the model's context is {context}; "
            "shorten the prompt, or lower --max-new-tokens"
        )
    prompt_BP = loaded.encoder.prompts([question]).to(loaded.device)
    unknown = loaded.encoder.unknown_words(prompt)
    if unknown:
        typer.echo(f"quiet: note: this model does not know: {' '.join(unknown)}", err=True)
    if meter is not None:
        meter.begin()
    asked, read = loaded.config.eval, loaded.encoder.text
    answer_only = AnswerOnly(loaded.encoder.tokenizer, asked.lexicon, asked.rationale_bias, asked.stop)
    permit = answer_only.permit(loaded.method) if answer_only else None
    try:
        reply = loaded.method.generate(prompt_BP, max_new_tokens=limit, effort=effort, permit=permit)
    except ValueError as error:  # an effort the method has no dial for
        raise UserError(str(error)) from None
    spent = reply.visible_tokens[0]
    if spent:
        typer.echo(f"thinks: {' '.join(read(reply.tokens[0][:spent]).split())}")
    typer.echo(answer_only.text(read)(answer_only.cut(reply.answers[0])) or "(no answer)")
    cost = f"{spent} thinking tokens, {reply.passes[0]} passes, {reply.latent_steps[0]} latent steps"
    if meter is not None:
        held, plain = meter.note(reply, reply.milliseconds)
        cost += f", {held / 1e3:.0f} kB of keys and values, plain {plain / 1e3:.0f} kB"
    typer.echo(f"[{cost}, {reply.milliseconds:.0f} ms]")
