"""TASKS: every task by name. `quiet list` prints their one-line descriptions."""

from quietreasoning.data.tasks.aime import AIME
from quietreasoning.data.tasks.apps import Apps
from quietreasoning.data.tasks.arithmetic import Arithmetic
from quietreasoning.data.tasks.base import GeneratedTask, Task
from quietreasoning.data.tasks.encyclopaedia import Encyclopaedia
from quietreasoning.data.tasks.gsm8k import GSM8K
from quietreasoning.data.tasks.humaneval import HumanEval
from quietreasoning.data.tasks.jsonl import Jsonl
from quietreasoning.data.tasks.longbench import LongBench
from quietreasoning.data.tasks.maze import Maze
from quietreasoning.data.tasks.mbpp import MBPP
from quietreasoning.data.tasks.multiplication import Multiplication
from quietreasoning.data.tasks.pairs import Pairs
from quietreasoning.data.tasks.permutation import PermutationProduct
from quietreasoning.data.tasks.pointer import Pointer
from quietreasoning.data.tasks.popqa import PopQA
from quietreasoning.data.tasks.preferences import Preferences
from quietreasoning.data.tasks.programs import Programs
from quietreasoning.data.tasks.prosqa import ProsQA
from quietreasoning.data.tasks.reachability import Reachability
from quietreasoning.data.tasks.rows import TeacherRows
from quietreasoning.data.tasks.ruler import Ruler
from quietreasoning.data.tasks.strategies import Strategies
from quietreasoning.data.tasks.strategies_file import StrategiesFile
from quietreasoning.data.tasks.sudoku import Sudoku
from quietreasoning.data.tasks.text import Text
from quietreasoning.data.tasks.tools import Tools

_GENERATED = (
    Pointer,
    Arithmetic,
    Reachability,
    Multiplication,
    PermutationProduct,
    Sudoku,
    Maze,
    Encyclopaedia,
    Strategies,
    Tools,
    Programs,
    Ruler,
)
_FROM_FILES = (
    Jsonl,
    GSM8K,
    ProsQA,
    HumanEval,
    MBPP,
    AIME,
    Apps,
    PopQA,
    LongBench,
    Pairs,
    StrategiesFile,
    TeacherRows,
    Preferences,
    Text,
)
TASKS: dict[str, type[Task]] = {task.name: task for task in (*_GENERATED, *_FROM_FILES)}

__all__ = ["TASKS", "GeneratedTask", "Task"]
