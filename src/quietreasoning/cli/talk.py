"""`quiet generate | chat`: one answer, or one a line, and what each cost."""

from __future__ import annotations

import sys

import typer

from quietreasoning.cli.guard import EXIT_BAD_INPUT, complain, guarded
from quietreasoning.cli.results import RUN

EFFORT = typer.Option(None, "--effort", min=0, metavar="N", help="Latents, loops or fillers, not as trained.")
MAX_NEW = typer.Option(None, "--max-new-tokens", min=1, metavar="N", help="Longest answer.")


@guarded
def generate(
    run: str = RUN,
    prompt: str = typer.Option(..., "--prompt", help="What to answer."),
    effort: int = EFFORT,
    max_new_tokens: int = MAX_NEW,
) -> None:
    """Answer one prompt."""
    from quietreasoning.run import open_run

    loaded = open_run(run)
    _answer(loaded, prompt, effort, max_new_tokens)


@guarded
def chat(run: str = RUN, effort: int = EFFORT, max_new_tokens: int = MAX_NEW) -> int:
    """Answer each line of standard input; Ctrl-D leaves."""
    from quietreasoning.config import UserError
    from quietreasoning.run import open_run

    loaded = open_run(run)
    interactive, refused = sys.stdin.isatty(), 0
    while True:
        if interactive:
            typer.echo("> ", nl=False)
        line = sys.stdin.readline()
        if not line or (interactive and not line.strip()):
            return EXIT_BAD_INPUT if refused and not interactive else 0
        if not line.strip():
            continue
        try:
            _answer(loaded, line.strip(), effort, max_new_tokens)
        except UserError as error:  # one bad question does not end the conversation
            complain(str(error))
            refused += 1


def _answer(loaded, prompt: str, effort: int | None, max_new_tokens: int | None) -> None:
    from quietreasoning.config import UserError
    from quietreasoning.data.example import Example

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
    try:
        reply = loaded.method.generate(prompt_BP, max_new_tokens=limit, effort=effort)
    except ValueError as error:  # an effort the method has no dial for
        raise UserError(str(error)) from None
    spent = reply.visible_tokens[0]
    if spent:
        typer.echo(f"thinks: {' '.join(loaded.encoder.text(reply.tokens[0][:spent]).split())}")
    typer.echo(loaded.encoder.text(reply.answers[0]) or "(no answer)")
    cost = f"{spent} thinking tokens, {reply.passes[0]} passes, {reply.latent_steps[0]} latent steps"
    typer.echo(f"[{cost}, {reply.milliseconds:.0f} ms]")
