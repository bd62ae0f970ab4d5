"""Every way to reason, by name."""

from quietreasoning.contract import Method
from quietreasoning.methods.bake import Bake
from quietreasoning.methods.compressor import StateCompressor
from quietreasoning.methods.continuous import Continuous
from quietreasoning.methods.cot import ChainOfThought
from quietreasoning.methods.cross import Cross
from quietreasoning.methods.distill import Distill
from quietreasoning.methods.lm import LanguageModel
from quietreasoning.methods.pause import Pause
from quietreasoning.methods.plain import Plain
from quietreasoning.methods.prefer import Prefer
from quietreasoning.methods.reasoner import RecursiveReasoner
from quietreasoning.methods.recall import Recall
from quietreasoning.methods.recursion import Recursion
from quietreasoning.methods.slots import Slots
from quietreasoning.methods.thoughts import Thinker
from quietreasoning.methods.workspace import Workspace

METHODS: dict[str, type[Method]] = {
    "plain": Plain,
    "cot": ChainOfThought,
    "pause": Pause,
    "continuous": Continuous,
    "slots": Slots,
    "workspace": Workspace,
    "recursion": Recursion,
    "reasoner": RecursiveReasoner,
    "compressor": StateCompressor,
    "lm": LanguageModel,
    "bake": Bake,
    "thoughts": Thinker,
    "distill": Distill,
    "cross": Cross,
    "prefer": Prefer,
    "recall": Recall,
}
