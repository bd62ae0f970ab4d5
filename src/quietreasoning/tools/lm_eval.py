"""`python -m quietreasoning.tools.lm_eval ...` is `lm_eval ...` with one model more, `quiet`: a trained run.

    python -m quietreasoning.tools.lm_eval --model quiet --model_args run=runs/my-run --tasks gsm8k

model_args: run, a run folder or one of its checkpoints; batch_size; whole=True to hand over the chain and the
answer prefix too, for tasks that look for them. Needs the extra `eval`.
"""

from __future__ import annotations

import importlib.util
import sys

from quietreasoning.config import UserError


def register() -> type:
    """Make the model known to lm-evaluation-harness; its class. UserError where that is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is not installed; pip install quietreasoning[eval]")
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model

    from quietreasoning.build import open_run
    from quietreasoning.evaluate.lm_eval_adapter import LMEval, adapted

    def make(run: str, batch_size: int | str = 16, whole: bool = False) -> LMEval:
        loaded = open_run(run)
        size = int(batch_size) if str(batch_size).isdecimal() else 16
        return LMEval(loaded.method, loaded.encoder, loaded.max_new_tokens, size, bool(whole))

    return register_model("quiet")(adapted(LM, make))


def run() -> None:
    """Become lm_eval; a refusal is one line and exit code 2."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except UserError as error:
        print(f"quiet: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    run()
